//! Frontends, service ports, backends and their membership: what a new flow consults.

use crate::{
    addr::{Addr4, Addr6, Be16},
    wire,
};

wire! {
    /// (address, port, protocol), IPv4. Address 0.0.0.0 stands for every node-port address.
    pub struct FrontendKey4 {
        /// VIP, or zero for a node port.
        pub address: Addr4,
        /// Port.
        pub port: Be16,
        /// IP protocol number.
        pub protocol: u16,
    }
}

wire! {
    /// (address, port, protocol), IPv6. Address `::` stands for every node-port address.
    pub struct FrontendKey6 {
        /// VIP, or zero for a node port.
        pub address: Addr6,
        /// Port.
        pub port: Be16,
        /// IP protocol number.
        pub protocol: u16,
    }
}

wire! {
    /// What stands behind a frontend. Several frontends may share one service port.
    pub struct Frontend {
        /// Index into `SERVICES`. Never 0.
        pub service: u32,
        /// Bits of [`frontend_flag`].
        pub flags: u32,
    }
}

/// Bits of [`Frontend::flags`].
pub mod frontend_flag {
    /// A ClusterIP: the internal traffic policy applies, for every source.
    pub const INTERNAL: u32 = 1;
    /// A load-balancer VIP: source ranges apply.
    pub const SOURCE_RANGES: u32 = 1 << 1;
}

wire! {
    /// One service port of one family: the unit that has backend sets.
    ///
    /// Each selection is one aligned word, so that publishing another backend set is one store.
    pub struct Service {
        /// [`Selection`] over all usable endpoints.
        pub cluster: u64,
        /// [`Selection`] over the endpoints of this node.
        pub local: u64,
        /// Set epoch: moves with every change of `MEMBERS` for this service port.
        pub epoch: u32,
        /// Bits of [`service_flag`].
        pub flags: u32,
        /// Session affinity timeout in seconds; 0 means none.
        pub affinity_seconds: u32,
        /// Source-range set id; 0 means unrestricted.
        pub source_ranges: u32,
    }
}

/// Bits of [`Service::flags`].
pub mod service_flag {
    /// `externalTrafficPolicy: Local`, not a gateway: external frontends use the local set.
    pub const EXTERNAL_LOCAL: u32 = 1;
    /// `internalTrafficPolicy: Local`: the ClusterIP uses the local set.
    pub const INTERNAL_LOCAL: u32 = 1 << 1;
    /// Backends elsewhere get `dnat`, since their replies are routed through this node.
    pub const KEEP_SOURCE: u32 = 1 << 2;
    /// An endpoint is usable somewhere: an empty set then drops instead of rejecting.
    pub const HAS_ENDPOINTS: u32 = 1 << 3;
    /// A slot is occupied. A zeroed element of `SERVICES` is detectable.
    pub const LIVE: u32 = 1 << 31;
}

wire! {
    /// Value of `SERVICE_NAMES`: `namespace/name:port/PROTOCOL/FAMILY` in UTF-8, zero-padded.
    pub struct ServiceName {
        /// 192 bytes; names longer than that (each part may have 63) are refused.
        pub bytes: [[u8; 32]; 6],
    }
}

/// An extent of `SLOTS`: one Maglev table.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq, Ord, PartialOrd)]
pub struct Selection {
    /// First element (of [`crate::maglev::SLOTS_PER_ELEMENT`] slots) of the extent.
    pub element: u32,
    /// Slots; 0 means that there is no backend.
    pub length: u32,
}

impl Selection {
    /// The word that stands in [`Service::cluster`] or [`Service::local`].
    #[inline(always)]
    pub const fn to_word(self) -> u64 {
        ((self.element as u64) << 32) | self.length as u64
    }

    /// Reads a word back.
    #[inline(always)]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the two halves of the word"
    )]
    pub const fn from_word(word: u64) -> Self {
        Self {
            element: (word >> 32) as u32,
            length: word as u32,
        }
    }
}

wire! {
    /// One endpoint's address and port, IPv4.
    pub struct Backend4 {
        /// Address.
        pub address: Addr4,
        /// Port.
        pub port: Be16,
        /// Bits of [`backend_flag`].
        pub flags: u16,
        /// Raised each time the id is given to another endpoint.
        pub incarnation: u32,
    }
}

wire! {
    /// One endpoint's address and port, IPv6.
    pub struct Backend6 {
        /// Address.
        pub address: Addr6,
        /// Port.
        pub port: Be16,
        /// Bits of [`backend_flag`].
        pub flags: u16,
        /// Raised each time the id is given to another endpoint.
        pub incarnation: u32,
    }
}

