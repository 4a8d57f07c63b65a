//! Counting. Per-CPU array elements: no other CPU writes them, and softirq programs do not nest.

use lb_common::{
    conntrack::{Entry, flag},
    reason::{Counter, Event, Reason},
    traffic::{Tally, Traffic},
};

use crate::tables::{BACKEND_TRAFFIC, COUNTERS, SERVICE_TRAFFIC};

#[inline(always)]
fn add(counter: Counter, bytes: u64) {
    if let Some(tally) = COUNTERS.get_ptr_mut(counter.index()) {
        // SAFETY: this CPU's element, looked up just now.
        unsafe { tally_packet(tally, bytes) };
    }
}

/// Adds one packet.
///
/// # Safety
///
/// `tally` points into an element of a per-CPU array of the running CPU.
#[inline(always)]
unsafe fn tally_packet(tally: *mut Tally, bytes: u64) {
    // SAFETY: by the caller's word valid and unshared.
    let tally = unsafe { &mut *tally };
    tally.packets += 1;
    tally.bytes += bytes;
}

/// Something we did to a packet of `bytes` IP bytes.
#[inline(always)]
pub(crate) fn event(event: Event, bytes: u32) {
    add(Counter::Event(event), bytes as u64);
}

/// Something that happened to `count` packets at once.
#[inline(always)]
pub(crate) fn events(event: Event, count: u64) {
    if let Some(tally) = COUNTERS.get_ptr_mut(Counter::Event(event).index()) {
        // SAFETY: this CPU's element, looked up just now.
        unsafe { (*tally).packets += count };
    }
}

/// Why a packet was not balanced.
#[inline(always)]
pub(crate) fn reason(reason: Reason, bytes: u32) {
    add(Counter::Reason(reason), bytes as u64);
}

/// Why a packet was not balanced, by the reason's number.
#[inline(always)]
pub(crate) fn reason_number(number: u32, bytes: u32) {
    let index = Counter::Reason(Reason::NotIp).index() + number;
    if let Some(tally) = COUNTERS.get_ptr_mut(index) {
        // SAFETY: this CPU's element, looked up just now.
        unsafe { tally_packet(tally, bytes as u64) };
    }
}

/// Packets of a flow were sent on, of `bytes` IP bytes together.
#[inline(always)]
pub(crate) fn forwarded<E: Entry>(entry: &E, packets: u32, bytes: u32) {
    let reverse = entry.flags() & flag::REVERSE != 0;
    flow(entry.service(), entry.backend(), |traffic| {
        let tally = if reverse {
            &mut traffic.reply
        } else {
            &mut traffic.forward
        };
        tally.packets += packets as u64;
        tally.bytes += bytes as u64;
    });
}

/// Changes what is counted of a service port and a backend.
#[inline(always)]
pub(crate) fn flow(service: u32, backend: u32, change: impl Fn(&mut Traffic)) {
    for traffic in [
        SERVICE_TRAFFIC.get_ptr_mut(service),
        BACKEND_TRAFFIC.get_ptr_mut(backend),
    ] {
        let Some(traffic) = traffic else { continue };
        // SAFETY: this CPU's element, looked up just now.
        change(unsafe { &mut *traffic });
    }
}
