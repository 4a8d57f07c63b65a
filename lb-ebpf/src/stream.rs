//! `lb_stream`: makes packets of established flows out of a frame, and the programs at the other end.
//!
//! Run with `BPF_F_TEST_XDP_LIVE_FRAMES`: each frame it redirects really leaves by a device. The kernel uses the
//! pages again and again, whatever became of their contents (the balancer rewrites the very page), so each
//! frame is written whole.

use core::mem::offset_of;

use aya_ebpf::{
    bindings::{
        xdp_action::{XDP_ABORTED, XDP_DROP, XDP_PASS},
        xdp_md,
    },
    btf_maps::{Array, DevMap, PerCpuArray},
    helpers::bpf_redirect,
    macros::btf_map,
    programs::XdpContext,
};
use lb_common::{
    bench::client,
    flood::fold,
    flow::protocol,
    stream::{ADDRESSES, Arrived, Expected, FRAME_WORDS, FRAME_WORDS_V4, Stream, stream_flag},
};
use network_types::{
    eth::{EthHdr, EtherType},
    ip::{Ipv4Hdr, Ipv6Hdr},
    tcp::TcpHdr,
    udp::UdpHdr,
};

use crate::packet::{Packet, View};

#[btf_map]
static STREAM: PerCpuArray<Stream, 1> = PerCpuArray::new();
#[btf_map]
static EXPECTED: Array<Expected, 1> = Array::new();
#[btf_map]
static ARRIVED: PerCpuArray<Arrived, 1> = PerCpuArray::new();
/// Where `lb_stream_devmap` sends.
#[btf_map]
static STREAM_DEVICES: DevMap<1> = DevMap::new();

const IP: usize = size_of::<EthHdr>();
const V4: usize = FRAME_WORDS_V4 * 4;
const V6: usize = FRAME_WORDS * 4;
/// Headers of a TCP frame: routers take Ethernet's padding off.
const TCP_V4: usize = IP + size_of::<Ipv4Hdr>() + size_of::<TcpHdr>();
const TCP_V6: usize = IP + size_of::<Ipv6Hdr>() + size_of::<TcpHdr>();

/// Offsets in an IPv4 frame.
mod v4 {
    use super::*;
    pub(super) const SOURCE: usize = IP + offset_of!(Ipv4Hdr, src_addr);
    pub(super) const DESTINATION: usize = IP + offset_of!(Ipv4Hdr, dst_addr);
    pub(super) const TTL: usize = IP + offset_of!(Ipv4Hdr, ttl);
    pub(super) const PROTOCOL: usize = IP + offset_of!(Ipv4Hdr, proto);
    pub(super) const CHECK: usize = IP + offset_of!(Ipv4Hdr, check);
    pub(super) const PORTS: usize = IP + size_of::<Ipv4Hdr>();
    pub(super) const TO_PORT: usize = PORTS + 2;
    pub(super) const TCP_CHECK: usize = PORTS + offset_of!(TcpHdr, check);
    pub(super) const UDP_CHECK: usize = PORTS + offset_of!(UdpHdr, check);
}

/// Offsets in an IPv6 frame; of the addresses those of the last word.
mod v6 {
    use super::*;
    pub(super) const SOURCE: usize = IP + offset_of!(Ipv6Hdr, src_addr) + 12;
    pub(super) const DESTINATION: usize = IP + offset_of!(Ipv6Hdr, dst_addr) + 12;
    pub(super) const TTL: usize = IP + offset_of!(Ipv6Hdr, hop_limit);
    pub(super) const PROTOCOL: usize = IP + offset_of!(Ipv6Hdr, next_hdr);
    pub(super) const PORTS: usize = IP + size_of::<Ipv6Hdr>();
    pub(super) const TO_PORT: usize = PORTS + 2;
    pub(super) const TCP_CHECK: usize = PORTS + offset_of!(TcpHdr, check);
    pub(super) const UDP_CHECK: usize = PORTS + offset_of!(UdpHdr, check);
}

macro_rules! copy {
    ($view:ident, $stream:ident; $($i:literal)+) => {
        $($view.set_u32::<{ $i * 4 }>($stream.frame[$i]);)+
    };
}

/// The sum of the 16-bit words at some offsets, as they lie in the packet: RFC 1071 lets bytes be in either
/// order.
macro_rules! sum {
    ($view:ident; $($at:literal)+) => {
        0 $(+ $view.u16::<$at>() as u32)+
    };
}

/// One frame.
#[inline(always)]
pub(crate) fn run(ctx: &XdpContext) -> u32 {
    let Some(stream) = STREAM.get_ptr_mut(0) else {
        return XDP_ABORTED;
    };
    // SAFETY: this processor's element; the runner writes it only between runs.
    let stream = unsafe { &mut *stream };
    if !write(ctx.ctx, stream) {
        return XDP_ABORTED;
    }
    stream.frames += 1;
    // SAFETY: the helper has no requirements.
    unsafe { bpf_redirect(stream.ifindex, 0) as u32 }
}

