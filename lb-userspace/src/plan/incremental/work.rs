//! One change being planned: what leaves the shared things, what joins them, and the rows of both.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
};

use lb_common::service::{Selection, service_flag};

use super::{
    Change, Quarantine,
    memory::{Memory, SharedBackend, SharedExtent},
};
use crate::{
    dataplane::TableOp,
    diff::diff,
    maglev,
    plan::{
        draft::PortDraft,
        publish::{self, Backends},
    },
    tables::{FrontendId, FrontendRecord, TableSet},
};

pub(super) struct Work<'a> {
    pub(super) memory: &'a mut Memory,
    pub(super) tables: &'a TableSet,
    pub(super) quarantine: &'a Quarantine,
    /// The rows the change touches, as they are.
    pub(super) before: TableSet,
    /// The same rows as they will be.
    pub(super) after: TableSet,
    /// Fresh ids are looked for from here on.
    pub(super) next: (u32, u32),
    pub(super) backends: BTreeSet<SocketAddr>,
    pub(super) gateway_endpoints: BTreeSet<FrontendId>,
    pub(super) sets: BTreeSet<Backends>,
    /// First elements of the extents the touched service ports used.
    pub(super) left: BTreeSet<u32>,
}

/// A service port with its id and source-range set.
struct Numbered<'a> {
    id: u32,
    source_ranges: u32,
    draft: &'a PortDraft,
    /// The backends of its cluster and local set.
    sets: [Backends; 2],
}

impl<'a> Work<'a> {
    pub(super) fn new(
        memory: &'a mut Memory,
        tables: &'a TableSet,
        quarantine: &'a Quarantine,
    ) -> Self {
        Self {
            memory,
            tables,
            quarantine,
            before: TableSet::default(),
            after: TableSet::default(),
            next: (1, 1),
            backends: BTreeSet::new(),
            gateway_endpoints: BTreeSet::new(),
            sets: BTreeSet::new(),
            left: BTreeSet::new(),
        }
    }

    /// The operations. `None`: the change does not stay among the touched Services.
    pub(super) fn carry_out(mut self, changes: &[Change]) -> Option<Vec<TableOp>> {
        for (id, port) in changes.iter().flat_map(|change| &change.old) {
            self.withdraw(*id, port)?;
        }
        let mut ports = Vec::new();
        for change in changes {
            for port in &change.new.ports {
                ports.push(self.number(change, port)?);
            }
        }
        let placed = self.place(&ports)?;
        for (port, selections) in ports.iter().zip(placed) {
            self.write(port, selections);
        }
        publish::raise_losers(&self.before, &mut self.after);
        self.settle_backends()?;
        self.settle_gateway_endpoints();
        self.settle_addresses();
        self.settle_extents()?;
        self.has_room()?;
        self.settle_services();
        self.give_back();
        Some(diff(&self.before, &self.after))
    }

    /// Takes a service port as it is out of everything it shares.
    fn withdraw(&mut self, id: u32, port: &PortDraft) -> Option<()> {
        let record = self.tables.services.get(&id)?;
        let sets = [
            (&port.sets.cluster, record.cluster),
            (&port.sets.local, record.local),
        ];
        for (set, selection) in sets.into_iter().filter(|(set, _)| !set.is_empty()) {
            let backends = self.memory.backends_of(set)?;
            let shared = self.memory.extents.get_mut(&backends)?;
            shared.users = shared.users.checked_sub(1)?;
            self.left.insert(selection.element);
            self.sets.insert(backends);
        }
        for member in &port.sets.members {
            let shared = self.memory.backends.get_mut(&member.endpoint)?;
            shared.users = shared.users.checked_sub(1)?;
            shared.on_node = shared.on_node.checked_sub(usize::from(member.on_node))?;
            self.backends.insert(member.endpoint);
        }
        for endpoint in gateway_endpoints(port) {
            let users = self.memory.gateway_endpoints.get_mut(&endpoint)?;
            *users = users.checked_sub(1)?;
            self.gateway_endpoints.insert(endpoint);
        }
        for claim in &port.frontends {
            let record = self.tables.frontends.get(&claim.frontend)?;
            self.before.frontends.insert(claim.frontend, *record);
            let of_family = self.memory.frontends_of.get_mut(&port.family)?;
            *of_family = of_family.checked_sub(1)?;
        }
        let members = members_of(self.tables, id);
        self.before.members.extend(members);
        self.before.services.insert(id, record.clone());
        Some(())
    }

