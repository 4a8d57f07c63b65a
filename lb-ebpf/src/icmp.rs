//! ICMP and ICMPv6 to addresses of ours: echo to VIPs, and errors about packets we rewrote.
//!
//! An error quotes the packet as we sent it, so the reverse of its tuple is the key of the half that
//! goes the other way. That half says how to write the message so that its receiver recognises what it
//! sent: who it goes to, and what the quoted packet looked like before the rewrite.

use core::mem::MaybeUninit;

use aya_ebpf::bindings::__sk_buff;
use lb_common::{
    addr::Be16,
    checksum::Difference,
    config::UnknownFlows,
    conntrack::{Entry as _, flag},
    flow::Flow as _,
    reason::{Event, Reason},
    service::address_role,
};

use crate::{
    clock,
    established::snapshot,
    flow_packet::{FlowPacket, Step},
    forward::{self, Resolved},
    ingress::{DROP, NEXT},
    parse::{Layout, blank, parse_ip},
    quote::{Icmp, Quoted, Translation},
    reply, select,
    skb::{self, Placement, Skb},
    stats,
    tables::{self, config},
    words,
};

/// Headers that must be linear: two IP headers of 60 bytes, ICMP, and a TCP header.
const HEADERS: u32 = 14 + 60 + 8 + 60 + 20;

/// What the translation of an error works on. Lives in the scratch: the stack has no room for it.
#[repr(C)]
struct Message<F: Icmp> {
    entry: F::Entry,
    quoted: Quoted<F::Flow>,
    key: F::Flow,
    to: Translation<F>,
    hop: Resolved,
}

/// An ICMP message. Returns the TCX verdict.
#[inline(never)]
pub(crate) fn run<F: Icmp>(skb: *mut __sk_buff) -> i32 {
    let skb = Skb(skb);
    let mut packet = MaybeUninit::uninit();
    let packet = blank::<F>(skb, &mut packet);
    let mut layout = MaybeUninit::uninit();
    // SAFETY: plain numbers.
    let layout = unsafe { words::zeroed::<Layout>(&mut layout) };
    let whole = packet.length;
    if parse_ip::<F>(skb.0, packet, layout) != Step::FORWARD
        || packet.length > whole
        || packet.length < layout.header
    {
        stats::reason(Reason::NotOurs, whole);
        return NEXT;
    }
    packet.now = clock::tick();
    let Some(view) = skb.packet().view_at::<8>(layout.l4) else {
        stats::reason(Reason::NotOurs, packet.length);
        return NEXT;
    };
    let kind = view.u8::<0>();
    if F::is_error(kind) {
        let found = error::<F>(skb.0, packet, layout);
        if found == TO_NEIGHBOUR || found == TO_STACK {
            return send::<F>(skb, packet, layout, found == TO_STACK);
        }
        if found != UNMATCHED {
            return found;
        }
    }
    let role = select::address_role::<F>(packet.flow.destination());
    if F::is_link_local(kind) || role & address_role::VIP == 0 {
        stats::reason(Reason::NotOurs, packet.length);
        return NEXT;
    }
    if kind == F::ECHO {
        return echo::<F>(skb, packet, layout);
    }
    let stack = config!(unknown_flows) == UnknownFlows::Stack as u32;
    let (reason, verdict) = match F::is_error(kind) {
        // About a connection of the stack's own balancer.
        true if stack => (Reason::UnknownFlowToStack, NEXT),
        true => (Reason::IcmpUnmatched, DROP),
        false => (Reason::IcmpOther, DROP),
    };
    stats::reason(reason, packet.length);
    verdict
}

/// Answers a ping.
#[inline(always)]
fn echo<F: Icmp>(skb: Skb, packet: &FlowPacket<F::Flow>, layout: &Layout) -> i32 {
    if !reply::may_reply(packet.now) {
        stats::reason(Reason::RateLimited, packet.length);
        return DROP;
    }
    if layout.header != F::IP_HEADER || layout.is_fragment != 0 {
        stats::reason(Reason::IcmpOther, packet.length);
        return DROP;
    }
    let Some(view) = skb.packet().view_at::<8>(layout.l4) else {
        return DROP;
    };
    let (old, check) = (view.u16::<0>(), view.u16::<2>());
    // The type is the first byte of its word; the code stays zero.
    let new = u16::from_be_bytes([F::ECHO_REPLY, 0]).to_be();
    let check = Difference::new().word16(old, new).apply(check);
    let done = reply::swap_link(skb)
        && skb.store(layout.l4, &[new, check])
        && F::store_header(skb, packet, packet.length - layout.header, F::ICMP);
    if !done {
        stats::reason(Reason::HelperFailed, packet.length);
        return DROP;
    }
    stats::event(Event::EchoReply, packet.length);
    skb::redirect(skb.ifindex())
}

/// [`error`] found no flow. No TCX verdict has this number, nor the next two.
const UNMATCHED: i32 = 0x100;
/// [`error`] found the flow and the next hop of the message.
const TO_NEIGHBOUR: i32 = 0x101;
/// [`error`] found a flow whose receiver is the node itself.
const TO_STACK: i32 = 0x102;

