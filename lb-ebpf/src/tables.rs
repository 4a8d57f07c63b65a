//! The maps, and lookups that hand out copies or pointers good for one access.

use aya_ebpf::{
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, Queue, RingBuf},
    macros::btf_map,
};
use lb_common::{
    addr::Addr6,
    config::Config,
    conntrack::{Closing4, Closing6, Entry4, Entry6},
    control::Control,
    device::{Device, NextHop, NextHopKey, SnatAddress},
    flow::{AddressFilter, Flow4, Flow6},
    maglev::SLOTS_PER_ELEMENT,
    names::{ROUTE_ELEMENTS, entries},
    refusal::Refusal,
    service::{
        AddressRole, Backend4, Backend6, FragmentKey, FragmentPorts, Frontend, FrontendKey4,
        FrontendKey6, Member, MemberKey, Service, ServiceName, SourceRange,
        affinity::{Affinity, AffinityKey},
    },
    traffic::{ReplyBudget, Tally, Traffic},
};

const MMAPABLE: usize = aya_ebpf::bindings::BPF_F_MMAPABLE as usize;
const NO_PREALLOC: usize = aya_ebpf::bindings::BPF_F_NO_PREALLOC as usize;
const SLOTS_LENGTH: usize = SLOTS_PER_ELEMENT as usize;

/// Fixed by the agent at load, where it becomes a constant the verifier knows. Read it by `config!`.
#[unsafe(no_mangle)]
pub(crate) static CONFIG: Config = Config {
    flags: 0,
    tick_shift: 8,
    unknown_flows: 1,
    replies_per_tick: 1_000,
    flows4_limit: u32::MAX,
    flows6_limit: u32::MAX,
    udp4_limit: u32::MAX,
    udp6_limit: u32::MAX,
    closed_ticks: 60,
    embryonic_ticks: 60,
    neighbour_ticks: 4,
    tick_millis: 1_000,
};

/// A field of the configuration. Volatile, since the loader replaces what the compiler saw.
macro_rules! config {
    ($field:ident) => {
        // SAFETY: reads an initialised static.
        unsafe { core::ptr::read_volatile(&raw const $crate::tables::CONFIG.$field) }
    };
}
pub(crate) use config;

/// Working memory beyond the stack's 512 bytes. Programs of one CPU do not nest, so that each run has it
/// for itself.
pub(crate) type Scratch = [u64; 64];

/// Element of `SCRATCH` for what one step needs: its contents do not outlive the step.
pub(crate) const STEP: u32 = 0;
/// Element of `SCRATCH` for the route of the packet, where no next-hop index can be kept.
pub(crate) const ROUTE: u32 = 1;
/// Element of `SCRATCH` that [`crate::removal`] has for itself.
pub(crate) const DUE: u32 = 2;
/// First of the elements of `SCRATCH` that [`crate::recent`] has for itself.
pub(crate) const ROUTES: u32 = 3;
const _: () = assert!(ROUTES + ROUTE_ELEMENTS == entries::SCRATCH as u32);

/// This CPU's [`Scratch`] as a `T`.
///
/// # Safety
///
/// `T` is plain numbers, valid whatever they are, and no other reference to the element is in use.
#[inline(always)]
pub(crate) unsafe fn scratch<T>(element: u32) -> Option<&'static mut T> {
    const { assert!(size_of::<T>() <= size_of::<Scratch>() && align_of::<T>() <= 8) };
    let scratch = SCRATCH.get_ptr_mut(element)?;
    // SAFETY: this CPU's element, large enough and aligned; the rest is the caller's word.
    Some(unsafe { &mut *scratch.cast::<T>() })
}

