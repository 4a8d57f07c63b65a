//! Flows that have not proved themselves: in an LRU table, so that a flood evicts only its own kind.

use core::mem::MaybeUninit;

use lb_common::{
    conntrack::{Entry, Head, Note, Segment, flag, state, tcp_flag, ticks_since},
    flow::Flow as _,
    names::flow_use,
    reason::{Event, Reason},
    service::{MemberKey, member_flag},
};

use crate::{
    established::{exchange_head, exchange_note, needs_route, snapshot},
    family::{Family, entries_in_use},
    flow_packet::{FlowPacket, Step},
    gate,
    removal::{change_use, end_half, holds, withdraw_half},
    serving::{Stay, serves_still, stays},
    stats,
    subprogram::step,
    tables::{MEMBERS, config},
    words,
};

step! {
    /// Looks among the embryonic flows, then once more among the established: a flow is promoted into
    /// the one before it leaves the other, so a packet that misses both in this order belongs to neither.
    /// The second look at a SYN's is [`crate::claim::insert_forward`]'s.
    find = find_flow as find_embryonic_v4, find_embryonic_v6
}

#[inline(always)]
fn find_flow<F: Family>(packet: &FlowPacket<F::Flow>, out: &mut F::Entry) -> Step {
    if let Some(entry) = F::embryonic(&packet.flow) {
        // SAFETY: looked up just now.
        if unsafe { snapshot::<F>(entry, out) } && out.head().state() != state::DEAD {
            let step = if out.flags() & flag::REVERSE != 0 {
                reply::<F>(packet, entry, out)
            } else {
                request::<F>(packet, entry, out)
            };
            if step != Step::MISS {
                return step;
            }
        }
    }
    // It goes on to make the flow, and there is the same look after the insert.
    if packet.is_tcp() && packet.segment() == Segment::Syn {
        return Step::MISS;
    }
    let Some(entry) = F::established(&packet.flow) else {
        return Step::MISS;
    };
    // SAFETY: looked up just now.
    if unsafe { snapshot::<F>(entry, out) } && out.head().state() != state::DEAD {
        Step::FORWARD
    } else {
        Step::MISS
    }
}

/// Takes a half out of the table if it is this flow's and nobody else does. Until it is out, the dead half keeps
/// its key, unless it is evicted: what another CPU puts there comes after it and is not taken for it.
#[inline(always)]
pub(crate) fn forget<F: Family>(key: &F::Flow, identity: u32) -> bool {
    let Some(entry) = F::embryonic(key) else {
        return false;
    };
    // SAFETY: looked up just now.
    unsafe { end_half(entry, identity, || F::remove_embryonic(key)) }
}

/// Whether this is a backend's RST on an embryonic flow.
#[inline(always)]
pub(crate) fn is_refusal<F: Family>(packet: &FlowPacket<F::Flow>) -> bool {
    if !packet.is_tcp() || packet.segment() != Segment::Reset {
        return false;
    }
    F::embryonic(&packet.flow).is_some_and(|entry| {
        // SAFETY: looked up just now. If the element serves another flow by now, TCX finds out.
        unsafe { &*entry }.flags() & flag::REVERSE != 0
    })
}

/// A packet from the backend: notes what the client must acknowledge to prove itself.
#[inline(always)]
fn reply<F: Family>(
    packet: &FlowPacket<F::Flow>,
    entry: *mut F::Entry,
    out: &mut F::Entry,
) -> Step {
    let head = out.head();
    let mut touched = head.touched(state::REPLIED, packet.now);
    let next = Note::new(
        head.identity(),
        packet.sequence.wrapping_add(packet.sequence_length),
    );
    let resets = packet.is_tcp() && packet.segment() == Segment::Reset;
    let tells =
        state::base(head.state()) != state::REPLIED || (packet.is_tcp() && next != out.note());
    if (tells || resets) && gate::is_frozen(packet.now) {
        // What the client must acknowledge would be noted where nobody looks any more.
        if packet.is_tcp() {
            return Step::refuse(Reason::Frozen);
        }
        touched = head;
    }
    // SAFETY: looked up by the caller; both fail if the element serves another flow by now.
    unsafe {
        if packet.is_tcp() && next != out.note() {
            exchange_note(entry, out.note(), next);
        }
        if touched != head {
            exchange_head(entry, head, touched);
        }
    }
    let stale = head.stamp() != packet.now;
    out.set_head(touched);
    let step = needs_route::<F>(out, stale);
    if resets {
        // The backend refused: the tuple is free again. Only the backend's side can say so.
        forget::<F>(&out.written(packet.protocol()).reversed(), head.identity());
        forget::<F>(&packet.flow, head.identity());
    }
    step
}

