//! Section K: the node, and the start.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc, time::Duration};

use lb_common::service::source_class;
use lb_userspace::{
    diff::diff,
    node::{NodeConfig, NodePortAddresses},
    snapshot::convert,
    source::{Named, SourceState, merge},
    tables::TableSet,
};
use serde_json::{Value, from_value, json};
use tokio::sync::watch;

use super::fixture::{node, plan_after, plan_of, read, record, service, sets, slice};

fn web() -> Value {
    let spec = json!({
        "type": "NodePort", "clusterIP": "10.0.0.1", "externalTrafficPolicy": "Local",
        "ports": [{"name": "http", "port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"}],
    });
    service("web", spec)
}

#[test]
fn conformance_k15_node_port_addresses() {
    let parse = |texts: &[&str]| -> Vec<IpAddr> {
        texts
            .iter()
            .map(|text| text.parse().expect("an address"))
            .collect()
    };
    let networks = |texts: &[&str]| {
        let parse = |text: &&str| text.parse().expect("a network");
        NodePortAddresses::Networks(texts.iter().map(parse).collect())
    };
    let (v4, v6) = (
        ["192.0.2.1", "198.51.100.1"],
        ["2001:db8::1", "2001:db8:1::1"],
    );
    let special = ["127.0.0.1", "::1", "fe80::1"];
    for (name, choice, expected) in [
        (
            "all",
            NodePortAddresses::All,
            vec![v4[0], v4[1], v6[0], v6[1]],
        ),
        ("primary", NodePortAddresses::Primary, vec![v4[0], v6[0]]),
        (
            "one network of each family",
            networks(&["198.51.100.0/24", "2001:db8:1::/64"]),
            vec![v4[1], v6[1]],
        ),
        (
            "one address",
            networks(&["192.0.2.1/32", "2001:db8::1/128"]),
            vec![v4[0], v6[0]],
        ),
        (
            "two networks",
            networks(&["192.0.2.0/24", "198.51.100.0/24", "2001:db8::1/128"]),
            vec![v4[0], v4[1], v6[0]],
        ),
        (
            "/0 overrides the others",
            networks(&["192.0.2.0/24", "0.0.0.0/0", "::/0"]),
            vec![v4[0], v4[1], v6[0], v6[1]],
        ),
        (
            "IPv4 alone: all of IPv6",
            networks(&["192.0.2.0/24"]),
            vec![v4[0], v6[0], v6[1]],
        ),
        (
            "IPv6 alone: all of IPv4",
            networks(&["2001:db8:1::/64"]),
            vec![v4[0], v4[1], v6[1]],
        ),
        (
            "IPv4's /0 alone",
            networks(&["0.0.0.0/0"]),
            vec![v4[0], v4[1], v6[0], v6[1]],
        ),
        (
            "no address inside",
            networks(&["203.0.113.0/24", "2001:db8:f::/64"]),
            vec![],
        ),
        (
            "loopback is never one",
            networks(&["127.0.0.0/8", "::1/128"]),
            vec![],
        ),
        (
            "nor is link-local",
            networks(&["203.0.113.0/24", "fe80::/10"]),
            vec![],
        ),
        ("an empty list", networks(&[]), vec![]),
    ] {
        let addresses: BTreeSet<_> = parse(&[&v4[..], &v6, &special].concat())
            .into_iter()
            .collect();
        let found = choice.select(&addresses, &parse(&[v4[0], v6[0]]));
        let expected: BTreeSet<_> = parse(&expected).into_iter().collect();
        assert_eq!(found, expected, "{name}");
    }
}

