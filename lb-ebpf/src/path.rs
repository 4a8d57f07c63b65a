//! The way of a packet through the flow tables, the same for every program: known flow, embryonic flow,
//! new flow. What differs is only where XDP must stop and leave the packet to TCX.

use core::ffi::c_void;

use lb_common::{
    conntrack::{Entry as _, flag},
    reason::Reason,
};

use crate::{
    affinity, claim, embryonic, established,
    family::Family,
    flow_packet::{FlowPacket, Step},
    forward, gate, removal, select,
};

/// The packet's flow, once the hot lookup ended with `found`: settles state changes, then looks among
/// the embryonic. [`Step::MISS`]: no flow knows the packet.
#[inline(always)]
pub(crate) fn known_flow<F: Family>(
    packet: &FlowPacket<F::Flow>,
    found: Step,
    entry: &mut F::Entry,
) -> Step {
    let mut step = found;
    if step == Step::HAND_OVER {
        if established::may_change_state::<F>(packet, entry) {
            let changed = established::transition::<F>(packet, entry);
            if changed != Step::FORWARD {
                return changed;
            }
        }
        step = established::touch::<F>(packet, entry);
    }
    if step == Step::MISS {
        step = embryonic::find::<F>(packet, entry);
    }
    step
}

/// Frontend, backend, route, mode, claim: nothing is written before the next hop is known. In XDP it must
/// be known whole, and a backend that is the node itself is TCX's.
#[inline(always)]
pub(crate) fn new_flow<F: Family, const XDP: bool>(
    ctx: *mut c_void,
    packet: &FlowPacket<F::Flow>,
    entry: &mut F::Entry,
) -> Step {
    let mut chosen = select::choose::<F>(packet, entry);
    // Closed flows that rest in a full table give way, agent or not.
    if chosen == Step::refuse(Reason::FlowTableFull)
        && !gate::is_frozen(packet.now)
        && removal::retire::<F>(packet.now) != 0
    {
        chosen = select::choose::<F>(packet, entry);
    }
    if chosen != Step::CHOSEN && chosen != Step::CHOSEN_KEEPING_SOURCE {
        return chosen;
    }
    if gate::is_frozen(packet.now) {
        return Step::refuse(Reason::Frozen);
    }
    let host = entry.flags() & flag::HOST != 0;
    if XDP && host {
        return Step::HAND_OVER;
    }
    if !host {
        let step = forward::refresh::<F, XDP>(ctx, packet, entry);
        if step != Step::FORWARD {
            return step;
        }
        if XDP && forward::fast(entry.route().next_hop() as u32).is_none() {
            return Step::HAND_OVER;
        }
    }
    if chosen == Step::CHOSEN_KEEPING_SOURCE
        && forward::is_answered_directly::<F, XDP>(ctx, packet, entry)
    {
        entry.set_flags(flag::FULL_NAT);
    }
    let step = claim::claim_reply::<F>(packet, entry);
    if step != Step::FORWARD {
        return step;
    }
    removal::retire::<F>(packet.now);
    let step = claim::insert_forward::<F>(packet, entry);
    if step == Step::FORWARD {
        affinity::note::<F>(packet, entry);
    }
    step
}
