//! Records of a [`crate::tables::TableSet`] as wire types, and back.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;
use lb_common::{
    addr::{Addr4, Addr6, Be16},
    service::{
        AddressRole, Backend4, Backend6, Frontend, FrontendKey4, FrontendKey6, Member, MemberKey,
        ServiceName,
    },
};

use crate::tables::{BackendRecord, FrontendId, FrontendRecord, Protocol};

/// A frontend key of either family.
pub(super) enum Key {
    /// IPv4.
    V4(FrontendKey4),
    /// IPv6.
    V6(FrontendKey6),
}

/// A backend of either family.
pub(super) enum Backend {
    /// IPv4.
    V4(Backend4),
    /// IPv6.
    V6(Backend6),
}

pub(super) fn key(id: &FrontendId) -> Key {
    let port = Be16::new(id.port);
    let protocol = u16::from(id.protocol.number());
    match id.address {
        IpAddr::V4(address) => Key::V4(FrontendKey4 {
            address: address.into(),
            port,
            protocol,
        }),
        IpAddr::V6(address) => Key::V6(FrontendKey6 {
            address: address.into(),
            port,
            protocol,
        }),
    }
}

/// `None` for a protocol we never write.
pub(super) fn frontend_id(address: IpAddr, port: Be16, protocol: u16) -> Option<FrontendId> {
    let protocol = Protocol::from_number(u8::try_from(protocol).ok()?)?;
    Some(FrontendId {
        address,
        port: port.get(),
        protocol,
    })
}

pub(super) const fn frontend(record: FrontendRecord) -> Frontend {
    Frontend {
        service: record.service,
        flags: record.flags,
    }
}

pub(super) const fn frontend_record(value: Frontend) -> FrontendRecord {
    FrontendRecord {
        service: value.service,
        flags: value.flags,
    }
}

pub(super) fn backend(record: &BackendRecord) -> Backend {
    let (flags, incarnation) = (record.flags, record.incarnation);
    let port = Be16::new(record.endpoint.port());
    match record.endpoint.ip() {
        IpAddr::V4(address) => Backend::V4(Backend4 {
            address: address.into(),
            port,
            flags,
            incarnation,
        }),
        IpAddr::V6(address) => Backend::V6(Backend6 {
            address: address.into(),
            port,
            flags,
            incarnation,
        }),
    }
}

pub(super) fn backend_record4(value: &Backend4) -> BackendRecord {
    let endpoint = SocketAddr::new(Ipv4Addr::from(value.address).into(), value.port.get());
    BackendRecord {
        endpoint,
        flags: value.flags,
        incarnation: value.incarnation,
    }
}

pub(super) fn backend_record6(value: &Backend6) -> BackendRecord {
    let endpoint = SocketAddr::new(Ipv6Addr::from(value.address).into(), value.port.get());
    BackendRecord {
        endpoint,
        flags: value.flags,
        incarnation: value.incarnation,
    }
}

pub(super) const fn member(service: u32, backend: u32, flags: u32) -> (MemberKey, Member) {
    (MemberKey { service, backend }, Member { flags })
}

pub(super) fn role(address: IpAddr, flags: u32) -> (Addr6, AddressRole) {
    let key = match address {
        IpAddr::V4(address) => Addr4::from(address).mapped(),
        IpAddr::V6(address) => address.into(),
    };
    (key, AddressRole { flags })
}

/// An address as `ADDRESSES` holds it.
pub(super) fn unmapped(address: Addr6) -> IpAddr {
    let address = Ipv6Addr::from(address);
    address
        .to_ipv4_mapped()
        .map_or(IpAddr::V6(address), IpAddr::V4)
}

/// Key of `SOURCE_RANGES`: prefix length, set id, address.
pub(super) type SourceRangeKey = [u32; 6];
/// Key of `SOURCE_CLASS`: prefix length, address.
pub(super) type SourceClassKey = [u32; 5];

/// The set id is part of the prefix, first.
pub(super) fn source_range(set: u32, network: IpNet) -> SourceRangeKey {
    let [length, a, b, c, d] = source_class(network);
    [length + u32::BITS, set.to_be(), a, b, c, d]
}

/// `None` for a prefix we never write.
pub(super) fn source_range_id([length, set, a, b, c, d]: SourceRangeKey) -> Option<(u32, IpNet)> {
    let length = length.checked_sub(u32::BITS)?;
    Some((u32::from_be(set), source_network([length, a, b, c, d])?))
}

/// IPv4 is keyed IPv4-mapped, 96 bits longer.
pub(super) fn source_class(network: IpNet) -> SourceClassKey {
    let (address, above): (Addr6, u32) = match network {
        IpNet::V4(network) => (Addr4::from(network.network()).mapped(), 96),
        IpNet::V6(network) => (network.network().into(), 0),
    };
    let [a, b, c, d] = address.0;
    [above + u32::from(network.prefix_len()), a, b, c, d]
}

/// `None` for a prefix we never write.
pub(super) fn source_network([length, a, b, c, d]: SourceClassKey) -> Option<IpNet> {
    let length = u8::try_from(length).ok()?;
    let address = Ipv6Addr::from(Addr6([a, b, c, d]));
    let (address, length) = match address.to_ipv4_mapped() {
        Some(v4) if length >= 96 => (IpAddr::V4(v4), length - 96),
        _ => (IpAddr::V6(address), length),
    };
    IpNet::new(address, length).ok()
}

/// The name, cut at 192 bytes: longer ones cannot come from valid Kubernetes names.
pub(super) fn service_name(name: &str) -> ServiceName {
    let mut value = ServiceName::default();
    for (to, from) in value.bytes.as_flattened_mut().iter_mut().zip(name.bytes()) {
        *to = from;
    }
    value
}

pub(super) fn service_name_text(value: &ServiceName) -> String {
    let bytes = value.bytes.as_flattened();
    let end = bytes
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(bytes.len());
    String::from_utf8_lossy(bytes.get(..end).unwrap_or(bytes)).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_survive_their_wire_form() {
        for name in ["", "default/web:http/TCP/IPv4", &"x".repeat(192)] {
            assert_eq!(service_name_text(&service_name(name)), name);
        }
    }

    #[test]
    fn networks_survive_their_trie_keys() {
        for text in [
            "0.0.0.0/0",
            "192.0.2.0/24",
            "192.0.2.1/32",
            "::/0",
            "::/96",
            "2001:db8::/32",
            "2001:db8::1/128",
        ] {
            let network: IpNet = text.parse().expect("a network");
            assert_eq!(
                source_network(source_class(network)),
                Some(network),
                "{text}"
            );
            let key = source_range(7, network);
            assert_eq!(source_range_id(key), Some((7, network)), "{text}");
        }
        let key = source_range(7, "192.0.2.0/24".parse().expect("a network"));
        assert_eq!((key[0], key[1]), (32 + 96 + 24, 7_u32.to_be()));
    }

    #[test]
    fn addresses_survive_the_mapped_form() {
        for text in ["192.0.2.1", "2001:db8::1", "::", "0.0.0.0"] {
            let address: IpAddr = text.parse().expect("an address");
            assert_eq!(unmapped(role(address, 1).0), address, "{text}");
        }
    }
}
