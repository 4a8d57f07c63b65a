//! What differs between IPv4 and IPv6: key and value types, and which maps hold them.

use aya_ebpf::bindings::BPF_NOEXIST;
use lb_common::{
    addr::{Addr4, Addr6, Be16},
    conntrack::{Closing4, Closing6, Entry, Entry4, Entry6},
    device::{Device, NextHopKey, SnatAddress},
    flow::{Flow, Flow4, Flow6, filter_position4, filter_position6},
    names::flow_use,
    service::{Frontend, FrontendKey4, FrontendKey6},
};

use crate::tables::{
    self, ADDRESS_FILTER, BACKENDS_V4, BACKENDS_V6, CLOSING_V4, CLOSING_V6, EMBRYONIC_V4,
    EMBRYONIC_V6, FLOWS_V4, FLOWS_V6, FRONTENDS_V4, FRONTENDS_V6, GATEWAY_ENDPOINTS_V4,
    GATEWAY_ENDPOINTS_V6, SNAT_V4, SNAT_V6,
};

/// `AF_INET`.
pub(crate) const AF_INET: u8 = 2;
/// `AF_INET6`.
pub(crate) const AF_INET6: u8 = 10;

/// An endpoint, copied out of its table.
#[derive(Clone, Copy)]
pub(crate) struct Backend<A> {
    /// Address.
    pub(crate) address: A,
    /// Port.
    pub(crate) port: Be16,
    /// Bits of [`lb_common::service::backend_flag`].
    pub(crate) flags: u16,
}

/// A closed flow waiting to leave the table.
#[derive(Clone, Copy)]
pub(crate) struct Closing<F> {
    /// Key of the forward half.
    pub(crate) flow: F,
    /// Identity of the flow.
    pub(crate) identity: u32,
    /// Tick of the close.
    pub(crate) since: u32,
}

/// An IP family. Map values come back as copies, or as pointers good for one atomic access.
pub(crate) trait Family: Copy + 'static {
    /// `AF_INET` or `AF_INET6`.
    const AF: u8;
    /// Length of an IP header without options or extensions.
    const IP_HEADER: u32;
    /// Element of `FLOW_USE` that counts all established entries.
    const USE: u32;
    /// Element of `FLOW_USE` that counts the UDP entries among them.
    const USE_UDP: u32;
    /// Address as it lies in the packet.
    type Address: Copy + Eq + Default;
    /// Key of the flow tables.
    type Flow: Flow<Address = Self::Address>;
    /// Value of the flow tables.
    type Entry: Entry<Flow = Self::Flow>;

    /// The established flow's entry.
    fn established(flow: &Self::Flow) -> Option<*mut Self::Entry>;
    /// Inserts an established entry unless the key is taken.
    fn insert_established(flow: &Self::Flow, entry: &Self::Entry) -> Result<(), i32>;
    /// Removes an established entry; tells whether there was one.
    fn remove_established(flow: &Self::Flow) -> bool;
    /// The embryonic flow's entry.
    fn embryonic(flow: &Self::Flow) -> Option<*mut Self::Entry>;
    /// Inserts an embryonic entry unless the key is taken.
    fn insert_embryonic(flow: &Self::Flow, entry: &Self::Entry) -> Result<(), i32>;
    /// Removes an embryonic entry. Returns whether it was there.
    fn remove_embryonic(flow: &Self::Flow) -> bool;
    /// Queues a closed flow.
    fn push_closing(closing: &Closing<Self::Flow>) -> Result<(), i32>;
    /// The oldest queued flow.
    fn peek_closing() -> Option<Closing<Self::Flow>>;
    /// Takes the oldest queued flow.
    fn pop_closing() -> Option<Closing<Self::Flow>>;
    /// The frontend at an address; the default address finds node ports.
    fn frontend(address: Self::Address, port: Be16, protocol: u8) -> Option<Frontend>;
    /// Whether an endpoint belongs to a gateway backend.
    fn is_gateway_endpoint(address: Self::Address, port: Be16, protocol: u8) -> bool;
    /// The backend with an id.
    fn backend(id: u32) -> Option<Backend<Self::Address>>;
    /// First element and number of the SNAT addresses of a device.
    fn snat_slice(device: &Device) -> (u32, u32);
    /// An SNAT address: address, first port, number of ports.
    fn snat(index: u32) -> Option<(Self::Address, u32, u32)>;
    /// The form in which one table holds both families.
    fn mapped(address: Self::Address) -> Addr6;
    /// The four words `bpf_fib_lookup` and next-hop keys take.
    fn words(address: Self::Address) -> [u32; 4];
    /// Whether one of two addresses may be ours: false is certain.
    fn in_filter(one: Self::Address, other: Self::Address) -> bool;
    /// The key of a neighbour reached through a device.
    fn next_hop_key(ifindex: u32, family: u8, gateway: [u32; 4]) -> NextHopKey {
        NextHopKey {
            ifindex,
            family: family as u32,
            gateway: Addr6(gateway),
        }
    }
}