macro_rules! tables {
    ($($name:ident: $ty:ty),+ $(,)?) => {
        $(#[btf_map] pub(crate) static $name: $ty = <$ty>::new();)+
    };
}

tables! {
    FRONTENDS_V4: HashMap<FrontendKey4, Frontend, { entries::FRONTENDS_V4 }>,
    FRONTENDS_V6: HashMap<FrontendKey6, Frontend, { entries::FRONTENDS_V6 }>,
    GATEWAY_ENDPOINTS_V4: HashMap<FrontendKey4, u32, { entries::GATEWAY_ENDPOINTS_V4 }>,
    GATEWAY_ENDPOINTS_V6: HashMap<FrontendKey6, u32, { entries::GATEWAY_ENDPOINTS_V6 }>,
    SERVICES: Array<Service, { entries::SERVICES }, MMAPABLE>,
    SERVICE_NAMES: HashMap<u32, ServiceName, { entries::SERVICE_NAMES }, NO_PREALLOC>,
    BACKENDS_V4: Array<Backend4, { entries::BACKENDS_V4 }>,
    BACKENDS_V6: Array<Backend6, { entries::BACKENDS_V6 }>,
    MEMBERS: HashMap<MemberKey, Member, { entries::MEMBERS }>,
    SLOTS: Array<[u32; SLOTS_LENGTH], { entries::SLOTS }, MMAPABLE>,
    FLOWS_V4: HashMap<Flow4, Entry4, { entries::FLOWS_V4 }>,
    FLOWS_V6: HashMap<Flow6, Entry6, { entries::FLOWS_V6 }>,
    EMBRYONIC_V4: LruHashMap<Flow4, Entry4, { entries::EMBRYONIC_V4 }>,
    EMBRYONIC_V6: LruHashMap<Flow6, Entry6, { entries::EMBRYONIC_V6 }>,
    CLOSING_V4: Queue<Closing4, { entries::CLOSING_V4 }>,
    CLOSING_V6: Queue<Closing6, { entries::CLOSING_V6 }>,
    FLOW_USE: Array<u64, { entries::FLOW_USE }, MMAPABLE>,
    AFFINITY: LruHashMap<AffinityKey, Affinity, { entries::AFFINITY }>,
    SOURCE_RANGES: LpmTrie<SourceRange, u32, { entries::SOURCE_RANGES }>,
    SOURCE_CLASS: LpmTrie<Addr6, u32, { entries::SOURCE_CLASS }>,
    ADDRESSES: HashMap<Addr6, AddressRole, { entries::ADDRESSES }>,
    ADDRESS_FILTER: Array<AddressFilter, { entries::ADDRESS_FILTER }, MMAPABLE>,
    NEXT_HOPS: Array<NextHop, { entries::NEXT_HOPS }>,
    NEXT_HOP_INDEX: HashMap<NextHopKey, u32, { entries::NEXT_HOP_INDEX }>,
    NEXT_HOP_FREE: Queue<u32, { entries::NEXT_HOP_FREE }>,
    DEVICES: Array<Device, { entries::DEVICES }>,
    DEVICE_INDEX: HashMap<u32, u32, { entries::DEVICE_INDEX }>,
    SNAT_V4: Array<SnatAddress, { entries::SNAT_V4 }>,
    SNAT_V6: Array<SnatAddress, { entries::SNAT_V6 }>,
    FRAGMENTS: LruHashMap<FragmentKey, FragmentPorts, { entries::FRAGMENTS }>,
    CONTROL: Array<Control, { entries::CONTROL }, MMAPABLE>,
    DRAINS: HashMap<MemberKey, u64, { entries::DRAINS }, NO_PREALLOC>,
    COUNTERS: PerCpuArray<Tally, { entries::COUNTERS }>,
    SERVICE_TRAFFIC: PerCpuArray<Traffic, { entries::SERVICE_TRAFFIC }>,
    BACKEND_TRAFFIC: PerCpuArray<Traffic, { entries::BACKEND_TRAFFIC }>,
    EVENTS: RingBuf<Refusal, { entries::EVENTS }>,
    SCRATCH: PerCpuArray<Scratch, { entries::SCRATCH }>,
    REPLY_BUDGET: PerCpuArray<ReplyBudget, { entries::REPLY_BUDGET }>,
}
