//! The packet an ICMP error quotes, and how to write it as its sender knows it.

use core::mem::offset_of;

use lb_common::{
    addr::{Addr4, Addr6, Be16},
    checksum::Difference,
    flow::{Flow as _, Flow4, Flow6, protocol},
};
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use crate::{
    family::{Family, V4, V6},
    flow_packet::FlowPacket,
    packet::Packet,
    parse::Layout,
    reply::Reply,
    skb::Skb,
};

/// A quoted packet.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct Quoted<F> {
    /// Its 5-tuple: as we sent it.
    pub(crate) flow: F,
    /// Offset of its IP header.
    pub(crate) ip: u32,
    /// Offset of its transport header.
    pub(crate) l4: u32,
    /// Its IP header checksum (IPv4).
    pub(crate) ip_check: u32,
    /// Offset of its transport checksum; 0 if it was not quoted or says "none".
    pub(crate) check_at: u32,
    /// Its transport checksum.
    pub(crate) check: u32,
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
    pub(crate) source: F::Address,
    /// Outer destination.
    pub(crate) destination: F::Address,
    /// The quoted tuple as its sender knows it.
    pub(crate) quoted: F::Flow,
    /// The ICMP checksum field as it is.
    pub(crate) check: u32,
    /// Keeps the struct free of padding.
    pub(crate) reserved: u32,
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
        let addresses = Difference::new()
            .words(old.source.0, new.source.0)
            .words(old.destination.0, new.destination.0);
        let ports = Difference::new()
            .word16(old.source_port.0, new.source_port.0)
            .word16(old.destination_port.0, new.destination_port.0);
        // The ICMPv6 checksum covers the outer addresses too.
        let mut icmp = addresses
            .and(ports)
            .words(packet.flow.source.0, to.source.0)
            .words(packet.flow.destination.0, to.destination.0);
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