/// An error: decides what it is to be turned into, if it quotes a packet of a flow of ours.
#[inline(never)]
fn error<F: Icmp>(skb: *mut __sk_buff, packet: &FlowPacket<F::Flow>, layout: &Layout) -> i32 {
    let skb = Skb(skb);
    skb.pull(HEADERS);
    // SAFETY: plain numbers; nothing called below uses the element.
    let Some(message) = (unsafe { tables::scratch::<Message<F>>(tables::STEP) }) else {
        return UNMATCHED;
    };
    if !F::quoted(skb.packet(), layout.l4 + 8, &mut message.quoted) {
        return UNMATCHED;
    }
    let quoted = &message.quoted;
    if !F::in_filter(quoted.flow.source(), quoted.flow.destination()) {
        return UNMATCHED;
    }
    message.key = quoted.flow.reversed();
    let found = match F::established(&message.key) {
        Some(found) => Some(found),
        None => F::embryonic(&message.key),
    };
    let Some(found) = found else { return UNMATCHED };
    // SAFETY: looked up just now.
    if !unsafe { snapshot::<F>(found, &mut message.entry) } {
        return UNMATCHED;
    }
    if message.entry.flags() & flag::PASS != 0 {
        stats::reason(Reason::StackFlow, packet.length);
        return NEXT;
    }
    let Some(view) = skb.packet().view_at::<8>(layout.l4) else {
        return UNMATCHED;
    };
    let entry = &message.entry;
    let written = entry.written(quoted.flow.protocol());
    let host = entry.flags() & (flag::HOST | flag::REVERSE) == flag::HOST;
    // Who hears of an error behind an address of ours must hear it from that address; only a `dnat`
    // backend is told by the router itself.
    let keep = entry.flags() & (flag::FULL_NAT | flag::REVERSE) == 0;
    message.to.source = if keep {
        packet.flow.source()
    } else {
        written.source()
    };
    message.to.destination = written.destination();
    message.to.quoted = written.reversed();
    let outer = F::Flow::new(
        message.to.source,
        Be16(0),
        message.to.destination,
        Be16(0),
        packet.protocol(),
    );
    message.to.check = view.u16::<2>() as u32;
    if !host && layout.ttl <= 1 {
        stats::reason(Reason::TtlExceeded, packet.length);
        return DROP;
    }
    if !host && !next_hop::<F>(skb, packet, &message.entry, &mut message.hop) {
        stats::reason(Reason::NoRoute, packet.length);
        return DROP;
    }
    // From here on only the outer header's rewrite is of interest.
    message.entry = F::Entry::new(message.entry.head(), &outer, 0, 0, 0);
    if host { TO_STACK } else { TO_NEIGHBOUR }
}

/// Where the message goes: as its flow's packets, if they have a route yet.
#[inline(always)]
fn next_hop<F: Icmp>(
    skb: Skb,
    packet: &FlowPacket<F::Flow>,
    entry: &F::Entry,
    out: &mut Resolved,
) -> bool {
    let next_hop = entry.route().next_hop() as u32;
    (next_hop != 0 && forward::slow(next_hop, packet.now, out))
        || forward::resolve_once::<F>(skb.0.cast(), packet, entry, out) == Step::FORWARD
}

/// [`Icmp::translate`], out of line: the stack has no room for its locals beside the caller's.
#[inline(never)]
fn translate<F: Icmp>(skb: *mut __sk_buff, packet: &FlowPacket<F::Flow>, layout: &Layout) -> bool {
    // SAFETY: plain numbers; the caller looks them up anew.
    let Some(message) = (unsafe { tables::scratch::<Message<F>>(tables::STEP) }) else {
        return false;
    };
    // Without this the compiler passes the fields by value, more than BPF has registers for.
    let packet = core::hint::black_box(packet);
    F::translate(Skb(skb), packet, layout, &message.quoted, &message.to)
}

#[inline(always)]
fn send<F: Icmp>(skb: Skb, packet: &FlowPacket<F::Flow>, layout: &Layout, host: bool) -> i32 {
    if !translate::<F>(skb.0, packet, layout) {
        stats::reason(Reason::HelperFailed, packet.length);
        return DROP;
    }
    // SAFETY: plain numbers, not borrowed elsewhere any more.
    let Some(message) = (unsafe { tables::scratch::<Message<F>>(tables::STEP) }) else {
        return DROP;
    };
    let at = Placement {
        l4: 0,
        ttl_word: if host { 0 } else { layout.ttl_word },
    };
    if !F::rewrite(skb, &packet.flow, &message.entry, &at) {
        stats::reason(Reason::HelperFailed, packet.length);
        return DROP;
    }
    let verdict = if host {
        NEXT
    } else if let Some(verdict) = forward::by_neighbour(&message.hop) {
        verdict
    } else {
        stats::reason(Reason::HelperFailed, packet.length);
        return DROP;
    };
    stats::event(Event::IcmpTranslated, packet.length);
    verdict
}
