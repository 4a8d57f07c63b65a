//! The XDP fast path: plain TCP and UDP packets of flows whose next hop is known.
//!
//! Whatever is missing or unusual makes it pass the packet, unmodified, to [`crate::ingress`]. What it
//! has written to the tables by then (a stamp, a new flow) is what TCX would write too.

use core::{
    ffi::c_void,
    mem::{MaybeUninit, offset_of},
};

use aya_ebpf::{
    EbpfContext as _,
    bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_REDIRECT},
    helpers::generated::bpf_redirect,
    programs::XdpContext,
};
use lb_common::{
    conntrack::Entry as _,
    device::device_flag,
    reason::{Event, Reason},
    refusal::is_told,
};
use network_types::eth::{EthHdr, EtherType};

use crate::{
    clock, embryonic, established,
    family::{V4, V6},
    flow_packet::{FlowPacket, Step},
    forward,
    frame::{Frame, IP},
    gate,
    packet::Packet,
    path, pending, stats,
    tables::{DEVICE_INDEX, DEVICES, config},
    tell, words,
};

/// Reads the EtherType and runs the family's path. Returns the XDP verdict.
#[inline(always)]
pub(crate) fn run(ctx: &XdpContext) -> u32 {
    let packet = Packet::new(ctx.data(), ctx.data_end());
    let Some(link) = packet.view::<IP>() else {
        return XDP_PASS;
    };
    let ether_type = link.u16::<{ offset_of!(EthHdr, ether_type) }>();
    if ether_type == EtherType::Ipv4 as u16 {
        balance::<V4>(ctx, packet)
    } else if ether_type == EtherType::Ipv6 as u16 {
        balance::<V6>(ctx, packet)
    } else {
        XDP_PASS
    }
}

#[inline(always)]
fn balance<F: Frame>(ctx: &XdpContext, frame: Packet) -> u32 {
    let mut packet = MaybeUninit::uninit();
    // SAFETY: plain numbers.
    let packet = unsafe { words::zeroed::<FlowPacket<F::Flow>>(&mut packet) };
    let headers = match F::parse(frame, packet) {
        Ok(headers) => headers,
        Err(Step::MISS) => return XDP_PASS,
        Err(_) if gate::read().is_standby() => return XDP_PASS,
        Err(_) => return hand_over(packet.length),
    };
    let control = gate::read();
    if control.is_standby() {
        return XDP_PASS;
    }
    packet.now = clock::tick();
    packet.ingress = ingress_ifindex(ctx);
    let mut entry = MaybeUninit::uninit();
    // SAFETY: an entry of zeroes is valid.
    let entry = unsafe { words::zeroed::<F::Entry>(&mut entry) };
    let (found, place) = established::find::<F>(packet, control.route_generation(), entry);
    if found != Step::FORWARD {
        let step = unusual::<F>(ctx, headers, packet, found, entry);
        if step != Step::FORWARD {
            return refuse::<F>(step, packet);
        }
    }
    send::<F>(headers, packet, entry, place)
}

/// Everything but the next packet of an established flow.
#[inline(always)]
fn unusual<F: Frame>(
    ctx: &XdpContext,
    headers: F::Headers,
    packet: &FlowPacket<F::Flow>,
    found: Step,
    entry: &mut F::Entry,
) -> Step {
    let ctx: *mut c_void = ctx.as_ptr();
    // It ends its flow, and may yet turn out to be one that only TCX can send on, who would not know it any more.
    if found == Step::MISS && embryonic::is_refusal::<F>(packet) {
        return Step::HAND_OVER;
    }
    let mut step = path::known_flow::<F>(packet, found, entry);
    if step == Step::MISS {
        // TCX makes the flow if it must have the packet anyway.
        if F::is_partial(headers, packet)
            || F::ttl(headers) <= 1
            || !is_for_this_host(F::link(headers), packet.ingress)
        {
            return Step::HAND_OVER;
        }
        return path::new_flow::<F, true>(ctx, packet, entry);
    }
    if step == Step::ROUTE || step == Step::ROUTE_OF_TICK {
        let due = step == Step::ROUTE_OF_TICK;
        step = forward::refresh::<F, true>(ctx, packet, entry);
        let next_hop = entry.route().next_hop() as u32;
        if due
            && step == Step::FORWARD
            && forward::neighbour_is_due(next_hop, packet.now, config!(neighbour_ticks))
        {
            return Step::HAND_OVER;
        }
    }
    step
}

/// Checks what could still prevent it, then writes and redirects. `place` is where the entry stands, if
/// that is known.
#[inline(always)]
fn send<F: Frame>(
    headers: F::Headers,
    packet: &FlowPacket<F::Flow>,
    entry: &F::Entry,
    place: Option<*mut F::Entry>,
) -> u32 {
    let route = entry.route();
    let Some((hop, device)) = forward::fast(route.next_hop() as u32) else {
        return hand_over(packet.length);
    };
    if device.flags & device_flag::REDIRECT == 0
        || packet.length > route.mtu() as u32
        || F::ttl(headers) <= 1
        || F::is_partial(headers, packet)
    {
        return hand_over(packet.length);
    }
    F::write(headers, packet, entry, hop, device);
    stats::event(Event::XdpForwarded, packet.length);
    match place {
        // SAFETY: looked up by this program.
        Some(place) => unsafe { pending::forwarded::<F>(place, packet.length) },
        None => stats::forwarded(entry, 1, packet.length),
    }
    // SAFETY: plain helper call; the flags are zero, as the kernel demands.
    let verdict = unsafe { bpf_redirect(device.ifindex, 0) };
    if verdict == XDP_REDIRECT as i64 {
        XDP_REDIRECT
    } else {
        XDP_DROP
    }
}

#[inline(always)]
fn hand_over(bytes: u32) -> u32 {
    stats::event(Event::HandedToTcx, bytes);
    XDP_PASS
}

/// What XDP does with a packet it does not send: foreign ones pass uncounted (TCX counts them), those
/// that need an answer or a longer look go to TCX, the others end here.
#[inline(always)]
fn refuse<F: Frame>(step: Step, packet: &FlowPacket<F::Flow>) -> u32 {
    let bytes = packet.length;
    let Some(number) = step.reason() else {
        return hand_over(bytes);
    };
    if number == Reason::NotOurs as u32 {
        return XDP_PASS;
    }
    for reason in [
        Reason::NoFrontend,
        Reason::NoEndpoint,
        Reason::UnknownFlowToStack,
        Reason::StackFlow,
    ] {
        if number == reason as u32 {
            return hand_over(bytes);
        }
    }
    stats::reason_number(number, bytes);
    if is_told(number) {
        tell::refusal::<F>(packet, number);
    }
    XDP_DROP
}

/// Whether a frame's destination MAC is that of the device it came in by. Established flows need no such
/// look: they are on their own node.
#[inline(always)]
fn is_for_this_host(destination: [u16; 3], ingress: u32) -> bool {
    // SAFETY: copied at once.
    let Some(device) = unsafe { DEVICE_INDEX.get(ingress) }.and_then(|index| DEVICES.get(*index))
    else {
        return false;
    };
    let [m0, m1, m2, m3, m4, m5] = device.mac;
    destination
        == [
            u16::from_ne_bytes([m0, m1]),
            u16::from_ne_bytes([m2, m3]),
            u16::from_ne_bytes([m4, m5]),
        ]
}

#[inline(always)]
fn ingress_ifindex(ctx: &XdpContext) -> u32 {
    // SAFETY: the context of the running program.
    unsafe { (*ctx.ctx).ingress_ifindex }
}
