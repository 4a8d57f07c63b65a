//! Medians, the table, and the rows as JSON.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use serde::Serialize;

use super::{
    case::{Row, Setup},
    gate::{Ratios, Rows},
    kernel::Program,
    memory::Memory,
};

/// A row of the result.
#[derive(Debug, Serialize)]
pub(super) struct Outcome {
    pub(super) name: String,
    /// Median less the median of the null row of the same family and hook. The null rows' own is 0.
    pub(super) net_ns: f64,
    pub(super) target_ns: Option<u32>,
    median_ns: f64,
    min_ns: f64,
    /// First and third.
    quartiles: [f64; 2],
    verdicts: BTreeMap<String, u64>,
    iterations: u64,
    /// As the gate compares them; `None` for rows that do not repeat well enough.
    #[serde(skip_serializing_if = "Option::is_none")]
    ratios: Option<Ratios>,
}

/// Sums up what was measured.
///
/// # Errors
///
/// A yardstick was not measured.
pub(super) fn results(rows: &[&Row]) -> Result<Vec<Outcome>> {
    rows.iter()
        .map(|row| {
            let null = null_of(row, rows)?;
            let median = quantile(&row.samples, 2)?;
            let net = median - null;
            let ratios = if is_gated(row) {
                let reference = reference(rows, row.flows)?;
                Some(Ratios::of(net, null, reference))
            } else {
                None
            };
            Ok(Outcome {
                name: row.name.clone(),
                net_ns: tenths(net),
                target_ns: row.target,
                median_ns: tenths(median),
                min_ns: tenths(quantile(&row.samples, 0)?),
                quartiles: [
                    tenths(quantile(&row.samples, 1)?),
                    tenths(quantile(&row.samples, 3)?),
                ],
                verdicts: row.verdicts(),
                iterations: row.iterations,
                ratios,
            })
        })
        .collect()
}

/// Rows that repeat well enough for the gate: those that insert nothing, look up no route, and whose
/// flows some cache still helps with.
fn is_gated(row: &Row) -> bool {
    let steady = matches!(row.setup, Setup::Warm | Setup::Established);
    let is_yardstick = row.is_null() || row.program == Program::Reference;
    steady && !is_yardstick && row.flows <= super::FLOWS
}

/// Median of the null row of the same family and hook.
fn null_of(row: &Row, rows: &[&Row]) -> Result<f64> {
    let null = rows
        .iter()
        .find(|other| other.is_null() && other.is_kin(row));
    quantile(&null.context("a null row is missing")?.samples, 2)
}

/// Net cost of the reference program with as many flows, or as few.
fn reference(rows: &[&Row], flows: u32) -> Result<f64> {
    let mut references = rows
        .iter()
        .filter(|row| row.program == Program::Reference && !row.is_null());
    let row = references
        .find(|row| (row.flows > 1_024) == (flows > 1_024))
        .context("a reference row is missing")?;
    Ok(quantile(&row.samples, 2)? - null_of(row, rows)?)
}

/// What the gate compares.
pub(super) fn ratios(results: &[Outcome]) -> Rows {
    results
        .iter()
        .filter_map(|row| Some((row.name.clone(), row.ratios?)))
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
        "ns per packet: CPU time in BPF_PROG_TEST_RUN; net = median less the null row of family and hook"
    );
    println!("table full: each flow evicts the two halves of an older one, as in a flood of SYNs");
    let widest = results.iter().map(|row| row.name.chars().count()).max();
    let width = widest.unwrap_or(0) + 2;
    println!(
        "\n{:<width$}{:>8}{:>8}  {:<8}{:>8}{:>8}  {:<16}verdicts",
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
            "{:<width$}{:>8.1}{target:>8}  {met:<8}{:>8.1}{:>8.1}  {:<16}{}",
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

#[cfg(test)]
mod tests {
    use super::quantile;

    #[test]
    fn quantiles_are_samples() {
        let samples = [5.0, 1.0, 4.0, 2.0, 3.0];
        for (quarters, expected) in [1.0, 2.0, 3.0, 4.0, 5.0_f64].into_iter().enumerate() {
            let found = quantile(&samples, quarters).unwrap();
            assert!((found - expected).abs() < 1e-9, "{quarters}: {found}");
        }
        assert!(quantile(&[], 2).is_err());
    }
}
