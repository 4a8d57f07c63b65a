use super::*;
use crate::{
    config::TableSizes,
    plan::{
        Plan, Quarantine,
        fixture::{fields, node, node_with_node_ports, service, slice, snapshot},
        plan,
    },
};

fn local(name: &str, vips: &[&str]) -> ServiceObject {
    ServiceObject {
        external_policy: TrafficPolicy::Local,
        ..service(name, vips, &["http:80", "dns:53/UDP"])
    }
}

fn web() -> ServiceObject {
    local("web", &["192.0.2.10"])
}

fn plan_of(
    services: impl IntoIterator<Item = ServiceObject>,
    slices: impl IntoIterator<Item = SliceObject>,
    node: &NodeConfig,
) -> Plan {
    let snapshot = snapshot(services, slices);
    plan(
        &TableSet::default(),
        &snapshot,
        node,
        &Quarantine::default(),
    )
}

/// Port and count of each check.
fn checks(plan: &Plan) -> Vec<(String, u16, usize)> {
    let text = |(name, check): (&ObjectName, &HealthCheck)| {
        (name.name.to_string(), check.port, check.local_ready)
    };
    plan.health.iter().map(text).collect()
}

#[test]
fn addresses_are_counted_that_take_new_flows_here() {
    let gateway = NodeConfig {
        gateway: true,
        ..node()
    };
    let http = &["http:8080"][..];
    for (name, slices, node, expected) in [
        ("no slice", vec![], node(), 0),
        (
            "two of this node, one elsewhere, one nowhere",
            vec![slice(
                "web_1",
                http,
                &[
                    "10.1.0.1 on=edge-1",
                    "10.1.0.2 on=edge-1",
                    "10.1.0.3 on=other",
                    "10.1.0.4",
                ],
            )],
            node(),
            2,
        ),
        (
            "terminating ones want no more traffic, although they serve",
            vec![slice(
                "web_1",
                http,
                &[
                    "10.1.0.1 on=edge-1 unready terminating",
                    "10.1.0.2 on=edge-1 unready",
                ],
            )],
            node(),
            0,
        ),
        (
            "an address counts once, whatever its ports and slices",
            vec![
                slice(
                    "web_1",
                    &["http:8080", "dns:53/UDP"],
                    &["10.1.0.1 on=edge-1"],
                ),
                slice("web_2", http, &["10.1.0.1 on=edge-1", "10.1.0.2 on=edge-1"]),
            ],
            node(),
            2,
        ),
        (
            "of two copies the better one",
            vec![
                slice("web_1", http, &["10.1.0.1 unready deaf on=edge-1"]),
                slice("web_2", http, &["10.1.0.1"]),
            ],
            node(),
            1,
        ),
        (
            "slices without a port",
            vec![slice("web_1", &[], &["10.1.0.1 on=edge-1"])],
            node(),
            0,
        ),
        (
            "the other family",
            vec![slice("web_1", http, &["2001:db8:9::1 on=edge-1"])],
            node(),
            0,
        ),
        (
            "a gateway serves them all",
            vec![slice(
                "web_1",
                http,
                &[
                    "10.1.0.1 on=other",
                    "10.1.0.2 on=edge-1",
                    "10.1.0.3 on=other unready",
                ],
            )],
            gateway,
            2,
        ),
    ] {
        let plan = plan_of([web()], slices, &node);
        let expected = vec![("web".to_owned(), 32_000, expected)];
        assert_eq!(checks(&plan), expected, "{name}");
    }
}

#[test]
fn only_local_load_balancer_services_are_checked() {
    let of_kind = |kind| ServiceObject { kind, ..web() };
    for (name, object, checked, rejected) in [
        ("load balancer", web(), true, false),
        (
            "without an address yet",
            ServiceObject {
                ingress_ips: vec![],
                cluster_ips: fields(&["10.0.0.1"], |i| format!("spec.clusterIPs[{i}]")),
                ..web()
            },
            true,
            false,
        ),
        (
            "policy Cluster",
            ServiceObject {
                external_policy: TrafficPolicy::Cluster,
                ..web()
            },
            false,
            false,
        ),
        (
            "number 0",
            ServiceObject {
                health_check_node_port: 0,
                ..web()
            },
            false,
            true,
        ),
        ("node port", of_kind(ServiceKind::NodePort), false, true),
        (
            "cluster address",
            of_kind(ServiceKind::ClusterIp),
            false,
            true,
        ),
    ] {
        let slices = [slice("web_1", &["http:80"], &["10.1.0.1 on=edge-1"])];
        let plan = plan_of([object], slices, &node_with_node_ports());
        assert_eq!(plan.health.len(), usize::from(checked), "{name}");
        assert_eq!(
            !plan.rejected.is_empty(),
            rejected,
            "{name}: {:?}",
            plan.rejected
        );
    }
}

#[test]
fn a_service_without_room_has_nothing_here() {
    let node = NodeConfig {
        sizes: TableSizes {
            frontends: 2,
            ..TableSizes::default()
        },
        ..node()
    };
    let slices = ["a_1", "b_1"].map(|name| slice(name, &["http:80"], &["10.1.0.1 on=edge-1"]));
    let services = [local("a", &["192.0.2.1"]), local("b", &["192.0.2.2"])];
    let plan = plan_of(services, slices, &node);
    let expected = [("a", 1), ("b", 0)].map(|(name, count)| (name.to_owned(), 32_000, count));
    assert_eq!(checks(&plan), expected);
}

#[test]
fn service_ports_without_local_endpoints_are_counted() {
    let both = || ServiceObject {
        internal_policy: TrafficPolicy::Local,
        ..web()
    };
    for (name, object, endpoints, internal, external) in [
        ("no endpoint at all", both(), &[][..], 0, 0),
        (
            "elsewhere, both policies",
            both(),
            &["10.1.0.1 on=other"],
            1,
            1,
        ),
        (
            "elsewhere, external policy",
            web(),
            &["10.1.0.1 on=other"],
            0,
            1,
        ),
        ("here", both(), &["10.1.0.1 on=edge-1"], 0, 0),
        (
            "draining here",
            both(),
            &["10.1.0.1 on=edge-1 unready terminating"],
            0,
            0,
        ),
        (
            "unusable elsewhere",
            both(),
            &["10.1.0.1 on=other unready"],
            0,
            0,
        ),
        (
            "policy Cluster",
            service("web", &["192.0.2.10"], &["http:80"]),
            &["10.1.0.1 on=other"],
            0,
            0,
        ),
    ] {
        let slices = [slice("web_1", &["http:80"], endpoints)];
        let plan = plan_of([object], slices, &node());
        let expected = WithoutLocal { internal, external };
        assert_eq!(plan.without_local, expected, "{name}");
    }
}
