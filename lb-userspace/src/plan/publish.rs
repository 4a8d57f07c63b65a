//! Puts Maglev tables into extents and writes the records.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::SocketAddr,
    sync::Arc,
};

use lb_common::service::{Selection, address_role};

use super::{
    Planner, Quarantine,
    admit::{Admitted, Numbered},
    arena::Arena,
    draft::PortDraft,
    ranges,
};
use crate::{
    diff::losers,
    maglev,
    node::NodeConfig,
    snapshot::Rejection,
    tables::{FrontendRecord, ServiceRecord, TableSet},
};

/// Maglev tables already built, by their backends. Those a plan does not use are forgotten.
#[derive(Debug, Default)]
pub(super) struct TableCache {
    pub(super) tables: HashMap<Backends, Arc<[u32]>>,
}

/// The backends of a Maglev table, in the order of their endpoints.
pub(super) type Backends = Vec<(SocketAddr, u32)>;

/// Writes the tables, and names the service ports whose new sets must wait for room.
pub(super) fn publish(
    admitted: &Admitted,
    previous: &TableSet,
    quarantine: &Quarantine,
    node: &NodeConfig,
    planner: &mut Planner,
    rejected: &mut Vec<Rejection>,
) -> (TableSet, Vec<String>) {
    let wanted = build(admitted, &mut planner.tables);
    let placed = place(
        admitted,
        &wanted,
        previous,
        &quarantine.extents,
        node.sizes.slots,
    );
    let mut tables = TableSet {
        backends: admitted.backends.clone(),
        addresses: admitted.addresses.clone(),
        gateway_endpoints: admitted.gateway_endpoints.clone(),
        ..TableSet::default()
    };
    let mut waiting = Vec::new();
    for ((port, wanted), placed) in admitted.ports.iter().zip(&wanted).zip(placed) {
        let record = if let [Some(cluster), Some(local)] = placed {
            for (selection, table) in [cluster, local].into_iter().zip(wanted) {
                if selection.length > 0 {
                    tables.extents.insert(selection.element, Arc::clone(table));
                }
            }
            Some(write(
                &mut tables,
                admitted,
                previous,
                port,
                [cluster, local],
                planner,
            ))
        } else {
            waiting.push(port);
            keep(&mut tables, previous, port)
        };
        let Some(record) = record else { continue };
        tables.services.insert(port.id, record);
        let frontends = port.draft.frontends.iter().map(|claim| {
            (
                claim.frontend,
                FrontendRecord {
                    service: port.id,
                    flags: claim.flags,
                },
            )
        });
        tables.frontends.extend(frontends);
    }
    if !waiting.is_empty() {
        forget_unserved(&mut tables);
    }
    raise_losers(previous, &mut tables);
    let frees = previous
        .extents
        .keys()
        .any(|element| !tables.extents.contains_key(element));
    let room = node.sizes.source_ranges;
    let postponed = ranges::write(&mut tables, &admitted.source_ranges, previous, room);
    let ports = admitted.ports.iter();
    let postponed = ports.filter(|port| postponed.contains(&port.source_ranges));
    let mut deferred: Vec<_> = postponed.map(|port| port.draft.name.clone()).collect();
    for port in waiting {
        if frees {
            deferred.push(port.draft.name.clone());
        } else {
            let kept = tables.services.contains_key(&port.id);
            let what = if kept {
                "keeps its last backends"
            } else {
                "is not served"
            };
            let message = format!(
                "{} {what}: the arena of Maglev tables is full (tables.slots in the configuration is {})",
                port.draft.name, node.sizes.slots
            );
            rejected.push(Rejection::service(&port.service, "", message));
        }
    }
    (tables, deferred)
}