#[inline(always)]
fn bytes(ctx: *mut xdp_md) -> Packet {
    // SAFETY: the context of the running program. Volatile, so that the pointers are read here and
    // not passed in as numbers.
    unsafe {
        Packet::new(
            (&raw const (*ctx).data).read_volatile() as usize,
            (&raw const (*ctx).data_end).read_volatile() as usize,
        )
    }
}

#[inline(never)]
fn write(ctx: *mut xdp_md, stream: &Stream) -> bool {
    // Knuth's multiplicative step: neighbours in time are no neighbours in memory.
    let number = stream.frames.wrapping_mul(2_654_435_761) & stream.mask;
    let (port, offset) = client(stream.first + number.wrapping_mul(stream.step));
    let address = stream.address.wrapping_add(offset);
    let sum = (address >> 16) + (address & 0xffff);
    let check = fold(stream.transport_sum + sum + port as u32);
    let (is_reply, is_udp) = (
        stream.flags & stream_flag::REPLY != 0,
        stream.flags & stream_flag::UDP != 0,
    );
    // RFC 768: a sum of zero is sent as its complement.
    let check = if is_udp && check == 0 { 0xffff } else { check };
    let packet = bytes(ctx);
    if stream.flags & stream_flag::IPV6 != 0 {
        let Some(view) = packet.view::<V6>() else {
            return false;
        };
        copy!(view, stream; 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18);
        if is_reply {
            end::<V6, { v6::DESTINATION }, { v6::TO_PORT }>(view, address, port);
        } else {
            end::<V6, { v6::SOURCE }, { v6::PORTS }>(view, address, port);
        }
        if is_udp {
            view.set_u16::<{ v6::UDP_CHECK }>(check.to_be());
        } else {
            view.set_u16::<{ v6::TCP_CHECK }>(check.to_be());
        }
    } else {
        let Some(view) = packet.view::<V4>() else {
            return false;
        };
        copy!(view, stream; 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14);
        view.set_u16::<{ v4::CHECK }>(fold(stream.ip_sum + sum).to_be());
        if is_reply {
            end::<V4, { v4::DESTINATION }, { v4::TO_PORT }>(view, address, port);
        } else {
            end::<V4, { v4::SOURCE }, { v4::PORTS }>(view, address, port);
        }
        if is_udp {
            view.set_u16::<{ v4::UDP_CHECK }>(check.to_be());
        } else {
            view.set_u16::<{ v4::TCP_CHECK }>(check.to_be());
        }
    }
    true
}

#[inline(always)]
fn end<const LENGTH: usize, const ADDRESS: usize, const PORT: usize>(
    view: View<LENGTH>,
    address: u32,
    port: u16,
) {
    view.set_u32::<ADDRESS>(address.to_be());
    view.set_u16::<PORT>(port.to_be());
}

/// `lb_stream_sink`: counts the stream's frames and drops them. What is not of its protocol passes: neighbours
/// must be able to find each other.
#[inline(always)]
pub(crate) fn sink(ctx: &XdpContext) -> u32 {
    let (Some(expected), Some(arrived)) = (EXPECTED.get_ptr(0), ARRIVED.get_ptr_mut(0)) else {
        return XDP_ABORTED;
    };
    // SAFETY: array elements; the first is written only between runs, the second is this processor's.
    let (expected, arrived) = unsafe { (&*expected, &mut *arrived) };
    match is_expected(ctx.ctx, expected) {
        None => return XDP_PASS,
        Some(true) => arrived.frames += 1,
        Some(false) => arrived.wrong += 1,
    }
    XDP_DROP
}

/// Whether a frame of the stream's protocol is as expected.
#[inline(always)]
fn is_expected(ctx: *mut xdp_md, expected: &Expected) -> Option<bool> {
    let packet = bytes(ctx);
    let kind = packet
        .view::<IP>()?
        .u16::<{ offset_of!(EthHdr, ether_type) }>();
    let is_v6 = expected.flags & stream_flag::IPV6 != 0;
    let number = if expected.flags & stream_flag::UDP != 0 {
        protocol::UDP
    } else {
        protocol::TCP
    };
    let verify = expected.flags & stream_flag::VERIFY != 0;
    if is_v6 && kind == EtherType::Ipv6 as u16 {
        let view = packet.view::<TCP_V6>()?;
        let is_right = view.u8::<{ v6::TTL }>() as u32 == expected.ttl && ends6(view, expected);
        let is_whole = !verify || adds_up6(packet, view, number)?;
        (view.u8::<{ v6::PROTOCOL }>() == number).then_some(is_right && is_whole)
    } else if !is_v6 && kind == EtherType::Ipv4 as u16 {
        let view = packet.view::<TCP_V4>()?;
        let is_right = view.u8::<{ v4::TTL }>() as u32 == expected.ttl && ends4(view, expected);
        let is_whole = !verify || adds_up4(packet, view, number)?;
        (view.u8::<{ v4::PROTOCOL }>() == number).then_some(is_right && is_whole)
    } else {
        None
    }
}

