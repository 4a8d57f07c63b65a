//! Losses after the verdict: a redirect that failed, frames a device's transmit queue refused.

use aya_ebpf::programs::TracePointContext;
use lb_common::reason::Event;

use crate::{stats, tables::DEVICE_INDEX};

/// Offset of `from_ifindex` in the record of `xdp:xdp_devmap_xmit`.
const FROM_IFINDEX: usize = 8;
/// Offset of `drops` in it.
const DROPS: usize = 20;
/// Offset of `ifindex` in the record of `xdp:xdp_redirect_err`.
const IFINDEX: usize = 16;

/// Tracepoints see every device of the machine; only ours count.
#[inline(always)]
fn is_ours(ctx: &TracePointContext, at: usize) -> bool {
    // SAFETY: the field lies inside the tracepoint's record.
    let ifindex = unsafe { ctx.read_at::<u32>(at) };
    ifindex.is_ok_and(|ifindex| DEVICE_INDEX.get_ptr(ifindex).is_some())
}

/// `xdp:xdp_redirect_err`: one packet.
#[inline(always)]
pub(crate) fn redirect_failed(ctx: &TracePointContext) {
    if !is_ours(ctx, IFINDEX) {
        return;
    }
    stats::event(Event::RedirectFailed, 0);
}

/// `xdp:xdp_devmap_xmit`: a batch, of which some frames may be lost.
#[inline(always)]
pub(crate) fn transmitted(ctx: &TracePointContext) {
    if !is_ours(ctx, FROM_IFINDEX) {
        return;
    }
    // SAFETY: the field lies inside the tracepoint's record.
    let Ok(drops) = (unsafe { ctx.read_at::<i32>(DROPS) }) else {
        return;
    };
    if drops > 0 {
        stats::events(Event::TransmitFailed, drops as u64);
    }
}
