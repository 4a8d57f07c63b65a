//! What the data path remembers of clients, to be put back after packets that must leave no trace.

use std::collections::BTreeMap;

use lb_common::{
    conntrack::{Entry4, Entry6},
    flow::{Flow4, Flow6},
    names,
    service::affinity::{Affinity, AffinityKey},
    wire::Wire,
};

use super::Lab;

/// Flows of all tables, their number, and session affinity.
#[derive(Clone, Debug)]
pub struct Memory {
    flows4: [BTreeMap<Flow4, Entry4>; 2],
    flows6: [BTreeMap<Flow6, Entry6>; 2],
    affinity: BTreeMap<AffinityKey, Affinity>,
    flow_use: BTreeMap<u32, u64>,
}

impl Memory {
    /// Session affinity alone.
    #[must_use]
    pub fn without_flows(self) -> Self {
        let zero = |(element, _)| (element, 0);
        Self {
            flows4: Default::default(),
            flows6: Default::default(),
            affinity: self.affinity,
            flow_use: self.flow_use.into_iter().map(zero).collect(),
        }
    }
}

const TABLES4: [&str; 2] = [names::FLOWS_V4, names::EMBRYONIC_V4];
const TABLES6: [&str; 2] = [names::FLOWS_V6, names::EMBRYONIC_V6];

impl Lab {
    /// What it remembers now.
    pub fn remember(&self) -> Memory {
        Memory {
            flows4: TABLES4.map(|name| self.contents(name)),
            flows6: TABLES6.map(|name| self.contents(name)),
            affinity: self.contents(names::AFFINITY),
            flow_use: self.contents(names::FLOW_USE),
        }
    }

    /// Makes it remember this and nothing else.
    pub fn recall(&self, memory: &Memory) {
        for (name, entries) in TABLES4.into_iter().zip(&memory.flows4) {
            self.replace(name, entries);
        }
        for (name, entries) in TABLES6.into_iter().zip(&memory.flows6) {
            self.replace(name, entries);
        }
        self.replace(names::AFFINITY, &memory.affinity);
        self.replace(names::FLOW_USE, &memory.flow_use);
    }

    fn contents<K: Wire + Ord, V: Wire>(&self, name: &str) -> BTreeMap<K, V> {
        let all = self.map(name).read_all();
        let all = all.unwrap_or_else(|e| panic!("read {name}: {e}"));
        all.into_iter().collect()
    }

    fn replace<K: Wire + Ord, V: Wire + PartialEq>(&self, name: &str, wanted: &BTreeMap<K, V>) {
        let map = self.map(name);
        let found = self.contents::<K, V>(name);
        let strange = found.keys().filter(|key| !wanted.contains_key(key));
        let strange: Vec<K> = strange.copied().collect();
        map.delete_batch(&strange)
            .unwrap_or_else(|e| panic!("clear {name}: {e}"));
        let changed = wanted.iter().filter(|(key, v)| found.get(key) != Some(v));
        let (keys, values): (Vec<K>, Vec<V>) = changed.map(|(k, v)| (*k, *v)).unzip();
        map.update_batch(&keys, &values)
            .unwrap_or_else(|e| panic!("fill {name}: {e}"));
    }
}