#[inline(always)]
fn ends4(view: View<TCP_V4>, expected: &Expected) -> bool {
    let source = (view.u32::<{ v4::SOURCE }>(), view.u16::<{ v4::PORTS }>());
    let destination = (
        view.u32::<{ v4::DESTINATION }>(),
        view.u16::<{ v4::TO_PORT }>(),
    );
    let (fixed, varying) = if expected.flags & stream_flag::REPLY != 0 {
        (source, destination)
    } else {
        (destination, source)
    };
    fixed.0 == expected.fixed[3] && are_near(fixed.1, varying.0, expected)
}

#[inline(always)]
fn ends6(view: View<TCP_V6>, expected: &Expected) -> bool {
    const FROM: usize = v6::SOURCE;
    const TO: usize = v6::DESTINATION;
    let source = view.words::<{ FROM - 12 }, { FROM - 8 }, { FROM - 4 }, FROM>();
    let destination = view.words::<{ TO - 12 }, { TO - 8 }, { TO - 4 }, TO>();
    let ports = (view.u16::<{ v6::PORTS }>(), view.u16::<{ v6::TO_PORT }>());
    let (fixed, varying, port) = if expected.flags & stream_flag::REPLY != 0 {
        (source, destination, ports.0)
    } else {
        (destination, source, ports.1)
    };
    fixed == expected.fixed
        && varying[0] == expected.varying[0]
        && varying[1] == expected.varying[1]
        && varying[2] == expected.varying[2]
        && are_near(port, varying[3], expected)
}

/// Whether the fixed end's port is the expected one, and the other end one of the stream's addresses.
#[inline(always)]
fn are_near(port: u16, varying: u32, expected: &Expected) -> bool {
    let offset = u32::from_be(varying).wrapping_sub(expected.varying[3]);
    port as u32 == expected.port && offset < ADDRESSES
}

/// Whether both checksums are right: each sum with its checksum in it is all ones. `None` if a datagram is
/// shorter than the generator's.
#[inline(always)]
fn adds_up4(packet: Packet, view: View<TCP_V4>, number: u8) -> Option<bool> {
    let addresses = sum!(view; 26 28 30 32);
    let header = sum!(view; 14 16 18 20 22 24) + addresses;
    let mut transport = addresses + sum!(view; 34 36 38 40 42 44 46 48 50 52);
    let mut length = 20;
    if number == protocol::UDP {
        let view = packet.view::<V4>()?;
        transport += sum!(view; 54 56 58);
        length = 26;
    }
    Some(fold(header) == 0 && fold(transport + pseudo(number, length)) == 0)
}

#[inline(always)]
fn adds_up6(packet: Packet, view: View<TCP_V6>, number: u8) -> Option<bool> {
    let mut transport = sum!(view; 22 24 26 28 30 32 34 36 38 40 42 44 46 48 50 52)
        + sum!(view; 54 56 58 60 62 64 66 68 70 72);
    let mut length = 20;
    if number == protocol::UDP {
        let view = packet.view::<V6>()?;
        transport += sum!(view; 74);
        length = 22;
    }
    Some(fold(transport + pseudo(number, length)) == 0)
}

/// Protocol and length of the pseudo-header.
#[inline(always)]
fn pseudo(number: u8, length: u16) -> u32 {
    (number as u16).to_be() as u32 + length.to_be() as u32
}

/// `lb_stream_redirect`: what any balancer does at least, a redirect to another device.
#[inline(always)]
pub(crate) fn redirect() -> u32 {
    let Some(expected) = EXPECTED.get_ptr(0) else {
        return XDP_ABORTED;
    };
    // SAFETY: an array element that nobody writes meanwhile.
    let ifindex = unsafe { (*expected).ifindex };
    // SAFETY: the helper has no requirements.
    unsafe { bpf_redirect(ifindex, 0) as u32 }
}

/// `lb_stream_devmap`: the same by way of a map of devices.
#[inline(always)]
pub(crate) fn redirect_by_map() -> u32 {
    match STREAM_DEVICES.redirect(0, u64::from(XDP_DROP)) {
        Ok(verdict) | Err(verdict) => verdict,
    }
}
