use std::{net::SocketAddr, sync::Arc};

use lb_common::service::{address_role, service_flag};

use super::{fixture::*, *};
use crate::{
    config::TableSizes,
    dataplane::model::violations,
    snapshot::{ObjectName, ServiceKind, ServiceObject, TrafficPolicy},
    tables::{FrontendId, Protocol},
};

fn plan_of(snapshot: &Snapshot, node: &NodeConfig) -> Plan {
    plan_after(&TableSet::default(), snapshot, node)
}

fn plan_after(previous: &TableSet, snapshot: &Snapshot, node: &NodeConfig) -> Plan {
    let plan = plan(previous, snapshot, node, &Quarantine::default());
    assert_eq!(violations(&plan.tables), Vec::<String>::new());
    plan
}

fn rejections(plan: &Plan) -> Vec<String> {
    plan.rejected.iter().map(ToString::to_string).collect()
}

/// Frontends and the endpoints behind their policy's set.
fn frontends(plan: &Plan) -> Vec<String> {
    let text = |(frontend, record): (&FrontendId, &crate::tables::FrontendRecord)| {
        let service = &plan.tables.services[&record.service];
        let local = service.flags & service_flag::EXTERNAL_LOCAL != 0;
        let selection = if local {
            service.local
        } else {
            service.cluster
        };
        format!(
            "{frontend} {}",
            endpoints(&plan.tables, selection).join(",")
        )
    };
    plan.tables.frontends.iter().map(text).collect()
}

fn web() -> ServiceObject {
    service("web", &["192.0.2.10"], &["80"])
}

fn web_slice() -> crate::snapshot::SliceObject {
    slice("web_1", &["8080"], &["10.1.0.1", "10.1.0.2"])
}

mod claims;
mod room;
mod stay;

