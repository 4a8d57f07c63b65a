//! New flows: which frontend, which backend. [`crate::claim`] makes the flow of it.

use lb_common::{
    config::{UnknownFlows, config_flag},
    conntrack::{Entry as _, Head, Note, Segment, flag, state},
    flow::Flow as _,
    maglev::{self, SLOTS_PER_ELEMENT},
    names::flow_use,
    reason::Reason,
    service::{
        Frontend, Selection, Service, address_role, backend_flag, frontend_flag, member_flag,
        service_flag, source_class,
    },
};

use crate::{
    affinity,
    family::{Family, entries_in_use},
    flow_packet::{FlowPacket, Step},
    source,
    subprogram::step,
    tables::{ADDRESSES, SERVICES, SLOTS, config},
};

step! {
    /// Chooses a backend for a packet no flow knows, if a frontend wants it.
    ///
    /// On [`Step::CHOSEN`] `out` names service port, backend, and the backend's endpoint as destination;
    /// its source is still the client.
    choose = choose_backend as choose_v4, choose_v6
}

#[inline(always)]
fn choose_backend<F: Family>(packet: &FlowPacket<F::Flow>, out: &mut F::Entry) -> Step {
    let mut frontend = Frontend::default();
    let step = find_frontend::<F>(packet, &mut frontend);
    if step != Step::FORWARD {
        return step;
    }
    if packet.is_tcp() {
        let step = may_start::<F>(packet);
        if step != Step::FORWARD {
            return step;
        }
    }
    let Some(service) = SERVICES.get_ptr(frontend.service) else {
        return Step::refuse(Reason::BrokenTable);
    };
    if frontend.flags & frontend_flag::SOURCE_RANGES != 0 && !source::admits::<F>(packet, service) {
        return Step::refuse(Reason::SourceRange);
    }
    // The epoch first: the slot read after it is at least as new.
    // SAFETY: an aligned word of an array element.
    let epoch = unsafe { (&raw const (*service).epoch).read_volatile() };
    // SAFETY: as above.
    let policy = unsafe { (&raw const (*service).flags).read_volatile() };
    if policy & service_flag::LIVE == 0 {
        return Step::refuse(Reason::BrokenTable);
    }
    let internal = frontend.flags & frontend_flag::INTERNAL != 0;
    let mut class = 0;
    let local = draws_local::<F>(packet, policy, internal, &mut class);
    let mut id = 0;
    let step = select::<F>(packet, frontend.service, service, local, &mut id);
    if step != Step::FORWARD {
        return step;
    }
    let Some(backend) = F::backend(id) else {
        return Step::refuse(Reason::BrokenTable);
    };
    if backend.flags & backend_flag::LIVE == 0 {
        return Step::refuse(Reason::BrokenTable);
    }
    if internal && policy & service_flag::KEEP_SOURCE == 0 && backend.flags & AT_HOME == 0 {
        class = source::class::<F>(packet);
    }
    let flags = mode(
        backend.flags,
        backend.address == packet.flow.source(),
        policy & service_flag::KEEP_SOURCE != 0 || class & source_class::LOCAL_POD != 0,
    );
    let written = F::Flow::new(
        packet.flow.source(),
        packet.flow.source_port(),
        backend.address,
        backend.port,
        packet.protocol(),
    );
    // Or the compiler knows that two words of the entry are zero, and clears them by a loop over bytes.
    let head = core::hint::black_box(Head::new(0, state::EMBRYONIC, packet.now));
    *out = F::Entry::new(head, &written, flags, id, frontend.service);
    if !packet.is_tcp() {
        out.set_note(Note::new(0, epoch));
    }
    if flags & (flag::FULL_NAT | flag::HOST) == 0 {
        Step::CHOSEN_KEEPING_SOURCE
    } else {
        Step::CHOSEN
    }
}

/// Whether a packet draws from the local set. `class` becomes what its source is, if that matters here.
#[inline(always)]
fn draws_local<F: Family>(
    packet: &FlowPacket<F::Flow>,
    policy: u32,
    internal: bool,
    class: &mut u32,
) -> bool {
    if internal {
        return policy & service_flag::INTERNAL_LOCAL != 0;
    }
    if policy & service_flag::EXTERNAL_LOCAL == 0 {
        return false;
    }
    *class = source::class::<F>(packet);
    // As if it had left the cluster and come back by a node that has an endpoint.
    *class & (source_class::POD | source_class::NODE) == 0
}

/// Backends on this node.
const AT_HOME: u16 = backend_flag::HOST | backend_flag::LOCAL;

/// The mode of a flow, by its bit of [`flag`]. `returns`: a backend elsewhere answers through this node.
#[inline(always)]
fn mode(backend: u16, hairpin: bool, returns: bool) -> u32 {
    if hairpin {
        // An endpoint must not see itself as its client.
        flag::FULL_NAT
    } else if backend & backend_flag::HOST != 0 {
        flag::HOST
    } else if backend & backend_flag::LOCAL != 0 {
        flag::LOCAL
    } else if returns {
        0
    } else {
        flag::FULL_NAT
    }
}