#[test]
fn conformance_k17_whose_address_a_pods_is() {
    let nets = |texts: &[&str]| {
        texts
            .iter()
            .map(|t| t.parse().expect("a network"))
            .collect()
    };
    let (pod, local) = (
        source_class::POD,
        source_class::POD | source_class::LOCAL_POD,
    );
    // By the cluster's networks, by the node's, by both, by none; each family by itself.
    for (name, cluster, of_node, expected) in [
        ("not configured", &[][..], &[][..], [0, 0, 0, 0]),
        (
            "the cluster's, IPv4 alone",
            &["10.244.0.0/16"],
            &[],
            [pod, pod, 0, 0],
        ),
        (
            "the cluster's, both families",
            &["10.244.0.0/16", "2001:db8:f4::/48"],
            &[],
            [pod, pod, pod, pod],
        ),
        (
            "the node's, IPv6 alone",
            &[],
            &["2001:db8:f4:1::/64"],
            [0, 0, local, 0],
        ),
        (
            "the node's, both families",
            &[],
            &["10.244.1.0/24", "2001:db8:f4:1::/64"],
            [local, 0, local, 0],
        ),
        (
            "both",
            &["10.244.0.0/16", "2001:db8:f4::/48"],
            &["10.244.1.0/24", "2001:db8:f4:1::/64"],
            [local, pod, local, pod],
        ),
    ] {
        let node = NodeConfig {
            pod_networks: nets(cluster),
            local_pod_networks: nets(of_node),
            ..node()
        };
        let classes = plan_of(&[], &node).tables.source_classes;
        let class_of = |text: &str| {
            let address: IpAddr = text.parse().expect("an address");
            let around = classes
                .iter()
                .filter(|(network, _)| network.contains(&address));
            around
                .max_by_key(|(network, _)| network.prefix_len())
                .map_or(0, |(_, class)| *class)
        };
        let pods = [
            "10.244.1.5",
            "10.244.2.5",
            "2001:db8:f4:1::5",
            "2001:db8:f4:2::5",
        ];
        assert_eq!(pods.map(class_of), expected, "{name}");
        assert_eq!(
            class_of("203.0.113.5"),
            0,
            "{name}: whoever comes from outside"
        );
        assert_eq!(
            class_of("198.51.100.1"),
            source_class::NODE,
            "{name}: the node itself"
        );
    }
}

#[test]
fn conformance_k18_complete_lists_first_and_relevant_node_changes_only() {
    let state = |complete: bool, objects: &[Value]| {
        Arc::new(SourceState {
            snapshot: read(objects).0,
            complete,
            ..SourceState::default()
        })
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.expect("a runtime").block_on(async {
        let slices = slice("web_1", &["http:80"], &["10.1.0.1"]);
        let (one, first) = watch::channel(state(false, &[]));
        let (two, second) = watch::channel(state(false, &[]));
        let named = |name, state| Named { name, state };
        let mut joined = merge(vec![named("one", first), named("two", second)]);
        assert!(!joined.borrow().complete, "neither list is there");
        one.send_replace(state(true, &[web()]));
        until(&mut joined, |state| state.snapshot.services.len() == 1).await;
        assert!(!joined.borrow().complete, "one list is not there");
        two.send_replace(state(true, &[slices]));
        until(&mut joined, |state| state.complete).await;
        assert_eq!(joined.borrow().snapshot.slices.len(), 1);
    });

    // A heartbeat, another label, another condition: the node is to us what it was.
    let node_object = |zone: &str, heartbeat: &str, unschedulable: bool| {
        let object = json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {
                "name": "edge-1", "resourceVersion": heartbeat,
                "labels": {"topology.kubernetes.io/zone": zone, "beat": heartbeat},
            },
            "spec": {"podCIDRs": ["10.244.1.0/24"], "unschedulable": unschedulable},
            "status": {
                "addresses": [{"type": "InternalIP", "address": "198.51.100.1"}],
                "conditions": [{"type": "Ready", "status": "False", "lastHeartbeatTime": "2026-01-01T00:00:00Z"}],
            },
        });
        convert::node(&from_value(object).expect("a Node")).0
    };
    let before = node_object("a", "1", false);
    assert_eq!(node_object("a", "2", true), before);
    assert_ne!(
        node_object("b", "2", false),
        before,
        "the zone decides about endpoints"
    );
    let in_zone = |zone: &str, previous: &TableSet| {
        let zone = node_object(zone, "1", false).zone;
        let node = NodeConfig { zone, ..node() };
        let endpoints = slice(
            "web_1",
            &["http:80"],
            &["10.1.0.1 zone=a", "10.1.0.2 zone=b"],
        );
        plan_after(previous, &[web(), endpoints], &node).tables
    };
    let a = in_zone("a", &TableSet::default());
    assert_eq!(diff(&a, &in_zone("a", &a)), vec![]);
    let cluster = |tables: &TableSet| sets(tables, "web:http/TCP/IPv4").cluster;
    assert_eq!(
        [cluster(&a), cluster(&in_zone("b", &a))],
        ["10.1.0.1:80", "10.1.0.2:80"]
    );
    assert_eq!(cluster(&in_zone("", &a)), "10.1.0.1:80 10.1.0.2:80");
    assert!(record(&a, "web:dns/UDP/IPv4").is_some());
}

/// Waits until a state is as wanted.
async fn until(
    states: &mut watch::Receiver<Arc<SourceState>>,
    wanted: impl Fn(&SourceState) -> bool,
) {
    let reached = states.wait_for(|state| wanted(state));
    let reached = tokio::time::timeout(Duration::from_secs(10), reached).await;
    assert!(reached.is_ok_and(|state| state.is_ok()), "not within 10 s");
}
