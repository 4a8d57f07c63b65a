//! `lb_bench`: measures the XDP program under BPF_PROG_TEST_RUN.
//!
//! With `repeat` the kernel feeds the program the packet it has rewritten, so that a plain repetition
//! measures another path. This wrapper restores the packet before each iteration, makes it one of the
//! next flow, and counts the verdicts, which prove that each iteration did the work.

use core::mem::offset_of;

use aya_ebpf::{
    bindings::{xdp_action::XDP_PASS, xdp_md},
    btf_maps::Array,
    macros::btf_map,
    programs::XdpContext,
};
use lb_common::bench::{BenchCase, bench_flag, client};
use network_types::{
    eth::EthHdr,
    ip::{Ipv4Hdr, Ipv6Hdr},
};

use crate::packet::{Packet, View};

#[btf_map]
static BENCH: Array<BenchCase, 1> = Array::new();

const IP: usize = size_of::<EthHdr>();
/// Bytes the IPv4 packet must have: 14 words.
const V4: usize = 56;
/// Bytes the IPv6 packet must have: 20 words.
const V6: usize = 80;

macro_rules! restore {
    ($view:ident, $case:ident; $($i:literal)+) => {
        $($view.set_u32::<{ $i * 4 }>($case.header[$i]);)+
    };
}

/// One iteration.
#[inline(always)]
pub(crate) fn run(ctx: &XdpContext) -> u32 {
    let Some(case) = BENCH.get_ptr_mut(0) else {
        return XDP_PASS;
    };
    // SAFETY: an array element that only this program and, between runs, the runner touch.
    let case = unsafe { &mut *case };
    let count = case.counter as u32;
    case.counter += 1;
    let number = if case.flags & bench_flag::FRESH != 0 {
        count
    } else {
        // Knuth's multiplicative step: neighbours in time are no neighbours in memory.
        count.wrapping_mul(2_654_435_761) & case.flow_mask
    };
    if !write(ctx.ctx, case, number) {
        return XDP_PASS;
    }
    let verdict = if case.flags & bench_flag::NULL != 0 {
        XDP_PASS
    } else {
        crate::xdp::run(ctx)
    };
    case.verdicts[(verdict & 7) as usize] += 1;
    verdict
}

#[inline(never)]
fn write(ctx: *mut xdp_md, case: &BenchCase, number: u32) -> bool {
    // SAFETY: the context of the running program. Volatile, so that the pointers are read here and
    // not passed in as numbers.
    let packet = unsafe {
        Packet::new(
            (&raw const (*ctx).data).read_volatile() as usize,
            (&raw const (*ctx).data_end).read_volatile() as usize,
        )
    };
    let (port, offset) = client(number);
    let reply = case.flags & bench_flag::REPLY != 0;
    let spread = if case.flags & bench_flag::SPREAD != 0 {
        number & 0xffff
    } else {
        0
    };
    if case.flags & bench_flag::IPV6 != 0 {
        const SOURCE: usize = IP + offset_of!(Ipv6Hdr, src_addr) + 12;
        const DESTINATION: usize = IP + offset_of!(Ipv6Hdr, dst_addr) + 12;
        let Some(view) = packet.view::<V6>() else {
            return false;
        };
        restore!(view, case; 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19);
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
        restore!(view, case; 0 1 2 3 4 5 6 7 8 9 10 11 12 13);
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
