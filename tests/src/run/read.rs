//! What a lab has counted and keeps.

use std::collections::BTreeMap;

use lb_common::{
    conntrack::{Entry, Entry4, Entry6, flag},
    flow::{Flow4, Flow6},
    names,
    reason::Counter,
    traffic::{Tally, Traffic},
};

use super::Lab;

/// Everything the data path counts.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Counts {
    /// By counter name.
    pub counters: BTreeMap<&'static str, Tally>,
    /// By service-port id.
    pub services: BTreeMap<u32, Traffic>,
    /// By backend id.
    pub backends: BTreeMap<u32, Traffic>,
}

impl Counts {
    fn add_pending(&mut self, entry: &impl Entry) {
        let pending = Tally {
            packets: entry.pending().packets().into(),
            bytes: entry.pending().bytes().into(),
        };
        if pending == Tally::default() {
            return;
        }
        for traffic in [
            self.services.entry(entry.service()).or_default(),
            self.backends.entry(entry.backend()).or_default(),
        ] {
            if entry.flags() & flag::REVERSE == 0 {
                traffic.forward = sum(traffic.forward, pending);
            } else {
                traffic.reply = sum(traffic.reply, pending);
            }
        }
    }
}

impl Lab {
    /// Packets counted so far under one counter.
    pub fn count(&self, counter: Counter) -> u64 {
        let values: Option<Vec<Tally>> = self
            .map(names::COUNTERS)
            .lookup_per_cpu(&counter.index())
            .expect("COUNTERS");
        values
            .unwrap_or_default()
            .iter()
            .map(|tally| tally.packets)
            .sum()
    }

    /// Everything counted so far, summed over the CPUs, with what is pending in flows; what is zero is left
    /// out.
    pub fn counts(&self) -> Counts {
        let mut counts = self.handed_over();
        for entry in self.flows4(names::FLOWS_V4).values() {
            counts.add_pending(entry);
        }
        for entry in self.flows6(names::FLOWS_V6).values() {
            counts.add_pending(entry);
        }
        counts
    }

    /// As [`Self::counts`], without what is pending.
    pub fn handed_over(&self) -> Counts {
        Counts {
            counters: self.counters(),
            services: self.traffic(names::SERVICE_TRAFFIC),
            backends: self.traffic(names::BACKEND_TRAFFIC),
        }
    }

    /// As [`Self::counts`], but only what is counted by name.
    pub fn counters(&self) -> BTreeMap<&'static str, Tally> {
        let counters = self.map(names::COUNTERS);
        let mut tallies = BTreeMap::new();
        counters
            .for_each_per_cpu(|index, values: &[Tally]| {
                tallies.insert(
                    index,
                    values.iter().fold(Tally::default(), |a, b| sum(a, *b)),
                );
            })
            .expect("COUNTERS");
        let named = Counter::all().filter_map(|counter| {
            let tally = tallies.remove(&counter.index()).unwrap_or_default();
            (tally.packets != 0).then_some((counter.name(), tally))
        });
        named.collect()
    }

    fn traffic(&self, name: &str) -> BTreeMap<u32, Traffic> {
        let mut out = BTreeMap::new();
        self.map(name)
            .for_each_per_cpu(|index, values: &[Traffic]| {
                let total = values.iter().fold(Traffic::default(), |a, b| Traffic {
                    forward: sum(a.forward, b.forward),
                    reply: sum(a.reply, b.reply),
                    new_flows: a.new_flows + b.new_flows,
                    established: a.established + b.established,
                });
                if total != Traffic::default() {
                    out.insert(index, total);
                }
            })
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        out
    }

    /// The flows of one IPv4 table.
    pub fn flows4(&self, name: &str) -> BTreeMap<Flow4, Entry4> {
        self.map(name)
            .read_all()
            .expect("a flow table")
            .into_iter()
            .collect()
    }

    /// The flows of one IPv6 table.
    pub fn flows6(&self, name: &str) -> BTreeMap<Flow6, Entry6> {
        self.map(name)
            .read_all()
            .expect("a flow table")
            .into_iter()
            .collect()
    }

    /// Entries in (established, embryonic) tables, both families.
    pub fn flow_entries(&self) -> (usize, usize) {
        (
            self.flows4(names::FLOWS_V4).len() + self.flows6(names::FLOWS_V6).len(),
            self.flows4(names::EMBRYONIC_V4).len() + self.flows6(names::EMBRYONIC_V6).len(),
        )
    }

    /// All flows in words, for the reader of a failed test.
    pub fn describe_flows(&self) -> String {
        use std::fmt::Write as _;
        let mut out = String::new();
        for name in [names::FLOWS_V4, names::EMBRYONIC_V4] {
            for (key, entry) in self.flows4(name) {
                writeln!(out, "    {name} {key:?}\n      {entry:x?}").expect("a string");
            }
        }
        for name in [names::FLOWS_V6, names::EMBRYONIC_V6] {
            for (key, entry) in self.flows6(name) {
                writeln!(out, "    {name} {key:?}\n      {entry:x?}").expect("a string");
            }
        }
        out
    }
}

fn sum(a: Tally, b: Tally) -> Tally {
    Tally {
        packets: a.packets + b.packets,
        bytes: a.bytes + b.bytes,
    }
}
