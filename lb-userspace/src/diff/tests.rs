use std::{collections::BTreeSet, sync::Arc};

use lb_common::service::address_role;
use proptest::prelude::*;

use super::*;
use crate::{
    config::TableSizes,
    dataplane::{
        Dataplane as _,
        model::{ModelDataplane, violations, write},
    },
    node::NodeConfig,
    plan::{
        Plan, Planner, Quarantine,
        fixture::{ip, node, node_with_node_ports, op_text, service, slice, snapshot},
        plan,
    },
    snapshot::{ServiceObject, Snapshot, TrafficPolicy},
};

fn planned(previous: &TableSet, input: &Snapshot, node: &NodeConfig) -> TableSet {
    plan(previous, input, node, &Quarantine::default()).tables
}

#[test]
fn a_whole_diff_as_text() {
    let gateway = NodeConfig {
        gateway: true,
        ..node()
    };
    let web = || ServiceObject {
        external_policy: TrafficPolicy::Local,
        ..service("web", &["192.0.2.10"], &["http:80", "dns:53/UDP"])
    };
    let web_slice = |endpoints: &[&str]| slice("web_1", &["http:8080", "dns:53/UDP"], endpoints);
    let old = service("old", &["192.0.2.20"], &["80"]);
    let before = snapshot(
        [web(), old],
        [
            web_slice(&["10.1.0.1", "10.1.0.2"]),
            slice("old_1", &["80"], &["10.1.0.9"]),
        ],
    );
    let fresh = service("fresh", &["2001:db8::30"], &["443"]);
    let after = snapshot([web(), fresh], [web_slice(&["10.1.0.2", "10.1.0.3"])]);
    let actual = planned(&TableSet::default(), &before, &gateway);
    let desired = planned(&actual, &after, &gateway);
    let text: Vec<_> = diff(&actual, &desired).iter().map(op_text).collect();
    insta::assert_snapshot!(text.join("\n"));
}

#[test]
fn a_set_that_only_grows_is_published_once() {
    let input = |endpoints: &[&str]| {
        snapshot(
            [service("web", &["192.0.2.10"], &["80"])],
            [slice("web_1", &["80"], endpoints)],
        )
    };
    let actual = planned(&TableSet::default(), &input(&["10.1.0.1"]), &node());
    let published = |endpoints: &[&str]| {
        let ops = diff(&actual, &planned(&actual, &input(endpoints), &node()));
        ops.iter()
            .filter(|op| matches!(op, TableOp::SetService(..)))
            .count()
    };
    assert_eq!(published(&["10.1.0.1"]), 0);
    assert_eq!(published(&["10.1.0.1", "10.1.0.2"]), 1);
    assert_eq!(published(&["10.1.0.2"]), 2);
}

/// A state of the cluster, drawn from few names and addresses so that states collide.
pub(crate) fn any_snapshot() -> impl Strategy<Value = Snapshot> {
    let any_service = |i: usize| {
        let vips = proptest::sample::subsequence(
            vec!["192.0.2.1", "192.0.2.2", "198.51.100.1", "2001:db8::1"],
            0..3,
        );
        let ports = proptest::sample::subsequence(
            vec![
                "a:80@30080",
                "b:80@30081",
                "c:81",
                "d:53/UDP",
                "e:81/UDP@30080",
            ],
            1..4,
        );
        (
            vips,
            ports,
            any::<bool>(),
            any::<bool>(),
            proptest::option::of(0_i64..3),
            proptest::option::of(proptest::sample::subsequence(
                vec!["10.0.0.0/8", "198.51.100.0/24", "2001:db8::/32"],
                0..3,
            )),
        )
            .prop_map(move |(vips, ports, local, affinity, created, ranges)| {
                ServiceObject {
                    restricts_sources: ranges.is_some(),
                    source_ranges: ranges
                        .iter()
                        .flatten()
                        .map(|text| text.parse().expect("a network"))
                        .collect(),
                    external_policy: if local {
                        TrafficPolicy::Local
                    } else {
                        TrafficPolicy::Cluster
                    },
                    affinity_seconds: if affinity { 10_800 } else { 0 },
                    created,
                    ..service(&format!("s{i}"), &vips, &ports)
                }
            })
    };
    let any_slice = |i: usize| {
        let endpoint = |n: usize| {
            let words = [
                "",
                " unready terminating",
                " unready",
                " on=edge-1",
                " unready deaf terminating",
                " unready terminating on=edge-1",
            ];
            proptest::sample::select(words.to_vec())
                .prop_map(move |word| format!("10.1.0.{n}{word}"))
        };
        let endpoints: Vec<_> = (1..8).map(endpoint).collect();
        (
            endpoints,
            proptest::sample::subsequence((0..7).collect::<Vec<_>>(), 0..7),
        )
            .prop_map(move |(all, chosen)| {
                let endpoints: Vec<_> = chosen.iter().map(|&n| all[n].as_str()).collect();
                let ports = ["a:80", "b:80", "c:8081", "d:53/UDP", "e:8081/UDP"];
                slice(&format!("s{}_{i}", i % 5), &ports, &endpoints)
            })
    };
    let services: Vec<_> = (0..5).map(any_service).collect();
    let slices: Vec<_> = (0..7).map(any_slice).collect();
    let some = || proptest::collection::vec(any::<bool>(), 7);
    (services, slices, some(), some()).prop_map(|(services, slices, with, with_slices)| {
        let keep = |(object, with)| if with { Some(object) } else { None };
        snapshot(
            services.into_iter().zip(with).filter_map(keep),
            slices
                .into_iter()
                .zip(with_slices)
                .filter_map(|(s, with)| with.then_some(s)),
        )
    })
}

