//! The operations that lead from the actual tables to the desired ones, in an order in which every
//! packet in between finds tables that fit each other.
//!
//! ```text
//! backends, members, extents, source classes and ranges, service ports, gateway endpoints,
//!     frontends, addresses                                                             (make)
//! addresses, frontends, service ports, source ranges, extents, members, set epochs,
//!     gateway endpoints, backends                                                      (break)
//! ```
//! A source-range set is written while no service port names it, and taken away when none does any
//! more: who reads a set finds all of it.
//!
//! A VIP's frontends come before its address and go after it: the address is what makes the data
//! path answer for every other port too, and it must never do so while frontends are missing.
//!
//! A service port that loses members or frontends, or whose members are less than they were, is published twice:
//! first with its new selections and its old set epoch, and once more with the new epoch when members and
//! frontends are gone. Whoever reads an epoch therefore finds the members of that epoch, or newer ones, and
//! looks for frontends of that epoch or newer ones after it; and session affinity finds a client's backend a
//! member for as long as others could draw it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::{
    dataplane::TableOp,
    tables::{FrontendId, FrontendRecord, ServiceRecord, TableSet},
};

/// The operations from `actual` to `desired`. Nothing, if they are equal.
///
/// `desired` must have been planned with `actual` as its previous tables: then no extent is written
/// while a service port names it.
pub fn diff(actual: &TableSet, desired: &TableSet) -> Vec<TableOp> {
    let mut ops = Vec::new();
    let flags = |key: &(u32, u32)| desired.members.get(key).copied().unwrap_or_default();
    let less = actual
        .members
        .iter()
        .filter(|(key, old)| **old & !flags(key) != 0);
    let mut losing: BTreeSet<u32> = less.clone().map(|(&(service, _), _)| service).collect();
    losing.extend(losers(&actual.frontends, &desired.frontends));

    ops.extend(
        new(&actual.backends, &desired.backends).map(|(&id, r)| TableOp::SetBackend(id, *r)),
    );
    ops.extend(
        new(&actual.members, &desired.members).filter_map(|(&key, &flags)| {
            let old = actual.members.get(&key).copied().unwrap_or_default();
            (old | flags != old).then_some(TableOp::SetMember(key, old | flags))
        }),
    );
    ops.extend(
        new(&actual.extents, &desired.extents)
            .map(|(&element, table)| TableOp::WriteExtent(element, Arc::clone(table))),
    );
    // The old ones first: the table may have no room for both.
    ops.extend(
        gone(&actual.source_classes, &desired.source_classes)
            .map(|(&network, _)| TableOp::RemoveSourceClass(network)),
    );
    ops.extend(
        new(&actual.source_classes, &desired.source_classes)
            .map(|(&network, &class)| TableOp::SetSourceClass(network, class)),
    );
    let ranges = desired.source_ranges.difference(&actual.source_ranges);
    ops.extend(ranges.map(|&(set, network)| TableOp::SetSourceRange(set, network)));
    let mut late = Vec::new();
    for (&id, record) in new(&actual.services, &desired.services) {
        let early = match actual.services.get(&id) {
            Some(old) if losing.contains(&id) && old.epoch != record.epoch => {
                late.push(TableOp::SetService(id, record.clone()));
                let early = ServiceRecord {
                    epoch: old.epoch,
                    ..record.clone()
                };
                (early != *old).then_some(early)
            }
            _ => Some(record.clone()),
        };
        ops.extend(early.map(|record| TableOp::SetService(id, record)));
    }
    let endpoints = desired
        .gateway_endpoints
        .difference(&actual.gateway_endpoints);
    ops.extend(endpoints.map(|&endpoint| TableOp::SetGatewayEndpoint(endpoint)));
    ops.extend(
        new(&actual.frontends, &desired.frontends).map(|(&id, r)| TableOp::SetFrontend(id, *r)),
    );
    ops.extend(
        new(&actual.addresses, &desired.addresses).map(|(&a, &r)| TableOp::SetAddress(a, r)),
    );

    ops.extend(
        gone(&actual.addresses, &desired.addresses).map(|(&a, _)| TableOp::RemoveAddress(a)),
    );
    ops.extend(
        gone(&actual.frontends, &desired.frontends).map(|(&id, _)| TableOp::RemoveFrontend(id)),
    );
    ops.extend(
        gone(&actual.services, &desired.services).map(|(&id, _)| TableOp::RemoveService(id)),
    );
    let ranges = actual.source_ranges.difference(&desired.source_ranges);
    ops.extend(ranges.map(|&(set, network)| TableOp::RemoveSourceRange(set, network)));
    ops.extend(gone(&actual.extents, &desired.extents).map(|(&e, _)| TableOp::FreeExtent(e)));
    ops.extend(less.map(|(&key, _)| {
        let kept = desired.members.get(&key);
        kept.map_or(TableOp::RemoveMember(key), |&v| TableOp::SetMember(key, v))
    }));
    ops.append(&mut late);
    let endpoints = actual
        .gateway_endpoints
        .difference(&desired.gateway_endpoints);
    ops.extend(endpoints.map(|&endpoint| TableOp::RemoveGatewayEndpoint(endpoint)));
    ops.extend(
        gone(&actual.backends, &desired.backends).map(|(&id, _)| TableOp::RemoveBackend(id)),
    );
    ops
}

/// Service ports that lose a frontend, to another or to nobody.
pub(crate) fn losers<'a>(
    actual: &'a BTreeMap<FrontendId, FrontendRecord>,
    desired: &'a BTreeMap<FrontendId, FrontendRecord>,
) -> impl Iterator<Item = u32> + 'a {
    let moved = actual.iter().filter(|(id, old)| {
        let new = desired.get(id);
        new.is_none_or(|new| new.service != old.service)
    });
    moved.map(|(_, old)| old.service)
}

/// What `desired` has and `actual` has not, or has with another value.
fn new<'a, K: Ord, V: PartialEq>(
    actual: &'a BTreeMap<K, V>,
    desired: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = (&'a K, &'a V)> {
    desired
        .iter()
        .filter(|(key, value)| actual.get(key) != Some(value))
}

/// What `actual` has and `desired` has not.
fn gone<'a, K: Ord, V>(
    actual: &'a BTreeMap<K, V>,
    desired: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = (&'a K, &'a V)> {
    actual.iter().filter(|(key, _)| !desired.contains_key(key))
}

#[cfg(test)]
pub(crate) mod tests;
