//! What a plan leaves behind for the next.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use super::{taken::Taken, work};
use crate::{
    maglev,
    node::NodeConfig,
    plan::{
        HealthCheck, Plan, WithoutLocal,
        admit::{Admitted, own_roles},
        arena::Arena,
        publish::{Backends, TableCache},
    },
    snapshot::{ObjectName, Rejection, SliceObject, Snapshot},
    tables::{Family, FrontendId, TableSet},
};

/// What was settled before anything was numbered.
pub(in crate::plan) struct Input<'a> {
    pub(in crate::plan) snapshot: &'a Snapshot,
    pub(in crate::plan) node: &'a NodeConfig,
    pub(in crate::plan) admitted: &'a Admitted,
    /// Service ports drafted, those without room included.
    pub(in crate::plan) drafted: usize,
    /// The Maglev tables of the plan.
    pub(in crate::plan) cache: &'a TableCache,
    pub(in crate::plan) lost: BTreeSet<(ObjectName, FrontendId)>,
    /// Everything that was said, also twice.
    pub(in crate::plan) rejected: Vec<Rejection>,
}

/// What a plan left behind.
#[derive(Debug)]
pub(in crate::plan) struct Memory {
    /// The tables were planned and nobody said that they were written.
    pub(in crate::plan) unwritten: bool,
    pub(super) snapshot: Snapshot,
    pub(super) node: NodeConfig,
    /// Slices by the Service they name, in the order of their names.
    pub(super) slices: HashMap<ObjectName, Vec<Arc<SliceObject>>>,
    pub(super) service_ids: Taken,
    pub(super) backend_ids: Taken,
    pub(super) backends: HashMap<SocketAddr, SharedBackend>,
    pub(super) extents: HashMap<Backends, SharedExtent>,
    pub(super) arena: Arena,
    /// Extents in quarantine, taken from the arena.
    pub(super) withheld: BTreeMap<u32, u32>,
    /// How many service ports declare each.
    pub(super) gateway_endpoints: HashMap<FrontendId, usize>,
    pub(super) frontends_of: BTreeMap<Family, usize>,
    /// Roles which addresses have whatever is served.
    pub(super) own_roles: BTreeMap<IpAddr, u32>,
    /// Frontends that Services asked for and others have.
    pub(super) lost: BTreeSet<(ObjectName, FrontendId)>,
    pub(super) contested: HashSet<FrontendId>,
    /// How often each was said.
    pub(super) rejected: BTreeMap<Rejection, usize>,
    pub(super) report: Arc<Vec<Rejection>>,
    pub(super) health: Arc<BTreeMap<ObjectName, HealthCheck>>,
    pub(super) without_local: WithoutLocal,
}

/// A backend with those who name it.
#[derive(Clone, Copy, Debug)]
pub(super) struct SharedBackend {
    pub(super) id: u32,
    /// Service ports of which it is a member.
    pub(super) users: usize,
    /// Those of them which say that it runs on this node.
    pub(super) on_node: usize,
}

/// A Maglev table with those who use it.
#[derive(Clone, Debug)]
pub(super) struct SharedExtent {
    pub(super) table: Arc<[u32]>,
    /// Where it lies, or lay.
    pub(super) element: Option<u32>,
    /// Sets of service ports.
    pub(super) users: usize,
}

impl Memory {
    /// Remembers a plan. `None` if the next one must look at everything: the plan waits for room.
    pub(in crate::plan) fn new(input: Input<'_>, plan: &Plan) -> Option<Self> {
        let Input {
            snapshot,
            node,
            admitted,
            drafted,
            cache,
            lost,
            rejected,
        } = input;
        let tables = &plan.tables;
        let complete = admitted.ports.len() == drafted && tables.services.len() == drafted;
        if !plan.deferred.is_empty() || !complete {
            return None;
        }
        let length = |table: &[u32]| u32::try_from(table.len()).unwrap_or(u32::MAX);
        let occupied = tables.extents.iter();
        let occupied = occupied.map(|(&element, t)| (element, maglev::elements(length(t))));
        let mut memory = Self {
            unwritten: true,
            snapshot: snapshot.clone(),
            node: node.clone(),
            slices: HashMap::new(),
            service_ids: tables.services.keys().copied().collect(),
            backend_ids: tables.backends.keys().copied().collect(),
            backends: HashMap::with_capacity(tables.backends.len()),
            extents: HashMap::with_capacity(tables.extents.len()),
            arena: Arena::new(node.sizes.slots, occupied),
            withheld: BTreeMap::new(),
            gateway_endpoints: HashMap::new(),
            frontends_of: BTreeMap::new(),
            own_roles: own_roles(node),
            contested: lost.iter().map(|(_, frontend)| *frontend).collect(),
            lost,
            rejected: BTreeMap::new(),
            report: Arc::new(plan.rejected.clone()),
            health: Arc::new(plan.health.clone()),
            without_local: plan.without_local,
        };
        for rejection in rejected {
            *memory.rejected.entry(rejection).or_default() += 1;
        }
        for slice in snapshot.slices.values() {
            let slices = memory.slices.entry(owner_of(slice)).or_default();
            slices.push(Arc::clone(slice));
        }
        for frontend in tables.frontends.keys() {
            let family = Family::of(frontend.address);
            *memory.frontends_of.entry(family).or_default() += 1;
        }
        memory.count(admitted, tables, cache)?;
        Some(memory)
    }

