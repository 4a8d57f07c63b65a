//! Medians, the tables, the plot.

use std::path::Path;

use anyhow::{Context as _, Result};
use lb_tests::{
    figure::{self, Figure},
    plot::{Axis, Bar, Bars, Plot as _, Scale},
};

use crate::rows::{Row, Sample};

/// Prints and draws what was measured.
#[expect(clippy::print_stdout, reason = "the result of the program")]
pub(crate) fn report(rows: &[Row], machine: &str, json: Option<&Path>) -> Result<()> {
    let mut figures = Vec::new();
    let mut bars = Vec::new();
    for row in rows {
        let value = row.median(|sample| sample.mpps)?;
        figures.push(Figure {
            name: row.name.clone(),
            value,
            unit: "Mpps",
            target: row.target,
        });
        bars.push(Bar {
            name: row.name.clone(),
            value,
            target: row.target,
        });
    }
    println!("{machine}");
    println!(
        "frames of 60 bytes (IPv6: 76) that arrived, by wall-clock time; the sender, both ends of each cable and what \
         is between them share the cores\n"
    );
    figure::print(&figures);
    println!();
    for row in rows {
        figures.push(Figure {
            name: format!("{}, processor time of a frame", row.name),
            value: row.median(|sample| sample.ns)?,
            unit: "ns",
            target: None,
        });
    }
    println!(
        "processor time of a frame, from the sender to where it ends; idle, stolen: median shares; lost: of all frames"
    );
    for row in rows {
        println!(
            "{:<56}{:>7.0} ns  {:>5.2}-{:<5.2} Mpps  idle {:>4.1} %  stolen {:>4.1} %  shared {:>4.1} %  lost {:>6}  repeated {}",
            row.name,
            row.median(|sample| sample.ns)?,
            row.quantile(0, |sample| sample.mpps)?,
            row.quantile(4, |sample| sample.mpps)?,
            row.median(|sample| sample.idle)? * 100.0,
            row.median(|sample| sample.stolen)? * 100.0,
            row.median(|sample| sample.shared)? * 100.0,
            row.samples.iter().map(|sample| sample.lost).sum::<u64>(),
            row.repeated,
        );
    }
    let plot = Bars {
        title: "Established flows over veth".to_owned(),
        axis: Axis {
            label: "Mpps".to_owned(),
            scale: Scale::Linear,
        },
        bars,
    };
    println!("\nplot: {}", plot.write("wire")?.display());
    if let Some(json) = json {
        figure::write_json(json, &figures)?;
    }
    Ok(())
}

impl Row {
    fn median(&self, pick: impl Fn(&Sample) -> f64) -> Result<f64> {
        self.quantile(2, pick)
    }

    /// The sample `quarters` of the way through the samples in order.
    fn quantile(&self, quarters: usize, pick: impl Fn(&Sample) -> f64) -> Result<f64> {
        let mut sorted: Vec<f64> = self.samples.iter().map(pick).collect();
        sorted.sort_by(f64::total_cmp);
        let at = (sorted.len().saturating_sub(1) * quarters + 2) / 4;
        sorted.get(at).copied().context("a row was never run")
    }
}
