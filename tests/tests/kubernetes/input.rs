//! Malformed and hostile objects that the API server accepts: each is served or rejected with an
//! Event and a metric, and nobody else notices.

use std::{net::IpAddr, time::Duration};

use lb_tests::{
    kubernetes::{
        cluster::{Cluster, PATIENCE},
        load::Load,
        objects, say,
        space::{CONTROLLERS, Pair, Space, new_vips},
    },
    netns::{now, poll, poll_until, text},
};
use serde_json::{Value, json};

use crate::take;

/// A service that must go on, and the namespace of what must not disturb it.
struct Bystander<'c> {
    cluster: &'c Cluster,
    space: Space<'c>,
    vips: Pair,
    load: Load,
}

impl<'c> Bystander<'c> {
    fn new(cluster: &'c Cluster, name: &str) -> Self {
        let space = Space::new(cluster, name);
        let vips = space.web("web", 2);
        Self {
            cluster,
            load: space.load(vips),
            space,
            vips,
        }
    }

    /// The agent lives, follows changes and is small; the bystander lost nothing.
    fn check(&self, what: &str) {
        self.load.wait_more(100, PATIENCE);
        let tally = self.load.tally();
        say(&format!("after {what}: {tally}"));
        tally.assert_unharmed(what);
        self.cluster.agent().check_memory(what);
    }

    fn pod_ips(&self) -> Vec<IpAddr> {
        let pods = self.space.pods("web");
        pods.iter().map(|pod| self.space.pod_ip(pod)).collect()
    }
}

/// Waits until so many Services are not served, or only in part.
fn wait_rejected(cluster: &Cluster, services: u32) {
    let line = format!("sluice_rejected_objects{{kind=\"Service\"}} {services}");
    let mut seen: Vec<String> = Vec::new();
    let found = poll(CONTROLLERS, || {
        let metrics = cluster.agent().metrics("edge1");
        let lines = metrics
            .lines()
            .filter(|line| line.starts_with("sluice_rejected"));
        seen = lines.map(|line| format!("{line}\n")).collect();
        seen.contains(&format!("{line}\n")).then_some(())
    });
    assert!(found.is_some(), "no {line} in {seen:#?}");
}

#[test]
fn what_cannot_be_served_is_told_by_an_event_and_a_metric() {
    let Some(cluster) = take() else { return };
    let bystander = Bystander::new(&cluster, "rejected");
    let space = &bystander.space;
    // What other tests left is on its way out.
    wait_rejected(&cluster, 0);

    space.apply(&objects::service(
        "sctp",
        "LoadBalancer",
        &json!({
            "selector": {"app": "web"},
            "ports": [
                {"name": "http", "protocol": "TCP", "port": 80, "targetPort": 8080},
                {"name": "sctp", "protocol": "SCTP", "port": 80, "targetPort": 8080},
            ],
        }),
    ));
    let vips = new_vips();
    space.set_ingress("sctp", &json!([{"ip": vips.v4}, {"ip": vips.v6}]));
    say(&format!("Event: {}", space.wait_event("sctp", "SCTP")));
    // The port that can be served is.
    space.wait_served(&vips.at(80));
    wait_rejected(&cluster, 1);
    bystander.check("an SCTP port");

    // Two Services with one address and port: the older keeps it.
    space.apply(&objects::deployment("thief", 1));
    space.apply(&objects::service("thief", "LoadBalancer", &json!({})));
    let taken = bystander.vips;
    space.set_ingress("thief", &json!([{"ip": taken.v4}, {"ip": taken.v6}]));
    say(&format!(
        "Event: {}",
        space.wait_event("thief", &taken.v4.to_string())
    ));
    space.wait_rolled_out("thief");
    wait_rejected(&cluster, 2);
    let owners = space.pods("web");
    for server in taken.at(80) {
        for answer in cluster.client().ask_times(server, 20) {
            let pod = answer.unwrap_or_else(|e| panic!("{server}: {e}")).pod;
            assert!(owners.contains(&pod), "{server} answered by {pod}");
        }
    }
    bystander.check("a taken address");
    // As soon as the older gives it up the other has it.
    space.set_ingress("web", &json!([]));
    space.wait_answer(taken.at(80)[0], |answer| {
        answer
            .as_ref()
            .is_ok_and(|answer| answer.pod.starts_with("thief"))
    });
}

