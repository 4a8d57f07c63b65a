//! The contents of the kernel's tables as plain, ordered data: what the plan wants, what a dump found.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use ipnet::IpNet;
use lb_common::service::Selection;
use serde::Serialize;

/// IP family.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub enum Family {
    /// IPv4.
    #[serde(rename = "IPv4")]
    V4,
    /// IPv6.
    #[serde(rename = "IPv6")]
    V6,
}

impl Family {
    /// The family of an address.
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// The unspecified address, which stands for every node-port address in a [`FrontendId`].
    pub const fn unspecified(self) -> IpAddr {
        match self {
            Self::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            Self::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// A transport protocol the data path balances.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// IP protocol number.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => lb_common::flow::protocol::TCP,
            Self::Udp => lb_common::flow::protocol::UDP,
        }
    }

    /// The protocol with an IP protocol number, if it is one we balance.
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            lb_common::flow::protocol::TCP => Some(Self::Tcp),
            lb_common::flow::protocol::UDP => Some(Self::Udp),
            _ => None,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        })
    }
}

/// (address, port, protocol): a frontend, or a gateway backend's endpoint.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub struct FrontendId {
    /// VIP; unspecified for a node port.
    pub address: IpAddr,
    /// Port.
    pub port: u16,
    /// Protocol.
    pub protocol: Protocol,
}

impl fmt::Display for FrontendId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}/{}",
            SocketAddr::new(self.address, self.port),
            self.protocol
        )
    }
}

/// What a frontend leads to.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
pub struct FrontendRecord {
    /// Service-port id.
    pub service: u32,
    /// Bits of [`lb_common::service::frontend_flag`].
    pub flags: u32,
}

/// One service port of one family.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct ServiceRecord {
    /// `namespace/name:port/PROTOCOL/FAMILY`.
    pub name: String,
    /// Extent of the Maglev table over the cluster set; length 0 for none.
    #[serde(serialize_with = "selection")]
    pub cluster: Selection,
    /// Extent of the Maglev table over the local set; length 0 for none.
    #[serde(serialize_with = "selection")]
    pub local: Selection,
    /// Set epoch: moves with every change of this service port's members.
    pub epoch: u32,
    /// Bits of [`lb_common::service::service_flag`], `LIVE` always among them.
    pub flags: u32,
    /// Session affinity timeout in seconds; 0 means none.
    pub affinity_seconds: u32,
    /// Source-range set id; 0 means unrestricted.
    pub source_ranges: u32,
}

impl ServiceRecord {
    /// Whether a new flow can find a backend here.
    pub const fn selects(&self) -> bool {
        self.cluster.length > 0 || self.local.length > 0
    }
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "the signature serde calls"
)]
fn selection<S: serde::Serializer>(value: &Selection, serializer: S) -> Result<S::Ok, S::Error> {
    use serde::ser::SerializeStruct as _;
    let mut s = serializer.serialize_struct("Selection", 2)?;
    s.serialize_field("element", &value.element)?;
    s.serialize_field("length", &value.length)?;
    s.end()
}

/// One endpoint.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
pub struct BackendRecord {
    /// Address and port. One id serves one (address, port), whatever the protocol or service.
    pub endpoint: SocketAddr,
    /// Bits of [`lb_common::service::backend_flag`], `LIVE` always among them.
    pub flags: u16,
    /// Raised each time the id is given to another endpoint.
    pub incarnation: u32,
}

/// The desired or actual contents of every table the plan decides.
///
/// Devices, next hops and flows are not here: they follow the node's network, not the Services.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct TableSet {
    /// `FRONTENDS_V4/V6`.
    pub frontends: BTreeMap<FrontendId, FrontendRecord>,
    /// `SERVICES` and `SERVICE_NAMES`, by id. Id 0 is never assigned.
    pub services: BTreeMap<u32, ServiceRecord>,
    /// `BACKENDS_V4/V6`, by id: one id space for both families. Id 0 is never assigned.
    pub backends: BTreeMap<u32, BackendRecord>,
    /// `MEMBERS`: (service-port id, backend id) to bits of [`lb_common::service::member_flag`].
    pub members: BTreeMap<(u32, u32), u32>,
    /// Maglev tables in `SLOTS`, by the first element of their extent. Extents never overlap.
    pub extents: BTreeMap<u32, Arc<[u32]>>,
    /// `ADDRESSES`: bits of [`lb_common::service::address_role`].
    pub addresses: BTreeMap<IpAddr, u32>,
    /// `GATEWAY_ENDPOINTS_V4/V6`.
    pub gateway_endpoints: BTreeSet<FrontendId>,
    /// `SOURCE_RANGES`: (source-range set id, network without host bits). Id 0 is never assigned; a
    /// set without a network admits nobody.
    pub source_ranges: BTreeSet<(u32, IpNet)>,
    /// `SOURCE_CLASS`: bits of [`lb_common::service::source_class`] of networks without host bits.
    pub source_classes: BTreeMap<IpNet, u32>,
}
