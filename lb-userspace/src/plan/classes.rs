//! Whom an address belongs to, as far as it decides how a packet is balanced.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
};

use ipnet::{IpNet, Ipv4Net};
use lb_common::service::source_class;

use crate::{
    node::NodeConfig,
    snapshot::{Rejection, Snapshot},
};

/// The classes of networks: the longest prefix an address lies in counts alone. Two meanings of one
/// prefix count both.
pub(super) fn classes(
    snapshot: &Snapshot,
    node: &NodeConfig,
    rejected: &mut Vec<Rejection>,
) -> BTreeMap<IpNet, u32> {
    let capacity = usize::try_from(node.sizes.source_class).unwrap_or(usize::MAX);
    let mut classes = BTreeMap::<IpNet, u32>::new();
    let mut left_out = Vec::new();
    for (network, bits) in wanted(snapshot, node) {
        let network = network.trunc();
        if classes.len() < capacity || classes.contains_key(&network) {
            *classes.entry(network).or_default() |= bits;
        } else {
            left_out.push(network);
        }
    }
    if let Some(first) = left_out.first() {
        rejected.push(Rejection {
            object: format!("Node {}", node.name),
            field: String::new(),
            message: format!(
                "{first} has no source class, nor have {} after it: the table is full \
                 (tables.sourceClass in the configuration is {capacity})",
                left_out.len() - 1
            ),
            subject: None,
        });
    }
    classes
}

/// Networks and their meanings, in the order in which they get room: first those of many addresses.
fn wanted(snapshot: &Snapshot, node: &NodeConfig) -> Vec<(IpNet, u32)> {
    let local = &node.local_pod_networks;
    let pod = |network: &IpNet| {
        let is_local = local.iter().any(|local| local.contains(network));
        let bits = [
            (source_class::POD, true),
            (source_class::LOCAL_POD, is_local),
        ];
        bits.iter()
            .filter(|(_, set)| *set)
            .fold(0, |bits, (bit, _)| bits | bit)
    };
    let pods = node.pod_networks.iter().chain(local);
    let services = snapshot.service_networks.iter();
    let own = node.addresses.iter();
    let mut wanted: Vec<_> = pods.map(|network| (*network, pod(network))).collect();
    wanted.extend(services.map(|network| (*network, source_class::SERVICE_NETWORK)));
    // IPv4 lies within IPv6 in the table, but a wide IPv6 prefix says nothing about IPv4.
    let mapped = IpAddr::V6(Ipv4Addr::UNSPECIFIED.to_ipv6_mapped());
    if wanted.iter().any(|(network, _)| network.contains(&mapped)) {
        wanted.insert(0, (Ipv4Net::default().into(), 0));
    }
    wanted.extend(own.map(|address| (IpNet::from(*address), source_class::NODE)));
    wanted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::TableSizes, plan::fixture::node};

    #[test]
    fn networks_and_addresses_have_classes() {
        let nets = |texts: &[&str]| {
            texts
                .iter()
                .map(|t| t.parse().expect("a network"))
                .collect()
        };
        for (name, pods, local, services, size, expected, rejected) in [
            (
                "nothing but the node",
                &[][..],
                &[][..],
                &[][..],
                64,
                &["198.51.100.1/32 2", "2001:db8:1::1/128 2"][..],
                0,
            ),
            (
                "pods, of this node among them, and services",
                &["10.1.0.0/16", "10.1.2.128/25", "2001:db8:2::/64"],
                &["10.1.2.0/24", "2001:db8:2::/64"],
                &["10.0.0.0/16"],
                64,
                &[
                    "10.0.0.0/16 8",
                    "10.1.0.0/16 1",
                    "10.1.2.0/24 5",
                    "10.1.2.128/25 5",
                    "198.51.100.1/32 2",
                    "2001:db8:1::1/128 2",
                    "2001:db8:2::/64 5",
                ],
                0,
            ),
            (
                "one prefix with two meanings",
                &["198.51.100.1/32"],
                &[],
                &["198.51.100.1/32"],
                64,
                &["198.51.100.1/32 11", "2001:db8:1::1/128 2"],
                0,
            ),
            (
                "all of IPv6 says nothing about IPv4",
                &["::/0"],
                &[],
                &[],
                64,
                &[
                    "0.0.0.0/0 0",
                    "198.51.100.1/32 2",
                    "::/0 1",
                    "2001:db8:1::1/128 2",
                ],
                0,
            ),
            (
                "more than the table has room for",
                &["10.1.0.0/16"],
                &[],
                &[],
                2,
                &["10.1.0.0/16 1", "198.51.100.1/32 2"],
                1,
            ),
        ] {
            let snapshot = Snapshot {
                service_networks: nets(services),
                ..Snapshot::default()
            };
            let node = NodeConfig {
                pod_networks: nets(pods),
                local_pod_networks: nets(local),
                sizes: TableSizes {
                    source_class: size,
                    ..TableSizes::default()
                },
                ..node()
            };
            let mut rejections = Vec::new();
            let classes = classes(&snapshot, &node, &mut rejections);
            let classes: Vec<_> = classes.iter().map(|(n, c)| format!("{n} {c}")).collect();
            assert_eq!(classes, expected, "{name}");
            assert_eq!(rejections.len(), rejected, "{name}");
        }
    }
}
