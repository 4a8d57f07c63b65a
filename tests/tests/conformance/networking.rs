//! Clients in pods, endpoints and outside; large requests; service networks; what is not ours passes.

use std::net::{IpAddr, SocketAddr};

use lb_common::reason::Reason;
use lb_tests::{
    conformance::{
        agents::Agents,
        cluster::{Cluster, Side, endpoint_address},
        objects::{Service, State},
        probe::{
            Answer, Client,
            Peer::{Any, Kept, Masqueraded},
        },
        raw::{self, Capture},
        record::Record,
        targets::{Targets, Transport},
    },
    packet::packet,
};
use serde_json::json;

use crate::Scenario;

pub(crate) const SCENARIO: Scenario = Scenario {
    name: "networking",
    rows: &[
        "D02", "D03", "D08", "D09", "D15", "D19", "D20", "E07", "E08", "E12", "E13", "E18", "E19",
        "G09", "G13", "G15", "H16", "D04", "D10", "E09", "H13", "S48",
    ],
    run,
};

type Narrow = fn(Targets) -> Targets;

/// Rows of IPv4 TCP, IPv4 UDP, IPv6 TCP, IPv6 UDP.
fn each(rows: [&'static str; 4]) -> [(&'static str, Narrow); 4] {
    let narrow: [Narrow; 4] = [
        |targets| targets.v4().tcp(),
        |targets| targets.v4().udp(),
        |targets| targets.v6().tcp(),
        |targets| targets.v6().udp(),
    ];
    let mut narrow = narrow.into_iter();
    rows.map(|row| (row, narrow.next().expect("four")))
}

fn run(record: &Record, cluster: &Cluster, agents: &mut Agents<'_>) {
    let all = ["a1", "a2", "b1", "b2"];
    let service = Service::new("web", 1).web().kind("NodePort").on(&all);
    agents.put(&[&service]);
    let (near, outside) = (cluster.pod("a3"), cluster.outside(Side::A));
    for (row, narrow) in each(["D02", "D03", "E07", "E08"]) {
        record.row(row, || {
            near.served(&narrow(service.cluster()), &all, Kept);
            for side in Side::BOTH {
                near.served(&narrow(service.node_port(side)), &all, Masqueraded);
            }
        });
    }
    for (row, narrow) in each(["D08", "D09", "E12", "E13"]) {
        record.row(row, || {
            let endpoint = cluster.pod("a1");
            endpoint.served(&narrow(service.cluster()), &all, Any);
            endpoint.served(&narrow(service.node_port(Side::A)), &all, Any);
        });
    }
    for (row, narrow) in each(["D19", "D20", "E18", "E19"]) {
        record.row(row, || {
            for client in [&near, &outside] {
                client.exchanges(&narrow(service.cluster()), 2_000);
                client.exchanges(&narrow(service.node_port(Side::A)), 2_000);
            }
        });
    }
    record.row("D15", || {
        let host = cluster.host(Side::B);
        host.served(&service.node_port(Side::A).udp(), &all, Masqueraded);
    });
    record.remark(
        &["D15"],
        "from the other node: what a node sends to itself is not ours",
    );
    record.row("G09", || {
        plain_pods(cluster);
        same_port_directly(cluster, agents);
    });
    terminating_client(record, cluster, agents);
    service_networks(record, cluster, agents);
    sctp(record, cluster, agents);
}

/// Pods reach pods by their own addresses, seen as they are.
fn plain_pods(cluster: &Cluster) {
    let client = cluster.pod("a3");
    for server in ["a1", "b1"] {
        for v4 in [true, false] {
            let address = SocketAddr::new(endpoint_address(server, v4).0, 8080);
            for transport in [Transport::Tcp, Transport::Udp] {
                client.served(&Targets::one(address, transport), &[server], Kept);
            }
        }
    }
}

/// A client's port that was used through a Service just now is used for the endpoint itself.
fn same_port_directly(cluster: &Cluster, agents: &Agents<'_>) {
    let client = cluster.pod("a3");
    for (number, server) in [(6, "a1"), (7, "b1")] {
        let service = Service::new(&format!("same-port-{number}"), number).web();
        agents.put(&[&service.clone().on(&[server])]);
        for target in service.cluster().tcp().0 {
            let v4 = target.address.is_ipv4();
            let mut direct = target;
            direct.address = SocketAddr::new(endpoint_address(server, v4).0, 8080);
            let served = Answer::Served {
                by: server.to_owned(),
                peer: client.address(v4),
            };
            for target in [target, direct, target, direct] {
                let answer = client.attempt_from(1_111, target);
                assert_eq!(answer, served, "{}", target.address);
            }
        }
    }
}

fn terminating_client(record: &Record, cluster: &Cluster, agents: &Agents<'_>) {
    let own = Service::new("own", 2).web().endpoint("a1", State::Draining);
    let other = Service::new("other", 3).web().on(&["a2", "b1"]);
    agents.put(&[&own, &other]);
    let client = cluster.pod("a1");
    let serves = || client.served(&other.cluster(), &["a2", "b1"], Kept);
    record.row("G15", serves);
    agents.put(&[&own.nobody()]);
    record.row("G15", serves);
}

