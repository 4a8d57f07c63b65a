//! The complete path: everything XDP leaves, on the same tables. GSO and partial checksums, unresolved
//! neighbours, IPv4 options, fragments, devices XDP cannot send to, pods of this node.

use core::{
    ffi::c_void,
    mem::{MaybeUninit, offset_of},
};

use aya_ebpf::bindings::__sk_buff;
use lb_common::{
    config::{UnknownFlows, config_flag},
    conntrack::{Entry as _, flag},
    flow::Flow as _,
    reason::{Event, Reason, Verdict},
    refusal::is_told,
    service::address_role,
};
use network_types::{
    eth::{EthHdr, EtherType},
    ip::{Ipv4Hdr, Ipv6Hdr},
};

use crate::{
    clock, established,
    family::{Family, V4, V6},
    flow_packet::{FlowPacket, Step},
    forward::{self, Resolved},
    gate, icmp,
    parse::{HEADERS, Layout, SkbFrame, blank, parse},
    path, reply, select,
    skb::{self, Placement, Skb},
    source, stats,
    tables::{self, config},
    tell, words,
};

/// `TCX_NEXT`: the next program of the hook decides, the stack in the end.
pub(crate) const NEXT: i32 = -1;
/// `TCX_DROP`.
pub(crate) const DROP: i32 = 2;

/// `lb_ingress`. Returns the TCX verdict.
#[inline(always)]
pub(crate) fn run(ctx: *mut __sk_buff) -> i32 {
    let skb = Skb(ctx);
    if gate::read().is_standby() {
        stats::reason(Reason::Standby, skb.length().wrapping_sub(skb::IP));
        return NEXT;
    }
    // A tagged frame belongs to the VLAN device above, whose own hook sees it untagged.
    if skb.is_tagged() {
        stats::reason(Reason::NotIp, skb.length());
        return NEXT;
    }
    let ether_type = skb.protocol();
    let is_ip = ether_type == EtherType::Ipv4 as u16 || ether_type == EtherType::Ipv6 as u16;
    // Flooded or mirrored: another node's, or everybody's.
    if is_ip && !skb.is_for_this_host() {
        stats::reason(Reason::NotOurs, skb.length());
        return NEXT;
    }
    // Generic XDP that had to copy the skb leaves no note of the link layer's length: the data then
    // starts at the IP header.
    if is_ip
        && let Some(view) = skb.packet().view::<14>()
        && view.u16::<12>() != ether_type
        && !skb.push_link()
    {
        return truncated(skb);
    }
    skb.pull(HEADERS);
    if ether_type == EtherType::Ipv4 as u16 {
        const PROTOCOL: usize = size_of::<EthHdr>() + offset_of!(Ipv4Hdr, proto);
        let Some(view) = skb.packet().view::<{ PROTOCOL + 1 }>() else {
            return truncated(skb);
        };
        if view.u8::<PROTOCOL>() == V4::ICMP {
            return icmp::run::<V4>(skb.0);
        }
        balance::<V4>(skb.0)
    } else if ether_type == EtherType::Ipv6 as u16 {
        const PROTOCOL: usize = size_of::<EthHdr>() + offset_of!(Ipv6Hdr, next_hdr);
        let Some(view) = skb.packet().view::<{ PROTOCOL + 1 }>() else {
            return truncated(skb);
        };
        if view.u8::<PROTOCOL>() == V6::ICMP {
            return icmp::run::<V6>(skb.0);
        }
        balance::<V6>(skb.0)
    } else {
        stats::reason(Reason::NotIp, skb.length());
        NEXT
    }
}

/// Too short to have an address of ours.
#[inline(always)]
fn truncated(skb: Skb) -> i32 {
    stats::reason(Reason::NotOurs, skb.length());
    NEXT
}

