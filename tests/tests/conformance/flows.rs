//! Flows whose Service changes under them, and segments no connection knows.

use std::io::{Read as _, Write as _};

use lb_common::reason::Reason;
use lb_tests::{
    conformance::{
        agents::Agents,
        cluster::{Cluster, Side},
        objects::{Service, State},
        probe::{Client, Flow, Peer::Any},
        raw::{self, Capture, Seen},
        record::Record,
        targets::Targets,
    },
    netns::text,
    packet::packet,
};

use crate::Scenario;

pub(crate) const SCENARIO: Scenario = Scenario {
    name: "flows",
    rows: &[
        "C01", "C02", "C03", "C05", "C06", "B10", "B11", "I03", "I17",
    ],
    run,
};

fn run(record: &Record, cluster: &Cluster, agents: &mut Agents<'_>) {
    pods_cycle(record, cluster, agents);
    stays_local(record, cluster, agents);
    begins_early(record, cluster, agents);
    removed_backend(record, cluster, agents);
    for server in ["a1", "b1"] {
        outside_the_window(record, cluster, agents, server);
    }
    record.row("I03", || unknown_to_all(cluster, agents));
}

fn flows(client: &Client<'_>, targets: &Targets) -> Vec<Flow> {
    targets
        .0
        .iter()
        .map(|target| client.flow(*target))
        .collect()
}

fn all_reach(flows: &[Flow], name: &str) {
    for flow in flows {
        flow.reaches(name);
    }
}

