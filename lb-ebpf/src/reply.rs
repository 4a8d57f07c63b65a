//! Replies of our own, sent back the way the packet came: RST, ICMP errors, echo replies.
//!
//! An error quotes the IP header and the transport header of the packet, which is what a stack needs to
//! find its socket (RFC 792; RFC 4443 section 2.4 asks for more, but not more than is useful).
//!
//! **Partial checksums.** The device completes the transport checksum of such a packet when it leaves:
//! also of one that was cut and quoted. A RST then carries the pseudo-header's sum only. In a quotation
//! the sum over the transport part is known beforehand: the complement of what its field holds now.

use core::mem::offset_of;

use lb_common::{
    checksum::fold,
    conntrack::tcp_flag,
    flow::{Flow as _, protocol},
    reason::{Event, Reason},
};
use network_types::tcp::TcpHdr;

use crate::{
    family::{V4, V6},
    flow_packet::FlowPacket,
    ingress::DROP,
    parse::{Layout, SkbFrame},
    skb::{self, Skb},
    stats,
    tables::{REPLY_BUDGET, config},
};

/// RST for TCP, "port unreachable" for UDP.
pub(crate) const UNREACHABLE: u32 = 0;
/// "Fragmentation needed" or "packet too big", with `layout.mtu`.
pub(crate) const TOO_BIG: u32 = 1;
/// "Time exceeded".
pub(crate) const TIME_EXCEEDED: u32 = 2;

/// TTL and hop limit of what we send.
const TTL: u32 = 64;

/// What differs between the families' replies.
pub(crate) trait Reply: SkbFrame {
    /// Type, code and second word of an ICMP error.
    fn error(what: u32, mtu: u32) -> (u32, u32, Event);
    /// Sum of the words of the packet's own IP header.
    fn header_sum(skb: Skb) -> u64;
    /// Writes an IP header of ours from the packet's destination to its source.
    fn store_header(skb: Skb, packet: &FlowPacket<Self::Flow>, payload: u32, proto: u8) -> bool;
    /// Sum of the pseudo-header of a packet from `flow`'s destination to its source (or back).
    fn pseudo_sum(flow: &Self::Flow, payload: u32, proto: u8) -> u64;
    /// Pseudo-header sum that goes into an ICMP checksum: none for IPv4.
    fn icmp_pseudo_sum(flow: &Self::Flow, payload: u32) -> u64;
}

/// Sums `N` words at `offset`.
macro_rules! sum_words {
    ($view:expr; $($at:literal)+) => { 0_u64 $(+ $view.u32::<$at>() as u64)+ };
}

impl Reply for V4 {
    #[inline(always)]
    fn error(what: u32, mtu: u32) -> (u32, u32, Event) {
        match what {
            UNREACHABLE => (0x0303, 0, Event::UnreachableSent),
            TOO_BIG => (0x0304, mtu & 0xffff, Event::TooBigSent),
            _ => (0x0b00, 0, Event::TimeExceededSent),
        }
    }

    #[inline(always)]
    fn header_sum(skb: Skb) -> u64 {
        skb.packet()
            .view_at::<20>(skb::IP)
            .map_or(0, |view| sum_words!(view; 0 4 8 12 16))
    }

    #[inline(always)]
    fn store_header(skb: Skb, packet: &FlowPacket<Self::Flow>, payload: u32, proto: u8) -> bool {
        let mut header = [
            (0x4500_0000 | (20 + payload)).to_be(),
            // Don't fragment: it is shorter than any link's MTU.
            0x0000_4000_u32.to_be(),
            ((TTL << 24) | ((proto as u32) << 16)).to_be(),
            packet.flow.destination.0,
            packet.flow.source.0,
        ];
        let sum = header.iter().map(|&word| word as u64).sum();
        header[2] |= ((!fold(sum)) as u32) << 16;
        skb.store(skb::IP, &header)
    }

