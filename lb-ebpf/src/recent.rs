//! Routes looked up in the current tick, remembered by destination: `bpf_fib_lookup` is the dearest step
//! of a flow's first packet, and of each flow's first packet of a tick.
//!
//! What the data path asks the kernel depends on the destination and on the device the packet came in by
//! alone: no source, port or mark goes into the question, so that rules and multipath routes give one
//! answer to all who ask it. An answer is good for the tick and the route generation it was given in,
//! just as it is for the flow that got it. One without a neighbour, and so without the path's MTU, is not kept.
//!
//! Whoever frees a next hop's index raises the generation once nobody finds the index any more.

use lb_common::{conntrack::Route, device::NextHop, names};

use crate::{
    family::Family,
    forward::Resolved,
    tables::{self, NEXT_HOPS},
};

/// An answer. One cache line, eight to an element of `SCRATCH`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Answer {
    destination: [u32; 4],
    /// Interface index of the device the packet came in by.
    ingress: u32,
    /// Tick, and the address family in the top eight bits.
    when: u32,
    /// Next hop, MTU and generation.
    route: Route,
    reserved: [u64; 4],
}

/// Bits of an [`Answer`]'s number: eight of the element, three of the place in it.
const PLACE_BITS: u32 = 3;
const NUMBER_BITS: u32 = names::ROUTE_ELEMENTS.trailing_zeros() + PLACE_BITS;

const _: () = assert!(names::ROUTE_ELEMENTS.is_power_of_two());

/// The place of this CPU's answer about a destination.
#[inline(always)]
fn place(destination: [u32; 4], ingress: u32) -> Option<&'static mut Answer> {
    let [a, b, c, d] = destination;
    let word = a ^ b.rotate_left(7) ^ c.rotate_left(13) ^ d ^ ingress.rotate_left(19);
    let number = word.wrapping_mul(0x9e37_79b1) >> (32 - NUMBER_BITS);
    // SAFETY: plain numbers; nothing else borrows the element.
    let answers = unsafe {
        tables::scratch::<[Answer; 1 << PLACE_BITS]>(tables::ROUTES + (number >> PLACE_BITS))
    }?;
    // SAFETY: masked below the number of answers in an element.
    Some(unsafe {
        &mut *answers
            .as_mut_ptr()
            .add((number & ((1 << PLACE_BITS) - 1)) as usize)
    })
}

#[inline(always)]
const fn when<F: Family>(now: u32) -> u32 {
    now | (F::AF as u32) << 24
}

/// Fills `out` as a lookup earlier in this tick found it; tells whether there was one.
#[inline(always)]
pub(crate) fn recall<F: Family>(
    destination: F::Address,
    ingress: u32,
    now: u32,
    generation: u16,
    out: &mut Resolved,
) -> bool {
    let destination = F::words(destination);
    let Some(answer) = place(destination, ingress) else {
        return false;
    };
    if answer.destination != destination
        || answer.ingress != ingress
        || answer.when != when::<F>(now)
        || answer.route.generation() != generation
    {
        return false;
    }
    let next_hop = answer.route.next_hop() as u32;
    let Some(hop) = NEXT_HOPS.get_ptr(next_hop) else {
        return false;
    };
    // SAFETY: an array element; the word is aligned, device and gateway do not change while the index
    // can be had.
    let hop = unsafe {
        if (&raw const (*hop).word).read_volatile() == 0 {
            return false;
        }
        &*hop
    };
    let NextHop {
        ifindex,
        gateway,
        family,
        ..
    } = *hop;
    out.next_hop = next_hop;
    out.mtu = answer.route.mtu() as u32;
    out.ifindex = ifindex;
    out.gateway_family = family;
    out.gateway = gateway.0;
    out.on_link = (family == F::AF as u32 && gateway.0 == destination) as u32;
    true
}

/// Remembers what a lookup found.
#[inline(always)]
pub(crate) fn remember<F: Family>(
    destination: F::Address,
    ingress: u32,
    now: u32,
    generation: u16,
    found: &Resolved,
) {
    let destination = F::words(destination);
    if found.next_hop != 0
        && let Some(answer) = place(destination, ingress)
    {
        answer.destination = destination;
        answer.ingress = ingress;
        answer.when = when::<F>(now);
        answer.route = found.route(0, generation);
    }
}