fn odd_services() -> Vec<(&'static str, Value)> {
    let huge = "x".repeat(200 * 1024);
    let ports: Vec<Value> = (1..=100)
        .map(|port| {
            json!({"name": format!("p{port}"), "protocol": "TCP", "port": port, "targetPort": 8080})
        })
        .collect();
    let one_family = json!({"ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv4"]});
    let with = |changes: Value| {
        let mut spec = one_family.clone();
        objects::merge(&mut spec, &json!({"selector": {"app": "web"}}));
        objects::merge(&mut spec, &changes);
        spec
    };
    let service = |name: &str, spec: Value| objects::service(name, "LoadBalancer", &with(spec));
    let mut annotated = service("annotation", json!({}));
    objects::merge(
        &mut annotated,
        &json!({"metadata": {"annotations": {"huge": huge}}}),
    );
    vec![
        ("100 ports", service("ports", json!({"ports": ports}))),
        ("huge annotation", annotated),
        (
            "blanks in source ranges",
            service(
                "blanks",
                json!({
                    "loadBalancerSourceRanges": ["  198.51.100.0/24\t", " 203.0.113.0/24"],
                }),
            ),
        ),
        (
            "leading zeros in an external IP",
            service(
                "zeros",
                json!({
                    "externalIPs": ["203.0.113.010"],
                }),
            ),
        ),
        (
            "leading zeros in a source range",
            service(
                "zero-range",
                json!({
                    "loadBalancerSourceRanges": ["198.051.100.000/024"],
                }),
            ),
        ),
        (
            "an IPv4-mapped external IP",
            service(
                "mapped",
                json!({
                    "externalIPs": ["::ffff:203.0.113.200"],
                }),
            ),
        ),
        (
            "an external IP of everybody",
            service(
                "broadcast",
                json!({
                    "externalIPs": ["255.255.255.255"],
                }),
            ),
        ),
        (
            "an external IP of a node",
            service(
                "node-address",
                json!({
                    "externalIPs": ["10.200.0.11"],
                    "ports": [{"name": "http", "protocol": "TCP", "port": 10356, "targetPort": 8080}],
                }),
            ),
        ),
        (
            "an external IP of the API server",
            service(
                "api",
                json!({
                    "externalIPs": ["10.202.0.1"],
                    "ports": [{"name": "http", "protocol": "TCP", "port": 443, "targetPort": 8080}],
                }),
            ),
        ),
        (
            "a name that selects nothing",
            service(
                "nothing",
                json!({
                    "selector": {"app": "nobody"},
                }),
            ),
        ),
    ]
}

#[test]
fn odd_objects_are_served_or_rejected_and_disturb_nobody() {
    let Some(cluster) = take() else { return };
    let bystander = Bystander::new(&cluster, "odd");
    let space = &bystander.space;
    for (what, object) in odd_services() {
        let name = object["metadata"]["name"]
            .as_str()
            .expect("a name")
            .to_owned();
        // The API server may refuse some of these: then nobody else need care.
        let output = space.cluster.kubectl_with(
            ["-n", &space.name, "apply", "--server-side", "-f", "-"],
            &object.to_string(),
        );
        if !output.status.success() {
            say(&format!(
                "{what}: not accepted: {}",
                text(&output.stderr).trim()
            ));
            continue;
        }
        let vips = new_vips();
        space.set_ingress(&name, &json!([{"ip": vips.v4}]));
        if !matches!(name.as_str(), "nothing") {
            let port = object["spec"]["ports"][0]["port"].as_u64().expect("a port");
            let port = u16::try_from(port).expect("a port");
            space.wait_served(&vips.at(port)[..1]);
        }
        bystander.check(what);
    }
}