    #[inline(always)]
    fn pseudo_sum(flow: &Self::Flow, payload: u32, proto: u8) -> u64 {
        let addresses = flow.source.0 as u64 + flow.destination.0 as u64;
        addresses + payload.to_be() as u64 + (proto as u32).to_be() as u64
    }

    #[inline(always)]
    fn icmp_pseudo_sum(_flow: &Self::Flow, _payload: u32) -> u64 {
        0
    }
}

impl Reply for V6 {
    #[inline(always)]
    fn error(what: u32, mtu: u32) -> (u32, u32, Event) {
        match what {
            UNREACHABLE => (0x0104, 0, Event::UnreachableSent),
            TOO_BIG => (0x0200, mtu, Event::TooBigSent),
            _ => (0x0300, 0, Event::TimeExceededSent),
        }
    }

    #[inline(always)]
    fn header_sum(skb: Skb) -> u64 {
        skb.packet()
            .view_at::<40>(skb::IP)
            .map_or(0, |view| sum_words!(view; 0 4 8 12 16 20 24 28 32 36))
    }

    #[inline(always)]
    fn store_header(skb: Skb, packet: &FlowPacket<Self::Flow>, payload: u32, proto: u8) -> bool {
        let first = [
            0x6000_0000_u32.to_be(),
            ((payload << 16) | ((proto as u32) << 8) | TTL).to_be(),
        ];
        skb.store(skb::IP, &first)
            && skb.store(skb::IP + 8, &packet.flow.destination.0)
            && skb.store(skb::IP + 24, &packet.flow.source.0)
    }

    #[inline(always)]
    fn pseudo_sum(flow: &Self::Flow, payload: u32, proto: u8) -> u64 {
        let mut sum = payload.to_be() as u64 + (proto as u32).to_be() as u64;
        for word in flow.source.0 {
            sum += word as u64;
        }
        for word in flow.destination.0 {
            sum += word as u64;
        }
        sum
    }

    #[inline(always)]
    fn icmp_pseudo_sum(flow: &Self::Flow, payload: u32) -> u64 {
        Self::pseudo_sum(flow, payload, protocol::ICMP6)
    }
}

/// Takes a token of this CPU's budget for this tick.
#[inline(always)]
pub(crate) fn may_reply(now: u32) -> bool {
    let Some(budget) = REPLY_BUDGET.get_ptr_mut(0) else {
        return false;
    };
    // SAFETY: this CPU's element, looked up just now.
    let budget = unsafe { &mut *budget };
    if budget.tick != now as u64 {
        budget.tick = now as u64;
        budget.sent = 0;
    }
    budget.sent += 1;
    budget.sent <= config!(replies_per_tick) as u64
}

/// Exchanges the two MAC addresses.
#[inline(always)]
pub(crate) fn swap_link(skb: Skb) -> bool {
    let Some(view) = skb.packet().view::<14>() else {
        return false;
    };
    let swapped = [
        view.u16::<6>(),
        view.u16::<8>(),
        view.u16::<10>(),
        view.u16::<0>(),
        view.u16::<2>(),
        view.u16::<4>(),
    ];
    skb.store(0, &swapped)
}

/// Turns the packet into the answer to itself and sends it back. Returns the TCX verdict.
#[inline(always)]
pub(crate) fn answer<F: Reply>(
    skb: Skb,
    packet: &FlowPacket<F::Flow>,
    layout: &Layout,
    what: u32,
) -> i32 {
    // Options, extension headers and fragments would need another quotation; an RST gets no answer
    // (RFC 9293, section 3.10.7.1).
    let plain = layout.header == F::IP_HEADER && layout.is_fragment == 0;
    let is_reset = packet.tcp_flags & tcp_flag::RST as u32 != 0;
    if !plain || is_reset {
        return DROP;
    }
    if !may_reply(packet.now) {
        stats::reason(Reason::RateLimited, packet.length);
        return DROP;
    }
    let sent = if what == UNREACHABLE && packet.is_tcp() {
        reset::<F>(skb.0, packet)
    } else {
        error::<F>(skb.0, packet, what, layout.mtu)
    };
    if !sent {
        stats::reason(Reason::HelperFailed, packet.length);
        return DROP;
    }
    skb::redirect(skb.ifindex())
}

