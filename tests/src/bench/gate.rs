//! The regression gate: each row's cost as a ratio to two yardsticks, against a committed baseline.
//!
//! Nanoseconds are the machine's, ratios nearly the program's. The yardsticks are the gross cost of the
//! null row and the net cost of the reference program, with few or with many flows as the row has. Each of
//! them is noisy by itself, so a row counts as slower only if it is by both.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

/// How far a ratio may be from its baseline.
const TOLERANCE: f64 = 0.15;
/// Nanoseconds below which the wrapper leaves a row unsure: what is cheaper counts as this.
const UNSURE: f64 = 10.0;

/// Cost of a row, as ratios.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct Ratios {
    /// Net cost to the gross cost of the null row.
    pub(super) to_null: f64,
    /// Net cost to that of the reference program.
    pub(super) to_reference: f64,
}

impl Ratios {
    /// Of a row's net cost, the null row's gross and the reference program's net, in nanoseconds.
    pub(super) fn of(net: f64, null: f64, reference: f64) -> Self {
        let net = net.max(UNSURE);
        Self {
            to_null: thousandths(net / null.max(UNSURE)),
            to_reference: thousandths(net / reference.max(UNSURE)),
        }
    }

    /// This as a multiple of `other`: the lesser of both ratios, and the greater.
    fn against(self, other: Self) -> (f64, f64) {
        let null = self.to_null / other.to_null;
        let reference = self.to_reference / other.to_reference;
        (null.min(reference), null.max(reference))
    }
}

fn thousandths(value: f64) -> f64 {
    (value * 1_000.0).round() / 1_000.0
}

/// Rows by name.
pub(super) type Rows = BTreeMap<String, Ratios>;

/// What became of the rows since the baseline. Each names rows; numbers are multiples of the baseline.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Comparison {
    /// By more than the tolerance.
    pub(super) slower: Vec<(String, f64)>,
    /// By more than the tolerance.
    pub(super) faster: Vec<(String, f64)>,
    /// Not measured any more.
    pub(super) missing: Vec<String>,
    /// Not in the baseline yet.
    pub(super) new: Vec<String>,
}

/// Compares what was measured. `some`: only some rows were, so that none is missing.
pub(super) fn compare(baseline: &Rows, measured: &Rows, some: bool) -> Comparison {
    let mut comparison = Comparison::default();
    for (name, now) in measured {
        let Some(then) = baseline.get(name) else {
            comparison.new.push(name.clone());
            continue;
        };
        let (least, most) = now.against(*then);
        if least > 1.0 + TOLERANCE {
            comparison.slower.push((name.clone(), least));
        } else if most < 1.0 / (1.0 + TOLERANCE) {
            comparison.faster.push((name.clone(), most));
        }
    }
    if !some {
        let gone = baseline.keys().filter(|name| !measured.contains_key(*name));
        comparison.missing.extend(gone.cloned());
    }
    comparison
}

impl Comparison {
    /// Prints each finding, and fails on those that must not be.
    ///
    /// # Errors
    ///
    /// A row got slower, or the baseline is one of other rows.
    #[expect(clippy::print_stdout, reason = "the result of the program")]
    pub(super) fn judge(&self, rows: usize) -> Result<()> {
        for (name, times) in &self.slower {
            println!("slower: {name}: {times:.2} times the baseline");
        }
        for (name, times) in &self.faster {
            println!("faster: {name}: {times:.2} times the baseline");
        }
        for name in &self.missing {
            println!("in the baseline, but not measured: {name}");
        }
        for name in &self.new {
            println!("measured, but not in the baseline: {name}");
        }
        if !self.faster.is_empty() {
            println!("`--update` keeps what was won");
        }
        ensure!(
            self.slower.is_empty(),
            "{} of {rows} rows are more than {:.0} % slower than the baseline",
            self.slower.len(),
            TOLERANCE * 100.0,
        );
        ensure!(
            self.missing.is_empty() && self.new.is_empty(),
            "the baseline has other rows: `--update` makes it anew",
        );
        println!(
            "{rows} rows within {:.0} % of the baseline",
            TOLERANCE * 100.0
        );
        Ok(())
    }
}

/// Reads a baseline.
///
/// # Errors
///
/// There is none, or it is something else.
pub(super) fn read(path: &Path) -> Result<Rows> {
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("read {}", path.display()))
}

/// Writes a baseline.
///
/// # Errors
///
/// The file cannot be written.
pub(super) fn write(path: &Path, rows: &Rows) -> Result<()> {
    let mut text = serde_json::to_string_pretty(rows)?;
    text.push('\n');
    fs::write(path, text).with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(rows: &[(&str, f64, f64)]) -> Rows {
        let ratios = |to_null, to_reference| Ratios {
            to_null,
            to_reference,
        };
        rows.iter()
            .map(|&(name, null, reference)| (name.to_owned(), ratios(null, reference)))
            .collect()
    }

    #[test]
    fn a_row_is_slower_only_by_both_yardsticks() {
        let baseline = rows(&[("a", 1.0, 2.0)]);
        for (null, reference, slower, faster) in [
            (1.1, 2.2, false, false),
            (1.2, 2.4, true, false),
            // The null row was quick, or the reference program was.
            (1.3, 2.0, false, false),
            (1.0, 2.6, false, false),
            (0.8, 1.6, false, true),
            (0.8, 2.0, false, false),
        ] {
            let found = compare(&baseline, &rows(&[("a", null, reference)]), false);
            assert_eq!(!found.slower.is_empty(), slower, "{null} {reference}");
            assert_eq!(!found.faster.is_empty(), faster, "{null} {reference}");
            assert_eq!(found.judge(1).is_err(), slower, "{null} {reference}");
        }
    }

    #[test]
    fn rows_come_and_go_by_name() {
        let baseline = rows(&[("kept", 1.0, 1.0), ("gone", 1.0, 1.0)]);
        let measured = rows(&[("kept", 1.0, 1.0), ("made", 1.0, 1.0)]);
        let found = compare(&baseline, &measured, false);
        assert_eq!(found.missing, ["gone"]);
        assert_eq!(found.new, ["made"]);
        assert!(found.judge(2).is_err());
        let some = compare(&baseline, &rows(&[("kept", 1.0, 1.0)]), true);
        assert_eq!(some, Comparison::default());
        assert!(some.judge(1).is_ok());
    }

    #[test]
    fn what_is_too_cheap_to_tell_counts_the_same() {
        let ratios = Ratios::of(105.0, 50.0, 70.0);
        assert_eq!((ratios.to_null, ratios.to_reference), (2.1, 1.5));
        assert_eq!(Ratios::of(3.0, 50.0, 70.0), Ratios::of(9.0, 50.0, 70.0));
        assert_eq!(Ratios::of(-3.0, 50.0, 70.0), Ratios::of(10.0, 50.0, 70.0));
        assert!(Ratios::of(70.0, 50.0, -1.0).to_reference.is_finite());
    }

    #[test]
    fn a_baseline_survives_its_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("baseline.json");
        assert!(read(&path).is_err());
        let baseline = rows(&[("a", 1.234, 0.5), ("b", 10.0, 2.0)]);
        write(&path, &baseline).unwrap();
        assert_eq!(read(&path).unwrap(), baseline);
    }
}
