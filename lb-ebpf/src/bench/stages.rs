//! `lb_bench_stages`: the steps of a new flow up to one of them, in the order of [`path::new_flow`], and
//! what the kernel takes for a bare insert; and those of an established flow's packet that depend on how many
//! services there are. The result is the number of the last step taken.

use core::mem::MaybeUninit;

use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_NOEXIST, xdp_md},
    btf_maps::{HashMap, LruHashMap},
    macros::btf_map,
    programs::XdpContext,
};
use lb_common::{
    bench::{BenchCase, bench_flag, stage},
    conntrack::{Entry as _, Entry4, flag},
    flow::Flow4,
    names::entries,
};

use crate::{
    affinity, claim, clock, established,
    family::{V4, V6},
    flow_packet::{FlowPacket, Step},
    forward,
    frame::Frame,
    gate,
    packet::Packet,
    path, pending, removal, select, words,
};

#[btf_map]
static BENCH_LRU: LruHashMap<Flow4, Entry4, { entries::EMBRYONIC_V4 }> = LruHashMap::new();
#[btf_map]
static BENCH_HASH: HashMap<Flow4, Entry4, { entries::EMBRYONIC_V4 }> = HashMap::new();

/// One packet.
#[inline(always)]
pub(crate) fn run(ctx: &XdpContext, case: &BenchCase) -> u32 {
    if case.stage == stage::BARE_LRU || case.stage == stage::BARE_HASH {
        return bare(ctx.ctx, case.stage);
    }
    if case.stage == stage::FOUND || case.stage == stage::COUNTED {
        return if case.flags & bench_flag::IPV6 != 0 {
            known::<V6>(ctx.ctx, case.stage)
        } else {
            known::<V4>(ctx.ctx, case.stage)
        };
    }
    if case.flags & bench_flag::IPV6 != 0 {
        walk::<V6>(ctx, case.stage)
    } else {
        walk::<V4>(ctx, case.stage)
    }
}

#[inline(always)]
fn walk<F: Frame>(ctx: &XdpContext, last: u32) -> u32 {
    let mut packet = MaybeUninit::uninit();
    // SAFETY: plain numbers.
    let packet = unsafe { words::zeroed::<FlowPacket<F::Flow>>(&mut packet) };
    if F::parse(Packet::new(ctx.data(), ctx.data_end()), packet).is_err() {
        return stage::ASTRAY;
    }
    if last == stage::PARSE {
        return stage::PARSE;
    }
    packet.now = clock::tick();
    // SAFETY: the context of the running program.
    packet.ingress = unsafe { (*ctx.ctx).ingress_ifindex };
    let mut entry = MaybeUninit::uninit();
    // SAFETY: an entry of zeroes is valid.
    let entry = unsafe { words::zeroed::<F::Entry>(&mut entry) };
    let (found, _) = established::find::<F>(packet, gate::read().route_generation(), entry);
    if path::known_flow::<F>(packet, found, entry) != Step::MISS {
        return stage::ASTRAY;
    }
    if last == stage::MISS {
        return stage::MISS;
    }
    let chosen = select::choose::<F>(packet, entry);
    if chosen != Step::CHOSEN && chosen != Step::CHOSEN_KEEPING_SOURCE {
        return stage::ASTRAY;
    }
    if last == stage::CHOOSE {
        return stage::CHOOSE;
    }
    if forward::refresh::<F, true>(ctx.as_ptr(), packet, entry) != Step::FORWARD {
        return stage::ASTRAY;
    }
    if last == stage::ROUTE {
        return stage::ROUTE;
    }
    if chosen == Step::CHOSEN_KEEPING_SOURCE
        && forward::is_answered_directly::<F, true>(ctx.as_ptr(), packet, entry)
    {
        entry.set_flags(flag::FULL_NAT);
    }
    if last == stage::MODE {
        return stage::MODE;
    }
    if claim::claim_reply::<F>(packet, entry) != Step::FORWARD {
        return stage::ASTRAY;
    }
    if last == stage::CLAIM {
        return stage::CLAIM;
    }
    removal::retire::<F>(packet.now);
    if claim::insert_forward::<F>(packet, entry) != Step::FORWARD {
        return stage::ASTRAY;
    }
    affinity::note::<F>(packet, entry);
    stage::INSERT
}

/// An established flow's packet, not the first one of a tick; not sent. A frame of its own: the caller's
/// is full.
#[inline(never)]
fn known<F: Frame>(ctx: *mut xdp_md, last: u32) -> u32 {
    let ctx = XdpContext::new(ctx);
    let mut packet = MaybeUninit::uninit();
    // SAFETY: plain numbers.
    let packet = unsafe { words::zeroed::<FlowPacket<F::Flow>>(&mut packet) };
    if F::parse(Packet::new(ctx.data(), ctx.data_end()), packet).is_err() {
        return stage::ASTRAY;
    }
    packet.now = clock::tick();
    let mut entry = MaybeUninit::uninit();
    // SAFETY: an entry of zeroes is valid.
    let entry = unsafe { words::zeroed::<F::Entry>(&mut entry) };
    let generation = gate::read().route_generation();
    let (Step::FORWARD, Some(place)) = established::find::<F>(packet, generation, entry) else {
        return stage::ASTRAY;
    };
    if last == stage::COUNTED {
        // SAFETY: looked up just now.
        unsafe { pending::forwarded::<F>(place, packet.length) };
    }
    last
}

/// Parses, then makes one entry of zeroes for a flow nobody has seen. A frame of its own as well.
#[inline(never)]
fn bare(ctx: *mut xdp_md, which: u32) -> u32 {
    let ctx = XdpContext::new(ctx);
    let mut packet = MaybeUninit::uninit();
    // SAFETY: plain numbers.
    let packet = unsafe { words::zeroed::<FlowPacket<Flow4>>(&mut packet) };
    if V4::parse(Packet::new(ctx.data(), ctx.data_end()), packet).is_err() {
        return stage::ASTRAY;
    }
    let mut entry = MaybeUninit::uninit();
    // SAFETY: an entry of zeroes is valid.
    let entry = unsafe { words::zeroed::<Entry4>(&mut entry) };
    let inserted = if which == stage::BARE_LRU {
        BENCH_LRU.insert(packet.flow, &*entry, BPF_NOEXIST as u64)
    } else {
        BENCH_HASH.insert(packet.flow, &*entry, BPF_NOEXIST as u64)
    };
    if inserted.is_ok() {
        which
    } else {
        stage::ASTRAY
    }
}
