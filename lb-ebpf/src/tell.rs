//! Tells the agent of packets refused for want of room or of a setting.

use lb_common::{flow::Flow as _, refusal::Refusal};

use crate::{family::Family, flow_packet::FlowPacket, tables::EVENTS};

/// `BPF_RB_NO_WAKEUP`: the agent looks once a second, a wake-up for each packet of a flood would cost
/// more than the packet.
const NO_WAKEUP: u64 = 1;

/// Writes a record; a full buffer loses it, the counters do not.
#[inline(never)]
pub(crate) fn refusal<F: Family>(packet: &FlowPacket<F::Flow>, reason: u32) -> bool {
    // Without this the compiler passes the fields by value, more than BPF has registers for.
    let packet = core::hint::black_box(packet);
    let record = Refusal {
        source: F::mapped(packet.flow.source()),
        destination: F::mapped(packet.flow.destination()),
        source_port: packet.flow.source_port(),
        destination_port: packet.flow.destination_port(),
        protocol: packet.protocol,
        reason,
        tick: packet.now,
    };
    EVENTS.output(record, NO_WAKEUP).is_ok()
}
