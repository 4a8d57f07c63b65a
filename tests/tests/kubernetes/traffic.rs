//! Clients outside reach pods by every address a Service has.

use std::{
    collections::BTreeSet,
    io::{self, ErrorKind},
    net::{IpAddr, SocketAddr},
};

use lb_tests::kubernetes::{
    client::Answer,
    cluster::Cluster,
    load::{Protocol, SNAT},
    objects,
    space::{Space, new_external_ips},
};
use serde_json::json;

use crate::take;

const EDGE: [&str; 2] = ["10.200.0.11", "2001:db8:200::11"];
/// Enough for both of two pods to answer: all go to one in one of 2^29 cases.
const REQUESTS: usize = 30;

fn ask(cluster: &Cluster, protocol: Protocol, server: SocketAddr) -> Vec<Answer> {
    let client = cluster.client();
    let answers = match protocol {
        Protocol::Tcp => client.ask_times(server, REQUESTS),
        Protocol::Udp => (0..REQUESTS).map(|_| client.ask_udp(server)).collect(),
    };
    let answers: io::Result<Vec<_>> = answers.into_iter().collect();
    answers.unwrap_or_else(|e| panic!("{protocol:?} {server}: {e}"))
}

fn pods(answers: &[Answer]) -> BTreeSet<&str> {
    answers.iter().map(|answer| answer.pod.as_str()).collect()
}

#[test]
fn every_address_of_a_service_answers() {
    let Some(cluster) = take() else { return };
    let space = Space::new(&cluster, "addresses");
    space.apply(&objects::deployment("web", 2));
    let external = new_external_ips();
    let vips = space.load_balancer("web", &json!({"externalIPs": [external.v4, external.v6]}));
    space.wait_rolled_out("web");
    space.wait_balanced("web", vips);

    let field = |path: &str| space.field("service/web", path);
    let cluster_ips = field("{.spec.clusterIPs[*]}");
    let cluster_ips = cluster_ips.split(' ').map(|it| it.parse().expect("an IP"));
    let cluster_ips: Vec<IpAddr> = cluster_ips.collect();
    let node_port = |name: &str| -> u16 {
        let path = format!("{{.spec.ports[?(@.name==\"{name}\")].nodePort}}");
        field(&path).parse().expect("a node port")
    };
    let [tcp, udp] = ["http", "udp"].map(node_port);
    let edge = EDGE.map(|it| it.parse::<IpAddr>().expect("an IP"));
    let cases = [
        ("load balancer", [vips.v4, vips.v6], 80, 53),
        ("external IP", [external.v4, external.v6], 80, 53),
        ("node port", edge, tcp, udp),
        ("cluster IP", cluster_ips.try_into().expect("two"), 80, 53),
    ];
    let expected: Vec<_> = space.pods("web");
    let expected: BTreeSet<_> = expected.iter().map(String::as_str).collect();
    for (name, addresses, tcp, udp) in cases {
        for (address, snat) in addresses.into_iter().zip(SNAT) {
            let snat: IpAddr = snat.parse().expect("an IP");
            for (protocol, port) in [(Protocol::Tcp, tcp), (Protocol::Udp, udp)] {
                let answers = ask(&cluster, protocol, SocketAddr::new(address, port));
                assert_eq!(pods(&answers), expected, "{name}: {protocol:?} {address}");
                // A masquerade by anyone else would show another address.
                let peers: BTreeSet<_> = answers.iter().map(|it| it.peer.ip()).collect();
                assert_eq!(peers, [snat].into(), "{name}: {protocol:?} {address}");
            }
        }
    }
}

#[test]
fn a_client_stays_with_its_pod_while_the_service_says_so() {
    let Some(cluster) = take() else { return };
    let space = Space::new(&cluster, "affinity");
    space.apply(&objects::deployment("web", 3));
    let vips = space.load_balancer("web", &json!({"sessionAffinity": "ClientIP"}));
    space.wait_rolled_out("web");
    space.wait_ours(&vips.at(80));
    for (protocol, port) in [(Protocol::Tcp, 80), (Protocol::Udp, 53)] {
        for server in vips.at(port) {
            let answers = ask(&cluster, protocol, server);
            assert_eq!(pods(&answers).len(), 1, "{protocol:?} {server}");
        }
    }

    space.patch("service/web", &json!({"spec": {"sessionAffinity": "None"}}));
    for server in vips.at(80) {
        let first = ask(&cluster, Protocol::Tcp, server)[0].pod.clone();
        space.wait_answer(server, |answer| {
            answer.as_ref().is_ok_and(|answer| answer.pod != first)
        });
    }
}

#[test]
fn only_listed_sources_reach_a_load_balancer() {
    let Some(cluster) = take() else { return };
    let space = Space::new(&cluster, "ranges");
    let vips = space.web("web", 1);
    let ranges = |ranges: &[&str]| {
        space.patch(
            "service/web",
            &json!({"spec": {"loadBalancerSourceRanges": ranges}}),
        );
    };
    let silent = |answer: &io::Result<Answer>| {
        let error = answer.as_ref().err();
        // Dropped, not refused.
        error.is_some_and(|e| matches!(e.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock))
    };
    ranges(&["203.0.113.128/25", "2001:db8:dead::/48"]);
    for server in vips.at(80) {
        space.wait_answer(server, silent);
    }
    // They are no concern of node ports.
    let path = "{.spec.ports[0].nodePort}";
    let port = space.field("service/web", path).parse().expect("a port");
    for edge in EDGE {
        let server = SocketAddr::new(edge.parse().expect("an IP"), port);
        ask(&cluster, Protocol::Tcp, server);
    }
    // Blanks around an entry are the API server's to accept and ours to read.
    ranges(&[" 198.51.100.0/24", "2001:db8:c::/48 "]);
    space.wait_served(&vips.at(80));
    // A family without a range of its own admits nobody.
    ranges(&["198.51.100.0/24"]);
    space.wait_answer(vips.at(80)[1], silent);
    space.wait_served(&vips.at(80)[..1]);
    ranges(&[]);
    space.wait_served(&vips.at(80));
}