pub(crate) fn any_node() -> impl Strategy<Value = NodeConfig> {
    (
        any::<bool>(),
        any::<bool>(),
        prop_oneof![Just(96_u32), Just(400), Just(4_096)],
        prop_oneof![Just(2_u32), Just(4), Just(4_096)],
    )
        .prop_map(|(gateway, node_ports, slots, source_ranges)| {
            let sizes = TableSizes {
                slots,
                source_ranges,
                ..TableSizes::default()
            };
            let node = if node_ports {
                node_with_node_ports()
            } else {
                node()
            };
            NodeConfig {
                gateway,
                sizes,
                snat_addresses: [ip("192.0.2.2")].into(),
                primary: vec![ip("198.51.100.1")],
                ..node
            }
        })
}

/// Carries `ops` out one by one; after each the tables must be fit for packets.
fn apply_checked(
    dataplane: &mut ModelDataplane,
    desired: &TableSet,
    ops: &[TableOp],
) -> Result<(), TestCaseError> {
    let before = dataplane.tables().clone();
    for (i, op) in ops.iter().enumerate() {
        let applied = dataplane.apply(op);
        prop_assert!(
            applied.is_ok(),
            "operation {i}, {}: {applied:?}",
            op_text(op)
        );
        let now = dataplane.tables();
        let found = violations(now);
        prop_assert!(
            found.is_empty(),
            "after operation {i}, {}: {found:?}",
            op_text(op)
        );
        for frontend in before
            .frontends
            .keys()
            .filter(|f| desired.frontends.contains_key(f))
        {
            prop_assert!(
                now.frontends.contains_key(frontend),
                "{frontend} is gone for a moment"
            );
        }
        for (&id, record) in &now.services {
            check_ranges(id, record, [&before, now, desired])?;
            check_service(id, record, &before, now, desired)?;
        }
        for (address, roles) in &now.addresses {
            if roles & address_role::VIP != 0 {
                check_vip(*address, &before, now, desired)?;
            }
        }
    }
    Ok(())
}

/// A service port is never without backends if it had some and will have some, and a new set epoch
/// shows only new members.
fn check_service(
    id: u32,
    record: &ServiceRecord,
    before: &TableSet,
    now: &TableSet,
    desired: &TableSet,
) -> Result<(), TestCaseError> {
    let (Some(old), Some(new)) = (before.services.get(&id), desired.services.get(&id)) else {
        return Ok(());
    };
    let lasting = old.cluster.length > 0 && new.cluster.length > 0;
    prop_assert!(
        !lasting || record.cluster.length > 0,
        "{} is empty for a moment",
        record.name
    );
    if old.epoch != new.epoch && record.epoch == new.epoch {
        let members = |tables: &TableSet| {
            let range = tables.members.range((id, 0)..=(id, u32::MAX));
            range.map(|(key, flags)| (*key, *flags)).collect::<Vec<_>>()
        };
        prop_assert_eq!(members(now), members(desired), "the epoch moved too early");
        let given = now.frontends.iter().find(|(frontend, record)| {
            let new = desired.frontends.get(frontend);
            record.service == id && new.is_none_or(|new| new.service != id)
        });
        prop_assert_eq!(given, None, "the epoch moved before a frontend");
    }
    Ok(())
}

/// A service port admits whom it admitted before, or whom it will admit.
fn check_ranges(
    id: u32,
    record: &ServiceRecord,
    [before, now, desired]: [&TableSet; 3],
) -> Result<(), TestCaseError> {
    let of = |tables: &TableSet, set: u32| -> Option<Vec<_>> {
        let range = tables.source_ranges.iter().filter(|(s, _)| *s == set);
        (set != 0).then(|| range.map(|(_, network)| *network).collect())
    };
    let whole = |tables: &TableSet| Some(of(tables, tables.services.get(&id)?.source_ranges));
    let is = Some(of(now, record.source_ranges));
    prop_assert!(
        is == whole(before) || is == whole(desired),
        "{} admits {is:?}",
        record.name
    );
    Ok(())
}

