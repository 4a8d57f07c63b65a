//! Who may use a Service's load-balancer addresses: sets of networks, numbered.
//!
//! A set never changes: other networks are another set, with another id. So a service port goes from
//! one whole set to another whole set by one store.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;

use super::ids::IdPool;
use crate::{
    node::NodeConfig,
    snapshot::{ServiceKind, ServiceObject},
    tables::{Family, TableSet},
};

/// The networks of one source-range set, all of one family. Without any, nobody is admitted.
pub(super) type Networks = Arc<BTreeSet<IpNet>>;

/// The set of each of a Service's families; nothing if everybody is admitted.
///
/// A family none of the ranges is of admits nobody: a restriction must not end where its author did
/// not think of a family.
pub(super) fn of_service(
    service: &ServiceObject,
    node: &NodeConfig,
    mut reject: impl FnMut(&str, String),
) -> BTreeMap<Family, Networks> {
    if service.kind != ServiceKind::LoadBalancer || !service.restricts_sources {
        return BTreeMap::new();
    }
    let set = |&family: &Family| {
        let addresses = || {
            let all = service.ingress_ips.iter().map(|ingress| ingress.address);
            all.filter(|address| Family::of(*address) == family)
        };
        let networks = service.source_ranges.iter().copied();
        let mut networks: BTreeSet<IpNet> = networks
            .filter(|network| Family::of(network.addr()) == family)
            .collect();
        if networks.is_empty() && addresses().next().is_some() {
            let message = format!("names no {family} network: nobody is admitted by {family}");
            reject("spec.loadBalancerSourceRanges", message);
        }
        // A process of this node that connects to a VIP bound on the node has it as its source.
        let admits = |address: &IpAddr| networks.iter().any(|network| network.contains(address));
        if node.primary.iter().any(admits) {
            networks.extend(addresses().map(IpNet::from));
        }
        (family, Arc::new(networks))
    };
    service.families.iter().map(set).collect()
}

static NO_QUARANTINE: BTreeSet<u32> = BTreeSet::new();

/// Numbers the sets that are served, as long as their networks have room.
pub(super) struct RangeSets {
    ids: IdPool<'static, Networks>,
    capacity: u32,
    /// Networks of the sets admitted.
    rows: usize,
    admitted: BTreeMap<u32, Networks>,
    by_networks: HashMap<Networks, u32>,
}

/// The sets of a Service that is being weighed.
#[derive(Default)]
pub(super) struct RangeAddition {
    sets: BTreeMap<Family, (u32, Networks)>,
    fresh: Vec<u32>,
    rows: usize,
}

impl RangeAddition {
    /// The set of a family; 0 for everybody.
    pub(super) fn id(&self, family: Family) -> u32 {
        self.sets.get(&family).map_or(0, |(id, _)| *id)
    }
}

impl RangeSets {
    /// Sets whose networks `previous` holds already keep their id.
    pub(super) fn new(previous: &TableSet, capacity: u32) -> Self {
        let named = previous.services.values().map(|s| (s.source_ranges, None));
        let filled = previous
            .source_ranges
            .iter()
            .map(|&(set, network)| (set, Some(network)));
        let mut sets = BTreeMap::<u32, BTreeSet<IpNet>>::new();
        for (id, network) in named.chain(filled).filter(|(id, _)| *id != 0) {
            sets.entry(id).or_default().extend(network);
        }
        let sets = sets.into_iter().map(|(id, set)| (id, Arc::new(set)));
        Self {
            ids: IdPool::new(sets, &NO_QUARANTINE, u32::MAX),
            capacity,
            rows: 0,
            admitted: BTreeMap::new(),
            by_networks: HashMap::new(),
        }
    }

    /// Numbers the sets of one Service. False: they have no room.
    pub(super) fn weigh(
        &mut self,
        wanted: &BTreeMap<Family, Networks>,
        addition: &mut RangeAddition,
    ) -> bool {
        for (&family, networks) in wanted {
            let pending = addition.sets.values().find(|(_, set)| set == networks);
            let pending = pending.map(|(id, _)| *id);
            let admitted = || self.by_networks.get(networks).copied();
            let id = if let Some(id) = pending.or_else(admitted) {
                id
            } else {
                let Some(id) = self.number(networks, &mut addition.fresh) else {
                    return false;
                };
                addition.rows += networks.len();
                id
            };
            addition.sets.insert(family, (id, Arc::clone(networks)));
        }
        self.rows + addition.rows <= usize::try_from(self.capacity).unwrap_or(usize::MAX)
    }

    fn number(&mut self, networks: &Networks, fresh: &mut Vec<u32>) -> Option<u32> {
        let known = self.ids.known(networks);
        known.or_else(|| self.ids.fresh().inspect(|&id| fresh.push(id)))
    }

    /// Counts what was weighed.
    pub(super) fn admit(&mut self, addition: RangeAddition) {
        self.rows += addition.rows;
        for (id, networks) in addition.sets.into_values() {
            self.by_networks.insert(Arc::clone(&networks), id);
            self.admitted.insert(id, networks);
        }
    }

    /// Forgets what was weighed.
    pub(super) fn give_back(&mut self, addition: RangeAddition) {
        self.ids.give_back(addition.fresh);
    }

    /// The sets admitted.
    pub(super) fn into_sets(self) -> BTreeMap<u32, Networks> {
        self.admitted
    }
}

/// Writes the sets which service ports of `tables` name. Those that find no room beside the sets
/// this plan gives back are left empty, which admits nobody, and returned: the next plan has room.
pub(super) fn write(
    tables: &mut TableSet,
    sets: &BTreeMap<u32, Networks>,
    previous: &TableSet,
    capacity: u32,
) -> BTreeSet<u32> {
    let capacity = usize::try_from(capacity).unwrap_or(usize::MAX);
    let named: BTreeSet<u32> = tables.services.values().map(|s| s.source_ranges).collect();
    let mut postponed = BTreeSet::new();
    let mut held = previous.source_ranges.len();
    for (&id, networks) in sets.iter().filter(|(id, _)| named.contains(id)) {
        let rows = || networks.iter().map(|network| (id, *network));
        let added = rows()
            .filter(|row| !previous.source_ranges.contains(row))
            .count();
        if held + added > capacity {
            postponed.insert(id);
        } else {
            held += added;
            tables.source_ranges.extend(rows());
        }
    }
    postponed
}

#[cfg(test)]
mod tests;
