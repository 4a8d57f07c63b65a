//! Parsing in TCX: options, fragments and extension headers included, ports where they are.

use core::mem::{MaybeUninit, offset_of};

use aya_ebpf::bindings::__sk_buff;
use lb_common::{
    addr::{Addr4, Addr6, Be16},
    flow::{Flow as _, Flow4, Flow6, protocol},
    reason::Reason,
    service::{FragmentKey, FragmentPorts},
};
use network_types::{
    eth::EthHdr,
    ip::{Ipv4Hdr, Ipv6Hdr},
    tcp::TcpHdr,
};

use crate::{
    family::{Family, V4, V6},
    flow_packet::{FlowPacket, Step},
    packet::Packet,
    skb::{self, Placement, Skb},
    tables::FRAGMENTS,
    words,
};

/// Bytes that must be linear to read an IP header of either family. A stack's own segments have little
/// more, and making them linear further in would cost a new head each.
pub(crate) const HEADERS: u32 = 14 + 40;
/// Next-header number of the fragment header (RFC 8200, section 4.5).
const FRAGMENT_HEADER: u8 = 44;
/// Next-header numbers of hop-by-hop options, routing header and destination options (RFC 8200,
/// section 4.1).
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const DESTINATION_OPTIONS: u8 = 60;

/// What a packet is, besides a flow's packet.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct Layout {
    /// Offset of the transport header (behind a fragment header, if there is one).
    pub(crate) l4: u32,
    /// TTL or hop limit.
    pub(crate) ttl: u32,
    /// IPv4: the word of TTL and protocol.
    pub(crate) ttl_word: u32,
    /// Identification of the datagram the fragment belongs to.
    pub(crate) fragment_id: u32,
    /// 1 for any fragment.
    pub(crate) is_fragment: u32,
    /// 1 for a fragment other than the first.
    pub(crate) is_later_fragment: u32,
    /// IP header bytes, options and extension headers included.
    pub(crate) header: u32,
    /// Transport header bytes, options included.
    pub(crate) l4_header: u32,
    /// Path MTU of the route the packet is too long for.
    pub(crate) mtu: u32,
}

/// A family's parser and rewriter for skbs.
pub(crate) trait SkbFrame: Family<Flow: Default, Entry: Default> {
    /// Reads addresses, lengths and the kind of packet; ports only by [`ports`].
    fn parse(packet: Packet, into: &mut FlowPacket<Self::Flow>, layout: &mut Layout) -> Step;
    /// Carries a rewrite out.
    fn rewrite(skb: Skb, old: &Self::Flow, entry: &Self::Entry, at: &Placement) -> bool;
    /// ICMP of the family.
    const ICMP: u8;
}

impl SkbFrame for V4 {
    const ICMP: u8 = protocol::ICMP;

    #[inline(always)]
    fn parse(packet: Packet, into: &mut FlowPacket<Flow4>, layout: &mut Layout) -> Step {
        const IP: usize = size_of::<EthHdr>();
        let Some(view) = packet.view::<{ IP + size_of::<Ipv4Hdr>() }>() else {
            return Step::refuse(Reason::Truncated);
        };
        let source = Addr4(view.u32::<{ IP + offset_of!(Ipv4Hdr, src_addr) }>());
        let destination = Addr4(view.u32::<{ IP + offset_of!(Ipv4Hdr, dst_addr) }>());
        let proto = view.u8::<{ IP + offset_of!(Ipv4Hdr, proto) }>();
        into.flow = Flow4::new(source, Be16(0), destination, Be16(0), proto);
        into.protocol = proto as u32;
        if !Self::in_filter(destination, source) && proto != Self::ICMP {
            return Step::refuse(Reason::NotOurs);
        }
        let version_length = view.u8::<{ IP + offset_of!(Ipv4Hdr, vihl) }>();
        let header = ((version_length & 0x0f) as u32) * 4;
        if version_length >> 4 != 4 || header < size_of::<Ipv4Hdr>() as u32 {
            return Step::refuse(Reason::Malformed);
        }
        into.length = u16::from_be(view.u16::<{ IP + offset_of!(Ipv4Hdr, tot_len) }>()) as u32;
        let fragment = u16::from_be(view.u16::<{ IP + offset_of!(Ipv4Hdr, frags) }>());
        layout.header = header;
        layout.l4 = IP as u32 + header;
        layout.ttl_word = view.u16::<{ IP + offset_of!(Ipv4Hdr, ttl) }>() as u32;
        layout.ttl = view.u8::<{ IP + offset_of!(Ipv4Hdr, ttl) }>() as u32;
        layout.fragment_id = view.u16::<{ IP + offset_of!(Ipv4Hdr, id) }>() as u32;
        layout.is_fragment = (fragment & 0x3fff != 0) as u32;
        layout.is_later_fragment = (fragment & 0x1fff != 0) as u32;
        Step::FORWARD
    }

