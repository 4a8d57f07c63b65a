//! Section I: shares, large Services, failures, families.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use lb_userspace::{
    dataplane::{Dataplane as _, model::ModelDataplane},
    diff::diff,
    health::Status,
    plan::{Planner, Quarantine},
    tables::TableSet,
};
use serde_json::{Value, json};

use super::fixture::{frontends, node, plan_of, read, record, service, sets, slice, with_ingress};

fn web() -> Value {
    service(
        "web",
        json!({"clusterIP": "10.0.0.1", "ports": [{"name": "http", "port": 80}]}),
    )
}

fn address(number: usize) -> String {
    format!("10.1.{}.{}", number / 250, 1 + number % 250)
}

#[test]
fn conformance_i05_every_endpoint_has_an_equal_share() {
    for count in [1, 2, 3, 7, 10, 100] {
        let addresses: Vec<_> = (0..count).map(address).collect();
        let addresses: Vec<_> = addresses.iter().map(String::as_str).collect();
        let plan = plan_of(&[web(), slice("web_1", &["http:80"], &addresses)], &node());
        let (_, found) = record(&plan.tables, "web:http/TCP/IPv4").expect("served");
        let mut shares = BTreeMap::<u32, usize>::new();
        for id in plan.tables.extents[&found.cluster.element].iter() {
            *shares.entry(*id).or_default() += 1;
        }
        assert_eq!(shares.len(), count);
        let (least, most) = (shares.values().min(), shares.values().max());
        assert!(
            most.zip(least)
                .is_some_and(|(most, least)| most - least <= 1),
            "{count}: {shares:?}"
        );
        // One slot more or less is one part in a hundred at most.
        assert!(
            least.is_some_and(|least| *least >= 100 || count == 1),
            "{count}: {shares:?}"
        );
    }
}

#[test]
fn conformance_i06_thousands_of_endpoints_mean_the_same() {
    let (first, second) = (0..1_000, 1_000..2_500);
    let text = |i: usize| match i % 5 {
        0 => format!("{} on=edge-1", address(i)),
        1 => format!("{} unready terminating", address(i)),
        2 => format!("{} unready deaf terminating", address(i)),
        _ => format!("{} on=other", address(i)),
    };
    let slice_of = |name: &str, range: std::ops::Range<usize>| {
        let texts: Vec<_> = range.map(text).collect();
        let texts: Vec<_> = texts.iter().map(String::as_str).collect();
        slice(name, &["http:80"], &texts)
    };
    let mut object = web();
    object["spec"]["internalTrafficPolicy"] = "Local".into();
    object["spec"]["externalIPs"] = json!(["203.0.113.7"]);
    let objects = [object, slice_of("web_1", first), slice_of("web_2", second)];
    let plan = plan_of(&objects, &node());
    let found = sets(&plan.tables, "web:http/TCP/IPv4");
    let count = |set: &str| set.split(' ').count();
    assert_eq!(count(&found.cluster), 1_500, "the ready ones");
    assert_eq!(count(&found.local), 500, "those of them that are here");
    assert_eq!(count(&found.members), 2_000, "and those that still serve");
    assert_eq!(plan.rejected, vec![]);
}