#[inline(never)]
fn balance<F: SkbFrame + reply::Reply>(skb: *mut __sk_buff) -> i32 {
    let skb = Skb(skb);
    let mut packet = MaybeUninit::uninit();
    let packet = blank::<F>(skb, &mut packet);
    let mut layout = MaybeUninit::uninit();
    // SAFETY: plain numbers.
    let layout = unsafe { words::zeroed::<Layout>(&mut layout) };
    let mut step = parse::<F>(skb, packet, layout);
    packet.now = clock::tick();
    let mut entry = MaybeUninit::uninit();
    // SAFETY: an entry of zeroes is valid.
    let entry = unsafe { words::zeroed::<F::Entry>(&mut entry) };
    if step == Step::FORWARD {
        step = decide::<F>(skb.0.cast(), packet, entry);
    }
    if step == Step::FORWARD {
        step = check::<F>(skb, packet, layout, entry);
    }
    if step == Step::FORWARD {
        return send::<F>(skb.0, packet, layout, entry);
    }
    refuse::<F>(skb, packet, layout, step)
}

/// The same steps in the same order as in XDP; here an unresolved neighbour is no obstacle.
#[inline(always)]
fn decide<F: SkbFrame>(
    ctx: *mut c_void,
    packet: &FlowPacket<F::Flow>,
    entry: &mut F::Entry,
) -> Step {
    let (found, _) = established::find::<F>(packet, gate::read().route_generation(), entry);
    let mut step = path::known_flow::<F>(packet, found, entry);
    if step == Step::MISS {
        return path::new_flow::<F, false>(ctx, packet, entry);
    }
    if entry.flags() & flag::PASS != 0 {
        return Step::refuse(Reason::StackFlow);
    }
    let host = entry.flags() & (flag::HOST | flag::REVERSE) == flag::HOST;
    let unresolved = !host && forward::fast(entry.route().next_hop() as u32).is_none();
    if step == Step::ROUTE || step == Step::ROUTE_OF_TICK || (step == Step::FORWARD && unresolved) {
        // Also tells XDP as soon as the neighbour is resolved.
        step = forward::refresh::<F, false>(ctx, packet, entry);
    }
    step
}

/// What must be answered instead of sent.
#[inline(always)]
fn check<F: SkbFrame>(
    skb: Skb,
    packet: &FlowPacket<F::Flow>,
    layout: &mut Layout,
    entry: &F::Entry,
) -> Step {
    if entry.flags() & (flag::HOST | flag::REVERSE) == flag::HOST {
        return Step::FORWARD;
    }
    if layout.ttl <= 1 {
        return Step::refuse(Reason::TtlExceeded);
    }
    let mtu = entry.route().mtu() as u32;
    let segment = match skb.gso_size() {
        0 => packet.length,
        // Headers repeat in every segment.
        size => size + layout.header + layout.l4_header,
    };
    if mtu != 0 && segment > mtu {
        layout.mtu = mtu;
        return Step::refuse(Reason::TooBig);
    }
    Step::FORWARD
}

/// Rewrites and sends. Nothing was changed before this point.
#[inline(never)]
fn send<F: SkbFrame>(
    skb: *mut __sk_buff,
    packet: &FlowPacket<F::Flow>,
    layout: &Layout,
    entry: &F::Entry,
) -> i32 {
    let skb = Skb(skb);
    let host = entry.flags() & (flag::HOST | flag::REVERSE) == flag::HOST;
    let mut to = MaybeUninit::uninit();
    // SAFETY: plain numbers.
    let to = unsafe { words::zeroed::<Resolved>(&mut to) };
    let next_hop = entry.route().next_hop() as u32;
    if !host && !find_next_hop(next_hop, packet.now, to) {
        stats::reason(Reason::NoRoute, packet.length);
        return DROP;
    }
    let at = Placement {
        l4: layout.l4,
        ttl_word: if host { 0 } else { layout.ttl_word },
    };
    if !F::rewrite(skb, &packet.flow, entry, &at) {
        stats::reason(Reason::HelperFailed, packet.length);
        return DROP;
    }
    let verdict = if host {
        stats::event(Event::Delivered, packet.length);
        NEXT
    } else if let Some(verdict) = forward::by_neighbour(to) {
        stats::event(Event::TcxForwarded, packet.length);
        verdict
    } else {
        stats::reason(Reason::HelperFailed, packet.length);
        return DROP;
    };
    stats::forwarded(entry, 1, packet.length);
    verdict
}