/// One pod takes another's place while clients keep their ports.
fn pods_cycle(record: &Record, cluster: &Cluster, agents: &Agents<'_>) {
    let (pod, outside) = (cluster.pod("a3"), cluster.outside(Side::A));
    let service = Service::new("cycle", 1)
        .udp("echo", 80, 8080)
        .kind("LoadBalancer");
    let rows: [(&str, &Client<'_>, Targets, &str); 5] = [
        ("C01", &outside, service.node_port(Side::A), "b1"),
        ("C02", &pod, service.cluster(), "b1"),
        ("C02", &outside, service.cluster(), "b1"),
        ("B10", &outside, service.balancer(), "b1"),
        ("B11", &outside, service.balancer(), "a2"),
    ];
    for (row, client, targets, next) in rows {
        agents.put(&[&service.clone().on(&["a1"])]);
        record.row(row, || {
            let flows = flows(client, &targets);
            all_reach(&flows, "a1");
            // A new pod is not ready at first, the old one is terminating but serves on.
            let turning = service.clone().endpoint("a1", State::Draining);
            agents.put(&[&turning.endpoint(next, State::Unready)]);
            all_reach(&flows, "a1");
            agents.put(&[&service.clone().on(&[next])]);
            all_reach(&flows, next);
        });
    }
}

fn stays_local(record: &Record, cluster: &Cluster, agents: &Agents<'_>) {
    let pod = cluster.pod("a3");
    let service = Service::new("inner", 2)
        .udp("echo", 80, 8080)
        .internal_local();
    let flows = flows(&pod, &service.cluster());
    let step = |names: &[&str], expected: &str| {
        agents.put(&[&service.clone().on(names)]);
        record.row("C03", || {
            for _ in 0..3 {
                all_reach(&flows, expected);
            }
        });
    };
    step(&["a1"], "a1");
    // One elsewhere comes and goes; the client's endpoint is replaced meanwhile.
    step(&["a1", "b1"], "a1");
    step(&["a2", "b1"], "a2");
    step(&["a2"], "a2");
    step(&["a1"], "a1");
}

fn begins_early(record: &Record, cluster: &Cluster, agents: &Agents<'_>) {
    let (pod, outside) = (cluster.pod("a3"), cluster.outside(Side::A));
    let service = Service::new("early", 3)
        .udp("echo", 80, 8080)
        .kind("LoadBalancer");
    agents.put(&[&service]);
    for (client, targets) in [
        (&pod, service.cluster()),
        (&outside, service.balancer()),
        (&outside, service.node_port(Side::A)),
    ] {
        agents.put(&[&service.clone().endpoint("b1", State::Unready)]);
        record.row("C05", || {
            let flows = flows(client, &targets);
            for flow in &flows {
                for _ in 0..3 {
                    assert_eq!(flow.ask(), None, "nobody is ready");
                }
            }
            agents.put(&[&service.clone().on(&["b1"])]);
            all_reach(&flows, "b1");
        });
    }
}

/// A backend leaves: its TCP connections go on, UDP moves at once, new connections go elsewhere.
fn removed_backend(record: &Record, cluster: &Cluster, agents: &Agents<'_>) {
    let outside = cluster.outside(Side::A);
    for (leaves, stays) in [("a1", "b1"), ("b1", "a1")] {
        let service = Service::new("leaves", 4).web().kind("LoadBalancer");
        agents.put(&[&service.clone().on(&[leaves])]);
        record.row("I17", || {
            let half = b"GET / HTTP/1.1\r\n";
            let targets = service.balancer().tcp().0;
            let mut connections: Vec<_> = targets
                .iter()
                .map(|target| outside.connection(*target))
                .collect();
            for connection in &mut connections {
                connection.write_all(half).expect("half a request");
            }
            let flows = flows(&outside, &service.balancer().udp());
            all_reach(&flows, leaves);
            agents.put(&[&service
                .clone()
                .endpoint(leaves, State::Draining)
                .on(&[stays])]);
            agents.put(&[&service.clone().on(&[stays])]);
            all_reach(&flows, stays);
            outside.served(&service.balancer(), &[stays], Any);
            for mut connection in connections {
                connection.write_all(b"\r\n").expect("the other half");
                let mut answer = Vec::new();
                connection.read_to_end(&mut answer).expect("an answer");
                let answer = text(&answer);
                assert!(answer.contains(&format!("\r\n\r\n{leaves} ")), "{answer}");
            }
        });
    }
}

/// A server injects a segment far outside the window: its connection goes on, and nobody resets.
fn outside_the_window(record: &Record, cluster: &Cluster, agents: &Agents<'_>, server: &str) {
    let outside = cluster.outside(Side::A);
    let service = Service::new("window", 5)
        .tcp("http", 80, 8080)
        .kind("LoadBalancer")
        .on(&[server]);
    agents.put(&[&service]);
    record.rows(&["C06", "I03"], || {
        for target in service.balancer().0 {
            let (at_server, at_client) = (
                Capture::new(cluster.namespace(server)),
                Capture::new(cluster.namespace("outside")),
            );
            let mut connection = outside.connection(target);
            let v4 = target.address.is_ipv4();
            let is_first = |seen: &Seen| {
                let (port, _) = seen.ports();
                seen.protocol == 6 && port == 8080 && seen.source.is_ipv4() == v4
            };
            at_server.wait("the server's first segment", is_first);
            let packets = at_server.packets();
            let first = packets
                .iter()
                .find(|seen| is_first(seen))
                .expect("it was seen");
            let (sequence, acknowledged) = first.numbers();
            let ports = first.ports();
            let stray = packet()
                .tcp(
                    &std::net::SocketAddr::new(first.source, ports.0).to_string(),
                    &std::net::SocketAddr::new(first.destination, ports.1).to_string(),
                )
                .ack(acknowledged)
                .seq(sequence.wrapping_add(100_000_000))
                .payload(b"stray");
            for _ in 0..3 {
                raw::send(cluster.namespace(server), first.destination, &stray);
            }
            connection
                .write_all(b"GET / HTTP/1.1\r\n\r\n")
                .expect("a request");
            let mut answer = Vec::new();
            connection.read_to_end(&mut answer).expect("an answer");
            assert!(text(&answer).contains(&format!("{server} ")));
            for eyes in [&at_server, &at_client] {
                let reset = eyes.packets().into_iter().find(Seen::is_reset);
                assert_eq!(reset, None, "a reset");
            }
            // All the client ever saw came from the address it had asked.
            let strange = |seen: &Seen| {
                let (source, destination) = seen.ports();
                seen.protocol == 6
                    && (source == 8080 || destination == 8080 || seen.source == first.source)
            };
            assert!(
                !at_client.saw(strange),
                "an untranslated segment reached the client"
            );
        }
    });
}

/// A segment from a backend to a masquerading address that no flow knows ends at the node.
fn unknown_to_all(cluster: &Cluster, agents: &Agents<'_>) {
    let node = agents.node(Side::A);
    for v4 in [true, false] {
        let server = cluster.pod("b1").address(v4);
        let snat = Side::A.snat_address(v4);
        let eyes = Capture::new(cluster.namespace("b1"));
        let stray = packet()
            .tcp(
                &std::net::SocketAddr::new(server, 8080).to_string(),
                &std::net::SocketAddr::new(snat, 54_321).to_string(),
            )
            .ack(1)
            .seq(1)
            .payload(b"stray");
        let before = node.reason(Reason::SnatMiss);
        raw::send(cluster.namespace("b1"), snat, &stray);
        lb_tests::netns::poll_until(
            "the segment to be counted",
            std::time::Duration::from_secs(5),
            || (node.reason(Reason::SnatMiss) > before).then_some(()),
        );
        assert!(!eyes.saw(Seen::is_reset), "the node's stack answered it");
    }
}
