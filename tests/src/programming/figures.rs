//! What was measured as figures, beside the targets.

use super::Outcome;
use crate::figure::{Figure, Target, round};

/// Services from which on a change may take longer.
const MANY: u32 = 10_000;

impl Outcome {
    pub(super) fn figures(&self) -> Vec<Figure> {
        let of = format!(
            "{} services of {} endpoints from a real API server",
            round(f64::from(self.services)),
            self.endpoints
        );
        let mut figures = Vec::new();
        let mut add = |what: &str, value, unit, most: Option<f64>| {
            figures.push(Figure {
                name: format!("{of}: {what}"),
                value,
                unit,
                target: most.map(Target::AtMost),
            });
        };
        let begin = &self.begin;
        for (what, time, most) in [
            ("agent started → lists complete", begin.listed, None),
            ("agent started → programs verified", begin.loaded, None),
            ("agent started → programs attached", begin.attached, None),
            ("everything planned", begin.planned, None),
            ("everything written", begin.applied, None),
            (
                "lists complete → everything in the tables",
                begin.programmed,
                (self.services <= MANY).then_some(1_000.0),
            ),
        ] {
            add(what, time, "ms", most);
        }
        let most = if self.services <= MANY { 5.0 } else { 20.0 };
        for (what, times, most) in [
            ("write to the API server → tables", &self.from_write, None),
            (
                "event as another watch saw it → tables",
                &self.from_event,
                Some(most),
            ),
            ("one change planned", &self.planned, None),
            ("one change written", &self.applied, None),
        ] {
            add(&format!("{what}, p50"), times.p50, "ms", None);
            add(&format!("{what}, p99"), times.p99, "ms", most);
            add(&format!("{what}, max"), times.max, "ms", None);
        }
        for (when, bytes) in ["everything programmed", "the last change"]
            .into_iter()
            .zip(self.memory)
        {
            let mebibytes = u32::try_from(bytes >> 10).map_or(f64::NAN, f64::from) / 1_024.0;
            let what = format!("agent's resident memory at most, until {when}");
            add(&what, mebibytes, "MiB", None);
        }
        figures
    }
}