/// Whether one of two bits of the filter is set.
#[inline(always)]
fn filter_bits(one: (u32, u32), other: (u32, u32)) -> bool {
    // A missing filter (it is one element of an array map, so never) would mean "perhaps ours".
    let Some(filter) = ADDRESS_FILTER.get_ptr(0) else {
        return true;
    };
    let words = filter.cast::<u64>();
    // SAFETY: the indices are masked below the length; the agent stores whole words, and a stale one
    // only sends the packet the longer way.
    let (one, other) = unsafe {
        (
            words.add((one.0 & 0x3ff) as usize).read_volatile() >> one.1,
            words.add((other.0 & 0x3ff) as usize).read_volatile() >> other.1,
        )
    };
    (one | other) & 1 != 0
}

macro_rules! flow_tables {
    ($flows:ident, $embryonic:ident, $closing:ident, $closing_ty:ident) => {
        #[inline(always)]
        fn established(flow: &Self::Flow) -> Option<*mut Self::Entry> {
            $flows.get_ptr_mut(flow)
        }

        #[inline(always)]
        fn insert_established(flow: &Self::Flow, entry: &Self::Entry) -> Result<(), i32> {
            $flows.insert(flow, entry, BPF_NOEXIST as u64)
        }

        #[inline(always)]
        fn remove_established(flow: &Self::Flow) -> bool {
            $flows.remove(flow).is_ok()
        }

        #[inline(always)]
        fn embryonic(flow: &Self::Flow) -> Option<*mut Self::Entry> {
            $embryonic.get_ptr_mut(flow)
        }

        #[inline(always)]
        fn insert_embryonic(flow: &Self::Flow, entry: &Self::Entry) -> Result<(), i32> {
            $embryonic.insert(flow, entry, BPF_NOEXIST as u64)
        }

        #[inline(always)]
        fn remove_embryonic(flow: &Self::Flow) -> bool {
            $embryonic.remove(flow).is_ok()
        }

        #[inline(always)]
        fn push_closing(closing: &Closing<Self::Flow>) -> Result<(), i32> {
            let Closing {
                flow,
                identity,
                since,
            } = *closing;
            $closing.push(
                $closing_ty {
                    flow,
                    identity,
                    since,
                },
                0,
            )
        }

        #[inline(always)]
        fn peek_closing() -> Option<Closing<Self::Flow>> {
            let $closing_ty {
                flow,
                identity,
                since,
            } = $closing.peek().ok()??;
            Some(Closing {
                flow,
                identity,
                since,
            })
        }

        #[inline(always)]
        fn pop_closing() -> Option<Closing<Self::Flow>> {
            let $closing_ty {
                flow,
                identity,
                since,
            } = $closing.pop().ok()??;
            Some(Closing {
                flow,
                identity,
                since,
            })
        }
    };
}

