//! Flows in `FLOWS_*`: the hot lookup, and what a packet does to its flow when it is not just data.

use core::mem::MaybeUninit;

use lb_common::{
    conntrack::{
        self, Entry as _, Head, Note, Segment, flag,
        state::{self, CONDEMNED},
    },
    flow::Flow as _,
    names::flow_use,
    reason::Event,
    service::{MemberKey, member_flag},
};

use crate::{
    atomic,
    family::{Closing, Family},
    flow_packet::{FlowPacket, Step},
    forward, stats,
    tables::{FLOW_USE, MEMBERS, SERVICES, config},
    words,
};

/// Copies an entry, unless the element was given to another flow meanwhile.
///
/// # Safety
///
/// `entry` is a value the running program looked up.
#[inline(always)]
pub(crate) unsafe fn snapshot<F: Family>(entry: *const F::Entry, out: &mut F::Entry) -> bool {
    // SAFETY: valid for reads while the program runs, by the caller's word. The head is the first
    // word; it is read before and after, and the compiler keeps volatile and fenced order. x86 and
    // the BPF JITs for it do not reorder loads.
    unsafe {
        let head = entry.cast::<u64>();
        let before = head.read_volatile();
        core::sync::atomic::compiler_fence(core::sync::atomic::Ordering::SeqCst);
        words::copy(entry, out);
        core::sync::atomic::compiler_fence(core::sync::atomic::Ordering::SeqCst);
        let after = head.read_volatile();
        out.set_head(Head(after));
        Head(before).identity() == Head(after).identity() && after != 0
    }
}

/// Compare-and-exchanges the head of an entry.
///
/// # Safety
///
/// `entry` is a value the running program looked up.
#[inline(always)]
pub(crate) unsafe fn exchange_head<E>(entry: *mut E, old: Head, new: Head) -> bool {
    // SAFETY: the head is the first, aligned word of the entry.
    unsafe { atomic::compare_exchange(entry.cast::<u64>(), old.0, new.0) }
}

/// Compare-and-exchanges the route of an entry.
///
/// # Safety
///
/// As for [`exchange_head`].
#[inline(always)]
pub(crate) unsafe fn exchange_route<E>(entry: *mut E, old: u64, new: u64) -> bool {
    // SAFETY: the route is the second, aligned word of the entry.
    unsafe { atomic::compare_exchange(entry.cast::<u64>().add(1), old, new) }
}

/// Compare-and-exchanges the note of an entry.
///
/// # Safety
///
/// As for [`exchange_head`].
#[inline(always)]
pub(crate) unsafe fn exchange_note<E>(entry: *mut E, old: Note, new: Note) -> bool {
    // SAFETY: the note is the third, aligned word of the entry.
    unsafe { atomic::compare_exchange(entry.cast::<u64>().add(2), old.0, new.0) }
}

/// The hot lookup. [`Step::FORWARD`]: `out` is all the packet needs. [`Step::MISS`]: not known.
/// [`Step::HAND_OVER`]: known, but [`touch`] must see the packet first.
#[inline(always)]
pub(crate) fn find<F: Family>(
    packet: &FlowPacket<F::Flow>,
    generation: u16,
    out: &mut F::Entry,
) -> Step {
    let Some(entry) = F::established(&packet.flow) else {
        return Step::MISS;
    };
    // SAFETY: looked up just now.
    if !unsafe { snapshot::<F>(entry, out) } {
        return Step::MISS;
    }
    let head = out.head();
    // FIN, SYN and RST are the three lowest bits.
    let calm = packet.tcp_flags & 0x07 == 0
        && head.stamp() == packet.now
        && (head.state() == state::ESTABLISHED || head.state() == state::FIN)
        && out.route().generation() == generation
        && (packet.is_tcp() || serves_still::<F>(out));
    if calm { Step::FORWARD } else { Step::HAND_OVER }
}

/// UDP: whether the backend was seen to serve in the service port's current set epoch.
#[inline(always)]
pub(crate) fn serves_still<F: Family>(entry: &F::Entry) -> bool {
    if entry.flags() & flag::REVERSE != 0 {
        return true;
    }
    SERVICES
        .get(entry.service())
        .is_none_or(|service| service.epoch == entry.note().value())
}