#[test]
fn hostile_slices_disturb_nobody() {
    let Some(cluster) = take() else { return };
    let bystander = Bystander::new(&cluster, "slices");
    let space = &bystander.space;
    let pods = bystander.pod_ips();
    let good = json!({"addresses": [pods[0]], "conditions": {"ready": true}});
    space.apply(&objects::service(
        "slices",
        "LoadBalancer",
        &json!({
            "selector": null, "ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv4"],
        }),
    ));
    let vips = new_vips();
    space.set_ingress("slices", &json!([{"ip": vips.v4}]));
    let slice = |name: &str, endpoints: Value| objects::slice(name, "slices", &endpoints);
    space.apply(&slice("good", json!([good])));
    space.wait_served(&vips.at(80)[..1]);

    let mut duplicate = slice("duplicate", json!([good, good]));
    duplicate["endpoints"][1]["conditions"] = json!({"ready": false});
    let mut nameless = slice("no-port-number", json!([good]));
    nameless["ports"] = json!([{"name": "http", "protocol": "TCP"}]);
    let mut all = slice("all-ports", json!([good]));
    all["ports"] = json!([]);
    let mut foreign = slice("other-family", json!([{"addresses": ["2001:db8:201::1"]}]));
    foreign["addressType"] = json!("IPv6");
    let mut named = slice("host-names", json!([{"addresses": ["pod.example"]}]));
    named["addressType"] = json!("FQDN");
    let many: Vec<Value> = (0..1000)
        .map(|n| {
            json!({"addresses": [format!("10.201.{}.{}", 100 + n / 250, 1 + n % 250)],
            "conditions": {"ready": false}})
        })
        .collect();
    let cases = [
        ("an endpoint twice", duplicate),
        ("a port without a number", nameless),
        ("a slice without ports", all),
        ("a slice of the other family", foreign),
        ("host names for addresses", named),
        (
            "a thousand endpoints that are not ready",
            slice("unready", Value::Array(many)),
        ),
        (
            "several addresses in an endpoint",
            slice(
                "several",
                json!([
                    {"addresses": [pods[1], "10.201.99.1", "10.201.99.2"]},
                ]),
            ),
        ),
        (
            "zeros in an address",
            slice("zeros", json!([{"addresses": ["10.201.021.007"]}])),
        ),
        (
            "the loopback address",
            slice("loopback", json!([{"addresses": ["127.0.0.1"]}])),
        ),
        (
            "a multicast address",
            slice("multicast", json!([{"addresses": ["224.0.0.1"]}])),
        ),
        (
            "the address of the service",
            slice(
                "self",
                json!([
                    {"addresses": [vips.v4], "conditions": {"ready": false}},
                ]),
            ),
        ),
    ];
    for (what, object) in cases {
        let output = space.try_apply(&object);
        if !output.status.success() {
            say(&format!(
                "{what}: not accepted: {}",
                text(&output.stderr).trim()
            ));
            continue;
        }
        // What the agent makes of it shows with the next change, which comes after it.
        let marker = new_vips();
        space.set_ingress("slices", &json!([{"ip": vips.v4}, {"ip": marker.v4}]));
        space.wait_served(&[marker.at(80)[0], vips.at(80)[0]]);
        bystander.check(what);
    }
}

#[test]
fn ten_thousand_endpoints_of_one_service() {
    const SLICES: usize = 100;
    let Some(cluster) = take() else { return };
    let bystander = Bystander::new(&cluster, "many");
    let space = &bystander.space;
    space.apply(&objects::service(
        "many",
        "LoadBalancer",
        &json!({
            "selector": null, "ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv4"],
        }),
    ));
    let vips = new_vips();
    space.set_ingress("many", &json!([{"ip": vips.v4}]));
    // Addresses nobody has, in a network that leads nowhere.
    let endpoints = |slice: usize| {
        let all = (0..100).map(|n| {
            let address = format!("198.18.{slice}.{}", n + 1);
            json!({"addresses": [address], "conditions": {"ready": true}})
        });
        Value::Array(all.collect())
    };
    let slices: Vec<_> = (0..SLICES)
        .map(|number| objects::slice(&format!("many-{number}"), "many", &endpoints(number)))
        .collect();
    let start = now();
    for part in slices.chunks(25) {
        space.apply(&objects::list(part));
    }
    let applied = start.elapsed();
    let backends = || -> usize {
        let rows = cluster.agent().rows("edge1", "services");
        let name = format!("{}/many", space.name);
        let row = rows
            .iter()
            .flatten()
            .find(|row| row.to_string().contains(&name));
        let count = row
            .and_then(|row| row["clusterBackends"].as_u64())
            .unwrap_or(0);
        usize::try_from(count).expect("a count")
    };
    poll_until("10,000 backends", Duration::from_mins(2), || {
        (backends() == SLICES * 100).then_some(())
    });
    say(&format!(
        "10,000 endpoints: accepted after {:.1} s, in the tables after {:.1} s",
        applied.as_secs_f64(),
        start.elapsed().as_secs_f64()
    ));
    bystander.check("10,000 endpoints");
    space.kubectl("delete endpointslices --selector=kubernetes.io/service-name=many");
    poll_until("no backends", PATIENCE, || (backends() == 0).then_some(()));
    bystander.check("10,000 endpoints deleted");
}
