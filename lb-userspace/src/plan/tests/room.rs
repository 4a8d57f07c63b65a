//! Limits, and the size a plan must cope with.

use super::*;

#[test]
fn the_newest_service_finds_no_room() {
    let sizes = TableSizes::default();
    let object = |name: &str, vip: &str, created: i64| ServiceObject {
        created: Some(created),
        ..service(name, &[vip], &["80"])
    };
    let slices = || {
        ["a_1", "b_1", "c_1"]
            .iter()
            .zip(["10.1.0.1", "10.1.0.2", "10.1.0.3"])
            .map(|(name, e)| slice(name, &["80"], &[e]))
    };
    for (what, sizes) in [
        (
            "frontends (tables.frontends",
            TableSizes {
                frontends: 2,
                ..sizes.clone()
            },
        ),
        (
            "service ports (tables.services",
            TableSizes {
                services: 3,
                ..sizes.clone()
            },
        ),
        (
            "backends (tables.backends",
            TableSizes {
                backends: 3,
                ..sizes.clone()
            },
        ),
        (
            "members (tables.members",
            TableSizes {
                members: 2,
                ..sizes.clone()
            },
        ),
        (
            "addresses (tables.addresses",
            TableSizes {
                addresses: 2,
                ..sizes.clone()
            },
        ),
        (
            "gateway endpoints (tables.gatewayEndpoints",
            TableSizes {
                gateway_endpoints: 2,
                ..sizes.clone()
            },
        ),
        (
            "source ranges (tables.sourceRanges",
            TableSizes {
                source_ranges: 2,
                ..sizes.clone()
            },
        ),
        ("", TableSizes { slots: 32, ..sizes }),
    ] {
        let services = [
            ("a", "192.0.2.1", 30),
            ("b", "192.0.2.2", 10),
            ("c", "192.0.2.3", 20),
        ];
        let services = services.map(|(name, vip, created)| ServiceObject {
            external_policy: TrafficPolicy::Local,
            restricts_sources: true,
            source_ranges: vec![format!("{vip}/32").parse().expect("a network")],
            ..object(name, vip, created)
        });
        let node = NodeConfig {
            gateway: true,
            sizes,
            ..node()
        };
        let plan = plan_of(&snapshot(services, slices()), &node);
        assert_eq!(plan.tables.frontends.len(), 2, "{what}");
        let rejections = rejections(&plan);
        assert_eq!(rejections.len(), 1, "{what}: {rejections:?}");
        assert!(
            rejections[0].starts_with("Service default/a: "),
            "{what}: {rejections:?}"
        );
        if let Some((table, key)) = what.split_once(" (") {
            let full = format!("is not served: the table of {table} is full ({key}");
            assert!(rejections[0].contains(&full), "{what}: {rejections:?}");
        }
        assert_eq!(plan.deferred, Vec::<String>::new(), "{what}");
    }
}

#[test]
fn a_change_without_room_beside_the_old_set_waits_for_it() {
    // Room for two tables: one for each, none for the change of both.
    let node = NodeConfig {
        sizes: TableSizes {
            slots: 48,
            ..TableSizes::default()
        },
        ..node()
    };
    let services = || {
        [
            service("a", &["192.0.2.1"], &["80"]),
            service("b", &["192.0.2.2"], &["80"]),
        ]
    };
    let at = |a: &str, b: &str| {
        snapshot(
            services(),
            [slice("a_1", &["80"], &[a]), slice("b_1", &["80"], &[b])],
        )
    };
    let mut tables = plan_after(&TableSet::default(), &at("10.1.0.1", "10.1.0.2"), &node).tables;
    let wanted = at("10.1.0.3", "10.1.0.4");
    let step = plan_after(&tables, &wanted, &node);
    assert_eq!(step.deferred, ["default/b:80/TCP/IPv4"]);
    assert_eq!(
        frontends(&step),
        [
            "192.0.2.1:80/TCP 10.1.0.3:80",
            "192.0.2.2:80/TCP 10.1.0.2:80"
        ]
    );
    tables = step.tables;
    let step = plan_after(&tables, &wanted, &node);
    assert_eq!((step.deferred.len(), step.rejected.len()), (0, 0));
    assert_eq!(
        frontends(&step),
        [
            "192.0.2.1:80/TCP 10.1.0.3:80",
            "192.0.2.2:80/TCP 10.1.0.4:80"
        ]
    );
}

#[test]
fn an_endless_name_is_refused() {
    let mut object = web();
    object.name = ObjectName::new("n".repeat(100), "w".repeat(100));
    let plan = plan_of(&snapshot([object], []), &node());
    assert!(plan.tables.services.is_empty());
    assert!(rejections(&plan)[0].contains("is longer than 192 bytes"));
}

/// 10,000 Services of 5 endpoints, from nothing and again after one change.
#[test]
#[ignore = "a measurement; run with --release --ignored --nocapture"]
#[expect(clippy::disallowed_methods, reason = "a measurement")]
fn ten_thousand_services() {
    let object = |i: u32| {
        let vip = std::net::Ipv4Addr::from(0x0a80_0000 + i).to_string();
        service(&format!("s{i}"), &[&vip], &["http:80"])
    };
    let endpoints = |i: u32, generation: u32| {
        let address = |n: u32| std::net::Ipv4Addr::from(0x0a00_0000 + n).to_string();
        let list: Vec<_> = (0..5)
            .map(|n| address(i * 5 + n + 1 + generation * 100_000))
            .collect();
        let list: Vec<_> = list.iter().map(String::as_str).collect();
        slice(&format!("s{i}_1"), &["http:8080"], &list)
    };
    let mut input = snapshot(
        (0..10_000).map(object),
        (0..10_000).map(|i| endpoints(i, 0)),
    );
    let sizes = TableSizes {
        slots: 1 << 20,
        ..TableSizes::default()
    };
    let node = NodeConfig { sizes, ..node() };
    let mut planner = Planner::default();
    let mut previous = TableSet::default();
    for round in 0..3 {
        if round > 0 {
            let changed = endpoints(5_000, round);
            input.slices.insert(changed.name.clone(), Arc::new(changed));
        }
        let start = std::time::Instant::now();
        let plan = planner.plan(&previous, &input, &node, &Quarantine::default());
        let planning = start.elapsed();
        let start = std::time::Instant::now();
        let ops = crate::diff::diff(&previous, &plan.tables).len();
        let diffing = start.elapsed();
        println!("round {round}: plan {planning:?}, diff {diffing:?}, {ops} operations");
        assert_eq!((plan.rejected.len(), plan.deferred.len()), (0, 0));
        assert_eq!(plan.tables.frontends.len(), 10_000);
        previous = plan.tables;
    }
    assert!(previous.frontends.contains_key(&FrontendId {
        address: ip("10.128.0.1"),
        port: 80,
        protocol: Protocol::Tcp
    }));
}
