//! How long a change of endpoints takes from its cause to the tables.
//!
//! Whoever writes an EndpointSlice says in it when the change was caused. A removed slice says
//! nothing, and what was caused before our time is not our delay.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use imbl::{OrdMap, ordmap::DiffItem};

use crate::snapshot::{ObjectName, SliceObject};

/// Causes on their way to the tables.
#[derive(Clone, Debug)]
pub struct Causes {
    /// Milliseconds since 1970.
    started: i64,
    seen: OrdMap<ObjectName, Arc<SliceObject>>,
    /// By slice.
    pending: BTreeMap<ObjectName, Vec<i64>>,
}

impl Causes {
    /// Nothing is on its way. Times are in milliseconds since 1970.
    pub fn new(started: i64) -> Self {
        Self {
            started,
            seen: OrdMap::new(),
            pending: BTreeMap::new(),
        }
    }

    /// The slices are these now.
    pub fn note(&mut self, slices: &OrdMap<ObjectName, Arc<SliceObject>>) {
        for item in self.seen.diff(slices) {
            let (name, cause) = match item {
                DiffItem::Add(name, slice) => (name, slice.triggered),
                DiffItem::Update { old, new } => {
                    let cause = new.1.triggered;
                    (new.0, cause.filter(|at| Some(*at) != old.1.triggered))
                }
                DiffItem::Remove(name, _) => {
                    self.pending.remove(name);
                    continue;
                }
            };
            if let Some(at) = cause.filter(|at| *at > self.started) {
                self.pending.entry(name.clone()).or_default().push(at);
            }
        }
        self.seen = slices.clone();
    }

    /// What was noted is in the tables: how long each took.
    pub fn reached(&mut self, now: i64) -> Vec<Duration> {
        let pending = std::mem::take(&mut self.pending);
        let age = |at: i64| Duration::from_millis(u64::try_from(now - at).unwrap_or_default());
        pending.into_values().flatten().map(age).collect()
    }

    /// What was noted changed no table.
    pub fn forget(&mut self) {
        self.pending.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables::Family;

    fn slices(list: &[(&str, Option<i64>)]) -> OrdMap<ObjectName, Arc<SliceObject>> {
        list.iter()
            .map(|&(name, triggered)| {
                let name = ObjectName::new("default", name);
                let slice = SliceObject {
                    name: name.clone(),
                    service: "web".into(),
                    family: Family::V4,
                    ports: Vec::new(),
                    endpoints: Vec::new(),
                    triggered,
                };
                (name, Arc::new(slice))
            })
            .collect()
    }

    #[test]
    fn causes_lead_to_delays() {
        // (name, lists in order of time, delays at 10,000 ms)
        type List<'a> = &'a [(&'a str, Option<i64>)];
        let cases: &[(&str, &[List<'_>], &[u64])] = &[
            ("nothing", &[&[]], &[]),
            ("added", &[&[("a", Some(9_000))]], &[1_000]),
            ("no cause", &[&[("a", None)]], &[]),
            ("before our time", &[&[("a", Some(1_000))]], &[]),
            (
                "every update keeps its time",
                &[&[("a", Some(7_000))], &[("a", Some(9_000))]],
                &[3_000, 1_000],
            ),
            (
                "the same cause once",
                &[&[("a", Some(7_000))], &[("a", Some(7_000)), ("b", None)]],
                &[3_000],
            ),
            (
                "removed, and what was on its way with it",
                &[
                    &[("a", Some(7_000)), ("b", Some(8_000))],
                    &[("b", Some(8_000))],
                ],
                &[2_000],
            ),
            ("a clock ahead of ours", &[&[("a", Some(11_000))]], &[0]),
        ];
        for (name, lists, expected) in cases {
            let mut pending = Causes::new(5_000);
            for list in *lists {
                pending.note(&slices(list));
            }
            let delays: Vec<_> = pending
                .reached(10_000)
                .iter()
                .map(|d| u64::try_from(d.as_millis()).expect("small"))
                .collect();
            assert_eq!(delays, *expected, "{name}");
            assert!(pending.reached(10_000).is_empty(), "{name}: once");
        }
    }

    #[test]
    fn what_changed_no_table_took_no_time() {
        let mut causes = Causes::new(0);
        causes.note(&slices(&[("a", Some(1_000))]));
        causes.forget();
        assert!(causes.reached(2_000).is_empty());
    }
}
