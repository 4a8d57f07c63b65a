//! Section K: which UDP flows move to another backend. The data path decides at a flow's next packet,
//! from the set epoch and the membership; the reference forwarder does the same.

use std::net::SocketAddr;

use lb_common::config::UnknownFlows;
use lb_userspace::{
    dataplane::{
        TableOp,
        model::forward::{Forwarder, ForwarderConfig, ModelPacket, Outcome, Tuple},
    },
    diff::diff,
    node::NodeConfig,
    plan::Quarantine,
    tables::{Protocol, TableSet},
};
use serde_json::{Value, json};

use super::fixture::{node, plan_after, plan_beside, plan_of, service, slice, with_ingress};

/// Every kind of frontend of the Service: address and port.
const FRONTENDS: [(&str, u16); 4] = [
    ("10.0.0.1", 80),
    ("203.0.113.7", 80),
    ("192.0.2.10", 80),
    ("198.51.100.1", 30_080),
];

fn web(external: &str) -> Value {
    let spec = json!({
        "type": "LoadBalancer", "clusterIP": "10.0.0.1", "externalIPs": ["203.0.113.7"],
        "externalTrafficPolicy": external, "healthCheckNodePort": 32000,
        "ports": [
            {"name": "udp", "port": 80, "nodePort": 30080, "protocol": "UDP"},
            {"name": "tcp", "port": 80, "nodePort": 30080},
        ],
    });
    with_ingress(service("web", spec), &["192.0.2.10"])
}

fn endpoints(port: u16, texts: &[&str]) -> Value {
    let ports = [format!("udp:{port}/UDP"), format!("tcp:{port}")];
    slice("web_1", &ports.each_ref().map(String::as_str), texts)
}

fn objects(slice: Value) -> [Value; 2] {
    [web("Cluster"), slice]
}

fn packet(
    source_port: u16,
    (address, port): (&str, u16),
    protocol: Protocol,
    flags: u8,
) -> ModelPacket {
    let destination = SocketAddr::new(address.parse().expect("an address"), port);
    let source = SocketAddr::new("203.0.113.200".parse().expect("an address"), source_port);
    ModelPacket {
        tuple: Tuple {
            source,
            destination,
            protocol,
        },
        tcp_flags: flags,
    }
}

fn forwarder() -> Forwarder {
    Forwarder::new(ForwarderConfig {
        unknown_flows: UnknownFlows::Select,
        direct_backend_access: false,
        drop_unallocated: false,
    })
}

/// Sends a packet and takes note of what became of it.
fn send(forwarder: &mut Forwarder, tables: &TableSet, packet: &ModelPacket) -> Outcome {
    let outcome = forwarder.forward(tables, packet);
    forwarder.commit(tables, packet, &outcome, packet.tuple.source);
    outcome
}

/// Where a packet goes. `None`: nowhere.
fn target(outcome: &Outcome) -> Option<(String, bool)> {
    match outcome {
        Outcome::Known(tuple) => Some((tuple.destination.to_string(), false)),
        Outcome::New(flow) => Some((flow.endpoint.to_string(), true)),
        Outcome::Refused(_) => None,
    }
}

const SYN: u8 = 2;
const ACK: u8 = 16;

#[test]
fn conformance_k07_which_udp_flows_are_stale() {
    let one = || endpoints(8080, &["10.1.0.1 on=other"]);
    for (name, after, moves) in [
        ("the backend goes", endpoints(8080, &["10.1.0.2"]), true),
        (
            "the backend gets another port",
            endpoints(8081, &["10.1.0.1"]),
            true,
        ),
        (
            "it is terminating and deaf",
            endpoints(8080, &["10.1.0.1 unready deaf terminating", "10.1.0.2"]),
            true,
        ),
        (
            "it is terminating and serves",
            endpoints(8080, &["10.1.0.1 unready terminating", "10.1.0.2"]),
            false,
        ),
        (
            "it is unready and serves",
            endpoints(8080, &["10.1.0.1 unready", "10.1.0.2"]),
            false,
        ),
        (
            "another one comes",
            endpoints(8080, &["10.1.0.1", "10.1.0.2"]),
            false,
        ),
        (
            "hints prefer another one",
            endpoints(8080, &["10.1.0.1 fornode=x", "10.1.0.2 fornode=edge-1"]),
            false,
        ),
        ("nothing changes", one(), false),
    ] {
        let before = plan_of(&objects(one()), &node()).tables;
        let tables = plan_after(&before, &objects(after), &node()).tables;
        for frontend in FRONTENDS {
            let mut forwarder = forwarder();
            let udp = packet(4_000, frontend, Protocol::Udp, 0);
            let syn = packet(4_000, frontend, Protocol::Tcp, SYN);
            for packet in [&udp, &syn] {
                let first = target(&send(&mut forwarder, &before, packet));
                assert_eq!(
                    first,
                    Some(("10.1.0.1:8080".to_owned(), true)),
                    "{name}: {frontend:?}"
                );
            }
            let next = send(&mut forwarder, &tables, &udp);
            let (endpoint, is_new) = target(&next).expect("forwarded");
            assert_eq!(is_new, moves, "{name}: {frontend:?}");
            assert_eq!(endpoint != "10.1.0.1:8080", moves, "{name}: {frontend:?}");
            // A connection of TCP stays whatever happens.
            let data = packet(4_000, frontend, Protocol::Tcp, ACK);
            let next = target(&send(&mut forwarder, &tables, &data));
            assert_eq!(
                next,
                Some(("10.1.0.1:8080".to_owned(), false)),
                "{name}: {frontend:?}"
            );
        }
    }

    // Under a Local policy a serving endpoint elsewhere keeps its flows too.
    let before = plan_of(&[web("Cluster"), one()], &node()).tables;
    let local = endpoints(8080, &["10.1.0.1 on=other", "10.1.0.2 on=edge-1"]);
    let tables = plan_after(&before, &[web("Local"), local], &node()).tables;
    let mut forwarder = forwarder();
    let udp = packet(4_000, FRONTENDS[2], Protocol::Udp, 0);
    send(&mut forwarder, &before, &udp);
    let next = target(&send(&mut forwarder, &tables, &udp));
    assert_eq!(next, Some(("10.1.0.1:8080".to_owned(), false)));
    let fresh = packet(4_001, FRONTENDS[2], Protocol::Udp, 0);
    let fresh = target(&send(&mut forwarder, &tables, &fresh));
    assert_eq!(fresh, Some(("10.1.0.2:8080".to_owned(), true)));
}

