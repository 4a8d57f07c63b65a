//! Rows of the maps that a plan writes, and of those a new flow consults beside them.

use std::net::{IpAddr, SocketAddr};

use lb_common::{
    addr::Addr6,
    service::{MemberKey, Selection},
};
use serde::Serialize;

use crate::{
    tables::Family,
    view::{
        catalog::Choice,
        contents::{Contents, unmapped},
        flags,
    },
};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct FrontendRow {
    address: IpAddr,
    port: u16,
    protocol: String,
    flags: Vec<String>,
    service: u32,
    service_name: String,
}

pub(super) fn frontends(contents: &Contents, choice: Choice) -> Vec<FrontendRow> {
    let frontends = contents.tables.frontends.iter();
    let row =
        |(id, record): (&crate::tables::FrontendId, &crate::tables::FrontendRecord)| FrontendRow {
            address: id.address,
            port: id.port,
            protocol: id.protocol.to_string(),
            flags: flags::words(record.flags, flags::FRONTEND),
            service: record.service,
            service_name: contents.service(record.service),
        };
    frontends
        .filter(|(id, _)| choice.wants(Family::of(id.address)))
        .map(row)
        .collect()
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct GatewayEndpointRow {
    address: IpAddr,
    port: u16,
    protocol: String,
}

pub(super) fn gateway_endpoints(contents: &Contents, choice: Choice) -> Vec<GatewayEndpointRow> {
    let endpoints = contents.tables.gateway_endpoints.iter();
    let row = |id: &crate::tables::FrontendId| GatewayEndpointRow {
        address: id.address,
        port: id.port,
        protocol: id.protocol.to_string(),
    };
    endpoints
        .filter(|id| choice.wants(Family::of(id.address)))
        .map(row)
        .collect()
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ServiceRow {
    id: u32,
    name: String,
    flags: Vec<String>,
    cluster_element: u32,
    cluster_slots: u32,
    local_element: u32,
    local_slots: u32,
    epoch: u32,
    affinity_seconds: u32,
    source_ranges: u32,
}

pub(super) fn services(contents: &Contents) -> Vec<ServiceRow> {
    let services = contents.tables.services.iter();
    let row = |(&id, record): (&u32, &crate::tables::ServiceRecord)| ServiceRow {
        id,
        name: record.name.clone(),
        flags: flags::words(record.flags, flags::SERVICE),
        cluster_element: record.cluster.element,
        cluster_slots: record.cluster.length,
        local_element: record.local.element,
        local_slots: record.local.length,
        epoch: record.epoch,
        affinity_seconds: record.affinity_seconds,
        source_ranges: record.source_ranges,
    };
    services.map(row).collect()
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ServiceNameRow {
    id: u32,
    name: String,
}

pub(super) fn service_names(contents: &Contents) -> Vec<ServiceNameRow> {
    let services = contents.tables.services.iter();
    services
        .map(|(&id, record)| ServiceNameRow {
            id,
            name: record.name.clone(),
        })
        .collect()
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct BackendRow {
    id: u32,
    endpoint: SocketAddr,
    flags: Vec<String>,
    incarnation: u32,
}

pub(super) fn backends(contents: &Contents, choice: Choice) -> Vec<BackendRow> {
    let backends = contents.tables.backends.iter();
    let row = |(&id, record): (&u32, &crate::tables::BackendRecord)| BackendRow {
        id,
        endpoint: record.endpoint,
        flags: flags::words(record.flags.into(), flags::BACKEND),
        incarnation: record.incarnation,
    };
    backends
        .filter(|(_, b)| choice.wants(Family::of(b.endpoint.ip())))
        .map(row)
        .collect()
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct MemberRow {
    service: u32,
    service_name: String,
    backend: u32,
    endpoint: String,
    flags: Vec<String>,
}

pub(super) fn members(contents: &Contents) -> Vec<MemberRow> {
    let row = |(&(service, backend), &bits): (&(u32, u32), &u32)| MemberRow {
        service,
        service_name: contents.service(service),
        backend,
        endpoint: contents.backend(backend),
        flags: flags::words(bits, flags::MEMBER),
    };
    contents.tables.members.iter().map(row).collect()
}

/// A backend in an extent: how many slots name it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SlotRow {
    element: u32,
    length: usize,
    backend: u32,
    endpoint: String,
    slots: usize,
    share_percent: f64,
    services: Vec<String>,
}

/// Each backend of each extent a row, since the slots themselves tell a reader nothing.
pub(super) fn slots(contents: &Contents) -> Vec<SlotRow> {
    let mut rows = Vec::new();
    for (&element, slots) in &contents.tables.extents {
        let mut counts = std::collections::BTreeMap::<u32, usize>::new();
        for &slot in slots.iter() {
            *counts.entry(slot).or_default() += 1;
        }
        let services = users(contents, element);
        rows.extend(counts.into_iter().map(|(backend, count)| SlotRow {
            element,
            length: slots.len(),
            backend,
            endpoint: contents.backend(backend),
            slots: count,
            share_percent: percent(count, slots.len()),
            services: services.clone(),
        }));
    }
    rows
}

/// The service ports whose selections begin at `element`.
fn users(contents: &Contents, element: u32) -> Vec<String> {
    let uses = |s: Selection| s.length != 0 && s.element == element;
    let services = contents.tables.services.values();
    services
        .filter(|s| uses(s.cluster) || uses(s.local))
        .map(|s| s.name.clone())
        .collect()
}

#[expect(
    clippy::cast_precision_loss,
    reason = "an extent has about a million slots at most"
)]
fn percent(part: usize, whole: usize) -> f64 {
    if whole == 0 {
        0.0
    } else {
        part as f64 * 100.0 / whole as f64
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct AddressRow {
    address: IpAddr,
    roles: Vec<String>,
}

pub(super) fn addresses(contents: &Contents) -> Vec<AddressRow> {
    let row = |(&address, &role): (&IpAddr, &u32)| AddressRow {
        address,
        roles: flags::words(role, flags::ADDRESS),
    };
    contents.tables.addresses.iter().map(row).collect()
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct FilterRow {
    word: usize,
    bits: String,
    bits_set: u32,
}

/// The words of the bitmap with a bit set.
pub(super) fn address_filter(contents: &Contents) -> Vec<FilterRow> {
    let words = contents
        .address_filter
        .iter()
        .enumerate()
        .filter(|(_, bits)| **bits != 0);
    let row = |(word, bits): (usize, &u64)| FilterRow {
        word,
        bits: format!("{bits:016x}"),
        bits_set: bits.count_ones(),
    };
    words.map(row).collect()
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct AffinityRow {
    client: IpAddr,
    service: u32,
    service_name: String,
    backend: u32,
    endpoint: String,
    idle_seconds: Option<u64>,
}

pub(super) fn affinity(contents: &Contents) -> Vec<AffinityRow> {
    let mut rows: Vec<_> = contents
        .affinity
        .iter()
        .map(|(key, value)| AffinityRow {
            client: unmapped(key.client),
            service: key.service,
            service_name: contents.service(key.service),
            backend: value.backend,
            endpoint: contents.backend(value.backend),
            idle_seconds: contents.idle(value.stamp),
        })
        .collect();
    rows.sort_by_key(|row| (row.service, row.client));
    rows
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct DrainRow {
    service: u32,
    service_name: String,
    backend: u32,
    endpoint: String,
    /// Unix seconds.
    deadline: u64,
}

pub(super) fn drains(contents: &Contents) -> Vec<DrainRow> {
    let row = |(key, &deadline): (&MemberKey, &u64)| DrainRow {
        service: key.service,
        service_name: contents.service(key.service),
        backend: key.backend,
        endpoint: contents.backend(key.backend),
        deadline,
    };
    contents.drains.iter().map(row).collect()
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SourceRangeRow {
    set: u32,
    prefix: String,
    value: u32,
}

pub(super) fn source_ranges(contents: &Contents) -> Vec<SourceRangeRow> {
    let mut rows: Vec<_> = contents
        .source_ranges
        .iter()
        .map(|&([length, set, a, b, c, d], value)| SourceRangeRow {
            set: u32::from_be(set),
            // The set id is part of the prefix.
            prefix: prefix(Addr6([a, b, c, d]), length.saturating_sub(32)),
            value,
        })
        .collect();
    rows.sort_by(|a, b| (a.set, &a.prefix).cmp(&(b.set, &b.prefix)));
    rows
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SourceClassRow {
    prefix: String,
    class: Vec<String>,
}

pub(super) fn source_class(contents: &Contents) -> Vec<SourceClassRow> {
    let mut rows: Vec<_> = contents
        .source_class
        .iter()
        .map(|&([length, a, b, c, d], class)| SourceClassRow {
            prefix: prefix(Addr6([a, b, c, d]), length),
            class: flags::words(class, flags::SOURCE_CLASS),
        })
        .collect();
    rows.sort_by(|a, b| a.prefix.cmp(&b.prefix));
    rows
}

/// A prefix whose IPv4 addresses are kept IPv4-mapped, 96 bits longer.
fn prefix(address: Addr6, length: u32) -> String {
    match unmapped(address) {
        IpAddr::V4(address) if length >= 96 => format!("{address}/{}", length - 96),
        _ => format!("{}/{length}", std::net::Ipv6Addr::from(address)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_of_both_families() {
        let v4 = lb_common::addr::Addr4::from(std::net::Ipv4Addr::new(198, 51, 100, 0)).mapped();
        let v6: std::net::Ipv6Addr = "2001:db8::".parse().expect("valid");
        let cases = [
            ("IPv4", v4, 120, "198.51.100.0/24"),
            ("every IPv4 address", v4, 96, "198.51.100.0/0"),
            (
                "shorter than the mapped prefix",
                v4,
                64,
                "::ffff:198.51.100.0/64",
            ),
            ("IPv6", v6.into(), 32, "2001:db8::/32"),
        ];
        for (name, address, length, expected) in cases {
            assert_eq!(prefix(address, length), expected, "{name}");
        }
    }
}
