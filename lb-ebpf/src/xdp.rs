//! The XDP fast path: plain TCP and UDP packets of flows whose next hop is known.
//!
//! Whatever is missing or unusual makes it pass the packet, unmodified, to [`crate::ingress`]. What it
//! has written to the tables by then (a stamp, a new flow) is what TCX would write too.

use core::{
    ffi::c_void,
    mem::{MaybeUninit, offset_of},
};

use aya_ebpf::{
    EbpfContext as _,
    bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_REDIRECT},
    helpers::generated::bpf_redirect,
    programs::XdpContext,
};
use lb_common::{
    addr::{Addr4, Addr6, Be16},
    checksum::{Difference, fold},
    conntrack::{Entry as _, flag},
    device::{Device, NextHopWord, device_flag},
    flow::{Flow as _, Flow4, Flow6, protocol},
    reason::{Event, Reason},
};
use network_types::{
    eth::{EthHdr, EtherType},
    ip::{Ipv4Hdr, Ipv6Hdr},
    tcp::TcpHdr,
    udp::UdpHdr,
};

use crate::{
    claim, clock, embryonic, established,
    family::{Family, V4, V6},
    flow_packet::{FlowPacket, Step},
    forward,
    packet::{Packet, View},
    select, stats,
    tables::config,
    words,
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
    /// Writes addresses, ports, TTL, checksums and the link layer.
    fn write(
        headers: Self::Headers,
        packet: &FlowPacket<Self::Flow>,
        entry: &Self::Entry,
        hop: NextHopWord,
        device: &Device,
    );
}

const IP: usize = size_of::<EthHdr>();
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
        let transport = addresses6(&packet.flow, entry.source, entry.destination)
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

