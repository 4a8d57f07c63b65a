//! Session affinity: a client's new flows go where its last one went, as long as the service port's
//! timeout has not passed since, and the backend is in the set that would be selected from.

use lb_common::{
    conntrack::{Entry as _, ticks_since},
    flow::Flow as _,
    service::{
        MemberKey,
        affinity::{Affinity, AffinityKey},
    },
};

use crate::{
    family::Family,
    flow_packet::FlowPacket,
    tables::{self, AFFINITY, MEMBERS, SERVICES, config},
};

/// Key and value. Live in `SCRATCH`, for the stack has no room left.
#[repr(C)]
struct Record {
    key: AffinityKey,
    value: Affinity,
}

#[inline(always)]
fn record<F: Family>(packet: &FlowPacket<F::Flow>, service: u32) -> Option<&'static mut Record> {
    // SAFETY: plain numbers; a step uses the element for one thing at a time.
    let record = unsafe { tables::scratch::<Record>(tables::STEP) }?;
    record.key = AffinityKey {
        client: F::mapped(packet.flow.source()),
        service,
    };
    Some(record)
}

/// The backend of the client's last flow to the service port, if that was within `seconds` and `set`
/// (one of [`lb_common::service::member_flag`]) has it; else 0.
///
/// An id may have been given to another endpoint of the service port since: as good as any.
#[inline(never)]
pub(crate) fn find<F: Family>(
    packet: &FlowPacket<F::Flow>,
    service: u32,
    seconds: u32,
    set: u32,
) -> u32 {
    let packet = core::hint::black_box(packet);
    let Some(record) = record::<F>(packet, service) else {
        return 0;
    };
    // SAFETY: copied at once; what was recycled meanwhile fails the look into `MEMBERS`, or is as good.
    let Some(Affinity { backend, stamp, .. }) = unsafe { AFFINITY.get(&record.key) }.copied()
    else {
        return 0;
    };
    let silent = ticks_since(packet.now, stamp) as u64 * config!(tick_millis) as u64;
    if silent > seconds as u64 * 1_000 {
        return 0;
    }
    // SAFETY: copied at once.
    match unsafe { MEMBERS.get(MemberKey { service, backend }) } {
        Some(member) if member.flags & set != 0 => backend,
        _ => 0,
    }
}

/// Notes the backend of a flow that was made just now, if its service port has affinity.
#[inline(always)]
pub(crate) fn note<F: Family>(packet: &FlowPacket<F::Flow>, entry: &F::Entry) {
    if SERVICES
        .get(entry.service())
        .is_some_and(|service| service.affinity_seconds != 0)
    {
        keep::<F>(packet, entry.service(), entry.backend());
    }
}

#[inline(never)]
fn keep<F: Family>(packet: &FlowPacket<F::Flow>, service: u32, backend: u32) -> u32 {
    let packet = core::hint::black_box(packet);
    let Some(record) = record::<F>(packet, service) else {
        return 0;
    };
    if let Some(known) = AFFINITY.get_ptr_mut(&record.key) {
        // SAFETY: looked up just now; both are aligned words. If the element serves another client by
        // now, that one's flow is as new.
        unsafe {
            if (&raw const (*known).backend).read_volatile() == backend {
                (&raw mut (*known).stamp).write_volatile(packet.now);
                return backend;
            }
        }
    }
    record.value = Affinity::new(backend, packet.now);
    // Least recently used: there is always room. A failure costs the client its affinity.
    match AFFINITY.insert(&record.key, &record.value, 0) {
        Ok(()) => backend,
        Err(_) => 0,
    }
}