/// UDP: whether the backend still serves the service port, or nobody else could.
#[inline(always)]
pub(crate) fn may_stay<F: Family>(entry: &F::Entry) -> bool {
    let key = MemberKey {
        service: entry.service(),
        backend: entry.backend(),
    };
    // SAFETY: copied at once.
    if unsafe { MEMBERS.get(key) }.is_some_and(|m| m.flags & member_flag::SERVING != 0) {
        return true;
    }
    let Some(service) = SERVICES.get(entry.service()) else {
        return true;
    };
    // No selection to move to: moving would only churn.
    (service.cluster as u32) == 0 && (service.local as u32) == 0
}

/// A packet which changes its flow: the first of a tick, a stale route, SYN, FIN, RST, or a state
/// other than established. On [`Step::FORWARD`] and [`Step::ROUTE`] `out` is up to date.
#[inline(never)]
pub(crate) fn touch<F: Family>(packet: &FlowPacket<F::Flow>, out: &mut F::Entry) -> Step {
    let Some(entry) = F::established(&packet.flow) else {
        return Step::MISS;
    };
    // SAFETY: looked up just now.
    if !unsafe { snapshot::<F>(entry, out) } {
        return Step::MISS;
    }
    let head = out.head();
    let reverse = out.flags() & flag::REVERSE != 0;
    let mut state = state::base(head.state());
    if packet.is_tcp() {
        let segment = packet.segment();
        if segment == Segment::Syn && !reverse && state::is_closed(state) {
            remove::<F>(packet, out);
            return Step::MISS;
        }
        if matches!(segment, Segment::Fin | Segment::Reset)
            || state == state::RESET
            || head.state() & CONDEMNED != 0
        {
            state = transition::<F>(packet, out, segment);
        }
    } else if !reverse && !serves_still::<F>(out) {
        if !may_stay::<F>(out) {
            remove::<F>(packet, out);
            stats::event(Event::FlowReselected, packet.length);
            return Step::MISS;
        }
        let epoch = SERVICES
            .get(out.service())
            .map_or(0, |service| service.epoch);
        let note = Note::new(head.identity(), epoch);
        // SAFETY: looked up just now; fails if the element serves another flow by now.
        unsafe { exchange_note(entry, out.note(), note) };
        out.set_note(note);
    }
    let stale = head.stamp() != packet.now;
    let touched = head.touched(state, packet.now);
    // SAFETY: as above. Whoever wins wrote the same tick.
    unsafe { exchange_head(entry, head, touched) };
    if packet.is_tcp() && stale {
        let note = Note::new(head.identity(), packet.acknowledgement);
        // SAFETY: as above.
        unsafe { exchange_note(entry, out.note(), note) };
    }
    out.set_head(touched);
    needs_route::<F>(out, stale)
}

/// Whether the flow's route must be looked up before the packet can go: once a tick, and whenever the
/// agent says that routes or neighbours moved.
#[inline(always)]
pub(crate) fn needs_route<F: Family>(out: &F::Entry, stale: bool) -> Step {
    if out.flags() & (flag::HOST | flag::REVERSE) == flag::HOST {
        return Step::FORWARD;
    }
    if stale {
        return Step::ROUTE_OF_TICK;
    }
    let route = out.route();
    if route.next_hop() == 0 || route.generation() != forward::route_generation() {
        return Step::ROUTE;
    }
    Step::FORWARD
}