#[test]
fn conformance_k08_the_number_of_flows_costs_nothing() {
    // No flow is looked for: one word, the set epoch, tells every flow to look for itself.
    let node = NodeConfig::default();
    let before = plan_of(&objects(endpoints(8080, &["10.1.0.1", "10.1.0.2"])), &node).tables;
    let after = plan_after(
        &before,
        &objects(endpoints(8080, &["10.1.0.2", "10.1.0.3"])),
        &node,
    );
    let ops = diff(&before, &after.tables);
    let epochs = ops.iter().filter(|op| {
        matches!(op, TableOp::SetService(id, record) if before.services[id].epoch != record.epoch)
    });
    assert_eq!(epochs.count(), 2, "one for each service port");
    // Two backends; two memberships of each port; the extent they share; each port twice.
    assert!(ops.len() <= 2 + 4 + 2 + 4, "{ops:?}");
}

#[test]
fn conformance_k09_a_service_without_endpoints_keeps_its_flows() {
    let before = plan_of(&objects(endpoints(8080, &["10.1.0.1"])), &node()).tables;
    for (name, after) in [
        ("no slice", web("Cluster")),
        ("an empty slice", endpoints(8080, &[])),
        ("none serves", endpoints(8080, &["10.1.0.1 unready deaf"])),
    ] {
        let tables = plan_after(&before, &[web("Cluster"), after], &node()).tables;
        let mut forwarder = forwarder();
        let udp = packet(4_000, FRONTENDS[0], Protocol::Udp, 0);
        send(&mut forwarder, &before, &udp);
        let next = target(&send(&mut forwarder, &tables, &udp));
        assert_eq!(next, Some(("10.1.0.1:8080".to_owned(), false)), "{name}");
        // When one comes, the same flow finds it. Meanwhile it keeps its backend's id in use.
        let quarantine = Quarantine {
            backends: before.backends.keys().copied().collect(),
            ..Quarantine::default()
        };
        let back = objects(endpoints(8080, &["10.1.0.2"]));
        let back = plan_beside(&tables, &back, &node(), &quarantine).tables;
        let next = target(&send(&mut forwarder, &back, &udp));
        assert_eq!(next, Some(("10.1.0.2:8080".to_owned(), true)), "{name}");
    }

    // A flow that began when there was none was never forwarded, and is as soon as there is one.
    let none = plan_of(&[web("Cluster")], &node()).tables;
    let mut forwarder = forwarder();
    for frontend in FRONTENDS {
        let udp = packet(4_000, frontend, Protocol::Udp, 0);
        assert_eq!(
            target(&send(&mut forwarder, &none, &udp)),
            None,
            "{frontend:?}"
        );
        let next = target(&send(&mut forwarder, &before, &udp));
        assert_eq!(
            next,
            Some(("10.1.0.1:8080".to_owned(), true)),
            "{frontend:?}"
        );
    }
}

#[test]
fn conformance_k10_a_flow_is_known_by_frontend_and_backend() {
    let two = |port: u16, texts: &[&str]| {
        let spec = json!({
            "clusterIP": "10.0.0.2", "ports": [{"name": "udp", "port": 80, "protocol": "UDP"}],
        });
        [
            service("other", spec),
            slice("other_1", &[&format!("udp:{port}/UDP")], texts),
        ]
    };
    let one_backend = ["10.1.0.1"];
    let before = [
        objects(endpoints(8080, &one_backend)),
        two(9090, &one_backend),
    ]
    .concat();
    let before = plan_of(&before, &node()).tables;
    // The first Service loses the address that the second one keeps, on another port.
    let after = [
        objects(endpoints(8080, &["10.1.0.2"])),
        two(9090, &one_backend),
    ]
    .concat();
    let after = plan_after(&before, &after, &node()).tables;
    let mut forwarder = forwarder();
    let frontends = [("10.0.0.1", 80), ("198.51.100.1", 30_080), ("10.0.0.2", 80)];
    for frontend in frontends {
        send(
            &mut forwarder,
            &before,
            &packet(4_000, frontend, Protocol::Udp, 0),
        );
    }
    let next = frontends.map(|frontend| {
        target(&send(
            &mut forwarder,
            &after,
            &packet(4_000, frontend, Protocol::Udp, 0),
        ))
    });
    let moved = || Some(("10.1.0.2:8080".to_owned(), true));
    assert_eq!(
        next,
        [moved(), moved(), Some(("10.1.0.1:9090".to_owned(), false))]
    );
    // A port of the address that is no frontend's is nobody's.
    let foreign = packet(4_000, ("10.0.0.1", 81), Protocol::Udp, 0);
    assert_eq!(target(&send(&mut forwarder, &after, &foreign)), None);
}
