//! Medians, the table, and the rows as JSON.

use std::{collections::BTreeMap, fs::File, io::BufWriter, path::Path};

use anyhow::{Context as _, Result};
use serde::Serialize;

use super::{
    case::{Kind, Row},
    memory::Memory,
};

/// A row of the result.
#[derive(Debug, Serialize)]
pub(super) struct Outcome {
    name: String,
    /// Median less the median of the family's null row. The null rows' own is 0.
    net_ns: f64,
    target_ns: Option<u32>,
    median_ns: f64,
    min_ns: f64,
    /// First and third.
    quartiles: [f64; 2],
    verdicts: BTreeMap<&'static str, u64>,
    iterations: u64,
}

const VERDICTS: [&str; 5] = ["ABORTED", "DROP", "PASS", "TX", "REDIRECT"];

/// Sums up what was measured.
pub(super) fn results(rows: &[Row]) -> Result<Vec<Outcome>> {
    rows.iter()
        .map(|row| {
            let null = rows
                .iter()
                .find(|other| other.kind == Kind::Null && other.is_kin(row))
                .context("a null row is missing")?;
            let median = quantile(&row.samples, 2)?;
            let verdicts = VERDICTS.into_iter().zip(row.verdicts);
            Ok(Outcome {
                name: row.name.clone(),
                net_ns: tenths(median - quantile(&null.samples, 2)?),
                target_ns: row.target,
                median_ns: tenths(median),
                min_ns: tenths(quantile(&row.samples, 0)?),
                quartiles: [
                    tenths(quantile(&row.samples, 1)?),
                    tenths(quantile(&row.samples, 3)?),
                ],
                verdicts: verdicts.filter(|(_, count)| *count > 0).collect(),
                iterations: row.iterations,
            })
        })
        .collect()
}

/// The sample `quarters` of the way through the samples in order.
fn quantile(samples: &[f64], quarters: usize) -> Result<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().saturating_sub(1);
    let at = (last * quarters + 2) / 4;
    sorted.get(at).copied().context("a row was never run")
}

fn tenths(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

/// Prints the table.
#[expect(clippy::print_stdout, reason = "the result of the program")]
pub(super) fn print(results: &[Outcome], memory: &[Memory], machine: &str) {
    println!("{machine}");
    println!(
        "ns per packet: CPU time in BPF_PROG_TEST_RUN; net = median less the family's null row"
    );
    println!("table full: each flow evicts the two halves of an older one, as in a flood of SYNs");
    println!(
        "\n{:<52}{:>8}{:>8}  {:<8}{:>8}{:>8}  {:<16}verdicts",
        "row", "net", "target", "", "median", "min", "quartiles"
    );
    for row in results {
        let (target, met) = match row.target_ns {
            Some(target) if row.net_ns <= f64::from(target) => (format!("≤ {target}"), "met"),
            Some(target) => (format!("≤ {target}"), "NOT MET"),
            None => (String::new(), ""),
        };
        let [first, third] = row.quartiles;
        let verdicts: Vec<String> = row
            .verdicts
            .iter()
            .map(|(name, count)| format!("{count} {name}"))
            .collect();
        println!(
            "{:<52}{:>8.1}{target:>8}  {met:<8}{:>8.1}{:>8.1}  {:<16}{}",
            row.name,
            row.net_ns,
            row.median_ns,
            row.min_ns,
            format!("{first:.1} {third:.1}"),
            verdicts.join(", "),
        );
    }
    println!();
    for memory in memory {
        let met = if memory.computed <= memory.target {
            "met"
        } else {
            "NOT MET"
        };
        println!(
            "memory per {} flow: 2 halves of {} B element and 16 B bucket = {} B, target ≤ {} B: \
             {met}; charged by the kernel: {:.1} B",
            memory.family, memory.element, memory.computed, memory.target, memory.measured,
        );
    }
}

/// Writes the rows as a JSON array.
pub(super) fn write(results: &[Outcome], path: &Path) -> Result<()> {
    let file = File::create(path).with_context(|| format!("create {}", path.display()))?;
    serde_json::to_writer_pretty(BufWriter::new(file), results)
        .with_context(|| format!("write {}", path.display()))
}
