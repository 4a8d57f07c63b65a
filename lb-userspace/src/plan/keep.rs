//! Keeping what could not be read: a service port whose manifest is broken at the agent's start stays
//! as the agent before left it.

use std::{collections::BTreeSet, net::SocketAddr, sync::Arc};

use lb_common::service::{Selection, address_role};

use crate::tables::{ServiceRecord, TableSet};

/// Adds to `desired` the service ports of `previous` with these names that it lacks, or has without any
/// backend, with all they need. What else `desired` has stays as it is: a frontend it gave to another
/// is not taken back.
///
/// A plan made from `previous` never gives away ids and extents that `previous` names, so that both
/// fit together.
pub fn keep(previous: &TableSet, desired: &mut TableSet, names: &BTreeSet<String>) {
    let wanted = |id: &u32, record: &ServiceRecord| {
        let lacks = match desired.services.get(id) {
            None => true,
            Some(new) => record.selects() && !new.selects(),
        };
        names.contains(&record.name) && lacks
    };
    let kept: Vec<_> = previous
        .services
        .iter()
        .filter(|(id, record)| wanted(id, record))
        .map(|(id, record)| (*id, record.clone()))
        .collect();
    let ids: BTreeSet<u32> = kept.iter().map(|(id, _)| *id).collect();
    for (id, record) in kept {
        for selection in [record.cluster, record.local] {
            keep_extent(previous, desired, selection);
        }
        desired.services.insert(id, record);
    }
    for (&(service, backend), flags) in &previous.members {
        if ids.contains(&service) {
            desired.members.entry((service, backend)).or_insert(*flags);
            keep_backend(previous, desired, backend);
        }
    }
    let sets: BTreeSet<u32> = kept_sets(desired, &ids);
    let ranges = previous.source_ranges.iter();
    let ranges = ranges.filter(|(set, _)| sets.contains(set));
    desired.source_ranges.extend(ranges.copied());
    let mut has_node_port = false;
    for (frontend, record) in &previous.frontends {
        if !ids.contains(&record.service) || desired.frontends.contains_key(frontend) {
            continue;
        }
        desired.frontends.insert(*frontend, *record);
        has_node_port |= frontend.address.is_unspecified();
        if let Some(role) = previous.addresses.get(&frontend.address) {
            *desired.addresses.entry(frontend.address).or_default() |= role;
        }
    }
    for (address, role) in &previous.addresses {
        if has_node_port && role & address_role::NODE_PORT != 0 {
            *desired.addresses.entry(*address).or_default() |= address_role::NODE_PORT;
        }
    }
    let endpoints: BTreeSet<_> = desired.backends.values().map(|b| b.endpoint).collect();
    let gateway = previous
        .gateway_endpoints
        .iter()
        .filter(|endpoint| endpoints.contains(&SocketAddr::new(endpoint.address, endpoint.port)));
    desired.gateway_endpoints.extend(gateway.copied());
}

/// The source-range sets that service ports name.
fn kept_sets(tables: &TableSet, ids: &BTreeSet<u32>) -> BTreeSet<u32> {
    let services = ids.iter().filter_map(|id| tables.services.get(id));
    services.map(|record| record.source_ranges).collect()
}

fn keep_extent(previous: &TableSet, desired: &mut TableSet, selection: Selection) {
    if selection.length == 0 {
        return;
    }
    let Some(slots) = previous.extents.get(&selection.element) else {
        return;
    };
    desired
        .extents
        .entry(selection.element)
        .or_insert_with(|| Arc::clone(slots));
    let backends: BTreeSet<u32> = slots.iter().copied().filter(|id| *id != 0).collect();
    for backend in backends {
        keep_backend(previous, desired, backend);
    }
}

fn keep_backend(previous: &TableSet, desired: &mut TableSet, id: u32) {
    if let Some(record) = previous.backends.get(&id) {
        desired.backends.entry(id).or_insert(*record);
    }
}