/// Device and neighbour of an entry's packets. Where the next-hop table had no room, [`forward::refresh`]
/// has just looked them up for this packet.
#[inline(always)]
fn find_next_hop(next_hop: u32, now: u32, out: &mut Resolved) -> bool {
    if next_hop != 0 {
        return forward::slow(next_hop, now, out);
    }
    // SAFETY: plain numbers; nothing else borrows the element.
    let Some(kept) = (unsafe { tables::scratch::<Resolved>(tables::ROUTE) }) else {
        return false;
    };
    *out = *kept;
    true
}

/// What TCX does with a packet it does not send.
#[inline(always)]
fn refuse<F: SkbFrame + reply::Reply>(
    skb: Skb,
    packet: &FlowPacket<F::Flow>,
    layout: &Layout,
    step: Step,
) -> i32 {
    let Some(number) = step.reason() else {
        stats::reason(Reason::BrokenTable, packet.length);
        return DROP;
    };
    // What is nobody's packet until a role says so: fragments, other protocols, odd headers.
    for reason in [
        Reason::Fragment,
        Reason::UnsupportedProtocol,
        Reason::ExtensionHeader,
        Reason::Truncated,
        Reason::Malformed,
    ] {
        if number == reason as u32 {
            return unclassified::<F>(packet, reason);
        }
    }
    for (reason, answer) in [
        (Reason::NoFrontend, reply::UNREACHABLE),
        (Reason::NoEndpoint, reply::UNREACHABLE),
        (Reason::TtlExceeded, reply::TIME_EXCEEDED),
        (Reason::TooBig, reply::TOO_BIG),
    ] {
        if number == reason as u32 {
            stats::reason_number(number, packet.length);
            return reply::answer::<F>(skb, packet, layout, answer);
        }
    }
    if number == Reason::NotOurs as u32 {
        return not_ours::<F>(packet);
    }
    stats::reason_number(number, packet.length);
    if is_told(number) {
        tell::refusal::<F>(packet, number);
    }
    if number == Reason::UnknownFlowToStack as u32 || number == Reason::StackFlow as u32 {
        NEXT
    } else {
        DROP
    }
}

/// A packet to an address that is not ours: passes, unless it goes to a cluster IP nobody has.
#[inline(always)]
fn not_ours<F: Family>(packet: &FlowPacket<F::Flow>) -> i32 {
    if config!(flags) & config_flag::DROP_UNALLOCATED != 0 && source::is_unallocated::<F>(packet) {
        stats::reason(Reason::UnallocatedAddress, packet.length);
        return DROP;
    }
    stats::reason(Reason::NotOurs, packet.length);
    NEXT
}

/// A packet without a usable transport header: ours only if it goes to an address that is all ours.
#[inline(always)]
fn unclassified<F: Family>(packet: &FlowPacket<F::Flow>, reason: Reason) -> i32 {
    let role = select::address_role::<F>(packet.flow.destination());
    if role & (address_role::VIP | address_role::SNAT) == 0 {
        return not_ours::<F>(packet);
    }
    let stack = config!(unknown_flows) == UnknownFlows::Stack as u32;
    let reason = if stack && matches!(reason, Reason::Fragment) {
        Reason::UnknownFlowToStack
    } else {
        reason
    };
    stats::reason(reason, packet.length);
    match reason.verdict() {
        Verdict::Pass => NEXT,
        Verdict::Drop => DROP,
    }
}
