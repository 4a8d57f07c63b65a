//! Next hops: where a flow's packets leave, cached so that a packet costs no route lookup.
//!
//! A flow holds an index into `NEXT_HOPS` and the route generation at which it was looked up. It looks
//! again once a tick and whenever the generation moved; that lookup also refreshes the neighbour's MAC
//! for every flow that shares the next hop.

use core::{ffi::c_void, mem::MaybeUninit};

use aya_ebpf::{
    bindings::{BPF_NOEXIST, bpf_fib_lookup as FibParams, bpf_redir_neigh},
    helpers::generated::{bpf_fib_lookup, bpf_redirect_neigh},
};
use lb_common::{
    conntrack::{Entry as _, Route},
    device::{Device, NextHop, NextHopWord},
    flow::Flow as _,
    reason::Reason,
};

use crate::{
    clock, established,
    family::{AF_INET6, Family},
    flow_packet::{FlowPacket, Step},
    gate, recent,
    tables::{self, DEVICE_INDEX, DEVICES, NEXT_HOP_FREE, NEXT_HOP_INDEX, NEXT_HOPS},
    words,
};

/// `BPF_FIB_LKUP_RET_SUCCESS`.
const FIB_SUCCESS: i64 = 0;
/// `BPF_FIB_LKUP_RET_NO_NEIGH`: the route is known, the neighbour's MAC is not.
const FIB_NO_NEIGHBOUR: i64 = 7;

/// A route as it was looked up.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct Resolved {
    /// Index into `NEXT_HOPS`; 0 if there is none to have.
    pub(crate) next_hop: u32,
    /// Path MTU in IP bytes.
    pub(crate) mtu: u32,
    /// Interface index of the device.
    pub(crate) ifindex: u32,
    /// 1 if the destination is its own next hop, on a network of the device.
    pub(crate) on_link: u32,
    /// `AF_INET` or `AF_INET6`.
    pub(crate) gateway_family: u32,
    /// The neighbour's address.
    pub(crate) gateway: [u32; 4],
}

impl Resolved {
    /// The word a flow keeps.
    #[inline(always)]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "NEXT_HOPS has at most 65,536 elements"
    )]
    pub(crate) fn route(&self, identity: u32, generation: u16) -> Route {
        Route::new(identity, self.next_hop as u16, self.mtu, generation)
    }
}

/// Looks up the route of an entry's packets. The new route is kept in the table too, if the flow is
/// there already.
#[inline(never)]
pub(crate) fn refresh<F: Family, const XDP: bool>(
    ctx: *mut c_void,
    packet: &FlowPacket<F::Flow>,
    out: &mut F::Entry,
) -> Step {
    // The generation first: what is looked up after it is at least as new.
    let generation = gate::read().route_generation();
    let destination = out.written(packet.protocol()).destination();
    let mut resolved = MaybeUninit::uninit();
    // SAFETY: plain numbers.
    let resolved = unsafe { words::zeroed::<Resolved>(&mut resolved) };
    let step = resolve_in_tick::<F, XDP>(ctx, packet, destination, generation, resolved);
    if step != Step::FORWARD {
        // TCX must look again, and find what to count.
        let stale = gate::read().route_generation().wrapping_sub(1);
        keep::<F>(packet, out, Route::new(out.head().identity(), 0, 0, stale));
        return step;
    }
    if !XDP && resolved.next_hop == 0 {
        // SAFETY: plain numbers; nothing else borrows the element.
        if let Some(kept) = unsafe { tables::scratch::<Resolved>(tables::ROUTE) } {
            *kept = *resolved;
        }
    }
    keep::<F>(
        packet,
        out,
        resolved.route(out.head().identity(), generation),
    );
    step
}

/// Keeps a route in an entry, and in the table too if the flow is there already.
#[inline(always)]
fn keep<F: Family>(packet: &FlowPacket<F::Flow>, out: &mut F::Entry, route: Route) {
    let current = out.route();
    out.set_route(route);
    if route == current {
        return;
    }
    let entry = match F::established(&packet.flow) {
        Some(entry) => Some(entry),
        None => F::embryonic(&packet.flow),
    };
    if let Some(entry) = entry {
        // SAFETY: looked up just now; the word carries the flow's identity, so that the exchange
        // fails on another flow's.
        unsafe { established::exchange_route(entry, current.0, route.0) };
    }
}

