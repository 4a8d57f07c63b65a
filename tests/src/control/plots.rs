//! How it grows with the number of Services, as pictures.

use std::path::PathBuf;

use anyhow::Result;

use super::{
    Outcome, Percentiles,
    figures::{change_target, load_target},
    report::mebibytes,
};
use crate::plot::{Axis, Line, Lines, Plot as _, Scale, Series};

/// Draws the pictures, and returns where they are.
pub(super) fn write(outcomes: &[Outcome]) -> Result<[PathBuf; 3]> {
    Ok([
        load(outcomes).write("control-load")?,
        change(outcomes).write("control-change")?,
        memory(outcomes).write("control-memory")?,
    ])
}

fn load(outcomes: &[Outcome]) -> Lines {
    lines(
        "Time to program every Service from nothing",
        "ms",
        vec![
            measured("planned", outcomes, |o| o.load().plan),
            measured("written", outcomes, |o| o.load().apply),
            measured("both", outcomes, |o| o.load().plan + o.load().apply),
            target(outcomes, load_target),
        ],
    )
}

fn change(outcomes: &[Outcome]) -> Lines {
    let of = |pick: fn(&Percentiles) -> f64| {
        move |outcome: &Outcome| outcome.replaced().map_or(f64::NAN, pick)
    };
    lines(
        "Time from one endpoint's change to the kernel's tables",
        "ms",
        vec![
            measured("p50", outcomes, of(|times| times.p50)),
            measured("p99", outcomes, of(|times| times.p99)),
            measured("p99.9", outcomes, of(|times| times.p999)),
            target(outcomes, change_target),
        ],
    )
}

fn memory(outcomes: &[Outcome]) -> Lines {
    lines(
        "Memory for every Service",
        "MiB",
        vec![
            measured("agent, resident", outcomes, |o| mebibytes(o.memory[1])),
            measured("kernel, in use", outcomes, |o| {
                let backends = f64::from(o.services * o.endpoints);
                let bytes = o.kernel.service * f64::from(o.services) + o.kernel.backend * backends;
                bytes / f64::from(1 << 20)
            }),
        ],
    )
}

fn lines(title: &str, unit: &str, series: Vec<Series>) -> Lines {
    let axis = |label: &str| Axis {
        label: label.to_owned(),
        scale: Scale::Logarithmic,
    };
    let is_empty = |line: &Line| matches!(line, Line::Target(points) if points.is_empty());
    Lines {
        title: title.to_owned(),
        x: axis("Services"),
        y: axis(unit),
        series: series.into_iter().filter(|s| !is_empty(&s.line)).collect(),
    }
}

fn measured(name: &str, outcomes: &[Outcome], value: impl Fn(&Outcome) -> f64) -> Series {
    let point = |outcome: &Outcome| (f64::from(outcome.services), value(outcome));
    Series {
        name: name.to_owned(),
        line: Line::Measured(outcomes.iter().map(point).collect()),
    }
}

fn target(outcomes: &[Outcome], most: fn(u32) -> Option<f64>) -> Series {
    let point = |outcome: &Outcome| Some((f64::from(outcome.services), most(outcome.services)?));
    Series {
        name: "target".to_owned(),
        line: Line::Target(outcomes.iter().filter_map(point).collect()),
    }
}