fn service_networks(record: &Record, cluster: &Cluster, agents: &Agents<'_>) {
    let clients = [cluster.pod("a3"), cluster.outside(Side::A)];
    let at = |texts: [&str; 2]| {
        let addresses = texts.map(|text| text.parse::<IpAddr>().expect("an address"));
        let ports = addresses.map(|ip| SocketAddr::new(ip, 80));
        let targets =
            ports.map(|port| [Transport::Tcp, Transport::Udp].map(|t| Targets::one(port, t)));
        Targets(
            targets
                .into_iter()
                .flatten()
                .flat_map(|targets| targets.0)
                .collect(),
        )
    };
    let dropped = |client: &Client<'_>, targets: &Targets| {
        let before = agents.node(Side::A).reason(Reason::UnallocatedAddress);
        client.dropped(targets);
        let after = agents.node(Side::A).reason(Reason::UnallocatedAddress);
        assert!(after >= before + 4, "{before} then {after} packets counted");
    };
    let unallocated = at(["10.96.200.200", "2001:db8:96::c8c8"]);
    for client in &clients {
        record.row("H16", || dropped(client, &unallocated));
    }
    let second = Service::new("second", 4)
        .web()
        .on(&["a1", "b1"])
        .spec("clusterIPs", json!(["10.97.0.4", "2001:db8:97::4"]));
    let second = second.spec("clusterIP", "10.97.0.4");
    agents.put(&[&second]);
    let (used, unused) = (
        at(["10.97.0.4", "2001:db8:97::4"]),
        at(["10.97.9.9", "2001:db8:97::99"]),
    );
    let [pod, _] = &clients;
    record.row("G13", || {
        pod.served(&used, &["a1", "b1"], Kept);
        // Nobody said yet that this is a service network.
        let before = agents.node(Side::A).reason(Reason::UnallocatedAddress);
        pod.unserved(&unused);
        assert_eq!(
            agents.node(Side::A).reason(Reason::UnallocatedAddress),
            before
        );
    });
    agents.object(
        "more-networks",
        vec![json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "ServiceCIDR",
            "metadata": {"name": "more"},
            "spec": {"cidrs": ["10.97.0.0/16", "2001:db8:97::/112"]},
        })],
    );
    agents.sync();
    record.row("G13", || {
        pod.served(&used, &["a1", "b1"], Kept);
        dropped(pod, &unused);
    });
}

/// SCTP ports are reported and left alone; the other ports of their Service work.
fn sctp(record: &Record, cluster: &Cluster, agents: &Agents<'_>) {
    let both = ["a1", "b1"];
    let service = Service::new("sctp", 205)
        .tcp("tcp", 53, 8080)
        .udp("udp", 53, 8080)
        .sctp("sctp", 53, 53)
        .kind("NodePort")
        .on(&both);
    agents.put(&[&service]);
    let (pod, endpoint) = (cluster.pod("a3"), cluster.pod("a1"));
    let node = agents.node(Side::A);
    let [v4, v6] = [service.cluster().v4(), service.cluster().v6()]
        .map(|targets| targets.first().address.ip());
    // Whatever passes our hooks is seen by pod a2, to which the node's own stack routes it.
    let device = "pod-a2";
    cluster
        .node(Side::A)
        .ip(&format!("route add {v4}/32 via 10.244.1.12 dev {device} onlink\nroute add {v6}/128 via 2001:db8:f4:1::12 dev {device}"));
    let passes = |client: &Client<'_>, address: IpAddr| {
        let eyes = Capture::new(cluster.namespace("a2"));
        let source = client.address(address.is_ipv4());
        let init = init_chunk();
        let frame = packet()
            .raw(&source.to_string(), &address.to_string(), SCTP)
            .payload(&init);
        let before = node.reason(Reason::UnsupportedProtocol);
        raw::send(client.namespace(), address, &frame);
        eyes.wait("the INIT behind the node's stack", |seen| {
            let untouched = seen.source == source && seen.destination == address;
            seen.protocol == SCTP && untouched && seen.segment == init
        });
        assert_eq!(node.reason(Reason::UnsupportedProtocol), before + 1);
    };
    for (rows, client, address) in [
        (&["S48", "D04", "H13"][..], &pod, v4),
        (&["D10"], &endpoint, v4),
        (&["E09"], &pod, v6),
    ] {
        record.rows(rows, || {
            passes(client, address);
            pod.served(&service.cluster(), &both, Kept);
            node.wait_log("SCTP is not balanced");
            let modules = std::fs::read_to_string("/proc/modules").unwrap_or_default();
            assert!(
                !modules.lines().any(|line| line.starts_with("sctp ")),
                "sctp is loaded"
            );
        });
        record.remark(
            rows,
            "SCTP is not balanced: an INIT passes the hooks untouched and is counted, the port is \
             reported, TCP and UDP of the Service work, the module is not loaded",
        );
    }
}

/// IP protocol number.
const SCTP: u8 = 132;

/// An SCTP packet with an INIT chunk, RFC 9260 section 3.3.2; its checksum is nobody's business here.
fn init_chunk() -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(40_000_u16.to_be_bytes());
    bytes.extend(53_u16.to_be_bytes());
    bytes.extend([0; 8]);
    bytes.extend([1, 0, 0, 20]);
    bytes.extend(0x1234_5678_u32.to_be_bytes());
    bytes.extend(65_536_u32.to_be_bytes());
    bytes.extend([0, 1, 0, 1]);
    bytes.extend(1_u32.to_be_bytes());
    bytes
}
