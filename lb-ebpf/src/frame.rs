//! Plain frames in XDP: Ethernet, an IP header without options, TCP or UDP. Read once, written once, at
//! constant offsets.

use core::mem::offset_of;

use lb_common::{
    addr::{Addr4, Addr6, Be16},
    checksum::{Difference, fold},
    device::{Device, NextHopWord},
    flow::{Flow as _, Flow4, Flow6, protocol},
};
use network_types::{
    eth::EthHdr,
    ip::{Ipv4Hdr, Ipv6Hdr},
    tcp::TcpHdr,
    udp::UdpHdr,
};

use crate::{
    family::{Family, V4, V6},
    flow_packet::{FlowPacket, Step},
    packet::{Packet, View},
};

/// A family's fixed frame layout: Ethernet, IP without options, transport.
pub(crate) trait Frame: Family {
    /// Bytes rewritten: up to the end of the transport checksum.
    type Headers: Copy;

    /// Reads a plain packet which may be ours. [`Step::MISS`]: certainly not ours.
    fn parse(packet: Packet, into: &mut FlowPacket<Self::Flow>) -> Result<Self::Headers, Step>;
    /// Whether the transport checksum is only the pseudo-header's sum: the device was to complete it.
    fn is_partial(headers: Self::Headers, packet: &FlowPacket<Self::Flow>) -> bool;
    /// TTL or hop limit.
    fn ttl(headers: Self::Headers) -> u8;
    /// Destination MAC.
    fn link(headers: Self::Headers) -> [u16; 3];
    /// Writes addresses, ports, TTL, checksums and the link layer.
    fn write(
        headers: Self::Headers,
        packet: &FlowPacket<Self::Flow>,
        entry: &Self::Entry,
        hop: NextHopWord,
        device: &Device,
    );
}

/// Offset of the IP header.
pub(crate) const IP: usize = size_of::<EthHdr>();
const L4_V4: usize = IP + size_of::<Ipv4Hdr>();
const L4_V6: usize = IP + size_of::<Ipv6Hdr>();
const UDP_V4: usize = L4_V4 + size_of::<UdpHdr>();
const UDP_V6: usize = L4_V6 + size_of::<UdpHdr>();
const TCP_V4: usize = L4_V4 + size_of::<TcpHdr>();
const TCP_V6: usize = L4_V6 + size_of::<TcpHdr>();
/// Offset of the TCP flags byte in its header (RFC 9293, section 3.1).
const TCP_FLAGS: usize = 13;
/// Offset of the TCP data offset.
const TCP_OFFSET: usize = 12;

/// The views of a packet: TCP has more to show.
#[derive(Clone, Copy)]
pub(crate) enum Headers<const UDP: usize, const TCP: usize> {
    /// Up to the end of a UDP header.
    Udp(View<UDP>),
    /// Up to the end of a TCP header.
    Tcp(View<TCP>),
}

/// Fills what TCP adds.
macro_rules! tcp_fields {
    ($view:ident, $l4:expr, $into:ident, $header:expr) => {
        $into.sequence = u32::from_be($view.u32::<{ $l4 + offset_of!(TcpHdr, seq) }>());
        $into.acknowledgement = u32::from_be($view.u32::<{ $l4 + offset_of!(TcpHdr, ack_seq) }>());
        let flags = $view.u8::<{ $l4 + TCP_FLAGS }>() as u32;
        let data = (($view.u8::<{ $l4 + TCP_OFFSET }>() >> 4) as u32) * 4;
        $into.tcp_flags = flags;
        // FIN and SYN take a sequence number each.
        $into.sequence_length = $into
            .length
            .wrapping_sub($header + data)
            .wrapping_add((flags & 1) + ((flags >> 1) & 1));
    };
}

impl Frame for V4 {
    type Headers = Headers<UDP_V4, TCP_V4>;

