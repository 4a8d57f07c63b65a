//! Section H: what is read from objects and what becomes of it.

use std::collections::BTreeMap;

use lb_common::service::source_class;
use lb_userspace::{
    node::NodeConfig,
    plan::{Plan, WithoutLocal},
};
use serde_json::{Value, json};

use super::fixture::{
    frontend_names, node, plan_after, plan_of, read, rejections, service, sets, slice,
    with_ingress, with_metadata,
};

/// A load-balancer Service under `externalTrafficPolicy: Local` with a health check.
fn local_balancer(name: &str, address: &str, port: u16) -> Value {
    let spec = json!({
        "type": "LoadBalancer", "clusterIP": address, "externalTrafficPolicy": "Local",
        "healthCheckNodePort": port, "ports": [{"name": "http", "port": 80}],
    });
    service(name, spec)
}

/// The health checks of a plan: port and count by Service.
pub(super) fn checks(plan: &Plan) -> BTreeMap<&str, (u16, usize)> {
    let checks = plan.health.iter();
    checks
        .map(|(name, check)| (&*name.name, (check.port, check.local_ready)))
        .collect()
}

#[test]
fn conformance_h91_terminating_endpoints_do_not_count_for_the_health_check() {
    let web = || local_balancer("web", "10.0.0.1", 32_000);
    let endpoints = |conditions: [&str; 4]| {
        let mut texts = Vec::new();
        for (i, conditions) in conditions.iter().enumerate() {
            texts.push(format!("10.1.0.{} on=edge-1{conditions}", i + 1));
        }
        let texts: Vec<_> = texts.iter().map(String::as_str).collect();
        slice("web_1", &["http:80"], &texts)
    };
    let plan = plan_of(&[web(), endpoints(["", "", "", " unready"])], &node());
    assert_eq!(checks(&plan), [("web", (32_000, 3))].into());

    let (serving, deaf) = (" unready terminating", " unready deaf terminating");
    let slices = endpoints([serving, serving, deaf, deaf]);
    let plan = plan_of(&[web(), slices], &node());
    assert_eq!(checks(&plan), [("web", (32_000, 0))].into());
    let local = sets(&plan.tables, "web:http/TCP/IPv4").local;
    assert_eq!(
        local, "10.1.0.1:80 10.1.0.2:80",
        "they are served all the same"
    );
}

#[test]
fn conformance_h95_addresses_are_put_into_canonical_form() {
    let spec = json!({
        "type": "LoadBalancer", "clusterIP": "172.30.0.041", "clusterIPs": ["172.30.0.041"],
        "externalIPs": ["192.168.099.022"], "ipFamilies": ["IPv4"],
        "loadBalancerSourceRanges": ["203.0.113.000/025", " 010.0.000.0/08\t"],
        "ports": [{"name": "http", "port": 80}],
    });
    let web = with_ingress(service("web", spec), &["192.0.2.004"]);
    let objects = [web, slice("web_1", &["http:80"], &["10.180.00.001"])];
    assert_eq!(rejections(&objects, &node()), Vec::<String>::new());
    let plan = plan_of(&objects, &node());
    assert_eq!(
        frontend_names(&plan.tables),
        [
            "172.30.0.41:80/TCP",
            "192.0.2.4:80/TCP",
            "192.168.99.22:80/TCP"
        ]
    );
    assert_eq!(
        sets(&plan.tables, "web:http/TCP/IPv4").cluster,
        "10.180.0.1:80"
    );
    let ranges = plan.tables.source_ranges.iter();
    let ranges: Vec<_> = ranges.map(|(_, network)| network.to_string()).collect();
    assert_eq!(ranges, ["10.0.0.0/8", "203.0.113.0/25"]);
}