/// A packet from the client: promotes the flow if it proves the client.
#[inline(always)]
fn request<F: Family>(
    packet: &FlowPacket<F::Flow>,
    entry: *mut F::Entry,
    out: &mut F::Entry,
) -> Step {
    let head = out.head();
    let reply_key = out.written(packet.protocol()).reversed();
    let peer = match F::embryonic(&reply_key) {
        // SAFETY: looked up just now; head and note are read.
        Some(peer) => unsafe {
            let words = peer.cast::<u64>();
            Some((
                Head(words.read_volatile()),
                Note(words.add(F::Entry::NOTE_WORD).read_volatile()),
            ))
        },
        None => None,
    };
    let is_peer = |h: Head| h.identity() == head.identity() && h.state() != state::DEAD;
    let Some((peer_head, peer_note)) = peer.filter(|(h, _)| is_peer(*h)) else {
        // The other half is gone or leaves, evicted or taken over: promoted meanwhile, or dead.
        if F::established(&packet.flow).is_none() && !gate::is_frozen(packet.now) {
            forget::<F>(&packet.flow, head.identity());
        }
        return Step::MISS;
    };
    let replied = state::base(peer_head.state()) == state::REPLIED;
    let stale = head.stamp() != packet.now;
    if stale && is_over::<F>(packet, out, replied) {
        if gate::is_frozen(packet.now) {
            return Step::refuse(Reason::Frozen);
        }
        forget::<F>(&packet.flow, head.identity());
        forget::<F>(&reply_key, head.identity());
        return Step::MISS;
    }
    if !packet.is_tcp() && !serves_still::<F>(out) && stays::<F>(packet, out) == Stay::No {
        if gate::is_frozen(packet.now) {
            return Step::refuse(Reason::Frozen);
        }
        forget::<F>(&packet.flow, head.identity());
        forget::<F>(&reply_key, head.identity());
        stats::event(Event::FlowReselected, packet.length);
        return Step::MISS;
    }
    if stale {
        let touched = head.touched(state::EMBRYONIC, packet.now);
        // SAFETY: looked up by the caller.
        unsafe { exchange_head(entry, head, touched) };
        out.set_head(touched);
    }
    let step = needs_route::<F>(out, stale);
    // Put off while frozen: the client's next packet proves as much.
    if replied && proves(packet, peer_note) && !gate::is_frozen(packet.now) {
        promote::<F>(packet, out, &reply_key);
    }
    step
}

/// Whether an embryonic flow that was silent for a while has no claim to its backend any more.
#[inline(always)]
fn is_over<F: Family>(packet: &FlowPacket<F::Flow>, out: &F::Entry, replied: bool) -> bool {
    if ticks_since(packet.now, out.head().stamp()) >= config!(embryonic_ticks) {
        return true;
    }
    if replied || packet.segment() != Segment::Syn || !packet.is_tcp() {
        return false;
    }
    // A SYN repeated because nobody answered: look whether the backend still takes new flows.
    let key = MemberKey {
        service: out.service(),
        backend: out.backend(),
    };
    // SAFETY: copied at once.
    unsafe { MEMBERS.get(key) }.is_none_or(|m| m.flags & member_flag::SELECTED == 0)
}

/// Whether a client's packet shows that it received what the backend sent. A spoofed one cannot know
/// the number to acknowledge. UDP has none: there an answer after a reply must do.
#[inline(always)]
fn proves<F>(packet: &FlowPacket<F>, reply: Note) -> bool {
    if !packet.is_tcp() {
        return true;
    }
    let flags = packet.tcp_flags & (tcp_flag::ACK | tcp_flag::SYN | tcp_flag::RST) as u32;
    flags == tcp_flag::ACK as u32 && packet.acknowledgement == reply.value()
}

/// Moves both halves to `FLOWS_*`. If that fails the flow stays embryonic and is forwarded all the
/// same: a full table refuses SYNs, never third packets.
#[inline(always)]
fn promote<F: Family>(packet: &FlowPacket<F::Flow>, out: &mut F::Entry, reply_key: &F::Flow) {
    let tcp = packet.is_tcp();
    if !tcp {
        let quota = if F::USE == flow_use::V4 {
            config!(udp4_limit)
        } else {
            config!(udp6_limit)
        };
        if entries_in_use(F::USE_UDP) >= quota as u64 {
            stats::event(Event::PromotionFailed, packet.length);
            return;
        }
    }
    let identity = out.head().identity();
    let mut reply = MaybeUninit::uninit();
    // SAFETY: an entry of zeroes is valid.
    let reply = unsafe { words::zeroed::<F::Entry>(&mut reply) };
    let Some(embryonic) = F::embryonic(reply_key) else {
        return;
    };
    // SAFETY: looked up just now.
    if !unsafe { snapshot::<F>(embryonic, reply) }
        || reply.head().identity() != identity
        || reply.head().state() == state::DEAD
    {
        return;
    }
    let established = Head::new(identity, state::ESTABLISHED, packet.now);
    reply.set_head(established);
    if tcp {
        // What the backend has acknowledged so far is where the client's sequence stands.
        reply.set_note(Note::new(identity, packet.sequence));
        out.set_note(Note::new(identity, packet.acknowledgement));
    }
    out.set_head(if tcp && packet.segment() == Segment::Fin {
        Head::new(identity, state::FIN, packet.now)
    } else {
        established
    });
    // The reverse half first: whoever wins promotes the flow, another CPU's packet goes on with its copy.
    if F::insert_established(reply_key, reply).is_err() {
        if !holds::<F>(reply_key, identity) {
            stats::event(Event::PromotionFailed, packet.length);
        }
        return;
    }
    if F::insert_established(&packet.flow, out).is_err() {
        // One half alone is worse than none.
        withdraw_half::<F>(reply_key, identity);
        stats::event(Event::PromotionFailed, packet.length);
        return;
    }
    change_use::<F>(tcp, 2);
    // Whoever may have claimed the tuple since has lost it.
    F::remove_embryonic(&packet.flow);
    F::remove_embryonic(reply_key);
    stats::event(Event::FlowPromoted, packet.length);
    stats::flow(out.service(), out.backend(), |traffic| {
        traffic.established += 1
    });
}