#[test]
#[expect(clippy::disallowed_methods, reason = "a moment to count from")]
fn conformance_i08_a_failed_sync_is_made_up_for_and_pending_until_then() {
    let objects = |endpoints: &[&str]| {
        let spec = json!({"clusterIP": "10.0.0.2", "ports": [{"name": "http", "port": 80}]});
        let objects = [
            web(),
            service("new", spec),
            slice("web_1", &["http:80"], endpoints),
            slice("new_1", &["http:80"], &["10.1.9.9"]),
        ];
        read(&objects).0
    };
    let plan = |planner: &mut Planner, previous: &TableSet, endpoints: &[&str]| {
        planner
            .plan(
                previous,
                &objects(endpoints),
                &node(),
                &Quarantine::default(),
            )
            .tables
    };
    let before = plan_of(
        &[web(), slice("web_1", &["http:80"], &["10.1.0.1"])],
        &node(),
    )
    .tables;
    let (timeout, start, wall) = (
        Duration::from_secs(30),
        Instant::now(),
        Timestamp::UNIX_EPOCH,
    );
    let wanted = plan(&mut Planner::default(), &before, &["10.1.0.2"]);
    let all = diff(&before, &wanted).len();
    for failing in 0..all {
        let mut status = Status::new(timeout, wall);
        let mut dataplane = ModelDataplane::new(before.clone());
        let mut planner = Planner::default();
        status.changed(start);
        let ops = diff(&before, &plan(&mut planner, &before, &["10.1.0.2"]));
        dataplane.fail_at(failing);
        assert!(
            ops.iter().any(|op| dataplane.apply(op).is_err()),
            "{failing}"
        );
        let late = start + timeout + Duration::from_secs(1);
        assert!(status.is_live(start + timeout), "{failing}: not yet");
        assert!(!status.is_live(late), "{failing}: pending for too long");

        // The next attempt starts from what is there and ends where it should.
        let found = dataplane.dump().expect("a dump");
        planner.raise_epochs();
        let desired = plan(&mut planner, &found, &["10.1.0.2"]);
        for op in diff(&found, &desired) {
            dataplane.apply(&op).expect("applied");
        }
        status.applied(wall);
        assert!(status.is_live(late), "{failing}");
        let now = dataplane.tables();
        assert_eq!(frontends(now), frontends(&wanted), "{failing}");
        for port in ["web:http/TCP/IPv4", "new:http/TCP/IPv4"] {
            assert_eq!(sets(now, port), sets(&wanted, port), "{failing}: {port}");
        }
        assert_eq!(
            diff(now, &plan(&mut planner, now, &["10.1.0.2"])),
            vec![],
            "{failing}"
        );
    }
    assert!(all > 8, "{all} operations");
}

#[test]
fn conformance_i18_each_family_has_its_own_objects() {
    let spec = |families: &[&str], addresses: &[&str]| {
        json!({
            "type": "LoadBalancer", "ipFamilies": families, "clusterIPs": addresses,
            "clusterIP": addresses[0], "externalIPs": ["203.0.113.7", "2001:db8:7::7"],
            "ports": [{"name": "http", "port": 80, "nodePort": 30080}],
        })
    };
    let (v4, v6) = ("10.0.0.1", "2001:db8:5::1");
    let both = [
        "0.0.0.0:30080/TCP",
        "10.0.0.1:80/TCP",
        "192.0.2.10:80/TCP",
        "203.0.113.7:80/TCP",
    ];
    let six = [
        "[2001:db8:5::1]:80/TCP",
        "[2001:db8:7::7]:80/TCP",
        "[2001:db8::10]:80/TCP",
        "[::]:30080/TCP",
    ];
    for (name, families, addresses, has_v4, has_v6) in [
        ("IPv4", &["IPv4"][..], &[v4][..], true, false),
        ("IPv6", &["IPv6"], &[v6], false, true),
        ("IPv4 first", &["IPv4", "IPv6"], &[v4, v6], true, true),
        ("IPv6 first", &["IPv6", "IPv4"], &[v6, v4], true, true),
    ] {
        let web = with_ingress(
            service("web", spec(families, addresses)),
            &["192.0.2.10", "2001:db8::10"],
        );
        let objects = [
            web,
            slice("web_4", &["http:80"], &["10.1.0.1"]),
            slice("web_6", &["http:80"], &["2001:db8:9::1"]),
        ];
        let plan = plan_of(&objects, &node());
        for (family, has, names, endpoint) in [
            ("IPv4", has_v4, &both, "10.1.0.1:80"),
            ("IPv6", has_v6, &six, "[2001:db8:9::1]:80"),
        ] {
            let port = format!("web:http/TCP/{family}");
            let found = frontends(&plan.tables);
            let found: Vec<_> = found
                .iter()
                .filter(|(_, p)| **p == port)
                .map(|(f, _)| f.as_str())
                .collect();
            let expected: &[&str] = if has { names } else { &[] };
            assert_eq!(found, expected, "{name}: {family}");
            let cluster = sets(&plan.tables, &port).cluster;
            assert_eq!(cluster, if has { endpoint } else { "" }, "{name}: {family}");
        }
    }
}