    /// Numbers a service port as it will be, and its backends.
    fn number<'p>(&mut self, change: &Change, port: &'p PortDraft) -> Option<Numbered<'p>> {
        let sizes = &self.memory.node.sizes;
        let known = change.old.iter().find(|(_, old)| old.name == port.name);
        let id = if let Some((id, _)) = known {
            *id
        } else {
            let fresh = &self.quarantine.services;
            let id = self.memory.service_ids.free(self.next.0, fresh);
            if id >= sizes.services {
                return None;
            }
            self.memory.service_ids.insert(id);
            self.next.0 = id + 1;
            id
        };
        for member in &port.sets.members {
            let known = self.memory.backends.get_mut(&member.endpoint);
            let shared = if let Some(shared) = known {
                shared
            } else {
                let fresh = &self.quarantine.backends;
                let id = self.memory.backend_ids.free(self.next.1, fresh);
                if id >= sizes.backends {
                    return None;
                }
                self.memory.backend_ids.insert(id);
                self.next.1 = id + 1;
                let backends = self.memory.backends.entry(member.endpoint);
                backends.or_insert(SharedBackend::new(id))
            };
            shared.users += 1;
            shared.on_node += usize::from(member.on_node);
            self.backends.insert(member.endpoint);
        }
        for endpoint in gateway_endpoints(port) {
            *self.memory.gateway_endpoints.entry(endpoint).or_default() += 1;
            self.gateway_endpoints.insert(endpoint);
        }
        let cluster = self.memory.backends_of(&port.sets.cluster)?;
        let local = self.memory.backends_of(&port.sets.local)?;
        Some(Numbered {
            id,
            source_ranges: self.source_ranges(change, port)?,
            draft: port,
            sets: [cluster, local],
        })
    }

    /// The source-range set of a service port: that of the Service's other ports of its family.
    fn source_ranges(&self, change: &Change, port: &PortDraft) -> Option<u32> {
        if change.new.source_ranges.is_empty() {
            return Some(0);
        }
        let mut old = change.old.iter();
        let (sibling, _) = old.find(|(_, old)| old.family == port.family)?;
        Some(self.tables.services.get(sibling)?.source_ranges)
    }

    /// Finds an extent for each set: where it lies, where another one of the same lies, or new.
    fn place(&mut self, ports: &[Numbered<'_>]) -> Option<Vec<[Selection; 2]>> {
        let mut placed = vec![[None; 2]; ports.len()];
        for (port, placed) in ports.iter().zip(&mut placed) {
            let record = self.tables.services.get(&port.id);
            let old = record.map_or([Selection::default(); 2], |r| [r.cluster, r.local]);
            for ((set, old), placed) in port.sets.iter().zip(old).zip(placed) {
                if set.is_empty() {
                    *placed = Some(Selection::default());
                    continue;
                }
                let shared = self.extent(set);
                if shared.element == Some(old.element) {
                    shared.users += 1;
                    *placed = Some(shared.selection()?);
                }
            }
        }
        for (port, placed) in ports.iter().zip(&mut placed) {
            for (set, placed) in port.sets.iter().zip(placed) {
                if placed.is_some() {
                    continue;
                }
                let shared = self.extent(set);
                if shared.users == 0 {
                    // Where it lay until now, nobody may write while this change is carried out.
                    let table = Arc::clone(&shared.table);
                    let element = self.memory.arena.take(size(&table))?;
                    self.after.extents.insert(element, table);
                    self.extent(set).element = Some(element);
                }
                let shared = self.extent(set);
                shared.users += 1;
                *placed = Some(shared.selection()?);
            }
        }
        placed
            .into_iter()
            .map(|[cluster, local]| Some([cluster?, local?]))
            .collect()
    }

    /// The Maglev table of a set, which is built if nobody else had it.
    fn extent(&mut self, set: &Backends) -> &mut SharedExtent {
        if !self.sets.contains(set) {
            self.sets.insert(set.clone());
        }
        let extents = self.memory.extents.entry(set.clone());
        extents.or_insert_with(|| SharedExtent {
            table: maglev::build(set, maglev::length_for(set.len())),
            element: None,
            users: 0,
        })
    }

    /// Writes the rows of a service port as it will be.
    fn write(&mut self, port: &Numbered<'_>, selections: [Selection; 2]) {
        let draft = port.draft;
        let ids = &self.memory.backends;
        let id = |endpoint: &SocketAddr| ids.get(endpoint).map_or(0, |shared| shared.id);
        let members = draft.sets.members.iter();
        let members: BTreeMap<_, _> = members
            .map(|member| ((port.id, id(&member.endpoint)), member.flags))
            .collect();
        let same = members_of(self.tables, port.id).eq(members.iter().map(|(k, v)| (*k, *v)));
        let epoch = publish::epoch(self.tables.services.get(&port.id), same);
        let record = publish::record(draft, port.source_ranges, selections, epoch);
        self.after.services.insert(port.id, record);
        self.after.members.extend(members);
        for claim in &draft.frontends {
            let record = FrontendRecord {
                service: port.id,
                flags: claim.flags,
            };
            self.after.frontends.insert(claim.frontend, record);
            *self.memory.frontends_of.entry(draft.family).or_default() += 1;
        }
    }
}

impl SharedExtent {
    fn selection(&self) -> Option<Selection> {
        Some(Selection {
            element: self.element?,
            length: u32::try_from(self.table.len()).ok()?,
        })
    }
}

/// The endpoints a gateway declares for a service port.
pub(super) fn gateway_endpoints(port: &PortDraft) -> impl Iterator<Item = FrontendId> {
    let declares = port.flags & service_flag::KEEP_SOURCE != 0;
    let members = port.sets.members.iter().filter(move |_| declares);
    members.map(|member| FrontendId {
        address: member.endpoint.ip(),
        port: member.endpoint.port(),
        protocol: port.protocol,
    })
}

/// The members of a service port.
fn members_of(tables: &TableSet, id: u32) -> impl Iterator<Item = ((u32, u32), u32)> {
    let members = tables.members.range((id, 0)..=(id, u32::MAX));
    members.map(|(key, flags)| (*key, *flags))
}

/// Elements a table takes.
pub(super) fn size(table: &[u32]) -> u32 {
    maglev::elements(u32::try_from(table.len()).unwrap_or(u32::MAX))
}