    #[inline(always)]
    fn parse(packet: Packet, into: &mut FlowPacket<Flow4>) -> Result<Self::Headers, Step> {
        let Some(view) = packet.view::<UDP_V4>() else {
            return Err(Step::MISS);
        };
        let source = Addr4(view.u32::<{ IP + offset_of!(Ipv4Hdr, src_addr) }>());
        let destination = Addr4(view.u32::<{ IP + offset_of!(Ipv4Hdr, dst_addr) }>());
        if !Self::in_filter(destination, source) {
            return Err(Step::MISS);
        }
        into.length = u16::from_be(view.u16::<{ IP + offset_of!(Ipv4Hdr, tot_len) }>()) as u32;
        // More fragments, or an offset: RFC 791, section 3.1.
        let fragment = view.u16::<{ IP + offset_of!(Ipv4Hdr, frags) }>() & 0x3fff_u16.to_be() != 0;
        if view.u8::<{ IP + offset_of!(Ipv4Hdr, vihl) }>() != 0x45
            || fragment
            || into.length as usize > packet.length() - IP
        {
            return Err(Step::HAND_OVER);
        }
        let ip_protocol = view.u8::<{ IP + offset_of!(Ipv4Hdr, proto) }>();
        into.flow = Flow4::new(
            source,
            Be16(view.u16::<L4_V4>()),
            destination,
            Be16(view.u16::<{ L4_V4 + 2 }>()),
            ip_protocol,
        );
        into.protocol = ip_protocol as u32;
        match ip_protocol {
            protocol::UDP => Ok(Headers::Udp(view)),
            protocol::TCP => {
                let Some(view) = packet.view::<TCP_V4>() else {
                    return Err(Step::HAND_OVER);
                };
                tcp_fields!(view, L4_V4, into, size_of::<Ipv4Hdr>() as u32);
                Ok(Headers::Tcp(view))
            }
            _ => Err(Step::HAND_OVER),
        }
    }

    #[inline(always)]
    fn is_partial(headers: Self::Headers, packet: &FlowPacket<Flow4>) -> bool {
        let check = match headers {
            Headers::Udp(view) => view.u16::<{ L4_V4 + offset_of!(UdpHdr, check) }>(),
            Headers::Tcp(view) => view.u16::<{ L4_V4 + offset_of!(TcpHdr, check) }>(),
        };
        let length = packet.length - size_of::<Ipv4Hdr>() as u32;
        let sum = packet.flow.source.0 as u64 + packet.flow.destination.0 as u64;
        check == fold(sum + pseudo_tail(packet.protocol, length))
    }

    #[inline(always)]
    fn ttl(headers: Self::Headers) -> u8 {
        match headers {
            Headers::Udp(view) => view.u8::<{ IP + offset_of!(Ipv4Hdr, ttl) }>(),
            Headers::Tcp(view) => view.u8::<{ IP + offset_of!(Ipv4Hdr, ttl) }>(),
        }
    }

    #[inline(always)]
    fn link(headers: Self::Headers) -> [u16; 3] {
        match headers {
            Headers::Udp(view) => [view.u16::<0>(), view.u16::<2>(), view.u16::<4>()],
            Headers::Tcp(view) => [view.u16::<0>(), view.u16::<2>(), view.u16::<4>()],
        }
    }

