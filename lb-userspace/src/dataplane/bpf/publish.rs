//! The stores that make a service port what it shall be, in an order no packet can tell.
//!
//! A packet reads the flags, which say from which set it draws, and then that set's selection.

use std::{
    mem::offset_of,
    sync::atomic::{Ordering, fence},
};

use lb_common::{
    names,
    service::{Service, service_flag},
};

use super::{BpfDataplane, extents::wait_for_readers, full, kernel_error};
use crate::{dataplane::DataplaneError, tables::ServiceRecord};

/// The flags that say from which set a packet draws.
const POLICIES: u32 = service_flag::EXTERNAL_LOCAL | service_flag::INTERNAL_LOCAL;

/// Which of a service port's stores come before that of its flags.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Order {
    /// Packets draw from another set than before.
    policy_moves: bool,
    cluster_first: bool,
    local_first: bool,
}

impl Order {
    /// `found` are the flags that stand there; 0 for a service port that is new.
    ///
    /// Packets from outside and from inside each draw from one of the sets. One may be written before
    /// the flags if whoever draws from it does so afterwards, too. Who finds no endpoint here is told by
    /// the flags whether there is any at all: these come before the local set becomes empty.
    fn of(found: u32, record: &ServiceRecord) -> Self {
        let live = found & service_flag::LIVE != 0;
        let (old, new) = (found & POLICIES, record.flags & POLICIES);
        let (from_cluster, from_local) = if live { (POLICIES & !old, old) } else { (0, 0) };
        let may_be_empty = record.local.length > 0 || from_local == 0;
        Self {
            policy_moves: live && old != new,
            cluster_first: from_cluster & new == 0,
            local_first: from_local & !new == 0 && may_be_empty,
        }
    }
}

impl BpfDataplane {
    /// Writes a service port's element; its name is written.
    pub(super) fn publish(&self, id: u32, record: &ServiceRecord) -> Result<(), DataplaneError> {
        let what = || format!("set service port {id} {}", record.name);
        let services = &self.maps.services;
        let base = services.offset(id);
        if base + size_of::<Service>() > services.len() {
            return Err(full(what(), names::SERVICES, self.maps.services_capacity));
        }
        let failed = |error| kernel_error(what(), error);
        let word32 = |at: usize, value| services.store_u32(base + at, value).map_err(failed);
        let word64 = |at: usize, value| services.store_u64(base + at, value).map_err(failed);
        word32(
            offset_of!(Service, affinity_seconds),
            record.affinity_seconds,
        )?;
        word32(offset_of!(Service, source_ranges), record.source_ranges)?;
        fence(Ordering::SeqCst);
        let flags = offset_of!(Service, flags);
        let found = services.load_u32(base + flags).unwrap_or_default();
        let order = Order::of(found, record);
        let selections = [
            (
                offset_of!(Service, cluster),
                record.cluster.to_word(),
                order.cluster_first,
            ),
            (
                offset_of!(Service, local),
                record.local.to_word(),
                order.local_first,
            ),
        ];
        for (at, word, _) in selections.into_iter().filter(|(.., first)| *first) {
            word64(at, word)?;
        }
        word32(flags, record.flags)?;
        let late = selections
            .into_iter()
            .filter(|(at, word, first)| !first && services.load_u64(base + at) != Some(*word));
        let late: Vec<_> = late.collect();
        if order.policy_moves && !late.is_empty() {
            // Who read the old flags draws from there.
            wait_for_readers().map_err(failed)?;
        }
        for (at, word, _) in late {
            word64(at, word)?;
        }
        // Last: UDP flows ask `MEMBERS` again when it moved.
        word32(offset_of!(Service, epoch), record.epoch)
    }
}

#[cfg(test)]
mod tests {
    use lb_common::service::Selection;

    use super::*;

    const LIVE: u32 = service_flag::LIVE;
    const OUTSIDE: u32 = LIVE | service_flag::EXTERNAL_LOCAL;
    const INSIDE: u32 = LIVE | service_flag::INTERNAL_LOCAL;
    const BOTH: u32 = OUTSIDE | INSIDE;

    /// Which sets come before the flags.
    const CLUSTER: (bool, bool) = (true, false);
    const LOCAL: (bool, bool) = (false, true);
    const ALL: (bool, bool) = (true, true);

    #[test]
    fn a_set_is_there_before_packets_draw_from_it_and_stays_while_they_do() {
        for (name, found, flags, lengths, moves, first) in [
            ("new", 0, LIVE, [251, 0], false, ALL),
            ("another set", LIVE, LIVE, [251, 0], false, ALL),
            ("no endpoint left", LIVE, LIVE, [0, 0], false, ALL),
            ("to Local", LIVE, OUTSIDE, [0, 251], true, LOCAL),
            (
                "to Local, both used",
                LIVE,
                OUTSIDE,
                [251, 251],
                true,
                LOCAL,
            ),
            ("to Cluster", BOTH, LIVE, [251, 0], true, CLUSTER),
            (
                "outside to Cluster",
                BOTH,
                INSIDE,
                [251, 251],
                true,
                CLUSTER,
            ),
            ("inside to Local", OUTSIDE, BOTH, [0, 251], true, LOCAL),
            (
                "another local set",
                OUTSIDE,
                OUTSIDE,
                [251, 251],
                false,
                ALL,
            ),
            ("nobody here", OUTSIDE, OUTSIDE, [251, 0], false, CLUSTER),
        ] {
            let [cluster, local] = lengths.map(|length| Selection { element: 1, length });
            let record = ServiceRecord {
                name: String::new(),
                cluster,
                local,
                epoch: 1,
                flags,
                affinity_seconds: 0,
                source_ranges: 0,
            };
            let order = Order::of(found, &record);
            let found = (order.policy_moves, (order.cluster_first, order.local_first));
            assert_eq!(found, (moves, first), "{name}");
        }
    }
}