macro_rules! service_tables {
    ($frontends:ident, $gateway:ident, $backends:ident, $snat:ident, $key:ident) => {
        #[inline(always)]
        fn frontend(address: Self::Address, port: Be16, protocol: u8) -> Option<Frontend> {
            let key = $key {
                address,
                port,
                protocol: protocol as u16,
            };
            // SAFETY: copied at once; a frontend recycled meanwhile leads to another service port,
            // which is what the next packet would see as well.
            unsafe { $frontends.get(key) }.copied()
        }

        #[inline(always)]
        fn is_gateway_endpoint(address: Self::Address, port: Be16, protocol: u8) -> bool {
            $gateway
                .get_ptr($key {
                    address,
                    port,
                    protocol: protocol as u16,
                })
                .is_some()
        }

        #[inline(always)]
        fn backend(id: u32) -> Option<Backend<Self::Address>> {
            let backend = $backends.get(id)?;
            Some(Backend {
                address: backend.address,
                port: backend.port,
                flags: backend.flags,
            })
        }
    };
}

/// IPv4.
#[derive(Clone, Copy)]
pub(crate) struct V4;

impl Family for V4 {
    const AF: u8 = AF_INET;
    const IP_HEADER: u32 = 20;
    const USE: u32 = flow_use::V4;
    const USE_UDP: u32 = flow_use::UDP_V4;
    type Address = Addr4;
    type Flow = Flow4;
    type Entry = Entry4;

    flow_tables!(FLOWS_V4, EMBRYONIC_V4, CLOSING_V4, Closing4);
    service_tables!(
        FRONTENDS_V4,
        GATEWAY_ENDPOINTS_V4,
        BACKENDS_V4,
        SNAT_V4,
        FrontendKey4
    );

    #[inline(always)]
    fn snat_slice(device: &Device) -> (u32, u32) {
        (device.snat4_first as u32, device.snat4_count as u32)
    }

    #[inline(always)]
    fn snat(index: u32) -> Option<(Addr4, u32, u32)> {
        let SnatAddress {
            address: Addr6([word, ..]),
            first_port,
            port_count,
        } = *SNAT_V4.get(index)?;
        Some((Addr4(word), first_port, port_count))
    }

    #[inline(always)]
    fn mapped(address: Addr4) -> Addr6 {
        address.mapped()
    }

    #[inline(always)]
    fn words(address: Addr4) -> [u32; 4] {
        [address.0, 0, 0, 0]
    }

    #[inline(always)]
    fn in_filter(one: Addr4, other: Addr4) -> bool {
        filter_bits(filter_position4(one), filter_position4(other))
    }
}

/// IPv6.
#[derive(Clone, Copy)]
pub(crate) struct V6;

impl Family for V6 {
    const AF: u8 = AF_INET6;
    const IP_HEADER: u32 = 40;
    const USE: u32 = flow_use::V6;
    const USE_UDP: u32 = flow_use::UDP_V6;
    type Address = Addr6;
    type Flow = Flow6;
    type Entry = Entry6;

    flow_tables!(FLOWS_V6, EMBRYONIC_V6, CLOSING_V6, Closing6);
    service_tables!(
        FRONTENDS_V6,
        GATEWAY_ENDPOINTS_V6,
        BACKENDS_V6,
        SNAT_V6,
        FrontendKey6
    );

    #[inline(always)]
    fn snat_slice(device: &Device) -> (u32, u32) {
        (device.snat6_first as u32, device.snat6_count as u32)
    }

    #[inline(always)]
    fn snat(index: u32) -> Option<(Addr6, u32, u32)> {
        let SnatAddress {
            address,
            first_port,
            port_count,
        } = *SNAT_V6.get(index)?;
        Some((address, first_port, port_count))
    }

    #[inline(always)]
    fn mapped(address: Addr6) -> Addr6 {
        address
    }

    #[inline(always)]
    fn words(address: Addr6) -> [u32; 4] {
        address.0
    }

    #[inline(always)]
    fn in_filter(one: Addr6, other: Addr6) -> bool {
        filter_bits(filter_position6(one), filter_position6(other))
    }
}

/// How many established entries a family holds, or how many of them are UDP. Entries are counted after
/// they are inserted: whoever takes one out before that lends the count a moment below nothing.
#[inline(always)]
pub(crate) fn entries_in_use(element: u32) -> u64 {
    tables::FLOW_USE.get(element).map_or(0, |count| {
        // SAFETY: an aligned word of an array element; other CPUs change it atomically.
        let count = unsafe { core::ptr::from_ref(count).read_volatile() };
        if count as i64 >= 0 { count } else { 0 }
    })
}
