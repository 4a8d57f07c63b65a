//! The tables for people, and the rows as JSON.

use std::{fs::File, io::BufWriter, path::Path};

use anyhow::{Context as _, Result};
use serde::Serialize;

use super::{Changes, Outcome, Whole};

/// How times are spread, in milliseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Percentiles {
    /// Half of them.
    pub p50: f64,
    /// All but one in a hundred.
    pub p99: f64,
    /// All but one in a thousand.
    pub p999: f64,
    /// All.
    pub max: f64,
}

impl Percentiles {
    /// The percentiles of times.
    ///
    /// # Errors
    ///
    /// There are none.
    pub fn of(mut times: Vec<f64>) -> Result<Self> {
        times.sort_by(f64::total_cmp);
        let last = times.len().checked_sub(1).context("nothing was measured")?;
        let at = |thousandth: usize| {
            let index = (times.len() * thousandth).div_ceil(1_000);
            let index = index.saturating_sub(1).min(last);
            times.get(index).copied().unwrap_or_default()
        };
        Ok(Self {
            p50: at(500),
            p99: at(990),
            p999: at(999),
            max: at(1_000),
        })
    }
}

/// Prints what was measured with one number of Services.
#[expect(clippy::print_stdout, reason = "the result of the program")]
pub(super) fn print(outcome: &Outcome) {
    let Outcome {
        services,
        endpoints,
        memory: [before, after],
        whole,
        changes,
        kernel,
    } = outcome;
    println!("{services} Services of {endpoints} endpoints");
    println!(
        "  everything, ms{:>24}{:>10}{:>10}{:>12}",
        "plan", "apply", "both", "operations"
    );
    for Whole {
        what,
        plan,
        apply,
        operations,
    } in whole
    {
        let both = plan + apply;
        println!("    {what:<24}{plan:>10.1}{apply:>10.1}{both:>10.1}{operations:>12}");
    }
    println!(
        "  one change, ms{:>24}{:>16}{:>10}{:>10}{:>10}{:>8}{:>8}",
        "plan p50", "apply p50", "p50", "p99", "p99.9", "max", "whole"
    );
    for Changes {
        what,
        whole,
        plan,
        apply,
        total,
    } in changes
    {
        println!(
            "    {what:<26}{:>9.3}{:>16.3}{:>10.3}{:>10.3}{:>10.3}{:>8.2}{whole:>8}",
            plan.p50, apply.p50, total.p50, total.p99, total.p999, total.max
        );
    }
    println!(
        "  resident memory at most {:.0} MiB, before the first plan {:.0} MiB",
        mebibytes(*after),
        mebibytes(*before)
    );
    println!(
        "  kernel memory of a service port {:.0} B (Maglev tables {:.0} B), of a backend {:.0} B; \
         all maps {:.0} MiB\n",
        kernel.service,
        kernel.slots,
        kernel.backend,
        mebibytes(kernel.all)
    );
}

#[expect(clippy::cast_precision_loss, reason = "for people to read")]
fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Writes the rows as JSON.
pub(super) fn write(outcomes: &[Outcome], path: &Path) -> Result<()> {
    let file = File::create(path).with_context(|| format!("create {}", path.display()))?;
    serde_json::to_writer_pretty(BufWriter::new(file), outcomes)
        .with_context(|| format!("write {}", path.display()))
}