    #[inline(always)]
    fn write(
        headers: Self::Headers,
        packet: &FlowPacket<Flow4>,
        entry: &Self::Entry,
        hop: NextHopWord,
        device: &Device,
    ) {
        let addresses = Difference::new()
            .word32(packet.flow.source.0, entry.source.0)
            .word32(packet.flow.destination.0, entry.destination.0);
        let transport = addresses
            .word16(packet.flow.source_port.0, entry.source_port.0)
            .word16(packet.flow.destination_port.0, entry.destination_port.0);
        macro_rules! write {
            ($view:ident) => {{
                $view.set_u32::<{ IP + offset_of!(Ipv4Hdr, src_addr) }>(entry.source.0);
                $view.set_u32::<{ IP + offset_of!(Ipv4Hdr, dst_addr) }>(entry.destination.0);
                $view.set_u16::<L4_V4>(entry.source_port.0);
                $view.set_u16::<{ L4_V4 + 2 }>(entry.destination_port.0);
                let ttl = $view.u16::<{ IP + offset_of!(Ipv4Hdr, ttl) }>();
                // TTL is the first byte of its word; `ttl > 1` was checked.
                let less = u16::from_be(ttl).wrapping_sub(0x0100).to_be();
                $view.set_u16::<{ IP + offset_of!(Ipv4Hdr, ttl) }>(less);
                let check = $view.u16::<{ IP + offset_of!(Ipv4Hdr, check) }>();
                let check = addresses.word16(ttl, less).apply(check);
                $view.set_u16::<{ IP + offset_of!(Ipv4Hdr, check) }>(check);
                write_link($view, hop, device);
            }};
        }
        match headers {
            Headers::Udp(view) => {
                let check = view.u16::<{ L4_V4 + offset_of!(UdpHdr, check) }>();
                if check != 0 {
                    let check = transport.apply_udp(check);
                    view.set_u16::<{ L4_V4 + offset_of!(UdpHdr, check) }>(check);
                }
                write!(view);
            }
            Headers::Tcp(view) => {
                let check = view.u16::<{ L4_V4 + offset_of!(TcpHdr, check) }>();
                let check = transport.apply(check);
                view.set_u16::<{ L4_V4 + offset_of!(TcpHdr, check) }>(check);
                write!(view);
            }
        }
    }
}

impl Frame for V6 {
    type Headers = Headers<UDP_V6, TCP_V6>;

    #[inline(always)]
    fn parse(packet: Packet, into: &mut FlowPacket<Flow6>) -> Result<Self::Headers, Step> {
        const SOURCE: usize = IP + offset_of!(Ipv6Hdr, src_addr);
        const DESTINATION: usize = IP + offset_of!(Ipv6Hdr, dst_addr);
        let Some(view) = packet.view::<UDP_V6>() else {
            return Err(Step::MISS);
        };
        let source = Addr6(view.words::<SOURCE, { SOURCE + 4 }, { SOURCE + 8 }, { SOURCE + 12 }>());
        let destination = Addr6(view.words::<
            DESTINATION,
            { DESTINATION + 4 },
            { DESTINATION + 8 },
            { DESTINATION + 12 },
        >());
        if !Self::in_filter(destination, source) {
            return Err(Step::MISS);
        }
        let payload = u16::from_be(view.u16::<{ IP + offset_of!(Ipv6Hdr, payload_len) }>());
        into.length = payload as u32 + size_of::<Ipv6Hdr>() as u32;
        if view.u8::<{ IP + offset_of!(Ipv6Hdr, vcf) }>() >> 4 != 6
            || into.length as usize > packet.length() - IP
        {
            return Err(Step::HAND_OVER);
        }
        let next = view.u8::<{ IP + offset_of!(Ipv6Hdr, next_hdr) }>();
        into.flow = Flow6::new(
            source,
            Be16(view.u16::<L4_V6>()),
            destination,
            Be16(view.u16::<{ L4_V6 + 2 }>()),
            next,
        );
        into.protocol = next as u32;
        match next {
            protocol::UDP => Ok(Headers::Udp(view)),
            protocol::TCP => {
                let Some(view) = packet.view::<TCP_V6>() else {
                    return Err(Step::HAND_OVER);
                };
                tcp_fields!(view, L4_V6, into, size_of::<Ipv6Hdr>() as u32);
                Ok(Headers::Tcp(view))
            }
            _ => Err(Step::HAND_OVER),
        }
    }

    #[inline(always)]
    fn is_partial(headers: Self::Headers, packet: &FlowPacket<Flow6>) -> bool {
        let check = match headers {
            Headers::Udp(view) => view.u16::<{ L4_V6 + offset_of!(UdpHdr, check) }>(),
            Headers::Tcp(view) => view.u16::<{ L4_V6 + offset_of!(TcpHdr, check) }>(),
        };
        let length = packet.length - size_of::<Ipv6Hdr>() as u32;
        let [a, b, c, d] = packet.flow.source.0;
        let [e, f, g, h] = packet.flow.destination.0;
        let sum = a as u64 + b as u64 + c as u64 + d as u64;
        let sum = sum + e as u64 + f as u64 + g as u64 + h as u64;
        check == fold(sum + pseudo_tail(packet.protocol, length))
    }