#[test]
fn a_whole_plan_as_text() {
    let mut web = service(
        "web",
        &["192.0.2.10", "2001:db8::10"],
        &["http:80@30080", "dns:53/UDP"],
    );
    web.cluster_ips = fields(&["10.0.0.1"], |i| format!("spec.clusterIPs[{i}]"));
    web.external_ips = fields(&["203.0.113.7", "198.51.100.1"], |i| {
        format!("spec.externalIPs[{i}]")
    });
    let mut db = service("db", &["192.0.2.20"], &["5432"]);
    db.external_policy = TrafficPolicy::Local;
    let slices = [
        slice(
            "web_4",
            &["http:8080", "dns:5353/UDP"],
            &["10.1.0.1", "10.1.0.2 on=edge-1"],
        ),
        slice(
            "web_6",
            &["http:8080"],
            &["2001:db8:9::1", "2001:db8:9::2 unready terminating"],
        ),
        slice("db_1", &["5432"], &["198.51.100.1 on=edge-1", "10.1.0.3"]),
    ];
    let node = NodeConfig {
        snat_addresses: [ip("198.51.100.9")].into(),
        ..node_with_node_ports()
    };
    let plan = plan_of(&snapshot([web, db], slices), &node);
    assert_eq!(rejections(&plan), Vec::<String>::new());
    insta::assert_snapshot!(text(&plan.tables));
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table of cases")]
fn which_addresses_become_frontends() {
    let external = |s: ServiceObject| ServiceObject {
        external_ips: fields(&["203.0.113.7"], |i| format!("spec.externalIPs[{i}]")),
        ..s
    };
    let cluster_ip = |s: ServiceObject| ServiceObject {
        cluster_ips: fields(&["10.0.0.1"], |i| format!("spec.clusterIPs[{i}]")),
        ..s
    };
    let with_node_port = || service("web", &["192.0.2.10"], &["80@30080"]);
    let of_kind = |kind, s: ServiceObject| ServiceObject { kind, ..s };
    let off = NodeConfig {
        external_ips: false,
        ..node()
    };
    for (name, object, node, expected, rejected) in [
        (
            "load-balancer address",
            web(),
            node(),
            vec!["192.0.2.10:80/TCP"],
            None,
        ),
        (
            "external and cluster addresses",
            cluster_ip(external(web())),
            node(),
            vec!["10.0.0.1:80/TCP", "192.0.2.10:80/TCP", "203.0.113.7:80/TCP"],
            None,
        ),
        (
            "external addresses switched off",
            external(web()),
            off,
            vec!["192.0.2.10:80/TCP"],
            Some("spec.externalIPs: are not served: externalIPs is off"),
        ),
        (
            "node port",
            with_node_port(),
            node_with_node_ports(),
            vec!["0.0.0.0:30080/TCP", "192.0.2.10:80/TCP"],
            None,
        ),
        (
            "node port, but none is accepted",
            with_node_port(),
            node(),
            vec!["192.0.2.10:80/TCP"],
            None,
        ),
        (
            "a node-port Service has no load-balancer address",
            of_kind(ServiceKind::NodePort, with_node_port()),
            node_with_node_ports(),
            vec!["0.0.0.0:30080/TCP"],
            Some("status.loadBalancer.ingress: is not served: spec.type is not LoadBalancer"),
        ),
        (
            "a ClusterIP Service has no node port",
            of_kind(ServiceKind::ClusterIp, cluster_ip(with_node_port())),
            node_with_node_ports(),
            vec!["10.0.0.1:80/TCP"],
            Some("status.loadBalancer.ingress: is not served"),
        ),
        (
            "no address at all",
            ServiceObject {
                ingress_ips: vec![],
                ..web()
            },
            node(),
            vec![],
            Some("status.loadBalancer.ingress: has no address we serve"),
        ),
        (
            "SCTP is refused honestly",
            service("web", &["192.0.2.10"], &["a:80", "b:81/SCTP"]),
            node(),
            vec!["192.0.2.10:80/TCP"],
            Some("spec.ports[1].protocol: SCTP is not balanced"),
        ),
        (
            "two ports of one number",
            service("web", &["192.0.2.10"], &["a:80", "b:80", "c:80/UDP"]),
            node(),
            vec!["192.0.2.10:80/TCP", "192.0.2.10:80/UDP"],
            Some("spec.ports[1].port: port 80/TCP is that of spec.ports[0], which keeps it"),
        ),
        (
            "a name that is another port's number",
            service("web", &["192.0.2.10"], &["80", "80:81"]),
            node(),
            vec!["192.0.2.10:80/TCP"],
            Some("spec.ports[1].name: name `80` of TCP is that of spec.ports[0], which keeps it"),
        ),
        (
            "two node ports of one number",
            service("web", &["192.0.2.10"], &["a:80@30080", "b:81@30080"]),
            node_with_node_ports(),
            vec!["0.0.0.0:30080/TCP", "192.0.2.10:80/TCP"],
            Some("spec.ports[1].nodePort: node port 30080/TCP is that of spec.ports[0]"),
        ),
    ] {
        let plan = plan_of(&snapshot([object], [web_slice()]), &node);
        let found: Vec<_> = plan
            .tables
            .frontends
            .keys()
            .map(ToString::to_string)
            .collect();
        assert_eq!(found, expected, "{name}");
        let rejections = rejections(&plan);
        let expected = rejected.map(|r| format!("Service default/web: {r}"));
        assert_eq!(
            rejections.len(),
            expected.iter().len(),
            "{name}: {rejections:?}"
        );
        let matches = rejections
            .iter()
            .zip(&expected)
            .all(|(found, e)| found.starts_with(e));
        assert!(matches, "{name}: {rejections:?}");
    }
}

#[test]
fn an_address_of_the_node_is_never_a_vip() {
    let object = service(
        "web",
        &["198.51.100.1", "192.0.2.10", "198.51.100.9"],
        &["80"],
    );
    let node = NodeConfig {
        snat_addresses: [ip("198.51.100.9")].into(),
        ..node()
    };
    let plan = plan_of(&snapshot([object], [web_slice()]), &node);
    assert_eq!(plan.tables.frontends.len(), 3);
    let roles: Vec<_> = plan
        .tables
        .addresses
        .iter()
        .map(|(a, r)| (a.to_string(), *r))
        .collect();
    let expected = [
        ("192.0.2.10", address_role::VIP),
        ("198.51.100.9", address_role::SNAT),
    ];
    assert_eq!(roles, expected.map(|(a, r)| (a.to_owned(), r)));
}

#[test]
fn policy_and_gateway_decide_set_and_source() {
    const ANY: u32 = service_flag::LIVE | service_flag::HAS_ENDPOINTS;
    let keep = |s: ServiceObject| ServiceObject {
        annotations: [("sluice.dev/keep-source".to_owned(), "true".to_owned())].into(),
        ..s
    };
    let local = || ServiceObject {
        external_policy: TrafficPolicy::Local,
        ..web()
    };
    let gateway = || NodeConfig {
        gateway: true,
        ..node()
    };
    for (name, object, node, flags, behind) in [
        ("cluster", web(), node(), ANY, "10.1.0.1:80,10.1.0.2:80"),
        (
            "local",
            local(),
            node(),
            ANY | service_flag::EXTERNAL_LOCAL,
            "10.1.0.2:80",
        ),
        (
            "gateway, cluster",
            web(),
            gateway(),
            ANY,
            "10.1.0.1:80,10.1.0.2:80",
        ),
        (
            "gateway, local",
            local(),
            gateway(),
            ANY | service_flag::KEEP_SOURCE,
            "10.1.0.1:80,10.1.0.2:80",
        ),
        (
            "gateway, asked for",
            keep(web()),
            gateway(),
            ANY | service_flag::KEEP_SOURCE,
            "10.1.0.1:80,10.1.0.2:80",
        ),
        (
            "asked for in vain",
            keep(web()),
            node(),
            ANY,
            "10.1.0.1:80,10.1.0.2:80",
        ),
        (
            "internal, local",
            ServiceObject {
                internal_policy: TrafficPolicy::Local,
                ..web()
            },
            node(),
            ANY | service_flag::INTERNAL_LOCAL,
            "10.1.0.1:80,10.1.0.2:80",
        ),
    ] {
        let slices = [slice("web_1", &["80"], &["10.1.0.1", "10.1.0.2 on=edge-1"])];
        let plan = plan_of(&snapshot([object], slices), &node);
        assert_eq!(plan.tables.services[&1].flags, flags, "{name}");
        assert_eq!(
            frontends(&plan),
            [format!("192.0.2.10:80/TCP {behind}")],
            "{name}"
        );
        let keeps = flags & service_flag::KEEP_SOURCE != 0;
        assert_eq!(
            plan.tables.gateway_endpoints.len(),
            if keeps { 2 } else { 0 },
            "{name}"
        );
        assert_eq!(
            plan.rejected.len(),
            usize::from(name == "asked for in vain"),
            "{name}"
        );
    }
}

#[test]
fn without_endpoints_a_frontend_still_answers() {
    let plan = plan_of(&snapshot([web()], []), &node());
    let record = &plan.tables.services[&1];
    assert_eq!(
        (record.cluster.length, record.flags),
        (0, service_flag::LIVE)
    );
    assert_eq!(frontends(&plan), ["192.0.2.10:80/TCP "]);
}
