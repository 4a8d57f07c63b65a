//! The figures, as a table, as JSON and as plots.

use std::path::Path;

use anyhow::Result;
use lb_tests::{
    figure::{self, Figure},
    plot::{Axis, Bar, Bars, Line, Lines, Plot as _, Scale, Series},
};

use crate::peers::{direct, sluice};

/// What was measured of a peer at a number of Services.
#[derive(Clone, Debug, Default)]
pub(crate) struct Row {
    pub(crate) peer: &'static str,
    pub(crate) services: u32,
    /// Connections a second, round by round.
    pub(crate) connections: Vec<f64>,
    /// Millions of packets a second on one processor, round by round.
    pub(crate) forwarding: Vec<f64>,
    /// Milliseconds from the start of the program to the last Service.
    pub(crate) load: Option<f64>,
    /// Milliseconds of each change.
    pub(crate) endpoint: Vec<f64>,
    pub(crate) add: Vec<f64>,
    /// Bytes of the programs, when all was loaded.
    pub(crate) memory: Option<u64>,
    /// Bytes of the kernel's tables.
    pub(crate) kernel_memory: Option<u64>,
}

/// A kind of figure.
struct Kind {
    name: &'static str,
    unit: &'static str,
    of: fn(&Row, &Row) -> Option<f64>,
    /// Whether less is better.
    less: bool,
}

/// What is told of each row, beside that of direct routing.
const KINDS: [Kind; 7] = [
    Kind {
        name: "forwarding",
        unit: "Mpps",
        of: |row, _| median(&row.forwarding),
        less: false,
    },
    Kind {
        name: "connections, ratio to direct",
        unit: "",
        of: |row, direct| median(&ratios(row, direct)),
        less: false,
    },
    Kind {
        name: "load",
        unit: "ms",
        of: |row, _| row.load,
        less: true,
    },
    Kind {
        name: "one endpoint changed",
        unit: "ms",
        of: |row, _| median(&row.endpoint),
        less: true,
    },
    Kind {
        name: "one service added",
        unit: "ms",
        of: |row, _| median(&row.add),
        less: true,
    },
    Kind {
        name: "memory of programs",
        unit: "MiB",
        of: |row, _| row.memory.map(mebibytes),
        less: true,
    },
    Kind {
        name: "memory of maps",
        unit: "MiB",
        of: |row, _| row.kernel_memory.map(mebibytes),
        less: true,
    },
];

/// Prints the figures and how far Sluice is ahead, writes them, and draws.
///
/// # Errors
/// A file cannot be written.
pub(crate) fn publish(rows: &[Row], json: Option<&Path>) -> Result<()> {
    let figures = figures(rows);
    figure::print(&figures);
    print_ratios(rows);
    if let Some(path) = json {
        figure::write_json(path, &figures)?;
    }
    draw(rows)
}

fn figures(rows: &[Row]) -> Vec<Figure> {
    let mut figures = Vec::new();
    for kind in &KINDS {
        for (row, direct) in beside_direct(rows) {
            if let Some(value) = (kind.of)(row, direct) {
                figures.push(Figure {
                    name: format!("{}, {}, {} services", kind.name, row.peer, row.services),
                    value,
                    unit: kind.unit,
                    target: None,
                });
            }
        }
    }
    for row in rows.iter().filter(|row| row.peer == direct::NAME) {
        if let Some(value) = median(&row.connections) {
            figures.push(Figure {
                name: format!("connections, {}, {} services", row.peer, row.services),
                value,
                unit: "1/s",
                target: None,
            });
        }
    }
    figures
}

/// How many times better Sluice is than each peer.
#[expect(clippy::print_stdout, reason = "the result of the program")]
fn print_ratios(rows: &[Row]) {
    println!("\nSluice against each peer, times better (below 1: worse)");
    for kind in &KINDS {
        for (row, direct) in beside_direct(rows) {
            let ours = rows
                .iter()
                .find(|ours| ours.peer == sluice::NAME && ours.services == row.services);
            let ours = ours.and_then(|ours| (kind.of)(ours, direct));
            if row.peer != sluice::NAME
                && let (Some(ours), Some(theirs)) = (ours, (kind.of)(row, direct))
            {
                let times = if kind.less {
                    theirs / ours
                } else {
                    ours / theirs
                };
                println!(
                    "  {:<30}{:>8} services  {:<22}{times:>10.2}",
                    kind.name, row.services, row.peer
                );
            }
        }
    }
}

