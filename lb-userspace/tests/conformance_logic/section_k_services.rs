//! Section K: what is read from Services.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::fixture::{
    frontend_names, node, plan_of, rejections, service, with_ingress, with_metadata,
};

#[test]
#[expect(clippy::too_many_lines, reason = "a table of cases")]
fn conformance_k14_what_is_read_from_a_service() {
    let port = || json!([{"name": "http", "port": 80}]);
    let dual = |kind: &str| {
        json!({
            "type": kind, "ports": port(), "ipFamilies": ["IPv4", "IPv6"],
            "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1", "2001:db8:5::1"],
        })
    };
    let with = |mut spec: Value, field: &str, value: Value| {
        spec[field] = value;
        spec
    };
    let of_mode = |mode: &str| {
        let mut object = with_ingress(service("web", dual("LoadBalancer")), &["192.0.2.10"]);
        object["status"]["loadBalancer"]["ingress"][0]["ipMode"] = mode.into();
        object
    };
    let hostname = || {
        let mut object = service("web", dual("LoadBalancer"));
        object["status"]["loadBalancer"]["ingress"] = json!([{"hostname": "lb.example"}]);
        object
    };
    let single = || json!({"ports": port(), "clusterIP": "10.0.0.1", "ipFamilies": ["IPv4"]});
    let both = ["10.0.0.1:80/TCP", "[2001:db8:5::1]:80/TCP"];
    for (name, object, expected, ranges) in [
        (
            "nothing but an address",
            service("web", single()),
            vec![both[0]],
            vec![],
        ),
        (
            "both families",
            service("web", dual("ClusterIP")),
            both.to_vec(),
            vec![],
        ),
        (
            "no ipFamilies: that of clusterIP",
            service(
                "web",
                json!({"ports": port(), "clusterIP": "2001:db8:5::1"}),
            ),
            vec![both[1]],
            vec![],
        ),
        (
            "headless",
            service("web", with(single(), "clusterIP", "None".into())),
            vec![],
            vec![],
        ),
        (
            "ExternalName",
            service("web", with(single(), "type", "ExternalName".into())),
            vec![],
            vec![],
        ),
        (
            "external addresses of both families",
            service(
                "web",
                with(
                    dual("ClusterIP"),
                    "externalIPs",
                    json!(["203.0.113.7", "2001:db8:7::7"]),
                ),
            ),
            vec![
                both[0],
                "203.0.113.7:80/TCP",
                both[1],
                "[2001:db8:7::7]:80/TCP",
            ],
            vec![],
        ),
        (
            "external addresses of a family it has not",
            service(
                "web",
                with(
                    single(),
                    "externalIPs",
                    json!(["203.0.113.7", "2001:db8:7::7"]),
                ),
            ),
            vec![both[0], "203.0.113.7:80/TCP"],
            vec![],
        ),
        (
            "load-balancer addresses of both families",
            with_ingress(
                service("web", dual("LoadBalancer")),
                &["192.0.2.10", "2001:db8::10"],
            ),
            vec![
                both[0],
                "192.0.2.10:80/TCP",
                both[1],
                "[2001:db8::10]:80/TCP",
            ],
            vec![],
        ),
        (
            "load-balancer addresses of a family it has not",
            with_ingress(
                service("web", with(single(), "type", "LoadBalancer".into())),
                &["192.0.2.10", "2001:db8::10"],
            ),
            vec![both[0], "192.0.2.10:80/TCP"],
            vec![],
        ),
        (
            "ipMode VIP",
            of_mode("VIP"),
            vec![both[0], "192.0.2.10:80/TCP", both[1]],
            vec![],
        ),
        ("ipMode Proxy", of_mode("Proxy"), both.to_vec(), vec![]),
        ("a host name", hostname(), both.to_vec(), vec![]),
        (
            "no longer of type LoadBalancer",
            with_ingress(service("web", dual("ClusterIP")), &["192.0.2.10"]),
            both.to_vec(),
            vec![],
        ),
        (
            "source ranges of both families, with blanks",
            with_ingress(
                service(
                    "web",
                    with(
                        dual("LoadBalancer"),
                        "loadBalancerSourceRanges",
                        json!([" 203.0.113.0/24 ", "2001:db8:f::/48"]),
                    ),
                ),
                &["192.0.2.10"],
            ),
            vec![both[0], "192.0.2.10:80/TCP", both[1]],
            vec!["203.0.113.0/24", "2001:db8:f::/48"],
        ),
        (
            "IPv4 addresses in IPv6's clothes",
            service(
                "web",
                json!({
                    "ports": port(), "ipFamilies": ["IPv4"], "clusterIPs": ["::ffff:10.0.0.1"],
                    "externalIPs": ["::FFFF:203.0.113.007"],
                }),
            ),
            vec![both[0], "203.0.113.7:80/TCP"],
            vec![],
        ),
        (
            "three protocols of one number",
            service(
                "web",
                with(
                    single(),
                    "ports",
                    json!([
                        {"name": "t", "port": 53}, {"name": "u", "port": 53, "protocol": "UDP"},
                        {"name": "s", "port": 53, "protocol": "SCTP"},
                    ]),
                ),
            ),
            vec!["10.0.0.1:53/TCP", "10.0.0.1:53/UDP"],
            vec![],
        ),
    ] {
        let plan = plan_of(&[object], &node());
        let found: BTreeSet<_> = frontend_names(&plan.tables).into_iter().collect();
        let expected: BTreeSet<_> = expected.into_iter().map(str::to_owned).collect();
        assert_eq!(found, expected, "{name}");
        let found = plan.tables.source_ranges.iter();
        let found: Vec<_> = found.map(|(_, network)| network.to_string()).collect();
        assert_eq!(found, ranges, "{name}");
    }
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table of cases")]
fn conformance_k16_addresses_by_family_and_services_to_skip() {
    let balancer = |extra: Value| {
        let mut spec = json!({
            "type": "LoadBalancer", "ports": [{"name": "http", "port": 80}],
            "ipFamilies": ["IPv4", "IPv6"], "clusterIPs": ["10.0.0.1", "2001:db8:5::1"],
        });
        for (key, value) in extra.as_object().expect("fields") {
            spec[key] = value.clone();
        }
        spec
    };
    let (v4, v6) = ("10.0.0.1:80/TCP", "[2001:db8:5::1]:80/TCP");
    let label = |key: &str, value: &str| {
        with_metadata(service("web", balancer(json!({}))), "labels", key, value)
    };
    let (proxy, headless) = (
        "service.kubernetes.io/service-proxy-name",
        "service.kubernetes.io/headless",
    );
    for (name, object, expected, said) in [
        ("both", service("web", balancer(json!({}))), vec![v4, v6], 0),
        (
            "one family of two addresses",
            service("web", balancer(json!({"ipFamilies": ["IPv6"]}))),
            vec![v6],
            0,
        ),
        (
            "the other order",
            service(
                "web",
                balancer(
                    json!({"ipFamilies": ["IPv6", "IPv4"], "clusterIPs": ["2001:db8:5::1", "10.0.0.1"]}),
                ),
            ),
            vec![v4, v6],
            0,
        ),
        (
            "no ipFamilies",
            service("web", balancer(json!({"ipFamilies": []}))),
            vec![v4, v6],
            0,
        ),
        (
            "the old single field",
            service(
                "web",
                balancer(
                    json!({"ipFamilies": null, "clusterIPs": null, "clusterIP": "2001:db8:5::1"}),
                ),
            ),
            vec![v6],
            0,
        ),
        (
            "bad addresses are left out and named",
            service(
                "web",
                balancer(
                    json!({"externalIPs": ["203.0.113.7", "203.0.113", "203.0.113.7.1", "host", "2001:db8::g", ""]}),
                ),
            ),
            vec![v4, "203.0.113.7:80/TCP", v6],
            4,
        ),
        (
            "addresses with a zone",
            service("web", balancer(json!({"externalIPs": ["fe80::1%eth0"]}))),
            vec![v4, v6],
            1,
        ),
        (
            "addresses of no host",
            service(
                "web",
                balancer(json!({"externalIPs": ["0.0.0.0", "127.0.0.1", "224.0.0.1"]})),
            ),
            vec![v4, v6],
            3,
        ),
        (
            "bad ranges are named, the others apply",
            service(
                "web",
                balancer(
                    json!({"loadBalancerSourceRanges": ["203.0.113.0/24", "203.0.113.0", "everyone"]}),
                ),
            ),
            vec![v4, v6],
            2,
        ),
        ("another proxy's", label(proxy, "other"), vec![], 0),
        (
            "another proxy's, without a name",
            label(proxy, ""),
            vec![],
            0,
        ),
        ("labelled headless", label(headless, ""), vec![], 0),
        (
            "a label like it",
            label("service.kubernetes.io/headless-not", ""),
            vec![v4, v6],
            0,
        ),
    ] {
        let found: BTreeSet<_> =
            frontend_names(&plan_of(std::slice::from_ref(&object), &node()).tables)
                .into_iter()
                .collect();
        let expected: BTreeSet<_> = expected.into_iter().map(str::to_owned).collect();
        assert_eq!(found, expected, "{name}");
        let said_of = rejections(&[object], &node());
        assert_eq!(said_of.len(), said, "{name}: {said_of:?}");
    }
}
