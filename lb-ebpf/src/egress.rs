//! Reverse NAT for backends that are the node itself: their replies come from the node's own stack and
//! are met on the way out. Everything else passes untouched.

use core::mem::MaybeUninit;

use aya_ebpf::bindings::__sk_buff;
use lb_common::{
    conntrack::{Entry as _, flag},
    reason::{Event, Reason},
};
use network_types::eth::EtherType;

use crate::{
    clock, established,
    family::{Family, V4, V6},
    flow_packet::Step,
    gate,
    ingress::{DROP, NEXT},
    parse::{Layout, SkbFrame, blank, parse},
    path,
    skb::{Placement, Skb},
    stats, words,
};

/// `lb_egress`. Returns the TCX verdict.
#[inline(always)]
pub(crate) fn run(ctx: *mut __sk_buff) -> i32 {
    let skb = Skb(ctx);
    if gate::read().is_standby() {
        return NEXT;
    }
    let ether_type = skb.protocol();
    if ether_type == EtherType::Ipv4 as u16 {
        reverse::<V4>(skb)
    } else if ether_type == EtherType::Ipv6 as u16 {
        reverse::<V6>(skb)
    } else {
        NEXT
    }
}

#[inline(always)]
fn is_host_reply<F: Family>(entry: Option<*mut F::Entry>) -> bool {
    const WANTED: u32 = flag::HOST | flag::REVERSE;
    entry.is_some_and(|entry| {
        // SAFETY: looked up just now. Whatever a recycled element says, the steps below look again.
        unsafe { &*entry }.flags() & WANTED == WANTED
    })
}

#[inline(always)]
fn reverse<F: SkbFrame>(skb: Skb) -> i32 {
    let mut packet = MaybeUninit::uninit();
    let packet = blank::<F>(skb, &mut packet);
    let mut layout = MaybeUninit::uninit();
    // SAFETY: plain numbers.
    let layout = unsafe { words::zeroed::<Layout>(&mut layout) };
    if parse::<F>(skb, packet, layout) != Step::FORWARD {
        return NEXT;
    }
    if !is_host_reply::<F>(F::established(&packet.flow))
        && !is_host_reply::<F>(F::embryonic(&packet.flow))
    {
        return NEXT;
    }
    packet.now = clock::tick();
    let mut entry = MaybeUninit::uninit();
    // SAFETY: an entry of zeroes is valid.
    let entry = unsafe { words::zeroed::<F::Entry>(&mut entry) };
    let (found, _) = established::find::<F>(packet, gate::read().route_generation(), entry);
    let step = path::known_flow::<F>(packet, found, entry);
    // The stack has routed the packet already: a stale route of ours is of no interest.
    if step == Step::MISS {
        return NEXT;
    }
    if let Some(number) = step.reason() {
        stats::reason_number(number, packet.length);
        return DROP;
    }
    let at = Placement {
        l4: layout.l4,
        ttl_word: 0,
    };
    if !F::rewrite(skb, &packet.flow, entry, &at) {
        stats::reason(Reason::HelperFailed, packet.length);
        return DROP;
    }
    stats::event(Event::EgressForwarded, packet.length);
    stats::forwarded(entry, 1, packet.length);
    NEXT
}
