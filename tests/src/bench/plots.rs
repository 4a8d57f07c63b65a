//! The rows as pictures.

use std::path::PathBuf;

use anyhow::Result;
use lb_common::bench::stage;

use super::{
    case::{Picture, Row},
    kernel::Program,
    report::Outcome,
};
use crate::{
    figure::Target,
    plot::{Axis, Bar, Bars, Line, Lines, Plot as _, Scale, Series, Stack, StackedBars},
};

/// Draws what was measured; pictures without a row are left out.
///
/// # Errors
///
/// A file cannot be written.
pub(super) fn write(rows: &[&Row], results: &[Outcome]) -> Result<Vec<PathBuf>> {
    let measured = Measured { rows, results };
    let mut paths = Vec::new();
    for (v6, name) in [(false, "micro-rows"), (true, "micro-rows-ipv6")] {
        let bars = measured.bars(v6);
        if !bars.bars.is_empty() {
            paths.push(bars.write(name)?);
        }
    }
    let mut flows = measured.lines(Picture::Flows);
    if !flows.is_empty() {
        flows.push(Series {
            name: "target".to_owned(),
            line: Line::Target(vec![(1.0, 80.0), (1_024.0, 120.0), (65_536.0, 380.0)]),
        });
        let title = "Established flows, forward: cost of a packet against their number";
        paths.push(lines(title, "flows", flows).write("micro-flows")?);
    }
    let services = measured.lines(Picture::Services);
    if !services.is_empty() {
        let title = "65,536 flows, IPv4 dnat, spread over services: cost of a packet";
        paths.push(lines(title, "services", services).write("micro-services")?);
    }
    if let Some(stages) = measured.stages() {
        paths.push(stages.write("micro-new-flow")?);
    }
    Ok(paths)
}

fn lines(title: &str, x: &str, series: Vec<Series>) -> Lines {
    let axis = |label: &str, scale| Axis {
        label: label.to_owned(),
        scale,
    };
    Lines {
        title: title.to_owned(),
        x: axis(x, Scale::Logarithmic),
        y: axis("ns per packet, net", Scale::Linear),
        series,
    }
}

struct Measured<'a> {
    rows: &'a [&'a Row],
    results: &'a [Outcome],
}

impl Measured<'_> {
    /// Points of a picture: series, x, net nanoseconds.
    fn points(&self, picture: Picture) -> impl Iterator<Item = (&str, u32, f64)> {
        let rows = self.rows.iter().zip(self.results);
        rows.flat_map(move |(row, result)| {
            let points = row.points.iter().filter(move |p| p.picture == picture);
            points.map(|point| (point.series.as_str(), point.x, result.net_ns))
        })
    }

    fn lines(&self, picture: Picture) -> Vec<Series> {
        let mut series: Vec<(&str, Vec<(f64, f64)>)> = Vec::new();
        for (name, x, y) in self.points(picture) {
            let point = (f64::from(x), y);
            match series.iter_mut().find(|(other, _)| *other == name) {
                Some((_, points)) => points.push(point),
                None => series.push((name, vec![point])),
            }
        }
        let series = series.into_iter().map(|(name, points)| Series {
            name: name.to_owned(),
            line: Line::Measured(points),
        });
        series.collect()
    }

    /// Rows of one family but for those that have pictures of their own.
    fn bars(&self, v6: bool) -> Bars {
        let rows = self.rows.iter().zip(self.results);
        let shown = rows.filter(|(row, _)| {
            let elsewhere = row
                .points
                .iter()
                .any(|point| point.picture == Picture::Services || row.program == Program::Stages);
            row.group.shape.v6 == v6 && !row.is_null() && !elsewhere
        });
        let bars = shown.map(|(_, result)| Bar {
            name: result.name.clone(),
            value: result.net_ns.max(0.0),
            target: result.target_ns.map(|most| Target::AtMost(f64::from(most))),
        });
        let family = if v6 { "IPv6" } else { "IPv4" };
        Bars {
            title: format!("{family}: time per packet in BPF_PROG_TEST_RUN"),
            axis: Axis {
                label: "ns per packet, net of the null row".to_owned(),
                scale: Scale::Linear,
            },
            bars: bars.collect(),
        }
    }

    /// What each step of a new flow adds to those before it.
    fn stages(&self) -> Option<StackedBars> {
        const PARTS: [(u32, &str); 8] = [
            (stage::PARSE, "parse"),
            (stage::MISS, "two misses"),
            (stage::CHOOSE, "choose"),
            (stage::ROUTE, "route"),
            (stage::MODE, "route back"),
            (stage::CLAIM, "claim"),
            (stage::INSERT, "insert"),
            (stage::SENT, "rewrite, count, redirect"),
        ];
        let points: Vec<_> = self.points(Picture::Stages).collect();
        let mut bars: Vec<Stack> = Vec::new();
        for (name, ..) in &points {
            if bars.iter().any(|bar| bar.name == *name) {
                continue;
            }
            let mut sum = 0.0_f64;
            let values = PARTS.map(|(part, _)| {
                let total = points
                    .iter()
                    .find(|(other, x, _)| other == name && *x == part)
                    .map_or(sum, |(_, _, ns)| *ns);
                // Noise may make a step cheaper than nothing.
                let added = (total - sum).max(0.0);
                sum = sum.max(total);
                added
            });
            bars.push(Stack {
                name: (*name).to_owned(),
                values: values.to_vec(),
                target: Some(Target::AtMost(900.0)),
            });
        }
        (!bars.is_empty()).then(|| StackedBars {
            title: "A new flow, step by step".to_owned(),
            axis: "ns per SYN, net of the null row".to_owned(),
            parts: PARTS.map(|(_, name)| name.to_owned()).to_vec(),
            bars,
        })
    }
}
