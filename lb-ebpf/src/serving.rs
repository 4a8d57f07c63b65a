//! UDP flows have no end a packet could tell of: they stay with their backend as long as it serves.

use lb_common::{
    conntrack::{Entry as _, flag},
    service::{MemberKey, member_flag},
};

use crate::{
    family::Family,
    flow_packet::FlowPacket,
    select,
    tables::{MEMBERS, SERVICES},
};

/// Whether the backend was seen to serve in the service port's current set epoch.
#[inline(always)]
pub(crate) fn serves_still<F: Family>(entry: &F::Entry) -> bool {
    if entry.flags() & flag::REVERSE != 0 {
        return true;
    }
    SERVICES
        .get(entry.service())
        .is_none_or(|service| service.epoch == entry.note().value())
}

/// What a UDP flow does whose service port has another set epoch than it noted.
#[derive(Clone, Copy, Eq, PartialEq)]
pub(crate) enum Stay {
    /// It leaves its backend.
    No,
    /// It stays until the epoch moves again.
    Yes,
    /// It stays, but its frontend is another service port's or nobody's: it asks again at its next packet, for
    /// the epoch it notes is not the one that would tell.
    ForNow,
}

/// Whether the backend still serves the service port that has the flow's frontend now, or nobody else could.
#[inline(always)]
pub(crate) fn stays<F: Family>(packet: &FlowPacket<F::Flow>, entry: &F::Entry) -> Stay {
    let now = service_now::<F>(packet);
    let service = if now == 0 { entry.service() } else { now };
    // No selection to move to: moving would only churn.
    if !serves(service, entry.backend()) && has_selection(service) {
        Stay::No
    } else if now == entry.service() {
        Stay::Yes
    } else {
        Stay::ForNow
    }
}

fn serves(service: u32, backend: u32) -> bool {
    let key = MemberKey { service, backend };
    // SAFETY: copied at once.
    unsafe { MEMBERS.get(key) }.is_some_and(|m| m.flags & member_flag::SERVING != 0)
}

#[inline(always)]
fn has_selection(service: u32) -> bool {
    SERVICES
        .get(service)
        .is_some_and(|service| (service.cluster as u32) != 0 || (service.local as u32) != 0)
}

/// The service port that has the packet's frontend now; 0 for none.
#[inline(always)]
fn service_now<F: Family>(packet: &FlowPacket<F::Flow>) -> u32 {
    select::frontend::<F>(packet, &mut 0).map_or(0, |frontend| frontend.service)
}