/// Whether a TCP segment may start a flow.
#[inline(always)]
fn may_start<F: Family>(packet: &FlowPacket<F::Flow>) -> Step {
    let policy = config!(unknown_flows);
    match packet.segment() {
        Segment::Syn => {}
        Segment::Data | Segment::Fin if policy == UnknownFlows::Select as u32 => {}
        _ if policy == UnknownFlows::Stack as u32 => {
            return Step::refuse(Reason::UnknownFlowToStack);
        }
        _ => return Step::refuse(Reason::UnknownFlow),
    }
    let limit = if F::USE == flow_use::V4 {
        config!(flows4_limit)
    } else {
        config!(flows6_limit)
    };
    if entries_in_use(F::USE) >= limit as u64 {
        return Step::refuse(Reason::FlowTableFull);
    }
    Step::FORWARD
}

/// The frontend a packet is for, or what becomes of a packet that is for none.
#[inline(always)]
fn find_frontend<F: Family>(packet: &FlowPacket<F::Flow>, out: &mut Frontend) -> Step {
    let mut role = 0;
    if let Some(frontend) = frontend::<F>(packet, &mut role) {
        *out = frontend;
        return Step::FORWARD;
    }
    if role & address_role::VIP != 0 {
        return Step::refuse(Reason::NoFrontend);
    }
    if role & address_role::SNAT != 0 {
        return Step::refuse(Reason::SnatMiss);
    }
    if packet.is_tcp()
        && packet.segment() != Segment::Syn
        && config!(flags) & config_flag::DIRECT_BACKEND_ACCESS == 0
        && F::is_gateway_endpoint(
            packet.flow.source(),
            packet.flow.source_port(),
            packet.protocol(),
        )
    {
        return Step::refuse(Reason::GatewayMiss);
    }
    Step::refuse(Reason::NotOurs)
}

/// The frontend at a packet's destination. `role` becomes what the address is if it has none of its own.
#[inline(always)]
pub(crate) fn frontend<F: Family>(
    packet: &FlowPacket<F::Flow>,
    role: &mut u32,
) -> Option<Frontend> {
    let (address, port) = (packet.flow.destination(), packet.flow.destination_port());
    let protocol = packet.protocol();
    F::frontend(address, port, protocol).or_else(|| {
        *role = address_role::<F>(address);
        if *role & address_role::NODE_PORT == 0 {
            return None;
        }
        F::frontend(F::Address::default(), port, protocol)
    })
}

/// Bits of [`lb_common::service::address_role`].
#[inline(always)]
pub(crate) fn address_role<F: Family>(address: F::Address) -> u32 {
    // SAFETY: copied at once.
    unsafe { ADDRESSES.get(F::mapped(address)) }.map_or(0, |role| role.flags)
}

/// A backend of the local or the cluster set: the one session affinity remembers, else the one a hash
/// falls on.
#[inline(always)]
fn select<F: Family>(
    packet: &FlowPacket<F::Flow>,
    id: u32,
    service: *const Service,
    local: bool,
    out: &mut u32,
) -> Step {
    // SAFETY: an aligned word of an array element.
    let seconds = unsafe { (&raw const (*service).affinity_seconds).read_volatile() };
    if seconds == 0 {
        return select_by_hash(service, local, packet.flow.hash(), out);
    }
    let set = if local {
        member_flag::LOCAL
    } else {
        member_flag::CLUSTER
    };
    *out = affinity::find::<F>(packet, id, seconds, set);
    if *out != 0 {
        return Step::FORWARD;
    }
    // Of the client alone, so that its first flows agree before one of them is noted.
    select_by_hash(service, local, packet.flow.client_hash(), out)
}

/// The backend a hash falls on.
///
/// The selection's word is read again after the slot: a table published meanwhile may already lie
/// where the old one was. One repetition is enough, a second publication takes longer than this.
#[inline(always)]
fn select_by_hash(service: *const Service, local: bool, hash: u32, out: &mut u32) -> Step {
    // SAFETY: both are aligned words of the element, written by the agent as such.
    let word = unsafe {
        if local {
            &raw const (*service).local
        } else {
            &raw const (*service).cluster
        }
    };
    let mut backend = 0;
    // SAFETY: as above.
    let mut seen = unsafe { word.read_volatile() };
    for _ in 0..2 {
        let selection = Selection::from_word(seen);
        if selection.length == 0 {
            // SAFETY: as above.
            let flags = unsafe { (&raw const (*service).flags).read_volatile() };
            return Step::refuse(if local && flags & service_flag::HAS_ENDPOINTS != 0 {
                Reason::NoLocalEndpoint
            } else {
                Reason::NoEndpoint
            });
        }
        let slot = maglev::slot(hash, selection.length);
        let element = selection.element + slot / SLOTS_PER_ELEMENT;
        let Some(slots) = SLOTS.get_ptr(element) else {
            return Step::refuse(Reason::BrokenTable);
        };
        // SAFETY: the index is masked below the element's length of sixteen.
        backend = unsafe {
            slots
                .cast::<u32>()
                .add((slot & (SLOTS_PER_ELEMENT - 1)) as usize)
                .read_volatile()
        };
        // SAFETY: as above.
        let again = unsafe { word.read_volatile() };
        if again == seen {
            break;
        }
        seen = again;
    }
    *out = backend;
    if backend == 0 {
        Step::refuse(Reason::BrokenTable)
    } else {
        Step::FORWARD
    }
}
