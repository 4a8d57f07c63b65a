//! How much of the verifier's patience each shipped program takes, against a committed budget.
//!
//! The kernel gives up a program after a million instructions followed (`BPF_COMPLEXITY_LIMIT_INSNS`), and
//! another kernel, or another compiler, comes to another number for the same program.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use aya::{EbpfLoader, programs::Program};
use lb_common::names;

/// No budget is above this: half of the verifier's limit.
const MOST: u32 = 500_000;
/// Sizes that load in no time; a count hardly depends on them.
const SMALL: u32 = 1_024;

/// Instructions by program.
pub type Counts = BTreeMap<String, u32>;

/// Where the budget is committed.
pub fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("bench/verifier.json")
}

/// Loads every program of an object and tells how many instructions the verifier followed.
///
/// # Errors
///
/// A program does not load, or the kernel does not tell (before Linux 5.16).
pub fn count(object: &Path) -> Result<Counts> {
    let mut loader = EbpfLoader::new();
    loader.btf(None);
    for (name, _) in names::MAPS
        .iter()
        .filter(|(name, _)| *name != names::EVENTS)
    {
        loader.map_max_entries(name, SMALL);
    }
    let mut object = loader
        .load_file(object)
        .with_context(|| format!("load {}", object.display()))?;
    let mut counts = Counts::new();
    for (name, program) in object.programs_mut() {
        let info = match program {
            Program::Xdp(program) => program.load().and_then(|()| program.info()),
            Program::SchedClassifier(program) => program.load().and_then(|()| program.info()),
            Program::TracePoint(program) => program.load().and_then(|()| program.info()),
            other => bail!("{name} is a program of type {:?}", other.prog_type()),
        };
        let info = info.with_context(|| format!("load {name}"))?;
        let count = info
            .verified_instruction_count()
            .with_context(|| format!("the kernel does not tell the instructions of {name}"))?;
        counts.insert(name.to_owned(), count);
    }
    Ok(counts)
}

/// Reads the budget.
///
/// # Errors
///
/// There is none, or it is something else.
pub fn budget() -> Result<Counts> {
    let path = path();
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("read {}", path.display()))
}

/// Writes a budget of a tenth more than the programs take now.
///
/// # Errors
///
/// The file cannot be written.
pub(super) fn write(counts: &Counts) -> Result<()> {
    let budget: Counts = counts
        .iter()
        .map(|(name, count)| (name.clone(), with_room(*count)))
        .collect();
    let path = path();
    let mut text = serde_json::to_string_pretty(&budget)?;
    text.push('\n');
    fs::write(&path, text).with_context(|| format!("write {}", path.display()))
}

/// A tenth more, in round numbers.
const fn with_room(count: u32) -> u32 {
    let more = count + count / 10;
    let step = if more < 1_000 { 10 } else { 100 };
    more.div_ceil(step) * step
}

/// Holds programs against the budget.
///
/// # Errors
///
/// Names each program that takes more than it may, that the budget does not have, or that is not there.
pub fn check(counts: &Counts, budget: &Counts) -> Result<()> {
    let mut wrong = String::new();
    let mut add = |line: String| writeln!(wrong, "{line}").expect("a string takes everything");
    for (name, count) in counts {
        match budget.get(name) {
            None => add(format!("{name}: {count} instructions, and no budget")),
            Some(most) if count > most => add(format!("{name}: {count} instructions of {most}")),
            Some(most) if *most > MOST => add(format!("{name}: a budget of {most}, above {MOST}")),
            Some(_) => {}
        }
    }
    for name in budget.keys().filter(|name| !counts.contains_key(*name)) {
        add(format!("{name}: a budget, and no such program"));
    }
    if wrong.is_empty() {
        return Ok(());
    }
    bail!("the verifier's budget:\n{}", wrong.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(of: &[(&str, u32)]) -> Counts {
        of.iter().map(|&(name, n)| (name.to_owned(), n)).collect()
    }

    #[test]
    fn each_program_has_a_budget_and_keeps_to_it() {
        let budget = counts(&[("one", 100), ("two", 200)]);
        assert!(check(&budget, &budget).is_ok());
        for (found, named) in [
            (counts(&[("one", 101), ("two", 200)]), "one"),
            (counts(&[("one", 100)]), "two"),
            (counts(&[("one", 1), ("two", 2), ("three", 3)]), "three"),
        ] {
            let error = check(&found, &budget).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
        let lavish = counts(&[("one", MOST + 1)]);
        assert!(check(&counts(&[("one", 5)]), &lavish).is_err());
    }

    #[test]
    fn a_budget_has_a_tenth_of_room() {
        assert_eq!(
            [3, 100, 990, 12_345].map(with_room),
            [10, 110, 1_100, 13_600]
        );
    }
}
