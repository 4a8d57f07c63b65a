//! ICMP and ICMPv6 to addresses of ours: echo to VIPs, and errors about packets we rewrote.
//!
//! An error quotes the packet as we sent it, so the reverse of its tuple is the key of the half that
//! goes the other way. That half says how to write the message so that its receiver recognises what it
//! sent: who it goes to, and what the quoted packet looked like before the rewrite.

use core::mem::{MaybeUninit, offset_of};

use aya_ebpf::bindings::__sk_buff;
use lb_common::{
    addr::{Addr4, Addr6, Be16},
    checksum::Difference,
    conntrack::{Entry as _, flag},
    flow::{Flow as _, Flow4, Flow6, protocol},
    reason::{Event, Reason},
    service::address_role,
};
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use crate::{
    clock,
    established::snapshot,
    family::{Family, V4, V6},
    flow_packet::{FlowPacket, Step},
    forward::{self, Resolved},
    ingress::{DROP, Layout, NEXT, blank, parse_ip},
    packet::Packet,
    reply::{self, Reply},
    select,
    skb::{self, Placement, Skb},
    stats, tables, words,
};

/// Headers that must be linear: two IP headers of 60 bytes, ICMP, and a TCP header.
const HEADERS: u32 = 14 + 60 + 8 + 60 + 20;

/// A quoted packet.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct Quoted<F> {
    /// Its 5-tuple: as we sent it.
    flow: F,
    /// Offset of its IP header.
    ip: u32,
    /// Offset of its transport header.
    l4: u32,
    /// Its IP header checksum (IPv4).
    ip_check: u32,
    /// Offset of its transport checksum; 0 if it was not quoted or says "none".
    check_at: u32,
    /// Its transport checksum.
    check: u32,
}

/// What differs between ICMP and ICMPv6.
pub(crate) trait Icmp: Reply<Flow: Default> {
    /// Echo request.
    const ECHO: u8;
    /// Echo reply.
    const ECHO_REPLY: u8;
    /// Whether a message type is an error that quotes a packet.
    fn is_error(kind: u8) -> bool;
    /// Whether a message keeps the link going and is none of our business.
    fn is_link_local(kind: u8) -> bool;
    /// Reads the quoted packet's headers at `ip`.
    fn quoted(packet: Packet, ip: u32, out: &mut Quoted<Self::Flow>) -> bool;
    /// Writes the quoted tuple anew, its checksums, and the ICMP checksum, which for ICMPv6 covers the
    /// outer addresses too.
    fn translate(
        skb: Skb,
        packet: &FlowPacket<Self::Flow>,
        layout: &Layout,
        quoted: &Quoted<Self::Flow>,
        to: &Translation<Self>,
    ) -> bool;
}

/// What a message is turned into.
#[repr(C)]
pub(crate) struct Translation<F: Family + ?Sized> {
    /// Outer source.
    source: F::Address,
    /// Outer destination.
    destination: F::Address,
    /// The quoted tuple as its sender knows it.
    quoted: F::Flow,
    /// The ICMP checksum field as it is.
    check: u32,
    /// Keeps the struct free of padding.
    reserved: u32,
}

/// Ports and transport checksum of a quoted packet.
#[inline(always)]
fn quoted_transport(packet: Packet, l4: u32, proto: u8) -> Option<(Be16, Be16, u32, u32)> {
    let view = packet.view_at::<8>(l4)?;
    let (mut check_at, mut check) = (0, 0);
    if proto == protocol::UDP {
        check = view.u16::<6>() as u32;
        if check != 0 {
            check_at = l4 + 6;
        }
    } else if let Some(view) = packet.view_at::<18>(l4) {
        check = view.u16::<16>() as u32;
        check_at = l4 + 16;
    }
    Some((
        Be16(view.u16::<0>()),
        Be16(view.u16::<2>()),
        check_at,
        check,
    ))
}

/// The new transport checksum of a quoted packet, and its part in the ICMP checksum's difference.
#[inline(always)]
fn requote(difference: Difference, quoted_check: u32, proto: u8) -> (u16, Difference) {
    let old = quoted_check as u16;
    let new = if proto == protocol::UDP {
        difference.apply_udp(old)
    } else {
        difference.apply(old)
    };
    (new, Difference::new().word16(old, new))
}

impl Icmp for V4 {
    const ECHO: u8 = 8;
    const ECHO_REPLY: u8 = 0;

    #[inline(always)]
    fn is_error(kind: u8) -> bool {
        // Destination unreachable, source quench, time exceeded, parameter problem (RFC 792).
        matches!(kind, 3 | 4 | 11 | 12)
    }

    #[inline(always)]
    fn is_link_local(_kind: u8) -> bool {
        false
    }

    #[inline(always)]
    fn quoted(packet: Packet, ip: u32, out: &mut Quoted<Flow4>) -> bool {
        let Some(view) = packet.view_at::<20>(ip) else {
            return false;
        };
        let version_length = view.u8::<0>();
        let header = ((version_length & 0x0f) as u32) * 4;
        let proto = view.u8::<{ offset_of!(Ipv4Hdr, proto) }>();
        let later = view.u16::<{ offset_of!(Ipv4Hdr, frags) }>() & 0x1fff_u16.to_be() != 0;
        if version_length >> 4 != 4
            || header < 20
            || later
            || (proto != protocol::TCP && proto != protocol::UDP)
        {
            return false;
        }
        let source = Addr4(view.u32::<{ offset_of!(Ipv4Hdr, src_addr) }>());
        let destination = Addr4(view.u32::<{ offset_of!(Ipv4Hdr, dst_addr) }>());
        out.ip = ip;
        out.l4 = ip + header;
        out.ip_check = view.u16::<{ offset_of!(Ipv4Hdr, check) }>() as u32;
        let Some((sport, dport, check_at, check)) = quoted_transport(packet, out.l4, proto) else {
            return false;
        };
        out.flow = Flow4::new(source, sport, destination, dport, proto);
        (out.check_at, out.check) = (check_at, check);
        true
    }

