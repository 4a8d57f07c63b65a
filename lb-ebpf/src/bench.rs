//! `lb_bench*`: measure the programs under BPF_PROG_TEST_RUN.
//!
//! With `repeat` the kernel feeds a program the packet it has rewritten, so that a plain repetition
//! measures another path. These wrappers restore the packet before each iteration, make it one of the
//! next flow, and count the results, which prove that each iteration did the work. What they wrap is the
//! code of the shipped programs.

use aya_ebpf::{
    bindings::{__sk_buff, xdp_action::XDP_PASS},
    btf_maps::Array,
    macros::btf_map,
    programs::XdpContext,
};
use lb_common::bench::{BenchCase, STEP, bench_flag};

use crate::ingress::NEXT;

pub(crate) mod reference;
mod restore;
pub(crate) mod stages;

#[btf_map]
static BENCH: Array<BenchCase, 1> = Array::new();

/// One iteration of an XDP program. A packet that could not be restored is not counted.
#[inline(always)]
pub(crate) fn xdp(ctx: &XdpContext, run: impl FnOnce(&BenchCase) -> u32) -> u32 {
    let Some(case) = case() else {
        return XDP_PASS;
    };
    let number = next(case);
    if !restore::xdp(ctx.ctx, case, number) {
        return XDP_PASS;
    }
    let result = if case.flags & bench_flag::NULL != 0 {
        XDP_PASS
    } else {
        run(case)
    };
    case.results[(result & 15) as usize] += 1;
    result
}

/// One iteration of a TCX program.
#[inline(always)]
pub(crate) fn tcx(skb: *mut __sk_buff, run: impl FnOnce() -> i32) -> i32 {
    let Some(case) = case() else {
        return NEXT;
    };
    let number = next(case);
    if !restore::skb(skb, case, number) {
        return NEXT;
    }
    let result = if case.flags & bench_flag::NULL != 0 {
        NEXT
    } else {
        run()
    };
    case.results[(result & 15) as usize] += 1;
    result
}

#[inline(always)]
fn case() -> Option<&'static mut BenchCase> {
    let case = BENCH.get_ptr_mut(0)?;
    // SAFETY: an array element that only this program and, between runs, the runner touch.
    Some(unsafe { &mut *case })
}

/// The number of the next packet's flow.
#[inline(always)]
fn next(case: &mut BenchCase) -> u32 {
    let count = case.counter as u32;
    case.counter += 1;
    if case.flags & bench_flag::FRESH != 0 {
        count
    } else {
        count.wrapping_mul(STEP) & case.flow_mask
    }
}
