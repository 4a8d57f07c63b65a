//! Section H: several Services of all kinds together.

use lb_common::service::{frontend_flag, service_flag};
use serde_json::{Value, json};

use super::{
    fixture::{
        frontend_names, frontends, node, plan_after, plan_of, record, rejections, service, sets,
        slice, with_ingress,
    },
    section_h::checks,
};

#[test]
fn conformance_h97_services_are_added_trimmed_and_removed() {
    let internal =
        |ports: Value| service("internal", json!({"clusterIP": "10.0.0.1", "ports": ports}));
    let by_node = |ports: Value| {
        service(
            "by-node",
            json!({"type": "NodePort", "clusterIP": "10.0.0.2", "ports": ports}),
        )
    };
    let balancer = |name: &str, address: &str, ports: Value| {
        let spec = json!({"type": "LoadBalancer", "clusterIP": address, "ports": ports});
        with_ingress(
            service(name, spec),
            &[&address.replace("10.0.0", "192.0.2")],
        )
    };
    let mut local = balancer(
        "local",
        "10.0.0.4",
        json!([{"name": "x", "port": 8675}, {"name": "y", "port": 8676}]),
    );
    local["spec"]["externalTrafficPolicy"] = "Local".into();
    local["spec"]["healthCheckNodePort"] = 345.into();
    let all = [
        internal(json!([
            {"name": "a", "port": 1234, "protocol": "UDP"}, {"name": "b", "port": 1235, "protocol": "UDP"},
            {"name": "sctp", "port": 1236, "protocol": "SCTP"},
        ])),
        by_node(json!([
            {"name": "a", "port": 345, "nodePort": 30345, "protocol": "UDP"},
            {"name": "b", "port": 344, "nodePort": 30344},
            {"name": "sctp", "port": 343, "nodePort": 30343, "protocol": "SCTP"},
        ])),
        balancer(
            "global",
            "10.0.0.3",
            json!([{"name": "a", "port": 8675, "protocol": "UDP"}, {"name": "b", "port": 8676}]),
        ),
        local,
    ];
    let first = plan_of(&all, &node());
    assert_eq!(
        first.tables.services.len(),
        8,
        "SCTP is refused, the rest goes on"
    );
    assert_eq!(first.rejected.len(), 2, "{:?}", first.rejected);
    assert_eq!(checks(&first), [("local", (345, 0))].into());
    assert_eq!(
        frontend_names(&first.tables),
        [
            "0.0.0.0:30344/TCP",
            "0.0.0.0:30345/UDP",
            "10.0.0.1:1234/UDP",
            "10.0.0.1:1235/UDP",
            "10.0.0.2:344/TCP",
            "10.0.0.2:345/UDP",
            "10.0.0.3:8675/UDP",
            "10.0.0.3:8676/TCP",
            "10.0.0.4:8675/TCP",
            "10.0.0.4:8676/TCP",
            "192.0.2.3:8675/UDP",
            "192.0.2.3:8676/TCP",
            "192.0.2.4:8675/TCP",
            "192.0.2.4:8676/TCP",
        ]
    );

    // One is trimmed, two are removed; what stays keeps its ids.
    let trimmed = [
        all[0].clone(),
        by_node(json!([{"name": "b", "port": 344, "nodePort": 30344}])),
    ];
    let second = plan_after(&first.tables, &trimmed, &node());
    assert_eq!(checks(&second), [].into());
    for port in [
        "internal:a/UDP/IPv4",
        "internal:b/UDP/IPv4",
        "by-node:b/TCP/IPv4",
    ] {
        assert_eq!(
            record(&second.tables, port).map(|(id, _)| id),
            record(&first.tables, port).map(|(id, _)| id),
            "{port}"
        );
    }
    assert_eq!(second.tables.services.len(), 3);

    let third = plan_after(&second.tables, &[], &node());
    assert_eq!(
        third.tables.services.len() + third.tables.frontends.len(),
        0
    );
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table of cases")]
fn conformance_h105_a_mix_of_six_services() {
    let ports = |node_port: u16| json!([{"name": "p80", "port": 80, "nodePort": node_port}]);
    let affinity = |mut spec: Value| {
        spec["sessionAffinity"] = "ClientIP".into();
        spec["sessionAffinityConfig"] = json!({"clientIP": {"timeoutSeconds": 10800}});
        spec
    };
    let svc3 = json!({"type": "NodePort", "clusterIP": "172.30.0.43", "ports": ports(3003)});
    let svc4 = affinity(json!({
        "type": "NodePort", "clusterIP": "172.30.0.44", "ports": ports(3004),
        "externalIPs": ["192.168.99.33"],
    }));
    let svc5 = affinity(json!({
        "type": "LoadBalancer", "clusterIP": "172.30.0.45", "ports": ports(3002),
        "loadBalancerSourceRanges": [" 203.0.113.0/25"],
    }));
    let objects = [
        service(
            "svc1",
            json!({"clusterIP": "172.30.0.41", "ports": ports(0)}),
        ),
        with_ingress(
            service(
                "svc2",
                json!({
                    "type": "LoadBalancer", "clusterIP": "172.30.0.42", "ports": ports(3001),
                    "externalIPs": ["192.168.99.22"], "externalTrafficPolicy": "Local",
                    "healthCheckNodePort": 30000,
                }),
            ),
            &["1.2.3.4"],
        ),
        service("svc3", svc3),
        service("svc4", svc4),
        with_ingress(service("svc5", svc5), &["5.6.7.8"]),
        service(
            "svc6",
            json!({"clusterIP": "172.30.0.46", "ports": ports(0)}),
        ),
        slice("svc1_1", &["p80:80"], &["10.180.0.1"]),
        slice("svc2_1", &["p80:80"], &["10.180.0.2 on=other"]),
        slice("svc3_1", &["p80:80"], &["10.180.0.3"]),
        slice("svc4_1", &["p80:80"], &["10.180.0.4", "10.180.0.5"]),
        slice("svc5_1", &["p80:80"], &["10.180.0.3"]),
    ];
    assert_eq!(rejections(&objects, &node()), Vec::<String>::new());
    let plan = plan_of(&objects, &node());
    let expected = [
        ("0.0.0.0:3001/TCP", "svc2:p80/TCP/IPv4"),
        ("0.0.0.0:3002/TCP", "svc5:p80/TCP/IPv4"),
        ("0.0.0.0:3003/TCP", "svc3:p80/TCP/IPv4"),
        ("0.0.0.0:3004/TCP", "svc4:p80/TCP/IPv4"),
        ("1.2.3.4:80/TCP", "svc2:p80/TCP/IPv4"),
        ("172.30.0.41:80/TCP", "svc1:p80/TCP/IPv4"),
        ("172.30.0.42:80/TCP", "svc2:p80/TCP/IPv4"),
        ("172.30.0.43:80/TCP", "svc3:p80/TCP/IPv4"),
        ("172.30.0.44:80/TCP", "svc4:p80/TCP/IPv4"),
        ("172.30.0.45:80/TCP", "svc5:p80/TCP/IPv4"),
        ("172.30.0.46:80/TCP", "svc6:p80/TCP/IPv4"),
        ("192.168.99.22:80/TCP", "svc2:p80/TCP/IPv4"),
        ("192.168.99.33:80/TCP", "svc4:p80/TCP/IPv4"),
        ("5.6.7.8:80/TCP", "svc5:p80/TCP/IPv4"),
    ];
    let expected = expected.map(|(frontend, port)| (frontend.to_owned(), port.to_owned()));
    assert_eq!(frontends(&plan.tables), expected.into());
    for (port, cluster, local, flags, seconds, restricted) in [
        (
            "svc1",
            "10.180.0.1:80",
            "",
            service_flag::HAS_ENDPOINTS,
            0,
            false,
        ),
        (
            "svc2",
            "10.180.0.2:80",
            "",
            service_flag::HAS_ENDPOINTS | service_flag::EXTERNAL_LOCAL,
            0,
            false,
        ),
        (
            "svc3",
            "10.180.0.3:80",
            "",
            service_flag::HAS_ENDPOINTS,
            0,
            false,
        ),
        (
            "svc4",
            "10.180.0.4:80 10.180.0.5:80",
            "",
            service_flag::HAS_ENDPOINTS,
            10_800,
            false,
        ),
        (
            "svc5",
            "10.180.0.3:80",
            "",
            service_flag::HAS_ENDPOINTS,
            10_800,
            true,
        ),
        ("svc6", "", "", 0, 0, false),
    ] {
        let name = format!("{port}:p80/TCP/IPv4");
        let (_, found) = record(&plan.tables, &name).expect("served");
        let both = sets(&plan.tables, &name);
        assert_eq!(
            (both.cluster.as_str(), both.local.as_str()),
            (cluster, local),
            "{port}"
        );
        assert_eq!(found.flags, flags | service_flag::LIVE, "{port}");
        assert_eq!(found.affinity_seconds, seconds, "{port}");
        assert_eq!(found.source_ranges != 0, restricted, "{port}");
    }
    let ranges = plan.tables.source_ranges.iter();
    let ranges: Vec<_> = ranges.map(|(_, network)| network.to_string()).collect();
    assert_eq!(ranges, ["203.0.113.0/25"]);
    let restricted = plan.tables.frontends.iter();
    let restricted = restricted.filter(|(_, r)| r.flags & frontend_flag::SOURCE_RANGES != 0);
    let restricted: Vec<_> = restricted
        .map(|(frontend, _)| frontend.to_string())
        .collect();
    assert_eq!(restricted, ["1.2.3.4:80/TCP", "5.6.7.8:80/TCP"]);
    assert_eq!(checks(&plan), [("svc2", (30_000, 0))].into());
}
