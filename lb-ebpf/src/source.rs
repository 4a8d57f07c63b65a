//! Where a new flow comes from: whether a service port's source ranges admit it, and what its source is
//! to the cluster. Both are longest-prefix matches, hence asked only where the answer matters.

use aya_ebpf::btf_maps::lpm_trie::Key;
use lb_common::{
    addr::Addr6,
    flow::{Flow as _, protocol},
    service::{Service, SourceRange, source_class},
};

use crate::{
    family::Family,
    flow_packet::FlowPacket,
    tables::{self, SOURCE_CLASS, SOURCE_RANGES},
};

/// [`Key`] with its natural alignment: it is written by words.
#[derive(Clone, Copy)]
#[repr(C)]
struct Prefix<K> {
    /// Bits that are compared: all of them.
    length: u32,
    data: K,
}

impl<K> Prefix<K> {
    /// Writes the key of a lookup into `SCRATCH`, for the stack has no room left.
    #[inline(always)]
    fn of(data: K) -> Option<&'static Key<K>> {
        const { assert!(size_of::<Self>() == size_of::<Key<K>>() && align_of::<Self>() == 4) };
        // SAFETY: plain numbers; a step uses the element for one thing at a time.
        let prefix = unsafe { tables::scratch::<Self>(tables::STEP) }?;
        *prefix = Self {
            length: size_of::<K>() as u32 * u8::BITS,
            data,
        };
        // SAFETY: the same two fields at the same offsets, and a weaker alignment.
        Some(unsafe { &*core::ptr::from_ref(prefix).cast::<Key<K>>() })
    }
}

/// Whether the source ranges of a service port admit the packet. An unrestricted one admits all.
#[inline(always)]
pub(crate) fn admits<F: Family>(packet: &FlowPacket<F::Flow>, service: *const Service) -> bool {
    let set = range_set(service);
    set == 0 || is_in_range::<F>(packet, service, set)
}

/// The set is read again after a miss: another may have been published meanwhile, and the ranges of this
/// one taken away. One repetition is enough, a second publication takes longer than this.
#[inline(never)]
fn is_in_range<F: Family>(
    packet: &FlowPacket<F::Flow>,
    service: *const Service,
    mut set: u32,
) -> bool {
    let packet = core::hint::black_box(packet);
    for _ in 0..2 {
        let range = SourceRange {
            set: set.to_be(),
            address: F::mapped(packet.flow.source()),
        };
        if Prefix::of(range).is_some_and(|key| SOURCE_RANGES.get(key).is_some()) {
            return true;
        }
        let again = range_set(service);
        if again == 0 {
            return true;
        }
        if again == set {
            return false;
        }
        set = again;
    }
    false
}

#[inline(always)]
fn range_set(service: *const Service) -> u32 {
    // SAFETY: an aligned word of an array element.
    unsafe { (&raw const (*service).source_ranges).read_volatile() }
}

/// What the packet's source is to the cluster: bits of [`source_class`], none for an address outside.
#[inline(never)]
pub(crate) fn class<F: Family>(packet: &FlowPacket<F::Flow>) -> u32 {
    let packet = core::hint::black_box(packet);
    class_of(F::mapped(packet.flow.source()))
}

/// Whether a packet no Service wants goes to an address Services are given.
#[inline(never)]
pub(crate) fn is_unallocated<F: Family>(packet: &FlowPacket<F::Flow>) -> bool {
    let packet = core::hint::black_box(packet);
    matches!(packet.flow.protocol(), protocol::TCP | protocol::UDP)
        && class_of(F::mapped(packet.flow.destination())) & source_class::SERVICE_NETWORK != 0
}

#[inline(always)]
fn class_of(address: Addr6) -> u32 {
    Prefix::of(address)
        .and_then(|key| SOURCE_CLASS.get(key))
        .copied()
        .unwrap_or(0)
}