    #[inline(always)]
    fn rewrite(skb: Skb, old: &Flow4, entry: &Self::Entry, at: &Placement) -> bool {
        skb::rewrite4(skb.0, old, entry, at)
    }
}

impl SkbFrame for V6 {
    const ICMP: u8 = protocol::ICMP6;

    #[inline(always)]
    fn parse(packet: Packet, into: &mut FlowPacket<Flow6>, layout: &mut Layout) -> Step {
        const IP: usize = size_of::<EthHdr>();
        const SOURCE: usize = IP + offset_of!(Ipv6Hdr, src_addr);
        const DESTINATION: usize = IP + offset_of!(Ipv6Hdr, dst_addr);
        let Some(view) = packet.view::<{ IP + size_of::<Ipv6Hdr>() }>() else {
            return Step::refuse(Reason::Truncated);
        };
        let source = Addr6(view.words::<SOURCE, { SOURCE + 4 }, { SOURCE + 8 }, { SOURCE + 12 }>());
        let destination = Addr6(view.words::<
            DESTINATION,
            { DESTINATION + 4 },
            { DESTINATION + 8 },
            { DESTINATION + 12 },
        >());
        let mut next = view.u8::<{ IP + offset_of!(Ipv6Hdr, next_hdr) }>();
        if !Self::in_filter(destination, source) && next != Self::ICMP {
            into.flow = Flow6::new(source, Be16(0), destination, Be16(0), next);
            return Step::refuse(Reason::NotOurs);
        }
        if view.u8::<{ IP + offset_of!(Ipv6Hdr, vcf) }>() >> 4 != 6 {
            return Step::refuse(Reason::Malformed);
        }
        let payload = u16::from_be(view.u16::<{ IP + offset_of!(Ipv6Hdr, payload_len) }>());
        into.length = payload as u32 + size_of::<Ipv6Hdr>() as u32;
        layout.ttl = view.u8::<{ IP + offset_of!(Ipv6Hdr, hop_limit) }>() as u32;
        layout.ttl_word = layout.ttl + 1;
        layout.header = size_of::<Ipv6Hdr>() as u32;
        if next == FRAGMENT_HEADER {
            const FRAGMENT: usize = IP + size_of::<Ipv6Hdr>();
            let Some(view) = packet.view::<{ FRAGMENT + 8 }>() else {
                return Step::refuse(Reason::Truncated);
            };
            next = view.u8::<FRAGMENT>();
            let offset = u16::from_be(view.u16::<{ FRAGMENT + 2 }>());
            layout.is_fragment = (offset & 0xfff9 != 0) as u32;
            layout.is_later_fragment = (offset & 0xfff8 != 0) as u32;
            layout.fragment_id = view.u32::<{ FRAGMENT + 4 }>();
            layout.header += 8;
        }
        layout.l4 = IP as u32 + layout.header;
        into.flow = Flow6::new(source, Be16(0), destination, Be16(0), next);
        into.protocol = next as u32;
        Step::FORWARD
    }

    #[inline(always)]
    fn rewrite(skb: Skb, old: &Flow6, entry: &Self::Entry, at: &Placement) -> bool {
        skb::rewrite6(skb.0, old, entry, at)
    }
}

/// Reads ports and TCP fields at the transport header. Only for TCP and UDP.
#[inline(always)]
fn ports<F: Family>(packet: Packet, layout: &mut Layout, into: &mut FlowPacket<F::Flow>) -> Step {
    let (source, destination);
    if into.is_tcp() {
        let Some(view) = packet.view_at::<20>(layout.l4) else {
            return Step::refuse(Reason::Truncated);
        };
        (source, destination) = (Be16(view.u16::<0>()), Be16(view.u16::<2>()));
        into.sequence = u32::from_be(view.u32::<{ offset_of!(TcpHdr, seq) }>());
        into.acknowledgement = u32::from_be(view.u32::<{ offset_of!(TcpHdr, ack_seq) }>());
        let data = ((view.u8::<12>() >> 4) as u32) * 4;
        layout.l4_header = data;
        let flags = view.u8::<13>() as u32;
        into.tcp_flags = flags;
        // FIN and SYN take a sequence number each.
        into.sequence_length = into
            .length
            .wrapping_sub(layout.header + data)
            .wrapping_add((flags & 1) + ((flags >> 1) & 1));
    } else {
        let Some(view) = packet.view_at::<8>(layout.l4) else {
            return Step::refuse(Reason::Truncated);
        };
        (source, destination) = (Be16(view.u16::<0>()), Be16(view.u16::<2>()));
        layout.l4_header = 8;
    }
    with_ports::<F>(into, source, destination);
    Step::FORWARD
}