fn draw(rows: &[Row]) -> Result<()> {
    let bars: Vec<Bar> = rows
        .iter()
        .filter_map(|row| {
            Some(Bar {
                name: format!("{}, {} services", row.peer, row.services),
                value: median(&row.forwarding)?,
                target: None,
            })
        })
        .collect();
    if !bars.is_empty() {
        let plot = Bars {
            title: "Established UDP flows through each balancer, one core".into(),
            axis: axis("million packets per second", Scale::Linear),
            bars,
        };
        plot.write("peers-forwarding")?;
    }
    let [_, connections, load, endpoint, add, ..] = &KINDS;
    lines(
        "Connections per second, against direct routing",
        axis("ratio to direct, same rounds", Scale::Linear),
        connections,
        rows,
        "peers-connections",
    )?;
    lines(
        "From one endpoint's change to the first connection it decides",
        axis("ms", Scale::Logarithmic),
        endpoint,
        rows,
        "peers-endpoint",
    )?;
    lines(
        "From one service more to the first connection it serves",
        axis("ms", Scale::Logarithmic),
        add,
        rows,
        "peers-service",
    )?;
    lines(
        "From the start of the program to the last service",
        axis("ms", Scale::Logarithmic),
        load,
        rows,
        "peers-load",
    )
}

fn lines(title: &str, y: Axis, kind: &Kind, rows: &[Row], file: &str) -> Result<()> {
    let mut series = Vec::new();
    for peer in names(rows) {
        let of_peer = beside_direct(rows).filter(|(row, _)| row.peer == peer);
        let points: Vec<_> = of_peer
            .filter_map(|(row, direct)| Some((f64::from(row.services), (kind.of)(row, direct)?)))
            .collect();
        if !points.is_empty() && peer != direct::NAME {
            series.push(Series {
                name: peer.into(),
                line: Line::Measured(points),
            });
        }
    }
    let plot = Lines {
        title: title.into(),
        x: axis("services", Scale::Logarithmic),
        y,
        series,
    };
    plot.write(file).map(drop)
}

fn axis(label: &str, scale: Scale) -> Axis {
    Axis {
        label: label.into(),
        scale,
    }
}

/// The peers, in the order they first appear.
fn names(rows: &[Row]) -> Vec<&'static str> {
    let mut names = Vec::new();
    for row in rows {
        if !names.contains(&row.peer) {
            names.push(row.peer);
        }
    }
    names
}

/// Each row beside direct routing's of the same rounds.
fn beside_direct(rows: &[Row]) -> impl Iterator<Item = (&Row, &Row)> {
    rows.iter().filter_map(|row| {
        let direct = rows
            .iter()
            .find(|direct| direct.peer == direct::NAME && direct.services == row.services)?;
        Some((row, direct))
    })
}

fn ratios(row: &Row, direct: &Row) -> Vec<f64> {
    let rounds = row.connections.iter().zip(&direct.connections);
    rounds.map(|(rate, direct)| rate / direct).collect()
}

/// The middle one; of an even number the mean of the two.
fn median(values: &[f64]) -> Option<f64> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let upper = *values.get(values.len() / 2)?;
    let lower = *values.get((values.len() - 1) / 2)?;
    Some(f64::midpoint(lower, upper))
}

fn mebibytes(bytes: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "for people to read")]
    let bytes = bytes as f64;
    bytes / 1_048_576.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_of_the_same_round() {
        let row = |connections: [f64; 3]| Row {
            connections: connections.to_vec(),
            ..Row::default()
        };
        let (direct, peer) = (row([100.0, 200.0, 50.0]), row([50.0, 150.0, 40.0]));
        assert_eq!(median(&ratios(&peer, &direct)), Some(0.75));
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[1.0, 2.0]), Some(1.5));
    }
}