    #[inline(always)]
    fn translate(
        skb: Skb,
        _packet: &FlowPacket<Flow4>,
        layout: &Layout,
        quoted: &Quoted<Flow4>,
        to: &Translation<Self>,
    ) -> bool {
        let (old, new) = (quoted.flow, to.quoted);
        let addresses = Difference::new()
            .word32(old.source.0, new.source.0)
            .word32(old.destination.0, new.destination.0);
        let ports = Difference::new()
            .word16(old.source_port.0, new.source_port.0)
            .word16(old.destination_port.0, new.destination_port.0);
        let ip_check = addresses.apply(quoted.ip_check as u16);
        let mut icmp = addresses
            .and(ports)
            .word16(quoted.ip_check as u16, ip_check);
        if quoted.check_at != 0 {
            let (check, difference) =
                requote(addresses.and(ports), quoted.check, old.protocol as u8);
            icmp = icmp.and(difference);
            if !skb.store(quoted.check_at, &check) {
                return false;
            }
        }
        let check = icmp.apply(to.check as u16);
        skb.store(
            quoted.ip + offset_of!(Ipv4Hdr, src_addr) as u32,
            &[new.source.0, new.destination.0],
        ) && skb.store(quoted.ip + offset_of!(Ipv4Hdr, check) as u32, &ip_check)
            && skb.store(quoted.l4, &[new.source_port.0, new.destination_port.0])
            && skb.store(layout.l4 + 2, &check)
    }
}

impl Icmp for V6 {
    const ECHO: u8 = 128;
    const ECHO_REPLY: u8 = 129;

    #[inline(always)]
    fn is_error(kind: u8) -> bool {
        // Unreachable, too big, time exceeded, parameter problem (RFC 4443, section 2.1).
        matches!(kind, 1..=4)
    }

    #[inline(always)]
    fn is_link_local(kind: u8) -> bool {
        // Router and neighbour discovery (RFC 4861, section 4).
        matches!(kind, 133..=137)
    }

    #[inline(always)]
    fn quoted(packet: Packet, ip: u32, out: &mut Quoted<Flow6>) -> bool {
        let Some(view) = packet.view_at::<40>(ip) else {
            return false;
        };
        let proto = view.u8::<{ offset_of!(Ipv6Hdr, next_hdr) }>();
        if view.u8::<0>() >> 4 != 6 || (proto != protocol::TCP && proto != protocol::UDP) {
            return false;
        }
        let source = Addr6(view.words::<8, 12, 16, 20>());
        let destination = Addr6(view.words::<24, 28, 32, 36>());
        out.ip = ip;
        out.l4 = ip + 40;
        let Some((sport, dport, check_at, check)) = quoted_transport(packet, out.l4, proto) else {
            return false;
        };
        out.flow = Flow6::new(source, sport, destination, dport, proto);
        (out.check_at, out.check) = (check_at, check);
        true
    }

    #[inline(always)]
    fn translate(
        skb: Skb,
        packet: &FlowPacket<Flow6>,
        layout: &Layout,
        quoted: &Quoted<Flow6>,
        to: &Translation<Self>,
    ) -> bool {
        let (old, new) = (quoted.flow, to.quoted);
        let mut addresses = Difference::new();
        for (old, new) in old.source.0.into_iter().zip(new.source.0) {
            addresses = addresses.word32(old, new);
        }
        for (old, new) in old.destination.0.into_iter().zip(new.destination.0) {
            addresses = addresses.word32(old, new);
        }
        let ports = Difference::new()
            .word16(old.source_port.0, new.source_port.0)
            .word16(old.destination_port.0, new.destination_port.0);
        let mut icmp = addresses.and(ports);
        // The ICMPv6 checksum covers the outer addresses too.
        for (old, new) in packet.flow.source.0.into_iter().zip(to.source.0) {
            icmp = icmp.word32(old, new);
        }
        for (old, new) in packet.flow.destination.0.into_iter().zip(to.destination.0) {
            icmp = icmp.word32(old, new);
        }
        if quoted.check_at != 0 {
            let (check, difference) =
                requote(addresses.and(ports), quoted.check, old.protocol as u8);
            icmp = icmp.and(difference);
            if !skb.store(quoted.check_at, &check) {
                return false;
            }
        }
        let check = icmp.apply(to.check as u16);
        skb.store(quoted.ip + 8, &[new.source.0, new.destination.0])
            && skb.store(quoted.l4, &[new.source_port.0, new.destination_port.0])
            && skb.store(layout.l4 + 2, &check)
    }
}

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
    let reason = if F::is_error(kind) {
        Reason::IcmpUnmatched
    } else {
        Reason::IcmpOther
    };
    stats::reason(reason, packet.length);
    DROP
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
