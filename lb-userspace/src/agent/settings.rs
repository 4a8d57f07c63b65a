//! From the configuration and what was found on the node to what others are given. Pure.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use lb_common::config::{
    Config as DataPathConfig, UnknownFlows as DataPathUnknownFlows, config_flag,
};

use crate::{
    config::{Config, UnknownFlows},
    devices::NetworkView,
    expire::to_ticks,
    netfilter::Netfilter,
    node::NodeConfig,
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

/// What `auto` means on this node.
pub(super) const fn unknown_flows(wanted: UnknownFlows, found: Netfilter) -> DataPathUnknownFlows {
    match wanted {
        UnknownFlows::Auto if found.kube_proxy => DataPathUnknownFlows::Stack,
        UnknownFlows::Auto | UnknownFlows::Select => DataPathUnknownFlows::Select,
        UnknownFlows::Stack => DataPathUnknownFlows::Stack,
        UnknownFlows::Drop => DataPathUnknownFlows::Drop,
    }
}

pub(super) fn data_path_config(
    config: &Config,
    unknown_flows: DataPathUnknownFlows,
    tick_shift: u32,
    tick_seconds: f64,
) -> DataPathConfig {
    // New TCP flows are refused before third packets would be; UDP, which anyone can fill, earlier.
    let limit = |entries: u32| entries - entries / 16;
    let direct = config_flag::DIRECT_BACKEND_ACCESS;
    DataPathConfig {
        flags: if config.direct_backend_access {
            direct
        } else {
            0
        },
        tick_shift,
        unknown_flows: unknown_flows as u32,
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

pub(super) fn node_config(config: &Config, view: &NetworkView) -> NodeConfig {
    let addresses = view.network.addresses();
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
    NodeConfig {
        name: config.node_name.clone(),
        zone: config.zone.clone(),
        gateway: config.gateway,
        node_port_addresses: config.node_port_addresses.select(&addresses, &primary),
        addresses,
        snat_addresses: config.snat_addresses.iter().copied().collect(),
        pod_networks: config.pod_networks.iter().copied().collect(),
        local_pod_networks: BTreeSet::new(),
        external_ips: config.external_ips,
        sizes: config.tables.clone(),
        primary,
        ..NodeConfig::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_and_end_growing() {
        let seconds: Vec<_> = [1, 2, 3, 9, 10, u32::MAX]
            .iter()
            .map(|n| backoff(*n).as_secs_f64())
            .collect();
        assert_eq!(seconds, [0.1, 0.2, 0.4, 25.6, 30.0, 30.0]);
    }

    #[test]
    fn auto_leaves_unknown_flows_to_a_kube_proxy() {
        let with = |kube_proxy| Netfilter {
            kube_proxy,
            ..Netfilter::default()
        };
        for (wanted, found, expected) in [
            (
                UnknownFlows::Auto,
                with(false),
                DataPathUnknownFlows::Select,
            ),
            (UnknownFlows::Auto, with(true), DataPathUnknownFlows::Stack),
            (
                UnknownFlows::Select,
                with(true),
                DataPathUnknownFlows::Select,
            ),
            (UnknownFlows::Drop, with(true), DataPathUnknownFlows::Drop),
        ] {
            assert_eq!(
                unknown_flows(wanted, found),
                expected,
                "{wanted:?} {found:?}"
            );
        }
    }
}