/// Whether a new flow that keeps the client's address cannot: if the client is a neighbour on the very
/// network of the backend (two pods on one bridge, say), the backend would answer it directly, so that
/// the flow must be `full-nat` after all.
#[inline(never)]
pub(crate) fn is_answered_directly<F: Family, const XDP: bool>(
    ctx: *mut c_void,
    packet: &FlowPacket<F::Flow>,
    entry: &F::Entry,
) -> bool {
    // Without this the compiler passes the fields by value, more than BPF has registers for.
    let packet = core::hint::black_box(packet);
    let Some(hop) = NEXT_HOPS.get(entry.route().next_hop() as u32) else {
        return false;
    };
    let backend = F::words(entry.written(packet.protocol()).destination());
    if hop.gateway.0 != backend || hop.family != F::AF as u32 {
        return false;
    }
    let mut back = MaybeUninit::uninit();
    // SAFETY: plain numbers.
    let back = unsafe { words::zeroed::<Resolved>(&mut back) };
    let generation = gate::read().route_generation();
    let step = resolve_in_tick::<F, XDP>(ctx, packet, packet.flow.source(), generation, back);
    step == Step::FORWARD && back.on_link != 0 && back.ifindex == hop.ifindex
}

/// As [`resolve`], unless that was done in this tick already. `generation` was read before. TCX, whose
/// stack has no room for more, asks the kernel each time.
#[inline(always)]
fn resolve_in_tick<F: Family, const XDP: bool>(
    ctx: *mut c_void,
    packet: &FlowPacket<F::Flow>,
    destination: F::Address,
    generation: u16,
    out: &mut Resolved,
) -> Step {
    let (ingress, now) = (packet.ingress, packet.now);
    if XDP && recent::recall::<F>(destination, ingress, now, generation, out) {
        return Step::FORWARD;
    }
    let mut is_whole = false;
    let step = resolve::<F, XDP>(ctx, ingress, destination, out, &mut is_whole);
    if XDP && is_whole {
        recent::remember::<F>(destination, ingress, now, generation, out);
    }
    step
}

/// Looks up the route to `destination` and its neighbour, and keeps both in `NEXT_HOPS`.
///
/// Returns [`Step::FORWARD`], or [`Step::HAND_OVER`] where XDP may not decide, or the reason. `is_whole`
/// becomes true if the kernel told all there is: without a neighbour it leaves the path's MTU out.
#[inline(always)]
fn resolve<F: Family, const XDP: bool>(
    ctx: *mut c_void,
    ingress: u32,
    destination: F::Address,
    out: &mut Resolved,
    is_whole: &mut bool,
) -> Step {
    let mut params = MaybeUninit::uninit();
    // SAFETY: plain integers, for which zero is valid.
    let params = unsafe { words::zeroed::<FibParams>(&mut params) };
    params.family = F::AF;
    params.ifindex = ingress;
    // Any length makes the kernel report the path MTU in the same field.
    params.__bindgen_anon_1.tot_len = 1;
    let words = F::words(destination);
    params.__bindgen_anon_4.ipv6_dst = words;
    // SAFETY: `ctx` is the running program's context; `params` outlives the call.
    let status = unsafe { bpf_fib_lookup(ctx, &raw mut *params, size_of::<FibParams>() as i32, 0) };
    if status != FIB_SUCCESS && status != FIB_NO_NEIGHBOUR {
        return if XDP {
            Step::HAND_OVER
        } else {
            Step::refuse(Reason::NoRoute)
        };
    }
    *is_whole = status == FIB_SUCCESS;
    out.ifindex = params.ifindex;
    out.gateway_family = params.family as u32;
    // SAFETY: the kernel filled the union with the next hop's address, in the family it reports.
    let mut gateway = unsafe { params.__bindgen_anon_4.ipv6_dst };
    if params.family != AF_INET6 {
        gateway = [gateway[0], 0, 0, 0];
    }
    out.gateway = gateway;
    out.on_link = (params.family == F::AF && gateway == words) as u32;
    // SAFETY: copied at once.
    let device = unsafe { DEVICE_INDEX.get(params.ifindex) }
        .copied()
        .unwrap_or(0);
    out.mtu = if status == FIB_SUCCESS {
        // SAFETY: the kernel filled the union with the path MTU.
        unsafe { params.__bindgen_anon_1.mtu_result as u32 }
    } else {
        DEVICES.get(device).map_or(0, |device| device.mtu)
    };
    out.next_hop = index::<F>(params.ifindex, params.family, gateway);
    // Element 0 belongs to no neighbour.
    if out.next_hop != 0
        && let Some(hop) = NEXT_HOPS.get_ptr_mut(out.next_hop)
    {
        let word = if status == FIB_SUCCESS && device != 0 {
            NextHopWord::new(params.dmac, device as u16).0
        } else {
            0
        };
        // SAFETY: an array element; one aligned word, so that no reader sees half of it. Racing
        // lookups write what the kernel's tables said, and the next tick looks again.
        unsafe {
            if (&raw const (*hop).word).read_volatile() != word {
                (&raw mut (*hop).word).write_volatile(word);
            }
        }
    }
    Step::FORWARD
}