/// Bits of [`Backend4::flags`] and [`Backend6::flags`].
pub mod backend_flag {
    /// The id is in use. A zeroed element of `BACKENDS` is detectable.
    pub const LIVE: u16 = 1;
    /// A pod of this node: always `dnat`, the reply comes back through the pod-facing device.
    pub const LOCAL: u16 = 1 << 1;
    /// The node's own address: the packet goes to the node's stack, the reply is met at egress.
    pub const HOST: u16 = 1 << 2;
}

wire! {
    /// Key of `MEMBERS`.
    pub struct MemberKey {
        /// Service-port id.
        pub service: u32,
        /// Backend id.
        pub backend: u32,
    }
}

wire! {
    /// What a backend is to a service port.
    pub struct Member {
        /// Bits of [`member_flag`].
        pub flags: u32,
    }
}

/// Bits of [`Member::flags`].
pub mod member_flag {
    /// In the cluster set.
    pub const CLUSTER: u32 = 1;
    /// In the local set.
    pub const LOCAL: u32 = 1 << 1;
    /// In either set: takes new flows.
    pub const SELECTED: u32 = CLUSTER | LOCAL;
    /// Serving: UDP flows may stay.
    pub const SERVING: u32 = 1 << 2;
}

wire! {
    /// Role of an address, value of `ADDRESSES`. IPv4 addresses are keyed IPv4-mapped.
    pub struct AddressRole {
        /// Bits of [`address_role`].
        pub flags: u32,
    }
}

/// Bits of [`AddressRole::flags`].
pub mod address_role {
    /// A VIP: the whole address is ours.
    pub const VIP: u32 = 1;
    /// Node ports are served on this address.
    pub const NODE_PORT: u32 = 1 << 1;
    /// An SNAT address nobody else uses: a miss is dropped.
    pub const SNAT: u32 = 1 << 2;
}

/// Bits of a prefix in `SOURCE_CLASS`. An address in no prefix comes from outside the cluster.
pub mod source_class {
    /// A pod of the cluster: external frontends under a `Local` policy use the cluster set.
    pub const POD: u32 = 1;
    /// An address of this node.
    pub const NODE: u32 = 1 << 1;
    /// Also a pod of this node: replies to it come back through this node.
    pub const LOCAL_POD: u32 = 1 << 2;
    /// A network cluster IPs are taken from. Nothing is sent from there; looked up by destination.
    pub const SERVICE_NETWORK: u32 = 1 << 3;
}

/// Session affinity, keyed by (service port, client).
pub mod affinity {
    use crate::{addr::Addr6, wire};

    wire! {
        /// Key of `AFFINITY`. IPv4 clients are keyed IPv4-mapped.
        pub struct AffinityKey {
            /// Client address.
            pub client: Addr6,
            /// Service-port id.
            pub service: u32,
        }
    }

    #[cfg(not(feature = "second-layout"))]
    wire! {
        /// Value of `AFFINITY`.
        pub struct Affinity {
            /// Backend id.
            pub backend: u32,
            /// Tick of the last new connection.
            pub stamp: u32,
        }
    }

    #[cfg(feature = "second-layout")]
    wire! {
        /// Value of `AFFINITY`.
        pub struct Affinity {
            /// Tick of the last new connection.
            pub stamp: u32,
            /// Always zero.
            pub reserved: u32,
            /// Backend id.
            pub backend: u32,
        }
    }

    impl Affinity {
        /// The backend of a connection made at tick `stamp`.
        #[inline(always)]
        pub const fn new(backend: u32, stamp: u32) -> Self {
            Self {
                backend,
                stamp,
                #[cfg(feature = "second-layout")]
                reserved: 0,
            }
        }
    }
}

wire! {
    /// Key data of `SOURCE_RANGES`, below its prefix length: set id, then the address (IPv4-mapped).
    pub struct SourceRange {
        /// Source-range set id, network order so that the trie compares it first.
        pub set: u32,
        /// Source address.
        pub address: Addr6,
    }
}

wire! {
    /// Key of `FRAGMENTS`: which datagram a later fragment belongs to. IPv4 is keyed IPv4-mapped.
    pub struct FragmentKey {
        /// Source address.
        pub source: Addr6,
        /// Destination address.
        pub destination: Addr6,
        /// Identification field, as on the wire.
        pub id: u32,
        /// IP protocol number.
        pub protocol: u32,
    }
}

wire! {
    /// Value of `FRAGMENTS`: the ports the first fragment carried.
    pub struct FragmentPorts {
        /// Source port.
        pub source_port: Be16,
        /// Destination port.
        pub destination_port: Be16,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selection_survives_its_word() {
        for selection in [
            Selection::default(),
            Selection {
                element: 7,
                length: 251,
            },
            Selection {
                element: u32::MAX,
                length: 1_048_573,
            },
        ] {
            assert_eq!(Selection::from_word(selection.to_word()), selection);
        }
    }
}