#[test]
fn conformance_h96_service_networks_follow_their_objects() {
    let networks = |name: &str, cidrs: &[&str]| {
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
            "metadata": {"name": name}, "spec": {"cidrs": cidrs},
        })
    };
    let mut tables = lb_userspace::tables::TableSet::default();
    for (objects, expected) in [
        (vec![], &[][..]),
        (vec![networks("a", &["10.96.0.0/12"])], &["10.96.0.0/12"]),
        (
            vec![networks("a", &["10.96.0.0/12", "2001:db8:a::/108"])],
            &["10.96.0.0/12", "2001:db8:a::/108"],
        ),
        (
            vec![
                networks("a", &["10.96.0.0/12", "2001:db8:a::/108"]),
                networks("b", &["172.30.0.000/16", "10.96.0.0/12"]),
            ],
            &["10.96.0.0/12", "172.30.0.0/16", "2001:db8:a::/108"],
        ),
        (vec![networks("b", &["172.30.0.0/16"])], &["172.30.0.0/16"]),
    ] {
        tables = plan_after(&tables, &objects, &node()).tables;
        let classes = tables.source_classes.iter();
        let networks = classes.filter(|(_, class)| **class & source_class::SERVICE_NETWORK != 0);
        let networks: Vec<_> = networks.map(|(network, _)| network.to_string()).collect();
        assert_eq!(networks, expected);
    }
}

#[test]
fn conformance_h98_headless_services_get_nothing() {
    let label = "service.kubernetes.io/headless";
    let full = json!({
        "type": "LoadBalancer", "clusterIP": "10.0.0.1", "externalIPs": ["203.0.113.7"],
        "externalTrafficPolicy": "Local", "healthCheckNodePort": 32000,
        "ports": [{"name": "http", "port": 80, "nodePort": 30080}],
    });
    let headless = |spec: Value| with_ingress(service("web", spec), &["192.0.2.10"]);
    let mut none = full.clone();
    none["clusterIP"] = "None".into();
    let mut list = full.clone();
    list["clusterIPs"] = json!(["None"]);
    for (name, object) in [
        ("with ports", headless(none)),
        ("by its list", headless(list)),
        (
            "without ports",
            service("web", json!({"clusterIP": "None"})),
        ),
        (
            "by label",
            with_metadata(headless(full.clone()), "labels", label, ""),
        ),
        (
            "by label, any value",
            with_metadata(headless(full.clone()), "labels", label, "false"),
        ),
    ] {
        let objects = [object, slice("web_1", &["http:80"], &["10.1.0.1"])];
        let plan = plan_of(&objects, &node());
        assert_eq!(plan.tables.frontends.len(), 0, "{name}");
        assert_eq!(plan.tables.services.len(), 0, "{name}");
        assert_eq!(plan.health.len(), 0, "{name}");
        assert_eq!(
            rejections(&objects, &node()),
            Vec::<String>::new(),
            "{name}"
        );
    }
    // The label goes: everything is there.
    let plan = plan_of(&[headless(full)], &node());
    assert_eq!(plan.tables.frontends.len(), 4);
}

#[test]
fn conformance_h99_external_names_get_nothing() {
    let spec = json!({
        "type": "ExternalName", "externalName": "web.example", "clusterIP": "10.0.0.1",
        "ports": [{"name": "http", "port": 80, "nodePort": 30080}],
    });
    let objects = [with_ingress(service("web", spec), &["192.0.2.10"])];
    let plan = plan_of(&objects, &node());
    assert_eq!(plan.tables.services.len() + plan.tables.frontends.len(), 0);
    assert_eq!(rejections(&objects, &node()), Vec::<String>::new());
}

