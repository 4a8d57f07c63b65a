//! Makes the packet what it was, as one of another flow.

use core::mem::offset_of;

use aya_ebpf::bindings::{__sk_buff, xdp_md};
use lb_common::bench::{BenchCase, bench_flag, client, service};
use network_types::{
    eth::EthHdr,
    ip::{Ipv4Hdr, Ipv6Hdr},
};

use crate::{
    packet::{Packet, View},
    skb::Skb,
};

const IP: usize = size_of::<EthHdr>();
/// Bytes restored of an IPv4 packet.
const V4: usize = 4 * lb_common::bench::HEADER_WORDS_V4;
/// Bytes restored of an IPv6 packet.
const V6: usize = 4 * lb_common::bench::HEADER_WORDS;

macro_rules! words {
    ($view:ident, $case:ident; $($i:literal)+) => {
        $($view.set_u32::<{ $i * 4 }>($case.header[$i]);)+
    };
}

/// Restores a frame in XDP; tells whether it was long enough.
#[inline(never)]
pub(super) fn xdp(ctx: *mut xdp_md, case: &BenchCase, number: u32) -> bool {
    // SAFETY: the context of the running program. Volatile, so that the pointers are read here and
    // not passed in as numbers.
    let packet = unsafe {
        Packet::new(
            (&raw const (*ctx).data).read_volatile() as usize,
            (&raw const (*ctx).data_end).read_volatile() as usize,
        )
    };
    write(packet, case, number)
}

/// Restores an skb's linear bytes.
#[inline(never)]
pub(super) fn skb(skb: *mut __sk_buff, case: &BenchCase, number: u32) -> bool {
    write(Skb(skb).packet(), case, number)
}

#[inline(always)]
fn write(packet: Packet, case: &BenchCase, number: u32) -> bool {
    let (port, offset) = client(number);
    let spread = service(number, case.services);
    let reply = case.flags & bench_flag::REPLY != 0;
    if case.flags & bench_flag::IPV6 != 0 {
        const SOURCE: usize = IP + offset_of!(Ipv6Hdr, src_addr) + 12;
        const DESTINATION: usize = IP + offset_of!(Ipv6Hdr, dst_addr) + 12;
        let Some(view) = packet.view::<V6>() else {
            return false;
        };
        words!(view, case; 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17);
        if reply {
            add::<V6, DESTINATION>(view, offset);
            view.set_u16::<{ IP + size_of::<Ipv6Hdr>() + 2 }>(port.to_be());
        } else {
            add::<V6, SOURCE>(view, offset);
            add::<V6, DESTINATION>(view, spread);
            view.set_u16::<{ IP + size_of::<Ipv6Hdr>() }>(port.to_be());
        }
    } else {
        const SOURCE: usize = IP + offset_of!(Ipv4Hdr, src_addr);
        const DESTINATION: usize = IP + offset_of!(Ipv4Hdr, dst_addr);
        let Some(view) = packet.view::<V4>() else {
            return false;
        };
        words!(view, case; 0 1 2 3 4 5 6 7 8 9 10 11 12);
        if reply {
            add::<V4, DESTINATION>(view, offset);
            view.set_u16::<{ IP + size_of::<Ipv4Hdr>() + 2 }>(port.to_be());
        } else {
            add::<V4, SOURCE>(view, offset);
            add::<V4, DESTINATION>(view, spread);
            view.set_u16::<{ IP + size_of::<Ipv4Hdr>() }>(port.to_be());
        }
    }
    true
}

#[inline(always)]
fn add<const LENGTH: usize, const OFFSET: usize>(view: View<LENGTH>, amount: u32) {
    let word = u32::from_be(view.u32::<OFFSET>()).wrapping_add(amount);
    view.set_u32::<OFFSET>(word.to_be());
}
