use lb_common::service::frontend_flag;

use super::*;
use crate::{
    config::TableSizes,
    dataplane::model::write as apply,
    diff::diff,
    plan::{
        Plan, Quarantine,
        fixture::{fields, ip, node, op_text, service, slice, snapshot},
        plan,
    },
};

const VIPS: [&str; 2] = ["192.0.2.10", "2001:db8::10"];

fn restricted(name: &str, vips: &[&str], ranges: &[&str]) -> ServiceObject {
    ServiceObject {
        restricts_sources: true,
        source_ranges: ranges
            .iter()
            .map(|text| text.parse().expect("a network"))
            .collect(),
        ..service(name, vips, &["80", "x:81"])
    }
}

fn primary() -> NodeConfig {
    NodeConfig {
        primary: vec![ip("198.51.100.1"), ip("2001:db8:1::1")],
        ..node()
    }
}

fn plan_after(previous: &TableSet, services: &[ServiceObject], node: &NodeConfig) -> Plan {
    let slices = services
        .iter()
        .map(|s| slice(&format!("{}_1", s.name.name), &["80"], &["10.1.0.1"]));
    let snapshot = snapshot(services.iter().cloned(), slices);
    plan(previous, &snapshot, node, &Quarantine::default())
}

/// Each service port with its set.
fn sets(tables: &TableSet) -> Vec<String> {
    let text = |service: &crate::tables::ServiceRecord| {
        let networks = tables.source_ranges.iter();
        let networks = networks.filter(|(set, _)| *set == service.source_ranges);
        let networks = networks.map(|(_, network)| format!(" {network}"));
        let networks: String = networks.collect();
        format!("{} {}{networks}", service.name, service.source_ranges)
    };
    tables.services.values().map(text).collect()
}

#[test]
fn every_family_of_a_restricted_service_has_its_own_ranges() {
    for (name, ranges, v4, v6, notices) in [
        (
            "both families",
            &["203.0.113.0/24", "10.0.0.0/8", "2001:db8:f::/48"][..],
            " 10.0.0.0/8 203.0.113.0/24",
            " 2001:db8:f::/48",
            0,
        ),
        (
            "one family: the other is closed",
            &["203.0.113.0/24"],
            " 203.0.113.0/24",
            "",
            1,
        ),
        (
            "all of IPv6 is nothing of IPv4",
            &["::/0"],
            "",
            " 2001:db8::10/128 ::/0",
            1,
        ),
        ("no readable range: nobody", &[], "", "", 2),
        (
            "the node's primary address brings the Service's own",
            &["198.51.100.0/24"],
            " 192.0.2.10/32 198.51.100.0/24",
            "",
            1,
        ),
    ] {
        let plan = plan_after(
            &TableSet::default(),
            &[restricted("web", &VIPS, ranges)],
            &primary(),
        );
        for text in sets(&plan.tables) {
            let (port, set) = text.split_once(' ').expect("a name and a set");
            let expected = if port.ends_with("IPv4") { v4 } else { v6 };
            let networks = set.trim_start_matches(|c: char| c.is_ascii_digit());
            let mut networks: Vec<_> = networks.split(' ').collect();
            networks.sort_unstable();
            let mut expected: Vec<_> = expected.split(' ').collect();
            expected.sort_unstable();
            assert_eq!(networks, expected, "{name}: {port}");
            assert!(!set.starts_with('0'), "{name}: {port} is not restricted");
        }
        assert_eq!(plan.tables.services.len(), 4, "{name}");
        assert_eq!(plan.rejected.len(), notices, "{name}: {:?}", plan.rejected);
    }
}

#[test]
fn only_load_balancer_addresses_are_restricted() {
    let cluster_ip = ServiceObject {
        kind: ServiceKind::ClusterIp,
        cluster_ips: fields(&["10.0.0.1"], |i| format!("spec.clusterIPs[{i}]")),
        ..restricted("internal", &["192.0.2.20"], &["203.0.113.0/24"])
    };
    let mut web = restricted("web", &["192.0.2.10"], &["203.0.113.0/24"]);
    web.external_ips = fields(&["203.0.113.7"], |i| format!("spec.externalIPs[{i}]"));
    let plan = plan_after(&TableSet::default(), &[cluster_ip, web], &node());
    for (frontend, record) in &plan.tables.frontends {
        let is_restricted = record.flags & frontend_flag::SOURCE_RANGES != 0;
        assert_eq!(is_restricted, frontend.address == ip("192.0.2.10"));
        let set = plan.tables.services[&record.service].source_ranges;
        assert_eq!(set != 0, frontend.address != ip("10.0.0.1"), "{frontend}");
    }
}

