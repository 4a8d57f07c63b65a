//! The conformance tier: the rows that are unit tests of the control plane, then those that send
//! packets, and one count of both.

use std::fs;

use anyhow::{Context as _, Result};

use super::{Tally, cargo_test};
use crate::{command, compile, root, setup};

/// Runs the tier; `filter` are ids of rows.
///
/// # Errors
/// A program cannot be built or started.
pub(super) fn test(filter: &[String]) -> Result<(Tally, Option<String>)> {
    setup::network()?;
    compile::build(false)?;

    let mut cargo = command::cargo();
    cargo.args(["test", "--no-fail-fast", "--package", "lb-userspace"]);
    cargo.args([
        "--test",
        "conformance_logic",
        "--test",
        "conformance_health",
    ]);
    let mut results = Vec::new();
    let (_, failure) = cargo_test(cargo, &[], |line| {
        if let Some((id, result)) = logic(line) {
            results.push(format!("{id} {result}"));
        }
    })?;
    // Its failures are the rows' failures, unless it did not even compile.
    if results.is_empty() {
        return Ok((Tally::default(), failure));
    }
    let path = root().join("target/conformance-logic.txt");
    fs::write(&path, results.join("\n")).with_context(|| format!("write {}", path.display()))?;

    let mut cargo = command::cargo();
    cargo
        .args(["test", "--package", "lb-tests", "--test", "conformance"])
        .env("CONFORMANCE_LOGIC", &path);
    let mut count = Tally::default();
    let (_, failure) = cargo_test(cargo, filter, |line| {
        if let Some(tally) = counted(line) {
            count = tally;
        }
    })?;
    Ok((count, failure))
}

/// Row and result of a line such as `test section_h::conformance_h91_what_it_is_about ... ok`.
fn logic(line: &str) -> Option<(String, &str)> {
    let (name, result) = line.strip_prefix("test ")?.split_once(" ... ")?;
    let (_, row) = name.split_once("conformance_")?;
    let (id, _) = row.split_once('_')?;
    Some((id.to_uppercase(), result))
}

/// Reads `conformance: 5 passed, 1 not ours, 0 missing, 2 failed`. A missing row is no better than a
/// failed one.
fn counted(line: &str) -> Option<Tally> {
    let counts = line.strip_prefix("conformance: ")?;
    let count = |word: &str| {
        let part = counts
            .split(", ")
            .find_map(|part| part.strip_suffix(word))?;
        part.trim().parse::<u64>().ok()
    };
    Some(Tally {
        passed: count("passed")?,
        failed: count("failed")? + count("missing")?,
        ignored: count("not ours")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_read_from_names_and_counts_from_the_last_line() {
        let line = "test section_h::conformance_h91_terminating_endpoints ... ok";
        assert_eq!(logic(line), Some(("H91".to_owned(), "ok")));
        let line = "test conformance_k01_listeners ... FAILED";
        assert_eq!(logic(line), Some(("K01".to_owned(), "FAILED")));
        assert_eq!(logic("test fixture::works ... ok"), None);
        let line = "conformance: 12 passed, 3 not ours, 1 missing, 2 failed";
        let expected = Tally {
            passed: 12,
            failed: 3,
            ignored: 3,
        };
        assert_eq!(counted(line), Some(expected));
    }
}
