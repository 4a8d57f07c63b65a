//! What was measured as figures, beside the targets.

use super::{Changes, Outcome, report::mebibytes};
use crate::figure::{Figure, Target, round};

/// Milliseconds from nothing to everything, with ten thousand Services.
const LOAD: (u32, f64) = (10_000, 1_000.0);
/// Milliseconds 99 of 100 changes take at most, up to so many Services.
const CHANGE: [(u32, f64); 2] = [(10_000, 5.0), (50_000, 20.0)];
/// Milliseconds half of the changes of one Service take at most.
const PUBLISH: f64 = 0.05;
/// Bytes of a flow, both directions.
const FLOW: [f64; 2] = [256.0, 400.0];

/// Milliseconds 99 of 100 changes may take.
pub(super) fn change_target(services: u32) -> Option<f64> {
    let (_, most) = CHANGE.into_iter().find(|(up_to, _)| services <= *up_to)?;
    Some(most)
}

/// Milliseconds it may take to program so many Services.
pub(super) fn load_target(services: u32) -> Option<f64> {
    (services == LOAD.0).then_some(LOAD.1)
}

/// The figures of every number of Services.
pub(super) fn figures(outcomes: &[Outcome]) -> Vec<Figure> {
    let mut figures: Vec<_> = outcomes.iter().flat_map(of_one).collect();
    if let Some(outcome) = outcomes.last() {
        let families = ["IPv4", "IPv6"].into_iter().zip(outcome.kernel.flow);
        for ((family, bytes), most) in families.zip(FLOW) {
            let name = format!("kernel memory of a flow, both directions, {family}");
            figures.push(figure(name, bytes, "B", Some(most)));
        }
    }
    figures
}

fn of_one(outcome: &Outcome) -> Vec<Figure> {
    let of = format!(
        "{} services of {} endpoints",
        round(f64::from(outcome.services)),
        outcome.endpoints
    );
    let mut figures = Vec::new();
    let mut add = |what: &str, value, unit, most| {
        figures.push(figure(format!("{of}: {what}"), value, unit, most));
    };
    let load = outcome.load();
    add("from nothing, planned", load.plan, "ms", None);
    add("from nothing, written", load.apply, "ms", None);
    add(
        "from nothing, planned and written",
        load.plan + load.apply,
        "ms",
        load_target(outcome.services),
    );
    for Changes {
        what,
        plan,
        apply,
        total,
        ..
    } in &outcome.changes
    {
        let add = |(name, value, most)| add(&format!("{what}, {name}"), value, "ms", most);
        [
            ("planned, p50", plan.p50, None),
            ("written, p50", apply.p50, None),
            ("p50", total.p50, Some(PUBLISH)),
            ("p99", total.p99, change_target(outcome.services)),
            ("p99.9", total.p999, None),
            ("max", total.max, None),
        ]
        .into_iter()
        .for_each(add);
    }
    let [read, compared] = outcome.read_back;
    add("all tables read back, aside", read, "ms", None);
    add("then compared, while changes wait", compared, "ms", None);
    let [_, resident] = outcome.memory;
    add("resident memory", mebibytes(resident), "MiB", None);
    let kernel = &outcome.kernel;
    add("kernel memory of a service port", kernel.service, "B", None);
    add("kernel memory of a backend", kernel.backend, "B", None);
    figures
}

fn figure(name: String, value: f64, unit: &'static str, most: Option<f64>) -> Figure {
    Figure {
        name,
        value,
        unit,
        target: most.map(Target::AtMost),
    }
}