/// The checksum difference of a change of both IPv6 addresses.
#[inline(always)]
pub(crate) fn addresses6(flow: &Flow6, source: Addr6, destination: Addr6) -> Difference {
    let mut difference = Difference::new();
    for (old, new) in flow.source.0.into_iter().zip(source.0) {
        difference = difference.word32(old, new);
    }
    for (old, new) in flow.destination.0.into_iter().zip(destination.0) {
        difference = difference.word32(old, new);
    }
    difference
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

/// Reads the EtherType and runs the family's path. Returns the XDP verdict.
#[inline(always)]
pub(crate) fn run(ctx: &XdpContext) -> u32 {
    let packet = Packet::new(ctx.data(), ctx.data_end());
    let Some(link) = packet.view::<IP>() else {
        return XDP_PASS;
    };
    let ether_type = link.u16::<{ offset_of!(EthHdr, ether_type) }>();
    if ether_type == EtherType::Ipv4 as u16 {
        balance::<V4>(ctx, packet)
    } else if ether_type == EtherType::Ipv6 as u16 {
        balance::<V6>(ctx, packet)
    } else {
        XDP_PASS
    }
}

#[inline(always)]
fn balance<F: Frame>(ctx: &XdpContext, frame: Packet) -> u32 {
    let mut packet = MaybeUninit::uninit();
    // SAFETY: plain numbers.
    let packet = unsafe { words::zeroed::<FlowPacket<F::Flow>>(&mut packet) };
    let headers = match F::parse(frame, packet) {
        Ok(headers) => headers,
        Err(Step::MISS) => return XDP_PASS,
        Err(_) => return hand_over(packet.length),
    };
    packet.now = clock::tick();
    packet.ingress = ingress_ifindex(ctx);
    let mut entry = MaybeUninit::uninit();
    // SAFETY: an entry of zeroes is valid.
    let entry = unsafe { words::zeroed::<F::Entry>(&mut entry) };
    let step = match established::find::<F>(packet, forward::route_generation(), entry) {
        Step::FORWARD => Step::FORWARD,
        other => unusual::<F>(ctx, headers, packet, other, entry),
    };
    if step != Step::FORWARD {
        return refuse(step, packet.length);
    }
    send::<F>(headers, packet, entry)
}

/// Everything but the next packet of an established flow.
#[inline(always)]
fn unusual<F: Frame>(
    ctx: &XdpContext,
    headers: F::Headers,
    packet: &FlowPacket<F::Flow>,
    found: Step,
    entry: &mut F::Entry,
) -> Step {
    let ctx: *mut c_void = ctx.as_ptr();
    let mut step = found;
    if step == Step::HAND_OVER {
        step = established::touch::<F>(packet, entry);
    }
    if step == Step::MISS {
        step = embryonic::find::<F>(packet, entry);
    }
    if step == Step::MISS {
        // TCX makes the flow if it must have the packet anyway.
        if F::is_partial(headers, packet) || F::ttl(headers) <= 1 {
            return Step::HAND_OVER;
        }
        return new_flow::<F>(ctx, packet, entry);
    }
    if step == Step::ROUTE || step == Step::ROUTE_OF_TICK {
        let due = step == Step::ROUTE_OF_TICK;
        step = forward::refresh::<F, true>(ctx, packet, entry);
        let next_hop = entry.route().next_hop() as u32;
        if due
            && step == Step::FORWARD
            && forward::neighbour_is_due(next_hop, packet.now, config!(neighbour_ticks))
        {
            return Step::HAND_OVER;
        }
    }
    step
}

/// Frontend, backend, route, mode, claim: nothing is written before the next hop is known.
#[inline(always)]
fn new_flow<F: Frame>(
    ctx: *mut c_void,
    packet: &FlowPacket<F::Flow>,
    entry: &mut F::Entry,
) -> Step {
    let chosen = select::choose::<F>(packet, entry);
    if chosen != Step::CHOSEN && chosen != Step::CHOSEN_KEEPING_SOURCE {
        return chosen;
    }
    if entry.flags() & flag::HOST != 0 {
        return Step::HAND_OVER;
    }
    let step = forward::refresh::<F, true>(ctx, packet, entry);
    if step != Step::FORWARD {
        return step;
    }
    if forward::fast(entry.route().next_hop() as u32).is_none() {
        return Step::HAND_OVER;
    }
    if chosen == Step::CHOSEN_KEEPING_SOURCE {
        forward::settle_mode::<F, true>(ctx, packet, entry);
    }
    let step = claim::claim_reply::<F>(packet, entry);
    if step != Step::FORWARD {
        return step;
    }
    established::retire::<F>(packet.now);
    claim::insert_forward::<F>(packet, entry)
}

/// Checks what could still prevent it, then writes and redirects.
#[inline(always)]
fn send<F: Frame>(headers: F::Headers, packet: &FlowPacket<F::Flow>, entry: &F::Entry) -> u32 {
    let route = entry.route();
    let Some((hop, device)) = forward::fast(route.next_hop() as u32) else {
        return hand_over(packet.length);
    };
    if device.flags & device_flag::REDIRECT == 0
        || packet.length > route.mtu() as u32
        || F::ttl(headers) <= 1
        || F::is_partial(headers, packet)
    {
        return hand_over(packet.length);
    }
    F::write(headers, packet, entry, hop, device);
    stats::event(Event::XdpForwarded, packet.length);
    stats::forwarded(
        entry.service(),
        entry.backend(),
        entry.flags() & flag::REVERSE != 0,
        packet.length,
    );
    // SAFETY: plain helper call; the flags are zero, as the kernel demands.
    let verdict = unsafe { bpf_redirect(device.ifindex, 0) };
    if verdict == XDP_REDIRECT as i64 {
        XDP_REDIRECT
    } else {
        XDP_DROP
    }
}

#[inline(always)]
fn hand_over(bytes: u32) -> u32 {
    stats::event(Event::HandedToTcx, bytes);
    XDP_PASS
}

/// What XDP does with a packet it does not send: foreign ones pass uncounted (TCX counts them), those
/// that need an answer or a longer look go to TCX, the others end here.
#[inline(always)]
fn refuse(step: Step, bytes: u32) -> u32 {
    let Some(number) = step.reason() else {
        return hand_over(bytes);
    };
    if number == Reason::NotOurs as u32 {
        return XDP_PASS;
    }
    for reason in [
        Reason::NoFrontend,
        Reason::NoEndpoint,
        Reason::UnknownFlowToStack,
    ] {
        if number == reason as u32 {
            return hand_over(bytes);
        }
    }
    stats::reason_number(number, bytes);
    XDP_DROP
}

#[inline(always)]
fn ingress_ifindex(ctx: &XdpContext) -> u32 {
    // SAFETY: the context of the running program.
    unsafe { (*ctx.ctx).ingress_ifindex }
}