/// Whether the transport checksum is only the pseudo-header's sum.
#[inline(always)]
fn is_partial<F: Reply>(packet: &FlowPacket<F::Flow>, check: u16) -> bool {
    let payload = packet.length - F::IP_HEADER;
    check == fold(F::pseudo_sum(&packet.flow, payload, packet.protocol()))
}

/// RST to a TCP segment (RFC 9293, section 3.10.7.1: as a closed port answers).
#[inline(never)]
fn reset<F: Reply>(skb: *mut aya_ebpf::bindings::__sk_buff, packet: &FlowPacket<F::Flow>) -> bool {
    let skb = Skb(skb);
    let l4 = skb::IP + F::IP_HEADER;
    let Some(view) = skb.packet().view_at::<20>(l4) else {
        return false;
    };
    let partial = is_partial::<F>(packet, view.u16::<{ offset_of!(TcpHdr, check) }>());
    let (sequence, acknowledgement, flags) = if packet.tcp_flags & tcp_flag::ACK as u32 != 0 {
        (packet.acknowledgement, 0, tcp_flag::RST)
    } else {
        let next = packet.sequence.wrapping_add(packet.sequence_length);
        (0, next, tcp_flag::RST | tcp_flag::ACK)
    };
    let ports = ((packet.flow.destination_port().get() as u32) << 16)
        | packet.flow.source_port().get() as u32;
    let mut header = [
        ports.to_be(),
        sequence.to_be(),
        acknowledgement.to_be(),
        // Data offset 5 words, flags, window 0.
        (0x5000_0000 | ((flags as u32) << 16)).to_be(),
        0,
    ];
    let pseudo = F::pseudo_sum(&packet.flow, 20, protocol::TCP);
    let check = if partial {
        fold(pseudo)
    } else {
        let mut sum = pseudo;
        for word in header {
            sum += word as u64;
        }
        !fold(sum)
    };
    header[4] = check as u32;
    let done = swap_link(skb)
        && skb.cut(l4 + 20)
        && F::store_header(skb, packet, 20, protocol::TCP)
        && skb.store(l4, &header);
    if done {
        stats::event(Event::ResetSent, F::IP_HEADER + 20);
    }
    done
}

/// An ICMP error that quotes the packet.
#[inline(never)]
fn error<F: Reply>(
    skb: *mut aya_ebpf::bindings::__sk_buff,
    packet: &FlowPacket<F::Flow>,
    what: u32,
    mtu: u32,
) -> bool {
    let skb = Skb(skb);
    let l4 = skb::IP + F::IP_HEADER;
    let (transport, sum, check) = if packet.is_tcp() {
        let Some(view) = skb.packet().view_at::<20>(l4) else {
            return false;
        };
        (20, sum_words!(view; 0 4 8 12 16), view.u16::<16>())
    } else {
        let Some(view) = skb.packet().view_at::<8>(l4) else {
            return false;
        };
        (8, sum_words!(view; 0 4), view.u16::<6>())
    };
    let sum = if is_partial::<F>(packet, check) {
        (!check) as u64
    } else {
        sum
    };
    let quoted = F::IP_HEADER + transport;
    let (type_code, rest, event) = F::error(what, mtu);
    let mut header = [(type_code << 16).to_be(), rest.to_be()];
    let whole = F::header_sum(skb)
        + sum
        + header[0] as u64
        + header[1] as u64
        + F::icmp_pseudo_sum(&packet.flow, 8 + quoted);
    header[0] |= ((!fold(whole)) as u32) << 16;
    let done = swap_link(skb)
        && skb.cut(skb::IP + quoted)
        && skb.insert_after_link(F::IP_HEADER as i32 + 8)
        && F::store_header(skb, packet, 8 + quoted, F::ICMP)
        && skb.store(skb::IP + F::IP_HEADER, &header);
    if done {
        stats::event(event, F::IP_HEADER + 8 + quoted);
    }
    done
}
