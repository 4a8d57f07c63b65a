//! Flows in `FLOWS_*`: the hot lookup, and what a packet does to its flow when it is not just data.

use lb_common::{
    conntrack::{
        self, Entry, Head, Note, Segment, flag,
        state::{self, CONDEMNED, QUEUED},
        tcp_flag,
    },
    flow::Flow as _,
    reason::{Event, Reason},
};

use crate::{
    atomic,
    family::{Closing, Family},
    flow_packet::{FlowPacket, Step},
    gate, pending,
    removal::{holds, remove},
    serving::{Stay, serves_still, stays},
    stats,
    subprogram::step,
    tables::SERVICES,
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
pub(crate) unsafe fn exchange_route<E: Entry>(entry: *mut E, old: u64, new: u64) -> bool {
    // SAFETY: the route is an aligned word of the entry.
    unsafe { atomic::compare_exchange(entry.cast::<u64>().add(E::ROUTE_WORD), old, new) }
}

/// Compare-and-exchanges the note of an entry.
///
/// # Safety
///
/// As for [`exchange_head`].
#[inline(always)]
pub(crate) unsafe fn exchange_note<E: Entry>(entry: *mut E, old: Note, new: Note) -> bool {
    // SAFETY: the note is an aligned word of the entry.
    unsafe { atomic::compare_exchange(entry.cast::<u64>().add(E::NOTE_WORD), old.0, new.0) }
}

/// The hot lookup, and the entry in the table. [`Step::FORWARD`]: `out` is all the packet needs.
/// [`Step::MISS`]: not known. [`Step::HAND_OVER`]: known, but [`touch`] must see the packet first.
#[inline(always)]
pub(crate) fn find<F: Family>(
    packet: &FlowPacket<F::Flow>,
    generation: u16,
    out: &mut F::Entry,
) -> (Step, Option<*mut F::Entry>) {
    let Some(entry) = F::established(&packet.flow) else {
        return (Step::MISS, None);
    };
    // SAFETY: looked up just now.
    if !unsafe { snapshot::<F>(entry, out) } {
        return (Step::MISS, None);
    }
    let head = out.head();
    // FIN, SYN and RST are the three lowest bits.
    let calm = packet.tcp_flags & 0x07 == 0
        && head.stamp() == packet.now
        && matches!(head.state() & !QUEUED, state::ESTABLISHED | state::FIN)
        && out.route().generation() == generation
        && (packet.is_tcp() || serves_still::<F>(out));
    if calm {
        (Step::FORWARD, Some(entry))
    } else {
        (Step::HAND_OVER, None)
    }
}

step! {
    /// A packet which changes its flow: the first of a tick, a stale route, SYN, FIN, RST, or a state
    /// other than established. On [`Step::FORWARD`] and [`Step::ROUTE`] `out` is up to date.
    touch = touch_flow as touch_v4, touch_v6
}

#[inline(always)]
fn touch_flow<F: Family>(packet: &FlowPacket<F::Flow>, out: &mut F::Entry) -> Step {
    let Some(entry) = F::established(&packet.flow) else {
        return Step::MISS;
    };
    // SAFETY: looked up just now.
    if !unsafe { snapshot::<F>(entry, out) } {
        return Step::MISS;
    }
    let head = out.head();
    if head.state() == state::DEAD {
        // Whoever takes this half out may not have the other.
        remove::<F>(packet, out);
        return Step::MISS;
    }
    let reverse = out.flags() & flag::REVERSE != 0;
    let stale = head.stamp() != packet.now;
    let passes = out.flags() & flag::PASS != 0;
    if (stale || head.state() & CONDEMNED != 0)
        && !peer_lives::<F>(packet, out)
        && !passes
        && !arrives::<F>(packet, out)
    {
        if gate::is_frozen(packet.now) {
            return Step::refuse(Reason::Frozen);
        }
        // A half alone forwards what is never answered: better a new flow.
        remove::<F>(packet, out);
        return Step::MISS;
    }
    if stale {
        // SAFETY: looked up just now.
        unsafe { pending::hand_over::<F>(entry) };
    }
    let state = state::base(head.state());
    if passes {
        // The stack knows what the packet is to its flow.
    } else if packet.is_tcp() {
        // A client's SYN opens the tuple anew. Where the client's address is kept, a backend's SYN-ACK
        // answers a SYN that was none of ours: a direct connection from that port has the tuple now.
        let opens = if reverse {
            packet.tcp_flags & tcp_flag::SYN as u32 != 0 && out.flags() & flag::FULL_NAT == 0
        } else {
            packet.segment() == Segment::Syn
        };
        if opens && state::is_closed(state) {
            if gate::is_frozen(packet.now) {
                return Step::refuse(Reason::Frozen);
            }
            remove::<F>(packet, out);
            return Step::MISS;
        }
    } else if !reverse {
        // The epoch first: what is read after it is at least as new.
        let epoch = SERVICES
            .get_ptr(out.service())
            // SAFETY: an aligned word of an array element.
            .map_or(0, |service| unsafe {
                (&raw const (*service).epoch).read_volatile()
            });
        if epoch != out.note().value() {
            let stay = stays::<F>(packet, out);
            if stay == Stay::No {
                if gate::is_frozen(packet.now) {
                    return Step::refuse(Reason::Frozen);
                }
                remove::<F>(packet, out);
                stats::event(Event::FlowReselected, packet.length);
                return Step::MISS;
            }
            if stay == Stay::Yes {
                let note = Note::new(head.identity(), epoch);
                // SAFETY: looked up just now; fails if the element serves another flow by now.
                unsafe { exchange_note(entry, out.note(), note) };
                out.set_note(note);
            }
        }
    }
    let touched = head.touched(state | (head.state() & QUEUED), packet.now);
    // SAFETY: as above. Whoever wins wrote the same tick, or takes the half out.
    if !unsafe { exchange_head(entry, head, touched) } && is_gone(entry, head.identity()) {
        remove::<F>(packet, out);
        return Step::MISS;
    }
    if packet.is_tcp() && stale && packet.tcp_flags & tcp_flag::ACK as u32 != 0 {
        let note = Note::new(head.identity(), packet.acknowledgement);
        // SAFETY: as above.
        unsafe { exchange_note(entry, out.note(), note) };
    }
    out.set_head(touched);
    if passes {
        return Step::refuse(Reason::StackFlow);
    }
    needs_route::<F>(out, stale)
}

/// Whether the other half is there; if the agent condemned it, this packet is its life too.
#[inline(always)]
fn peer_lives<F: Family>(packet: &FlowPacket<F::Flow>, out: &F::Entry) -> bool {
    let Some(peer) = F::established(&out.written(packet.protocol()).reversed()) else {
        return false;
    };
    for _ in 0..3 {
        let head = head_of(peer);
        if head.identity() != out.head().identity() || head.state() == state::DEAD {
            return false;
        }
        let revived = head.touched(head.state() & !CONDEMNED, packet.now);
        // SAFETY: looked up just now.
        if head.state() & CONDEMNED == 0 || unsafe { exchange_head(peer, head, revived) } {
            return true;
        }
    }
    false
}

/// Whether a half without its other half is on its way in: both are inserted before they leave
/// `EMBRYONIC_*`, so that whoever finds neither there nor in the table looks once more.
#[inline(always)]
fn arrives<F: Family>(packet: &FlowPacket<F::Flow>, out: &F::Entry) -> bool {
    let identity = out.head().identity();
    let peer = out.written(packet.protocol()).reversed();
    F::embryonic(&packet.flow).is_some_and(|entry| head_of(entry).identity() == identity)
        || holds::<F>(&peer, identity)
}

/// The head of an entry that was looked up just now.
#[inline(always)]
pub(crate) fn head_of<E>(entry: *const E) -> Head {
    // SAFETY: by the callers' word a value the running program looked up; the head is its first word.
    Head(unsafe { entry.cast::<u64>().read_volatile() })
}

/// Whether an entry that was looked up just now is another flow's by now, or nobody's.
#[inline(always)]
pub(crate) fn is_gone<E>(entry: *const E, identity: u32) -> bool {
    let head = head_of(entry);
    head.identity() != identity || head.state() == state::DEAD
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
    if route.next_hop() == 0 || route.generation() != gate::read().route_generation() {
        return Step::ROUTE;
    }
    Step::FORWARD
}

/// Whether a packet may change the state of its flow's halves: FIN, RST, or anything after an RST.
#[inline(always)]
pub(crate) fn may_change_state<F: Family>(packet: &FlowPacket<F::Flow>, found: &F::Entry) -> bool {
    let ends = packet.tcp_flags & (tcp_flag::FIN | tcp_flag::RST) as u32 != 0;
    packet.is_tcp() && (ends || state::base(found.head().state()) == state::RESET)
}

step! {
    /// FIN, RST, or data after an RST: changes both halves. Comes before [`touch`].
    ///
    /// [`Step::FORWARD`], or the reason why the packet may not change its flow now.
    transition = change_states as transition_v4, transition_v6
}

/// Both directions may change at once on two CPUs; each exchange that fails starts over, and after a FIN
/// the peer is read once more, so that of two crossing FINs one sees the other.
#[inline(always)]
fn change_states<F: Family>(packet: &FlowPacket<F::Flow>, found: &mut F::Entry) -> Step {
    let segment = packet.segment();
    let identity = found.head().identity();
    let reverse = found.flags() & flag::REVERSE != 0;
    let peer_key = found.written(packet.protocol()).reversed();
    let (Some(entry), Some(peer)) = (F::established(&packet.flow), F::established(&peer_key))
    else {
        return Step::FORWARD;
    };
    for _ in 0..4 {
        let (own, head) = (head_of(entry), head_of(peer));
        // SAFETY: looked up just now.
        let note = Note(unsafe { peer.cast::<u64>().add(F::Entry::NOTE_WORD).read_volatile() });
        if own.identity() != identity
            || head.identity() != identity
            || own.state() == state::DEAD
            || head.state() == state::DEAD
        {
            return Step::FORWARD;
        }
        let silent = conntrack::ticks_since(packet.now, head.stamp());
        let plausible = conntrack::reset_is_plausible(packet.sequence, note.value(), silent);
        if segment == Segment::Reset && !plausible {
            stats::event(Event::ResetImplausible, packet.length);
            return Step::FORWARD;
        }
        let (own_after, peer_after) =
            conntrack::step(own.state(), head.state(), segment, plausible);
        let changes =
            own_after != state::base(own.state()) || peer_after != state::base(head.state());
        if changes && gate::is_frozen(packet.now) {
            return Step::refuse(Reason::Frozen);
        }
        // The forward half remembers that the flow is queued. Each side closes on its own CPU: whoever
        // changes that half counts the close, and whoever marks it queues it.
        let forward = if reverse { head } else { own };
        let closes = state::is_closed(own_after) && !state::is_closed(forward.state());
        let queued = forward.state() & QUEUED;
        let mark = if state::is_closed(own_after) {
            QUEUED
        } else {
            queued
        };
        let (own_mark, peer_mark) = if reverse { (0, mark) } else { (mark, 0) };
        let own_new = own.touched(own_after | own_mark, packet.now);
        // What closes rests from now on, however long it was silent.
        let peer_stamp = if state::is_closed(peer_after) && !state::is_closed(head.state()) {
            packet.now
        } else {
            head.stamp()
        };
        let peer_new = head.touched(peer_after | peer_mark, peer_stamp);
        // SAFETY: looked up just now; fails if the half changed or serves another flow by now.
        if own_new != own && !unsafe { exchange_head(entry, own, own_new) } {
            continue;
        }
        // SAFETY: as above.
        let whole = peer_new == head || unsafe { exchange_head(peer, head, peer_new) };
        if whole || !reverse {
            if closes {
                stats::event(Event::FlowClosed, packet.length);
            }
            if mark != queued {
                let closing = Closing {
                    flow: if reverse { peer_key } else { packet.flow },
                    identity,
                    since: packet.now,
                };
                // A full queue leaves the flow to the agent's pass.
                let _agent_finds_it = F::push_closing(&closing);
            }
        }
        let (own, head) = (
            state::base(head_of(entry).state()),
            state::base(head_of(peer).state()),
        );
        let crossed = own == state::FIN && matches!(head, state::FIN | state::CLOSED);
        if whole && !crossed && state::is_closed(own) == state::is_closed(head) {
            return Step::FORWARD;
        }
    }
    Step::FORWARD
}