#[test]
fn equal_lists_share_a_set_and_keep_its_id() {
    let all = |c: &[&str]| {
        [
            restricted("a", &["192.0.2.1"], &["203.0.113.0/24", "10.0.0.0/8"]),
            restricted("b", &["192.0.2.2"], &["10.0.0.0/8", "203.0.113.0/24"]),
            restricted("c", &["192.0.2.3"], c),
        ]
    };
    let ids = |plan: &Plan| -> BTreeMap<String, u32> {
        let services = plan.tables.services.values();
        let id = |s: &crate::tables::ServiceRecord| (s.name[8..9].to_owned(), s.source_ranges);
        services.map(id).collect()
    };
    let first = plan_after(&TableSet::default(), &all(&["10.0.0.0/8"]), &node());
    let expected = |ids: [u32; 3]| ["a", "b", "c"].map(str::to_owned).into_iter().zip(ids);
    assert_eq!(ids(&first), expected([1, 1, 2]).collect());
    let other = plan_after(&first.tables, &all(&["10.0.0.0/9"]), &node());
    assert_eq!(ids(&other), expected([1, 1, 3]).collect());
    let back = plan_after(&other.tables, &all(&["10.0.0.0/8"]), &node());
    assert_eq!(
        ids(&back),
        expected([1, 1, 2]).collect(),
        "2 was free again"
    );
    let same = plan_after(
        &back.tables,
        &all(&["203.0.113.0/24", "10.0.0.0/8"]),
        &node(),
    );
    assert_eq!(ids(&same), expected([1, 1, 1]).collect());
}

#[test]
fn a_set_is_whole_before_it_is_named_and_named_no_more_before_it_goes() {
    let plan_for = |previous: &TableSet, ranges: &[&str]| {
        let mut web = restricted("web", &["192.0.2.10"], ranges);
        web.ports.truncate(1);
        plan_after(previous, &[web], &node()).tables
    };
    let before = plan_for(&TableSet::default(), &["10.0.0.0/8", "10.1.0.0/16"]);
    let after = plan_for(&before, &["10.1.0.0/16", "203.0.113.0/24"]);
    let ops: Vec<_> = diff(&before, &after).iter().map(op_text).collect();
    let kinds: Vec<_> = ops
        .iter()
        .map(|op| op.split(" default").next().unwrap_or_default())
        .collect();
    assert_eq!(
        kinds,
        [
            "set source range 2 10.1.0.0/16",
            "set source range 2 203.0.113.0/24",
            "set service 1",
            "remove source range 1 10.0.0.0/8",
            "remove source range 1 10.1.0.0/16",
        ]
    );
}

#[test]
fn a_set_without_room_beside_the_old_ones_admits_nobody_until_they_are_gone() {
    let node = NodeConfig {
        sizes: TableSizes {
            source_ranges: 3,
            ..TableSizes::default()
        },
        ..node()
    };
    let plan_for = |previous: &TableSet, ranges: &[&str]| {
        let mut web = restricted("web", &["192.0.2.10"], ranges);
        web.ports.truncate(1);
        plan_after(previous, &[web], &node)
    };
    let first = plan_for(&TableSet::default(), &["10.0.0.0/8", "203.0.113.0/24"]).tables;
    let waiting = plan_for(&first, &["10.0.0.0/9", "203.0.113.0/24"]);
    assert_eq!(sets(&waiting.tables), ["default/web:80/TCP/IPv4 2"]);
    assert_eq!(waiting.deferred, ["default/web:80/TCP/IPv4"]);
    let mut tables = first;
    for op in diff(&tables.clone(), &waiting.tables) {
        apply(&mut tables, &op);
        assert!(tables.source_ranges.len() <= 3);
    }
    let settled = plan_for(&tables, &["10.0.0.0/9", "203.0.113.0/24"]);
    assert_eq!(settled.deferred, Vec::<String>::new());
    assert_eq!(
        sets(&settled.tables),
        ["default/web:80/TCP/IPv4 1 10.0.0.0/9 203.0.113.0/24"]
    );
}

#[test]
fn half_a_set_found_in_the_kernel_is_not_taken_for_the_whole() {
    let web = || {
        [restricted(
            "web",
            &["192.0.2.10"],
            &["10.0.0.0/8", "203.0.113.0/24"],
        )]
    };
    let mut found = plan_after(&TableSet::default(), &web(), &node()).tables;
    found.source_ranges.pop_first();
    let next = plan_after(&found, &web(), &node()).tables;
    assert_eq!(
        sets(&next)[0],
        "default/web:80/TCP/IPv4 2 10.0.0.0/8 203.0.113.0/24"
    );
}