/// The index of a neighbour, allocated at first sight; 0 if the table is full.
#[inline(always)]
fn index<F: Family>(ifindex: u32, family: u8, gateway: [u32; 4]) -> u32 {
    let key = F::next_hop_key(ifindex, family, gateway);
    // SAFETY: copied at once; only the agent removes entries, after no flow names the index.
    if let Some(index) = unsafe { NEXT_HOP_INDEX.get(key) } {
        return *index;
    }
    let Ok(Some(fresh)) = NEXT_HOP_FREE.pop() else {
        return 0;
    };
    if let Some(hop) = NEXT_HOPS.get_ptr_mut(fresh) {
        let value = NextHop {
            word: 0,
            // Zero would be a stamp from the future for half of all ticks, and never due.
            refreshed: clock::tick(),
            ifindex,
            gateway: key.gateway,
            family: family as u32,
            reserved: 0,
        };
        // SAFETY: an array element nobody else names: its index was free.
        unsafe { hop.write(value) };
    }
    if NEXT_HOP_INDEX
        .insert(key, fresh, BPF_NOEXIST as u64)
        .is_ok()
    {
        return fresh;
    }
    // Another CPU was first: give ours back and use its index.
    if NEXT_HOP_FREE.push(fresh, 0).is_err() {
        return 0;
    }
    // SAFETY: as above.
    unsafe { NEXT_HOP_INDEX.get(key) }.copied().unwrap_or(0)
}

/// Whether a packet should go by the kernel's neighbour table, so that the kernel keeps probing a
/// neighbour only XDP talks to. Says so once in `every` ticks per next hop.
#[inline(always)]
pub(crate) fn neighbour_is_due(next_hop: u32, now: u32, every: u32) -> bool {
    let Some(hop) = NEXT_HOPS.get_ptr_mut(next_hop) else {
        return false;
    };
    // SAFETY: an aligned word of an array element. Racing packets may both go by TCX: harmless.
    unsafe {
        let refreshed = &raw mut (*hop).refreshed;
        if lb_common::conntrack::ticks_since(now, refreshed.read_volatile()) < every {
            return false;
        }
        refreshed.write_volatile(now);
    }
    true
}

/// A next hop XDP can send to: the neighbour's MAC and the device.
#[inline(always)]
pub(crate) fn fast(next_hop: u32) -> Option<(NextHopWord, &'static Device)> {
    if next_hop == 0 {
        return None;
    }
    let hop = NEXT_HOPS.get_ptr(next_hop)?;
    // SAFETY: one aligned word of an array element.
    let word = NextHopWord(unsafe { (&raw const (*hop).word).read_volatile() });
    if word.0 == 0 {
        return None;
    }
    let device = DEVICES.get(word.device() as u32)?;
    Some((word, device))
}

/// Device and neighbour of a next hop, for [`by_neighbour`]; notes that a packet went this way.
#[inline(always)]
pub(crate) fn slow(next_hop: u32, now: u32, out: &mut Resolved) -> bool {
    let Some(hop) = NEXT_HOPS.get_ptr_mut(next_hop) else {
        return false;
    };
    // SAFETY: an array element: device and gateway never change while a flow names the index, and
    // the stamp is one aligned word.
    unsafe {
        if (*hop).ifindex == 0 {
            return false;
        }
        out.ifindex = (*hop).ifindex;
        out.gateway_family = (*hop).family;
        out.gateway = (*hop).gateway.0;
        let refreshed = &raw mut (*hop).refreshed;
        if refreshed.read_volatile() != now {
            refreshed.write_volatile(now);
        }
    }
    true
}

/// The route of an entry's packets, looked up for this packet alone: the next-hop table is full.
#[inline(never)]
pub(crate) fn resolve_once<F: Family>(
    ctx: *mut c_void,
    packet: &FlowPacket<F::Flow>,
    entry: &F::Entry,
    out: &mut Resolved,
) -> Step {
    let destination = entry.written(packet.protocol()).destination();
    resolve::<F, false>(ctx, packet.ingress, destination, out, &mut false)
}

/// Sends the running program's packet to a neighbour by the kernel's neighbour table, which resolves
/// it first if need be. Returns the program's verdict; `None` if the kernel refused.
#[inline(always)]
pub(crate) fn by_neighbour(to: &Resolved) -> Option<i32> {
    let mut params = MaybeUninit::uninit();
    // SAFETY: plain integers, for which zero is valid.
    let params = unsafe { words::zeroed::<bpf_redir_neigh>(&mut params) };
    params.nh_family = to.gateway_family;
    params.__bindgen_anon_1.ipv6_nh = to.gateway;
    // SAFETY: `params` outlives the call, its size is given.
    let verdict = unsafe {
        bpf_redirect_neigh(
            to.ifindex,
            &raw mut *params,
            size_of::<bpf_redir_neigh>() as i32,
            0,
        )
    };
    #[expect(clippy::cast_possible_truncation, reason = "TC verdicts are small")]
    (verdict == aya_ebpf::bindings::TC_ACT_REDIRECT as i64).then_some(verdict as i32)
}