#[test]
fn conformance_h100_a_service_changes_its_type_and_back() {
    let internal = || {
        let ports = json!([
            {"name": "a", "port": 1234, "protocol": "UDP"}, {"name": "b", "port": 1235},
        ]);
        service(
            "web",
            json!({"type": "ClusterIP", "clusterIP": "10.0.0.1", "ports": ports}),
        )
    };
    let balanced = || {
        let ports = json!([
            {"name": "a", "port": 1234, "protocol": "UDP", "nodePort": 30234},
            {"name": "b", "port": 1235, "nodePort": 30235},
        ]);
        let spec = json!({
            "type": "LoadBalancer", "clusterIP": "10.0.0.1", "ports": ports,
            "externalTrafficPolicy": "Local", "healthCheckNodePort": 345,
        });
        with_ingress(service("web", spec), &["192.0.2.10"])
    };
    let cluster = ["10.0.0.1:1234/UDP", "10.0.0.1:1235/TCP"];
    let first = plan_of(&[internal()], &node());
    assert_eq!(frontend_names(&first.tables), cluster);
    assert_eq!(checks(&first), [].into());

    let second = plan_after(&first.tables, &[balanced()], &node());
    let expected = [
        &["0.0.0.0:30234/UDP", "0.0.0.0:30235/TCP"][..],
        &cluster,
        &["192.0.2.10:1234/UDP", "192.0.2.10:1235/TCP"],
    ];
    assert_eq!(frontend_names(&second.tables), expected.concat());
    assert_eq!(checks(&second), [("web", (345, 0))].into());

    let same = plan_after(&second.tables, &[balanced()], &node());
    assert_eq!(
        lb_userspace::diff::diff(&second.tables, &same.tables),
        vec![]
    );
    assert_eq!(checks(&same), checks(&second));

    let back = plan_after(&same.tables, &[internal()], &node());
    let mut tables = back.tables.clone();
    for record in tables.services.values_mut() {
        assert_eq!(record.epoch, 2, "flows of the lost frontends look anew");
        record.epoch = 1;
    }
    assert_eq!(tables, first.tables);
    assert_eq!(checks(&back), [].into());
}

#[test]
fn conformance_h102_local_policies_without_local_endpoints_are_counted() {
    let (here, elsewhere) = (&["10.1.0.1 on=edge-1"][..], &["10.1.0.1 on=other"][..]);
    for (name, policies, endpoints, internal, external) in [
        ("internal, some here", &["internal"][..], here, 0, 0),
        ("external, some here", &["external"], here, 0, 0),
        ("both, some here", &["internal", "external"], here, 0, 0),
        ("internal, none here", &["internal"], elsewhere, 1, 0),
        ("external, none here", &["external"], elsewhere, 0, 1),
        (
            "both, none here",
            &["internal", "external"],
            elsewhere,
            1,
            1,
        ),
        ("both, none at all", &["internal", "external"], &[], 0, 0),
    ] {
        let mut spec = json!({
            "type": "NodePort", "clusterIP": "10.0.0.1",
            "ports": [{"name": "http", "port": 80, "nodePort": 30080}],
        });
        for policy in policies {
            spec[format!("{policy}TrafficPolicy")] = "Local".into();
        }
        let objects = [
            service("web", spec),
            slice("web_1", &["http:80"], endpoints),
        ];
        let plan = plan_of(&objects, &node());
        let expected = WithoutLocal { internal, external };
        assert_eq!(plan.without_local, expected, "{name}");
    }
}

/// A label of another proxy, of no row of its own but of the same selectors.
#[test]
fn another_proxys_objects_are_left_out() {
    let label = "service.kubernetes.io/service-proxy-name";
    let web = || {
        service(
            "web",
            json!({"clusterIP": "10.0.0.1", "ports": [{"port": 80}]}),
        )
    };
    let ours = plan_of(&[web()], &NodeConfig::default());
    assert_eq!(ours.tables.services.len(), 1);
    let (snapshot, said) = read(&[
        with_metadata(web(), "labels", label, "other"),
        with_metadata(slice("web_1", &[":80"], &["10.1.0.1"]), "labels", label, ""),
    ]);
    assert_eq!((snapshot.services.len(), snapshot.slices.len()), (0, 0));
    assert_eq!(said, Vec::<String>::new());
}