/// FIN, RST, or life in a half that was thought dead: changes both halves. Returns the new state.
#[inline(always)]
fn transition<F: Family>(packet: &FlowPacket<F::Flow>, out: &F::Entry, segment: Segment) -> u8 {
    let own = out.head().state();
    let peer_key = out.written(packet.protocol()).reversed();
    let Some(peer) = F::established(&peer_key) else {
        return state::base(own);
    };
    // SAFETY: looked up just now; only its first and third word are read.
    let (peer_head, peer_note) = unsafe {
        let words = peer.cast::<u64>();
        (
            Head(words.read_volatile()),
            Note(words.add(2).read_volatile()),
        )
    };
    if peer_head.identity() != out.head().identity() {
        return state::base(own);
    }
    let plausible = conntrack::reset_is_plausible(packet.sequence, peer_note.value());
    if segment == Segment::Reset && !plausible {
        stats::event(Event::ResetImplausible, packet.length);
    }
    let (own_after, peer_after) = conntrack::step(own, peer_head.state(), segment, plausible);
    if peer_after != peer_head.state() {
        // SAFETY: as above; fails if the peer moved meanwhile, which its own packets then settle.
        unsafe { exchange_head(peer, peer_head, peer_head.touched(peer_after, packet.now)) };
    }
    if state::is_closed(own_after) && !state::is_closed(own) {
        let flow = if out.flags() & flag::REVERSE != 0 {
            peer_key
        } else {
            packet.flow
        };
        let closing = Closing {
            flow,
            identity: out.head().identity(),
            since: packet.now,
        };
        // A full queue leaves the flow to the agent's pass.
        let _agent_finds_it = F::push_closing(&closing);
        stats::event(Event::FlowClosed, packet.length);
    }
    own_after
}

/// Takes both halves of the packet's flow out of the table.
#[inline(always)]
pub(crate) fn remove<F: Family>(packet: &FlowPacket<F::Flow>, out: &F::Entry) {
    let peer = out.written(packet.protocol()).reversed();
    remove_halves::<F>(&packet.flow, &peer, packet.is_tcp());
}

/// Takes two keys out of the table and keeps `FLOW_USE` true.
#[inline(always)]
pub(crate) fn remove_halves<F: Family>(one: &F::Flow, other: &F::Flow, tcp: bool) {
    let mut removed = F::remove_established(one) as u64;
    removed += F::remove_established(other) as u64;
    change_use::<F>(tcp, removed.wrapping_neg());
}

/// Adds to the number of established entries.
#[inline(always)]
pub(crate) fn change_use<F: Family>(tcp: bool, amount: u64) {
    if let Some(count) = FLOW_USE.get_ptr_mut(F::USE) {
        // SAFETY: an aligned word of an array element.
        unsafe { atomic::add(count, amount) };
    }
    if !tcp && let Some(count) = FLOW_USE.get_ptr_mut(F::USE_UDP) {
        // SAFETY: as above.
        unsafe { atomic::add(count, amount) };
    }
}

/// Takes up to two closed flows out of the table whose rest is over, or that rest while it is full.
/// Every new flow pays for the last ones' leaving: without the agent, closed flows leave all the same.
#[inline(never)]
pub(crate) fn retire<F: Family>(now: u32) -> u32 {
    let limit = if F::USE == flow_use::V4 {
        config!(flows4_limit)
    } else {
        config!(flows6_limit)
    };
    let mut retired = 0;
    for _ in 0..2 {
        let Some(oldest) = F::peek_closing() else {
            break;
        };
        let pressed = crate::family::entries_in_use(F::USE) >= limit as u64;
        if !pressed && conntrack::ticks_since(now, oldest.since) < config!(closed_ticks) {
            break;
        }
        let Some(closing) = F::pop_closing() else {
            break;
        };
        let Some(entry) = F::established(&closing.flow) else {
            continue;
        };
        let mut copy = MaybeUninit::uninit();
        // SAFETY: an entry of zeroes is valid.
        let copy = unsafe { words::zeroed::<F::Entry>(&mut copy) };
        // SAFETY: looked up just now.
        if !unsafe { snapshot::<F>(entry, copy) }
            || copy.head().identity() != closing.identity
            || !state::is_closed(copy.head().state())
        {
            continue;
        }
        let protocol = closing.flow.protocol();
        let peer = copy.written(protocol).reversed();
        remove_halves::<F>(
            &closing.flow,
            &peer,
            protocol == lb_common::flow::protocol::TCP,
        );
        stats::event(Event::FlowRetired, 0);
        retired += 1;
    }
    retired
}