/// Takes away what only service ports without room would have used.
fn forget_unserved(tables: &mut TableSet) {
    let served: HashSet<_> = tables
        .frontends
        .keys()
        .map(|frontend| frontend.address)
        .collect();
    for (address, roles) in &mut tables.addresses {
        if !served.contains(address) {
            *roles &= !address_role::VIP;
        }
    }
    tables.addresses.retain(|_, roles| *roles != 0);
    let slots = tables.extents.values().flat_map(|table| table.iter());
    let members = tables.members.keys().map(|(_, backend)| backend);
    let named: HashSet<_> = members.chain(slots).copied().collect();
    tables.backends.retain(|id, _| named.contains(id));
    let kept: HashSet<_> = tables
        .backends
        .values()
        .map(|backend| backend.endpoint)
        .collect();
    tables
        .gateway_endpoints
        .retain(|e| kept.contains(&SocketAddr::new(e.address, e.port)));
}

/// The tables of each port's cluster and local set; empty for none.
fn build(admitted: &Admitted, cache: &mut TableCache) -> Vec<[Arc<[u32]>; 2]> {
    let mut old = std::mem::take(&mut cache.tables);
    let none: Arc<[u32]> = Arc::from([]);
    let mut table = |endpoints: &[SocketAddr]| {
        if endpoints.is_empty() {
            return Arc::clone(&none);
        }
        let id = |e: &SocketAddr| admitted.backend_ids.get(e).copied().unwrap_or_default();
        let backends: Vec<_> = endpoints.iter().map(|e| (*e, id(e))).collect();
        if let Some(table) = cache.tables.get(&backends) {
            return Arc::clone(table);
        }
        let table = old
            .remove(&backends)
            .unwrap_or_else(|| maglev::build(&backends, maglev::length_for(backends.len())));
        cache.tables.insert(backends, Arc::clone(&table));
        table
    };
    let sets = admitted.ports.iter().map(|port| &port.draft.sets);
    sets.map(|sets| [table(&sets.cluster), table(&sets.local)])
        .collect()
}

/// Finds an extent for each table. `None`: there is no room now.
///
/// A port whose table lies where it lay stays there. Others share an extent with the same table or
/// take a new one, which never overlaps any of `previous`: those are still named while the change
/// is applied.
fn place(
    admitted: &Admitted,
    wanted: &[[Arc<[u32]>; 2]],
    previous: &TableSet,
    quarantine: &BTreeMap<u32, u32>,
    capacity: u32,
) -> Vec<[Option<Selection>; 2]> {
    // Equal tables are one allocation, see `build`.
    let identity = |table: &Arc<[u32]>| Arc::as_ptr(table).cast::<u32>();
    let length = |table: &[u32]| u32::try_from(table.len()).unwrap_or(u32::MAX);
    let mut shared = HashMap::new();
    let mut placed = vec![[None; 2]; wanted.len()];
    let all = || admitted.ports.iter().zip(wanted);
    for ((port, tables), placed) in all().zip(&mut placed) {
        let record = previous.services.get(&port.id);
        let selections = record.map_or([Selection::default(); 2], |r| [r.cluster, r.local]);
        for ((table, old), placed) in tables.iter().zip(selections).zip(placed) {
            let held = || previous.extents.get(&old.element);
            let unchanged = |held: &Arc<[u32]>| Arc::ptr_eq(held, table) || held == table;
            if table.is_empty() {
                *placed = Some(Selection::default());
            } else if fits(old.element, table, capacity) && held().is_some_and(unchanged) {
                *placed = Some(Selection {
                    element: old.element,
                    length: length(table),
                });
                shared.entry(identity(table)).or_insert(old.element);
            }
        }
    }
    let occupied = previous.extents.iter();
    let occupied = occupied.map(|(&element, table)| (element, maglev::elements(length(table))));
    let mut arena = Arena::new(capacity, occupied);
    let mut withheld: Vec<_> = quarantine
        .iter()
        .map(|(&element, &size)| (element, size))
        .filter(|&(element, size)| arena.reserve(element, size))
        .collect();
    for ((_, tables), placed) in all().zip(&mut placed) {
        for (table, placed) in tables.iter().zip(placed) {
            if placed.is_some() {
                continue;
            }
            let length = length(table);
            let element = shared.get(&identity(table)).copied();
            let size = maglev::elements(length);
            let element = element.or_else(|| arena.take(size)).or_else(|| {
                for (element, size) in withheld.drain(..) {
                    arena.give_back(element, size);
                }
                arena.take(size)
            });
            if let Some(element) = element {
                shared.insert(identity(table), element);
                *placed = Some(Selection { element, length });
            }
        }
    }
    placed
}

