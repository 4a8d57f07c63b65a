//! Entries of nobody that fill the established tables.

use lb_common::{
    addr::{Addr4, Addr6, Be16},
    conntrack::{Entry4, Entry6, Head, state},
    flow::{Flow4, Flow6, protocol},
    names::{self, flow_use},
    wire::Wire,
};

use crate::run::Lab;

/// The keys that were put in.
pub(super) struct Crowd {
    v4: Vec<Flow4>,
    v6: Vec<Flow6>,
}

impl Crowd {
    /// Fills both empty tables up to `room` entries.
    pub(super) fn enter(lab: &Lab, room: u16) -> Self {
        let head = Head::new(1, state::ESTABLISHED, lab.tick()).0;
        let numbers = |name: &str| {
            let size = lab.map(name).info().max_entries - u32::from(room);
            0..u16::try_from(size).expect("a small table")
        };
        let v4 = numbers(names::FLOWS_V4).map(|number| Flow4 {
            source: Addr4(1),
            destination: Addr4(2),
            source_port: Be16::new(number),
            destination_port: Be16::new(1),
            protocol: protocol::TCP.into(),
        });
        let v6 = numbers(names::FLOWS_V6).map(|number| Flow6 {
            source: Addr6([1; 4]),
            destination: Addr6([2; 4]),
            source_port: Be16::new(number),
            destination_port: Be16::new(1),
            protocol: protocol::TCP.into(),
        });
        let crowd = Self {
            v4: v4.collect(),
            v6: v6.collect(),
        };
        let entry = Entry4 {
            head,
            ..Entry4::default()
        };
        put(lab, names::FLOWS_V4, &crowd.v4, &entry);
        let entry = Entry6 {
            head,
            ..Entry6::default()
        };
        put(lab, names::FLOWS_V6, &crowd.v6, &entry);
        crowd.count(lab, |used, crowd| used + crowd);
        crowd
    }

    /// Takes them out again.
    pub(super) fn leave(self, lab: &Lab) {
        let taken = lab.map(names::FLOWS_V4).delete_batch(&self.v4);
        taken.expect("FLOWS_V4");
        let taken = lab.map(names::FLOWS_V6).delete_batch(&self.v6);
        taken.expect("FLOWS_V6");
        self.count(lab, |used, crowd| used - crowd);
    }

    fn count(&self, lab: &Lab, change: impl Fn(u64, u64) -> u64) {
        let uses = lab.map(names::FLOW_USE);
        for (element, crowd) in [(flow_use::V4, self.v4.len()), (flow_use::V6, self.v6.len())] {
            let entries: Option<u64> = uses.lookup(&element).expect("FLOW_USE");
            let entries = change(entries.unwrap_or_default(), crowd as u64);
            uses.update(&element, &entries).expect("FLOW_USE");
        }
    }
}

fn put<K: Wire, V: Wire>(lab: &Lab, name: &str, keys: &[K], entry: &V) {
    let entries = vec![*entry; keys.len()];
    let map = lab.map(name);
    map.update_batch(keys, &entries)
        .unwrap_or_else(|e| panic!("{name}: {e}"));
}