#[inline(always)]
fn with_ports<F: Family>(into: &mut FlowPacket<F::Flow>, source: Be16, destination: Be16) {
    into.flow = F::Flow::new(
        into.flow.source(),
        source,
        into.flow.destination(),
        destination,
        into.protocol(),
    );
}

/// An empty packet description, for the parsers to fill.
#[inline(always)]
pub(crate) fn blank<F: SkbFrame>(
    skb: Skb,
    slot: &mut MaybeUninit<FlowPacket<F::Flow>>,
) -> &mut FlowPacket<F::Flow> {
    // SAFETY: plain numbers.
    let packet = unsafe { words::zeroed(slot) };
    packet.length = skb.length().wrapping_sub(skb::IP);
    packet.ingress = skb.ifindex();
    packet
}

/// Parses a packet up to its ports. [`Step::FORWARD`]: a TCP or UDP packet with its 5-tuple.
#[inline(always)]
pub(crate) fn parse<F: SkbFrame>(
    skb: Skb,
    packet: &mut FlowPacket<F::Flow>,
    layout: &mut Layout,
) -> Step {
    let whole = packet.length;
    let step = parse_ip::<F>(skb.0, packet, layout);
    if step != Step::FORWARD {
        packet.length = whole;
        return step;
    }
    if skb.gso_size() != 0 {
        // The IP length of a large GSO packet may be zero; the skb knows.
        packet.length = whole;
    }
    let is_flow = packet.is_tcp() || packet.protocol() == protocol::UDP;
    if packet.length > whole || packet.length < layout.header {
        packet.length = whole;
        return Step::refuse(Reason::Truncated);
    }
    if !is_flow {
        let reason = match packet.protocol() {
            kind if layout.is_fragment != 0 && (kind == F::ICMP || kind == FRAGMENT_HEADER) => {
                Reason::Fragment
            }
            HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS if F::AF == V6::AF => {
                Reason::ExtensionHeader
            }
            _ => Reason::UnsupportedProtocol,
        };
        return Step::refuse(reason);
    }
    if layout.is_later_fragment != 0 {
        return later_fragment::<F>(packet, layout);
    }
    skb.pull(layout.l4 + 20);
    let step = ports::<F>(skb.packet(), layout, packet);
    if step == Step::FORWARD && layout.is_fragment != 0 {
        first_fragment::<F>(packet, layout);
    }
    step
}

/// [`SkbFrame::parse`], out of line: its addresses need the stack only here.
#[inline(never)]
pub(crate) fn parse_ip<F: SkbFrame>(
    skb: *mut __sk_buff,
    packet: &mut FlowPacket<F::Flow>,
    layout: &mut Layout,
) -> Step {
    let skb = Skb(skb);
    skb.pull(HEADERS + 8);
    F::parse(skb.packet(), packet, layout)
}

/// Keeps the ports for the fragments that follow.
#[inline(never)]
fn first_fragment<F: Family>(packet: &FlowPacket<F::Flow>, layout: &Layout) -> bool {
    let packet = core::hint::black_box(packet);
    let key = fragment_key::<F>(packet, layout);
    let value = FragmentPorts {
        source_port: packet.flow.source_port(),
        destination_port: packet.flow.destination_port(),
    };
    // If it cannot be kept the later fragments are dropped and counted.
    FRAGMENTS.insert(key, value, 0).is_ok()
}

#[inline(always)]
fn fragment_key<F: Family>(packet: &FlowPacket<F::Flow>, layout: &Layout) -> FragmentKey {
    FragmentKey {
        source: F::mapped(packet.flow.source()),
        destination: F::mapped(packet.flow.destination()),
        id: layout.fragment_id,
        protocol: packet.protocol,
    }
}

/// A fragment without a transport header: the first one told the ports.
#[inline(never)]
fn later_fragment<F: Family>(packet: &mut FlowPacket<F::Flow>, layout: &mut Layout) -> Step {
    // SAFETY: copied at once.
    let ports = unsafe { FRAGMENTS.get(fragment_key::<F>(packet, layout)) }.copied();
    let Some(ports) = ports else {
        return Step::refuse(Reason::Fragment);
    };
    with_ports::<F>(packet, ports.source_port, ports.destination_port);
    layout.l4 = 0;
    Step::FORWARD
}