fn fits(element: u32, table: &[u32], capacity: u32) -> bool {
    let elements = maglev::elements(u32::try_from(table.len()).unwrap_or(u32::MAX));
    element
        .checked_add(elements)
        .is_some_and(|end| end <= capacity)
}

/// Writes a service port's members and makes its record.
fn write(
    tables: &mut TableSet,
    admitted: &Admitted,
    previous: &TableSet,
    port: &Numbered,
    [cluster, local]: [Selection; 2],
    planner: &Planner,
) -> ServiceRecord {
    let id = |e: &SocketAddr| admitted.backend_ids.get(e).copied().unwrap_or_default();
    let members: BTreeMap<_, _> = port
        .draft
        .sets
        .members
        .iter()
        .map(|member| ((port.id, id(&member.endpoint)), member.flags))
        .collect();
    let old = previous.members.range((port.id, 0)..=(port.id, u32::MAX));
    let same = old.eq(&members) && !planner.raise_epochs;
    let epoch = epoch(previous.services.get(&port.id), same);
    tables.members.extend(members);
    record(&port.draft, port.source_ranges, [cluster, local], epoch)
}

/// The set epoch of a service port whose members are the `same` as before, or not.
pub(super) fn epoch(old: Option<&ServiceRecord>, same: bool) -> u32 {
    match old {
        None => 1,
        Some(record) if same => record.epoch,
        Some(record) => record.epoch.wrapping_add(1),
    }
}

/// Gives service ports that lose a frontend a new set epoch: their UDP flows look whose it is now, and whose
/// backends serve there.
pub fn raise_losers(before: &TableSet, after: &mut TableSet) {
    for id in losers(&before.frontends, &after.frontends) {
        if let (Some(old), Some(new)) = (before.services.get(&id), after.services.get_mut(&id)) {
            new.epoch = epoch(Some(old), false);
        }
    }
}

/// The record of a service port whose sets lie in these extents.
pub(super) fn record(
    port: &PortDraft,
    source_ranges: u32,
    [cluster, local]: [Selection; 2],
    epoch: u32,
) -> ServiceRecord {
    ServiceRecord {
        name: port.name.clone(),
        cluster,
        local,
        epoch,
        flags: port.flags,
        affinity_seconds: port.affinity_seconds,
        source_ranges,
    }
}

/// Keeps a service port's old backends for as long as its new ones find no room.
fn keep(tables: &mut TableSet, previous: &TableSet, port: &Numbered) -> Option<ServiceRecord> {
    let record = previous.services.get(&port.id)?;
    let mut backends = Vec::new();
    for selection in [record.cluster, record.local]
        .into_iter()
        .filter(|s| s.length > 0)
    {
        let table = previous.extents.get(&selection.element)?;
        backends.extend_from_slice(table);
        tables.extents.insert(selection.element, Arc::clone(table));
    }
    let members = previous.members.range((port.id, 0)..=(port.id, u32::MAX));
    for (&(service, backend), &flags) in members {
        tables.members.insert((service, backend), flags);
        backends.push(backend);
    }
    for id in backends {
        if let Some(backend) = previous.backends.get(&id) {
            tables.backends.entry(id).or_insert(*backend);
        }
    }
    Some(ServiceRecord {
        source_ranges: port.source_ranges,
        ..record.clone()
    })
}
