//! The data path of Sluice.
//!
//! ```text
//!   wire ─▶ lb_xdp ──▶ (pass, unmodified) ─▶ lb_ingress ──▶ stack ─▶ lb_egress ─▶ wire
//!             │ rewrite, redirect               │ rewrite, redirect_neigh
//!             ▼                                 ▼
//!            wire                              wire, or a pod of this node
//! ```
//! One core, generic over the IP family: [`established`], [`embryonic`] and [`select`] decide in this
//! order, each a step that either knows the packet's flow or leaves it to the next. A new flow is asked
//! for its [`source`], and [`affinity`] may know its backend. The programs parse before and rewrite
//! after.

#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "packet fields and helper results are narrowed knowingly all over this crate"
)]

mod affinity;
mod atomic;
#[cfg(feature = "bench")]
mod bench;
mod claim;
mod clock;
mod egress;
mod embryonic;
mod established;
mod expire;
mod family;
#[cfg(feature = "bench")]
mod flood;
mod flow_packet;
mod forward;
mod frame;
mod gate;
mod icmp;
mod ingress;
mod packet;
mod parse;
mod path;
mod pending;
mod quote;
mod recent;
mod removal;
mod reply;
mod select;
mod serving;
mod skb;
mod source;
mod stats;
#[cfg(feature = "bench")]
mod stream;
mod subprogram;
mod tables;
mod tell;
mod trace;
mod words;
mod xdp;

#[cfg(feature = "bench")]
use aya_ebpf::bindings::xdp_action;
use aya_ebpf::{
    macros,
    programs::{TcContext, TracePointContext, XdpContext},
};

/// The fast path.
#[macros::xdp(frags)]
fn lb_xdp(ctx: XdpContext) -> u32 {
    xdp::run(&ctx)
}

/// The complete path.
#[macros::classifier]
fn lb_ingress(ctx: TcContext) -> i32 {
    ingress::run(ctx.skb.skb)
}

/// Replies of backends that are the node itself.
#[macros::classifier]
fn lb_egress(ctx: TcContext) -> i32 {
    egress::run(ctx.skb.skb)
}

/// Ends idle flows; run by the agent, never attached.
#[macros::classifier]
fn lb_expire(ctx: TcContext) -> i32 {
    expire::run(ctx.skb.skb)
}

/// Returns the current tick; run by the agent and `lbctl`, never attached.
#[macros::classifier]
fn lb_clock(_ctx: TcContext) -> i32 {
    clock::tick() as i32
}

/// Redirects that failed.
#[macros::tracepoint(category = "xdp", name = "xdp_redirect_err")]
fn lb_redirect_err(ctx: TracePointContext) -> u32 {
    trace::redirect_failed(&ctx);
    0
}

/// Frames lost in a transmit queue.
#[macros::tracepoint(category = "xdp", name = "xdp_devmap_xmit")]
fn lb_devmap_xmit(ctx: TracePointContext) -> u32 {
    trace::transmitted(&ctx);
    0
}

/// Measures the fast path; see [`bench`].
#[cfg(feature = "bench")]
#[macros::xdp(frags)]
fn lb_bench(ctx: XdpContext) -> u32 {
    bench::xdp(&ctx, |_| xdp::run(&ctx))
}

/// Measures the complete path; see [`bench`].
#[cfg(feature = "bench")]
#[macros::classifier]
fn lb_bench_ingress(ctx: TcContext) -> i32 {
    bench::tcx(ctx.skb.skb, || ingress::run(ctx.skb.skb))
}

/// Measures what leaves the node; see [`bench`].
#[cfg(feature = "bench")]
#[macros::classifier]
fn lb_bench_egress(ctx: TcContext) -> i32 {
    bench::tcx(ctx.skb.skb, || egress::run(ctx.skb.skb))
}

/// Measures the steps of a new flow; see [`bench::stages`].
#[cfg(feature = "bench")]
#[macros::xdp(frags)]
fn lb_bench_stages(ctx: XdpContext) -> u32 {
    bench::xdp(&ctx, |case| bench::stages::run(&ctx, case))
}

/// Measures the machine; see [`bench::reference`].
#[cfg(feature = "bench")]
#[macros::xdp(frags)]
fn lb_bench_reference(ctx: XdpContext) -> u32 {
    bench::xdp(&ctx, |_| bench::reference::run(&ctx))
}

/// Makes SYNs of random clients; see [`flood`].
#[cfg(feature = "bench")]
#[macros::xdp]
fn lb_flood(ctx: XdpContext) -> u32 {
    flood::run(&ctx)
}

/// Keeps a flood from the backends; see [`flood`].
#[cfg(feature = "bench")]
#[macros::xdp]
fn lb_flood_guard(ctx: XdpContext) -> u32 {
    flood::guard(&ctx)
}

/// Makes packets of established flows; see [`stream`].
#[cfg(feature = "bench")]
#[macros::xdp]
fn lb_stream(ctx: XdpContext) -> u32 {
    stream::run(&ctx)
}

/// Counts and drops them; see [`stream`].
#[cfg(feature = "bench")]
#[macros::xdp]
fn lb_stream_sink(ctx: XdpContext) -> u32 {
    stream::sink(&ctx)
}

/// Sends them back; see [`stream`].
#[cfg(feature = "bench")]
#[macros::xdp]
fn lb_stream_reflect(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_TX
}

/// Sends them on; see [`stream`].
#[cfg(feature = "bench")]
#[macros::xdp]
fn lb_stream_redirect(_ctx: XdpContext) -> u32 {
    stream::redirect()
}

/// Sends them on by a map; see [`stream`].
#[cfg(feature = "bench")]
#[macros::xdp]
fn lb_stream_devmap(_ctx: XdpContext) -> u32 {
    stream::redirect_by_map()
}

/// Keeps reachable panics out: a program that can come here does not load.
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

// SAFETY: a string the kernel's loader reads; nothing else has this name.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