/// While an address is a VIP, its frontends are those before or those after the change.
fn check_vip(
    address: std::net::IpAddr,
    before: &TableSet,
    now: &TableSet,
    desired: &TableSet,
) -> Result<(), TestCaseError> {
    let of = |tables: &TableSet| -> BTreeSet<_> {
        tables
            .frontends
            .keys()
            .filter(|f| f.address == address)
            .copied()
            .collect()
    };
    let (was, is, will) = (of(before), of(now), of(desired));
    let lasting = was.intersection(&will).count();
    prop_assert!(
        !is.is_empty() && is.intersection(&was).count() >= lasting,
        "{address}"
    );
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn every_prefix_of_a_change_is_fit_for_packets(
        node in any_node(), states in proptest::collection::vec(any_snapshot(), 1..5)
    ) {
        let mut dataplane = ModelDataplane::default();
        let mut planner = Planner::default();
        for state in &states {
            let mut refused = false;
            for _ in 0..8 {
                let previous = dataplane.tables().clone();
                let quarantine = Quarantine::default();
                let Plan { tables, deferred, rejected, .. } = planner.plan(&previous, state, &node, &quarantine);
                let again = plan(&previous, state, &node, &quarantine);
                prop_assert_eq!(&again.tables, &tables, "the planner's memory does not show");
                prop_assert_eq!(violations(&tables), Vec::<String>::new());
                let room = node.sizes.source_ranges as usize;
                prop_assert!(previous.source_ranges.union(&tables.source_ranges).count() <= room);
                apply_checked(&mut dataplane, &tables, &diff(&previous, &tables))?;
                prop_assert_eq!(dataplane.tables(), &tables);
                prop_assert_eq!(diff(&tables, &tables), vec![]);
                refused = rejected.iter().any(|r| r.message.contains("is full"));
                if deferred.is_empty() {
                    break;
                }
            }
            let settled = planner.plan(dataplane.tables(), state, &node, &Quarantine::default());
            // Where a Service found no room its frontends may go to another one.
            if !refused {
                prop_assert_eq!(&settled.tables, dataplane.tables(), "a second look changes nothing");
            }
        }
    }

    #[test]
    fn any_tables_lead_to_any_others(node in any_node(), a in any_snapshot(), b in any_snapshot()) {
        let [a, b] = [a, b].map(|state| planned(&TableSet::default(), &state, &node));
        let mut tables = a.clone();
        for op in diff(&a, &b) {
            write(&mut tables, &op);
        }
        prop_assert_eq!(tables, b);
    }

    #[test]
    fn an_operation_that_fails_is_made_good_by_planning_again(
        node in any_node(), a in any_snapshot(), b in any_snapshot(), at in any::<prop::sample::Index>()
    ) {
        let node = NodeConfig { sizes: TableSizes::default(), ..node };
        let first = planned(&TableSet::default(), &a, &node);
        let mut dataplane = ModelDataplane::new(first.clone());
        let ops = diff(&first, &planned(&first, &b, &node));
        prop_assume!(!ops.is_empty());
        let at = at.index(ops.len());
        dataplane.fail_at(at);
        let applied = ops.iter().position(|op| dataplane.apply(op).is_err());
        prop_assert_eq!(applied, Some(at));
        let dump = dataplane.dump().map_err(|e| TestCaseError::fail(e.to_string()))?;
        let mut planner = Planner::default();
        planner.raise_epochs();
        let desired = planner.plan(&dump, &b, &node, &Quarantine::default()).tables;
        apply_checked(&mut dataplane, &desired, &diff(&dump, &desired))?;
        prop_assert_eq!(dataplane.tables(), &desired);
        let names = |tables: &TableSet| {
            let name = |r: &FrontendRecord| tables.services[&r.service].name.clone();
            tables.frontends.iter().map(|(f, r)| (*f, name(r))).collect::<Vec<_>>()
        };
        prop_assert_eq!(names(&desired), names(&planned(&first, &b, &node)));
    }

    #[test]
    fn ids_stay_with_what_they_name(node in any_node(), a in any_snapshot(), b in any_snapshot()) {
        let first = planned(&TableSet::default(), &a, &node);
        let second = planned(&first, &b, &node);
        for (id, record) in &second.services {
            if let Some(old) = first.services.get(id) {
                prop_assert_eq!(&old.name, &record.name);
            }
            let elsewhere = first.services.iter().any(|(o, r)| o != id && r.name == record.name);
            prop_assert!(!elsewhere);
        }
        for (id, record) in &second.backends {
            if let Some(old) = first.backends.get(id) {
                prop_assert_eq!(old.endpoint, record.endpoint);
            }
        }
    }
}

#[test]
fn shared_tables_are_written_once() {
    let input = snapshot(
        [service("web", &["192.0.2.10"], &["a:80", "b:81"])],
        [slice("web_1", &["a:80", "b:80"], &["10.1.0.1"])],
    );
    let desired = planned(&TableSet::default(), &input, &node());
    let ops = diff(&TableSet::default(), &desired);
    let written: Vec<&Arc<[u32]>> = ops
        .iter()
        .filter_map(|op| {
            if let TableOp::WriteExtent(_, table) = op {
                Some(table)
            } else {
                None
            }
        })
        .collect();
    assert_eq!(written.len(), 1);
}
