//! From the configuration and what was found on the node to what others are given. Pure.

use std::{net::IpAddr, time::Duration};

use lb_common::config::{Config as DataPathConfig, config_flag};

use super::translators::Choices;
use crate::{
    config::Config,
    devices::{NetworkView, SnatPolicy},
    expire::to_ticks,
    netfilter::Netfilter,
    node::NodeConfig,
    snapshot::NodeObject,
};

/// Wait after a failure to apply: the first, and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));

/// Wait before trying again after so many failures in a row.
pub(super) fn backoff(failures: u32) -> Duration {
    let (first, longest) = BACKOFF;
    first
        .saturating_mul(1 << failures.saturating_sub(1).min(16))
        .min(longest)
}

/// Where SNAT addresses come from: the configuration, and the Node's annotation.
pub(super) fn snat_policy(
    config: &Config,
    node: Option<&NodeObject>,
    found: Netfilter,
) -> SnatPolicy {
    let mut addresses = config.snat_addresses.clone();
    for address in node.iter().flat_map(|node| &node.snat_addresses) {
        if !addresses.contains(address) {
            addresses.push(*address);
        }
    }
    SnatPolicy {
        addresses,
        masquerade: found.masquerade,
    }
}

pub(super) fn data_path_config(
    config: &Config,
    choices: Choices,
    tick_shift: u32,
    tick_seconds: f64,
) -> DataPathConfig {
    // New TCP flows are refused before third packets would be; UDP, which anyone can fill, earlier.
    let limit = |entries: u32| entries - entries / 16;
    let flag = |on, flag| if on { flag } else { 0 };
    let direct = flag(
        config.direct_backend_access,
        config_flag::DIRECT_BACKEND_ACCESS,
    );
    let drop = flag(choices.drop_unallocated, config_flag::DROP_UNALLOCATED);
    DataPathConfig {
        flags: direct | drop,
        tick_shift,
        unknown_flows: choices.unknown_flows as u32,
        replies_per_tick: config.replies_per_second,
        flows4_limit: limit(config.tables.flows_v4),
        flows6_limit: limit(config.tables.flows_v6),
        udp4_limit: config.tables.flows_v4 / 2,
        udp6_limit: config.tables.flows_v6 / 2,
        closed_ticks: to_ticks(config.timeouts.closed, tick_seconds),
        embryonic_ticks: to_ticks(config.timeouts.embryonic, tick_seconds),
        // The kernel takes a neighbour for confirmed for 30 s, give or take half of it.
        neighbour_ticks: to_ticks(Duration::from_secs(5), tick_seconds),
        tick_millis: tick_millis(tick_seconds),
    }
}

/// Length of a tick, rounded.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a tick is about a second"
)]
fn tick_millis(tick_seconds: f64) -> u32 {
    (tick_seconds * 1000.0).round().max(1.0) as u32
}

/// This node, from its configuration, its network, and its object in the cluster if there is one.
pub(super) fn node_config(
    config: &Config,
    view: &NetworkView,
    node: Option<&NodeObject>,
) -> NodeConfig {
    let mut addresses = view.network.addresses();
    let mut primary = Vec::new();
    for index in config
        .interfaces
        .iter()
        .filter_map(|name| view.network.index(name))
    {
        let (v4, v6) = view.network.primary(index);
        for address in [v4, v6].into_iter().flatten() {
            if primary
                .iter()
                .all(|p: &IpAddr| p.is_ipv4() != address.is_ipv4())
            {
                primary.push(address);
            }
        }
    }
    let node_port_addresses = config.node_port_addresses.select(&addresses, &primary);
    addresses.extend(node.iter().flat_map(|node| &node.addresses));
    let snat = view.snat.iter().flat_map(|policy| &policy.addresses);
    let local_pods = node.iter().flat_map(|node| &node.pod_networks);
    NodeConfig {
        name: config.node_name.clone(),
        zone: config
            .zone
            .clone()
            .or_else(|| node.and_then(|node| node.zone.clone())),
        gateway: config.gateway,
        node_port_addresses,
        addresses,
        snat_addresses: snat.copied().collect(),
        pod_networks: config.pod_networks.iter().copied().collect(),
        local_pod_networks: local_pods.copied().collect(),
        primary,
        external_ips: config.external_ips,
        sizes: config.tables.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ConfigFlags;

    #[test]
    fn waits_grow_and_end_growing() {
        let seconds: Vec<_> = [1, 2, 3, 9, 10, u32::MAX]
            .iter()
            .map(|n| backoff(*n).as_secs_f64())
            .collect();
        assert_eq!(seconds, [0.1, 0.2, 0.4, 25.6, 30.0, 30.0]);
    }

    #[test]
    fn the_node_s_object_fills_in_what_the_configuration_leaves_open() {
        let node = NodeObject {
            name: "edge-1".to_owned(),
            zone: Some("a".to_owned()),
            pod_networks: vec!["10.1.1.0/24".parse().expect("a network")],
            addresses: vec![ip("198.51.100.1")],
            snat_addresses: vec![ip("192.0.2.5"), ip("192.0.2.6")],
            ..NodeObject::default()
        };
        let least = "manifests: /m\nnodeName: edge-1\ninterfaces: [eth0]\n";
        for (name, keys, node, zone, snat) in [
            ("no Node", "", None, None, vec![]),
            (
                "a Node",
                "",
                Some(&node),
                Some("a"),
                vec!["192.0.2.5", "192.0.2.6"],
            ),
            (
                "both",
                "zone: b\nsnat: {addresses: [192.0.2.6, 192.0.2.7]}",
                Some(&node),
                Some("b"),
                vec!["192.0.2.6", "192.0.2.7", "192.0.2.5"],
            ),
        ] {
            let text = format!("{least}{keys}");
            let config = Config::parse(&text, ConfigFlags::default()).expect("a configuration");
            let policy = snat_policy(&config, node, Netfilter::default());
            let found: Vec<_> = policy.addresses.iter().map(IpAddr::to_string).collect();
            assert_eq!(found, snat, "{name}");
            let view = NetworkView {
                snat: Some(policy),
                ..NetworkView::default()
            };
            let planned = node_config(&config, &view, node);
            assert_eq!(planned.zone.as_deref(), zone, "{name}");
            assert_eq!(planned.snat_addresses.len(), snat.len(), "{name}");
            assert_eq!(
                planned.local_pod_networks.len(),
                usize::from(node.is_some()),
                "{name}"
            );
            let known = planned.addresses.contains(&ip("198.51.100.1"));
            assert_eq!(known, node.is_some(), "{name}");
            assert!(
                planned.node_port_addresses.is_empty(),
                "{name}: no device has one"
            );
        }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }
}