    #[inline(always)]
    fn ttl(headers: Self::Headers) -> u8 {
        match headers {
            Headers::Udp(view) => view.u8::<{ IP + offset_of!(Ipv6Hdr, hop_limit) }>(),
            Headers::Tcp(view) => view.u8::<{ IP + offset_of!(Ipv6Hdr, hop_limit) }>(),
        }
    }

    #[inline(always)]
    fn link(headers: Self::Headers) -> [u16; 3] {
        match headers {
            Headers::Udp(view) => [view.u16::<0>(), view.u16::<2>(), view.u16::<4>()],
            Headers::Tcp(view) => [view.u16::<0>(), view.u16::<2>(), view.u16::<4>()],
        }
    }

    #[inline(always)]
    fn write(
        headers: Self::Headers,
        packet: &FlowPacket<Flow6>,
        entry: &Self::Entry,
        hop: NextHopWord,
        device: &Device,
    ) {
        const SOURCE: usize = IP + offset_of!(Ipv6Hdr, src_addr);
        const DESTINATION: usize = IP + offset_of!(Ipv6Hdr, dst_addr);
        let [a, b, c, d] = entry.source.0;
        let [e, f, g, h] = entry.destination.0;
        let transport = Difference::new()
            .words(packet.flow.source.0, entry.source.0)
            .words(packet.flow.destination.0, entry.destination.0)
            .word16(packet.flow.source_port.0, entry.source_port.0)
            .word16(packet.flow.destination_port.0, entry.destination_port.0);
        macro_rules! write {
            ($view:ident) => {{
                $view.set_u32::<SOURCE>(a);
                $view.set_u32::<{ SOURCE + 4 }>(b);
                $view.set_u32::<{ SOURCE + 8 }>(c);
                $view.set_u32::<{ SOURCE + 12 }>(d);
                $view.set_u32::<DESTINATION>(e);
                $view.set_u32::<{ DESTINATION + 4 }>(f);
                $view.set_u32::<{ DESTINATION + 8 }>(g);
                $view.set_u32::<{ DESTINATION + 12 }>(h);
                $view.set_u16::<L4_V6>(entry.source_port.0);
                $view.set_u16::<{ L4_V6 + 2 }>(entry.destination_port.0);
                let limit = $view.u8::<{ IP + offset_of!(Ipv6Hdr, hop_limit) }>();
                $view.set_u8::<{ IP + offset_of!(Ipv6Hdr, hop_limit) }>(limit.wrapping_sub(1));
                write_link($view, hop, device);
            }};
        }
        match headers {
            Headers::Udp(view) => {
                // IPv6 UDP always has a checksum (RFC 8200, section 8.1).
                let check = view.u16::<{ L4_V6 + offset_of!(UdpHdr, check) }>();
                let check = transport.apply_udp(check);
                view.set_u16::<{ L4_V6 + offset_of!(UdpHdr, check) }>(check);
                write!(view);
            }
            Headers::Tcp(view) => {
                let check = view.u16::<{ L4_V6 + offset_of!(TcpHdr, check) }>();
                let check = transport.apply(check);
                view.set_u16::<{ L4_V6 + offset_of!(TcpHdr, check) }>(check);
                write!(view);
            }
        }
    }
}

/// Protocol and length of a pseudo-header, as they add up in the packet's byte order.
#[inline(always)]
fn pseudo_tail(protocol: u32, length: u32) -> u64 {
    protocol.to_be() as u64 + length.to_be() as u64
}

#[inline(always)]
fn write_link<const LENGTH: usize>(view: View<LENGTH>, hop: NextHopWord, device: &Device) {
    let [a, b, c, d, e, f] = hop.mac();
    view.set_u32::<0>(u32::from_ne_bytes([a, b, c, d]));
    view.set_u16::<4>(u16::from_ne_bytes([e, f]));
    let [a, b, c, d, e, f] = device.mac;
    view.set_u32::<6>(u32::from_ne_bytes([a, b, c, d]));
    view.set_u16::<10>(u16::from_ne_bytes([e, f]));
}