    /// Takes the extents in quarantine from the arena, and gives those back that are not any more.
    pub(super) fn withhold(&mut self, quarantine: &BTreeMap<u32, u32>) {
        if self.withheld == *quarantine {
            return;
        }
        self.withheld.retain(|element, size| {
            let stays = quarantine.get(element) == Some(size);
            if !stays {
                self.arena.give_back(*element, *size);
            }
            stays
        });
        for (&element, &size) in quarantine {
            if !self.withheld.contains_key(&element) && self.arena.reserve(element, size) {
                self.withheld.insert(element, size);
            }
        }
    }

    /// Counts what service ports share.
    fn count(&mut self, admitted: &Admitted, tables: &TableSet, cache: &TableCache) -> Option<()> {
        for port in &admitted.ports {
            for member in &port.draft.sets.members {
                let id = *admitted.backend_ids.get(&member.endpoint)?;
                let shared = self.backends.entry(member.endpoint);
                let shared = shared.or_insert_with(|| SharedBackend::new(id));
                shared.users += 1;
                shared.on_node += usize::from(member.on_node);
            }
            for endpoint in work::gateway_endpoints(&port.draft) {
                *self.gateway_endpoints.entry(endpoint).or_default() += 1;
            }
            let record = tables.services.get(&port.id)?;
            let sets = [
                (&port.draft.sets.cluster, record.cluster),
                (&port.draft.sets.local, record.local),
            ];
            for (endpoints, selection) in sets {
                if endpoints.is_empty() && selection.length == 0 {
                    continue;
                }
                let backends = self.backends_of(endpoints)?;
                let table = tables.extents.get(&selection.element)?;
                // A service port that found no room has its old sets.
                if !Arc::ptr_eq(cache.tables.get(&backends)?, table) {
                    return None;
                }
                let element = Some(selection.element);
                let shared = self.extents.entry(backends).or_insert(SharedExtent {
                    table: Arc::clone(table),
                    element,
                    users: 0,
                });
                shared.users += 1;
                if shared.element != element {
                    return None;
                }
            }
        }
        // One extent is of one set of backends, and every backend has a user.
        let distinct = self.extents.len() == tables.extents.len();
        (distinct && self.backends.len() == tables.backends.len()).then_some(())
    }

    /// The backends of a set, which are known.
    pub(super) fn backends_of(&self, endpoints: &[SocketAddr]) -> Option<Backends> {
        let backend = |endpoint: &SocketAddr| Some((*endpoint, self.backends.get(endpoint)?.id));
        endpoints.iter().map(backend).collect()
    }

    /// Whether this is what the last plan was made for.
    pub(in crate::plan) fn holds(&self, snapshot: &Snapshot, node: &NodeConfig) -> bool {
        !self.unwritten
            && self.node == *node
            && self.snapshot.service_networks == snapshot.service_networks
    }

    /// Keeps the Maglev tables for the plan of everything.
    pub(in crate::plan) fn into_cache(self) -> TableCache {
        let tables = self.extents.into_iter();
        TableCache {
            tables: tables.map(|(key, shared)| (key, shared.table)).collect(),
        }
    }

    pub(super) fn check_health(&mut self, name: ObjectName, check: Option<HealthCheck>) {
        if self.health.get(&name) == check.as_ref() {
            return;
        }
        let health = Arc::make_mut(&mut self.health);
        match check {
            Some(check) => drop(health.insert(name, check)),
            None => drop(health.remove(&name)),
        }
    }

    pub(super) fn reject(&mut self, old: Vec<Rejection>, new: Vec<Rejection>) {
        if old == new {
            return;
        }
        for rejection in new {
            *self.rejected.entry(rejection).or_default() += 1;
        }
        for rejection in old {
            if let Some(count) = self.rejected.get_mut(&rejection) {
                *count -= 1;
                if *count == 0 {
                    self.rejected.remove(&rejection);
                }
            }
        }
        self.report = Arc::new(self.rejected.keys().cloned().collect());
    }
}

impl SharedBackend {
    pub(super) fn new(id: u32) -> Self {
        Self {
            id,
            users: 0,
            on_node: 0,
        }
    }
}

/// The Service a slice names.
pub(super) fn owner_of(slice: &SliceObject) -> ObjectName {
    ObjectName::new(Arc::clone(&slice.name.namespace), slice.service.clone())
}
