use std::{collections::BTreeMap, sync::Arc};

use super::Agent;
use crate::{
    plan::{
        Planner, Quarantine,
        fixture::{node, service, slice, snapshot},
        plan,
    },
    snapshot::{ObjectName, ServiceObject, SliceObject, Snapshot, TrafficPolicy},
    tables::TableSet,
};

fn web(name: &str, vip: &str) -> ServiceObject {
    service(name, &[vip], &["a:80", "b:81"])
}

fn endpoints(name: &str, endpoints: &[&str]) -> SliceObject {
    slice(name, &["a:80", "b:8081"], endpoints)
}

/// Three Services, two of which have the same endpoints.
fn three() -> Snapshot {
    snapshot(
        [
            web("s1", "192.0.2.1"),
            web("s2", "192.0.2.2"),
            web("s3", "192.0.2.3"),
        ],
        [
            endpoints("s1_1", &["10.1.0.1", "10.1.0.2 on=edge-1"]),
            endpoints("s2_1", &["10.1.0.1", "10.1.0.2 on=edge-1"]),
            endpoints("s3_1", &["10.1.0.3"]),
        ],
    )
}

/// The three Services with other Services and slices.
fn three_with(services: Vec<ServiceObject>, slices: &[(&str, &[&str])]) -> Snapshot {
    let mut state = three();
    for object in services {
        state.services.insert(object.name.clone(), Arc::new(object));
    }
    for (name, list) in slices {
        let slice = endpoints(name, list);
        state.slices.insert(slice.name.clone(), Arc::new(slice));
    }
    state
}

fn check(cases: Vec<(&str, Snapshot, bool)>) {
    for (name, state, expected) in cases {
        let mut agent = Agent::default();
        agent.follow(&three(), &node()).expect("a plan");
        assert_eq!(agent.patched, 0);
        agent.follow(&state, &node()).expect(name);
        assert_eq!(agent.patched == 1, expected, "{name}");
        agent.follow(&three(), &node()).expect(name);
        assert_eq!(agent.patched == 2, expected, "{name}, and back");
    }
}

#[test]
fn which_changes_of_endpoints_are_planned_apart() {
    let slice = |name, list| three_with(vec![], &[(name, list)]);
    let swapped: &[(&str, &[&str])] = &[
        ("s1_1", &["10.1.0.3"]),
        ("s2_1", &[]),
        ("s3_1", &["10.1.0.1", "10.1.0.2 on=edge-1"]),
    ];
    check(vec![
        ("nothing", three(), true),
        ("one more", slice("s3_1", &["10.1.0.3", "10.1.0.4"]), true),
        ("another's", slice("s3_1", &["10.1.0.1"]), true),
        ("none any more", slice("s1_1", &[]), true),
        ("a slice more", slice("s1_2", &["10.1.0.7"]), true),
        ("of no Service", slice("s9_1", &["10.1.0.7"]), true),
        ("swapped", three_with(vec![], swapped), true),
    ]);
}

#[test]
fn which_changes_of_services_are_planned_apart() {
    let with = |object| three_with(vec![object], &[]);
    let mut without = three();
    without.services.remove(&ObjectName::new("default", "s1"));
    let ranges = ServiceObject {
        restricts_sources: true,
        source_ranges: vec!["10.0.0.0/8".parse().expect("a network")],
        ..web("s1", "192.0.2.1")
    };
    let local = ServiceObject {
        external_policy: TrafficPolicy::Local,
        ..web("s1", "192.0.2.1")
    };
    let port_more = service("s3", &["192.0.2.3"], &["a:80", "b:81", "d:84"]);
    let both = three_with(vec![web("s0", "192.0.2.7"), port_more], &[]);
    let other_ports = service("s4", &["192.0.2.1"], &["c:82"]);
    let networks = Snapshot {
        service_networks: ["10.96.0.0/12".parse().expect("a network")].into(),
        ..three()
    };
    check(vec![
        ("a Service more", with(web("s4", "192.0.2.4")), true),
        ("a Service less", without, true),
        ("a Service more, and one of another's ports", both, true),
        ("another address", with(web("s1", "192.0.2.9")), true),
        ("another policy", with(local), true),
        ("another's address, other ports", with(other_ports), true),
        (
            "a frontend another has",
            with(web("s4", "192.0.2.1")),
            false,
        ),
        ("source ranges", with(ranges), false),
        ("the cluster's networks", networks, false),
    ]);
}

