//! `gateway: true`: a dedicated edge node keeps the client's address for Services that ask for it.

use std::net::{IpAddr, SocketAddr};

use lb_tests::{
    kubernetes::{
        client::Answer,
        cluster::{Cluster, Finally, PATIENCE, deploy},
        space::Space,
    },
    netns::poll_until,
};
use serde_json::{Value, json};

use crate::take;

const CLIENT: [(&str, &str, &str, &str); 2] = [
    ("-4", "198.51.100.0/24", "10.200.0.11", "198.51.100.2"),
    ("-6", "2001:db8:c::/64", "2001:db8:200::11", "2001:db8:c::2"),
];

/// Sends the workers' answers to the client through the edge node, while it lives.
struct Routes<'c>(&'c Cluster);

impl<'c> Routes<'c> {
    fn new(cluster: &'c Cluster) -> Self {
        let this = Self(cluster);
        this.each("add");
        this
    }

    fn each(&self, verb: &str) {
        for worker in ["worker1", "worker2"] {
            for (family, network, edge, _) in CLIENT {
                self.0
                    .node(worker, &["ip", family, "route", verb, network, "via", edge]);
            }
        }
    }
}

impl Drop for Routes<'_> {
    fn drop(&mut self) {
        self.each("del");
    }
}

#[test]
fn a_local_service_keeps_the_clients_address() {
    let Some(cluster) = take() else { return };
    let space = Space::new(&cluster, "gateway");
    let agent = cluster.agent();
    let _as_it_was = Finally(|| cluster.deploy());
    cluster.apply_directory(&deploy().join("overlays/gateway"));
    agent.wait_rolled_out();
    let _routes = Routes::new(&cluster);
    space.apply(&lb_tests::kubernetes::objects::deployment("web", 2));
    let vips = space.load_balancer("web", &json!({"externalTrafficPolicy": "Local"}));
    space.wait_rolled_out("web");
    space.wait_served(&vips.at(80));

    let client = cluster.client();
    let sees = |answer: &Answer, who: &str| {
        let who: IpAddr = who.parse().expect("an IP");
        assert_eq!(answer.peer.ip(), who, "{answer:?}");
    };
    for ((server, datagrams), (_, _, _, own)) in vips.at(80).iter().zip(vips.at(53)).zip(CLIENT) {
        for answer in client.ask_times(*server, 20) {
            sees(&answer.unwrap_or_else(|e| panic!("{server}: {e}")), own);
        }
        let answer = client.ask_udp(datagrams);
        sees(&answer.unwrap_or_else(|e| panic!("{datagrams}: {e}")), own);
    }

    // What a load balancer before the edge nodes would ask.
    let port = space.field("service/web", "{.spec.healthCheckNodePort}");
    let port = port.parse().expect("a port");
    for (replicas, status) in [(2, 200), (1, 200), (0, 503), (2, 200)] {
        space.kubectl(&format!("scale deployment/web --replicas={replicas}"));
        for (_, _, edge, _) in CLIENT {
            let server = SocketAddr::new(edge.parse().expect("an IP"), port);
            poll_until(
                &format!("{replicas} endpoints at {server}"),
                PATIENCE,
                || {
                    let (code, body) = client.http("GET", server, "/healthz").ok()?;
                    let body: Value = serde_json::from_str(&body).ok()?;
                    let told = body["localEndpoints"].as_u64();
                    (code == status && told == Some(replicas)).then_some(())
                },
            );
        }
    }
    space.wait_served(&vips.at(80));

    // Cluster policy is what it always was.
    space.patch(
        "service/web",
        &json!({"spec": {"externalTrafficPolicy": "Cluster"}}),
    );
    for server in vips.at(80) {
        space.wait_answer(server, |answer| {
            answer.as_ref().is_ok_and(|answer| {
                CLIENT
                    .iter()
                    .all(|(_, _, _, own)| answer.peer.ip().to_string() != *own)
            })
        });
    }
}