#[test]
fn who_lost_a_frontend_is_planned_apart_while_nothing_but_endpoints_changes() {
    let input = |list: &[&str]| {
        let more = service("s9", &["192.0.2.1", "192.0.2.9"], &["a:80"]);
        three_with(vec![more], &[("s9_1", list)])
    };
    let mut agent = Agent::default();
    for (list, patched) in [(&["10.1.0.1"][..], 0), (&["10.1.0.8"], 1), (&[], 2)] {
        agent.follow(&input(list), &node()).expect("a plan");
        assert_eq!(agent.patched, patched, "{list:?}");
    }
    agent.follow(&three(), &node()).expect("a plan");
    assert_eq!(agent.patched, 2, "what it had goes to another");
}

type Prepare = fn(&mut Planner);

#[test]
fn a_patch_is_only_made_from_tables_that_were_written() {
    let changed = three_with(vec![], &[("s3_1", &["10.1.0.9"])]);
    let quarantine = Quarantine::default();
    let empty = TableSet::default();
    let cases: [(&str, Prepare, bool); 5] = [
        ("written", Planner::written, true),
        ("not written", |_| {}, false),
        (
            "forgotten",
            |planner| {
                planner.written();
                planner.forget();
            },
            false,
        ),
        (
            "epochs to be raised",
            |planner| {
                planner.written();
                planner.raise_epochs();
            },
            false,
        ),
        (
            "planned twice",
            |planner| {
                planner.written();
                let tables = plan(
                    &TableSet::default(),
                    &three(),
                    &node(),
                    &Quarantine::default(),
                )
                .tables;
                let patch = planner.patch(&tables, &three(), &node(), &Quarantine::default());
                assert!(patch.is_some());
            },
            false,
        ),
    ];
    for (name, prepare, expected) in cases {
        let mut planner = Planner::default();
        let tables = planner.plan(&empty, &three(), &node(), &quarantine).tables;
        prepare(&mut planner);
        let patch = planner.patch(&tables, &changed, &node(), &quarantine);
        assert_eq!(patch.is_some(), expected, "{name}");
    }
}

/// One endpoint changes in one of many Services.
#[test]
fn a_change_of_many_is_small() {
    let count = 200;
    let vip = |i: usize| format!("192.0.2.{i}");
    let services: Vec<_> = (0..count).map(|i| web(&format!("s{i}"), &vip(i))).collect();
    let slices = (0..count).map(|i| {
        let list: Vec<_> = (1..=5).map(|n| format!("10.1.{i}.{n}")).collect();
        let list: Vec<_> = list.iter().map(String::as_str).collect();
        endpoints(&format!("s{i}_1"), &list)
    });
    let mut state = snapshot(services, slices);
    let mut agent = Agent::default();
    agent.follow(&state, &node()).expect("a plan");
    let changed = endpoints("s100_1", &["10.1.100.1", "10.1.100.2"]);
    state.slices.insert(changed.name.clone(), Arc::new(changed));
    let patch = agent
        .planner
        .patch(&agent.tables, &state, &node(), &agent.quarantine);
    let ops = patch.expect("a patch").ops;
    let kind = |op| format!("{op:?}").split('(').next().map(str::to_owned);
    let mut kinds = BTreeMap::<_, usize>::new();
    for kind in ops.iter().filter_map(kind) {
        *kinds.entry(kind).or_default() += 1;
    }
    // Two service ports lose three backends each, and are published before and after.
    insta::assert_compact_debug_snapshot!(kinds, @r#"{"FreeExtent": 2, "RemoveBackend": 6, "RemoveMember": 6, "SetService": 4, "WriteExtent": 2}"#);
}
