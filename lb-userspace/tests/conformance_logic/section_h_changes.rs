//! Section H: what changes when objects change.

use std::collections::BTreeMap;

use lb_userspace::{
    dataplane::{Dataplane as _, TableOp, model::ModelDataplane},
    diff::diff,
    plan::{Planner, Quarantine},
    tables::TableSet,
};
use serde_json::{Value, json};

use super::fixture::{node, plan_after, plan_of, read, service, sets, slice};

/// The ports of every Service of [`Update`].
const PORTS: [&str; 3] = ["p11", "p12", "p13"];

/// Slices before and after: what the sets are then, whose flows look at their backend once more, and
/// how many endpoints are here.
struct Update {
    name: &'static str,
    before: Vec<Value>,
    after: Vec<Value>,
    expected: &'static [(&'static str, &'static str)],
    moved: &'static [&'static str],
    here: [usize; 2],
}

impl Update {
    fn check(&self) {
        let services = ["ep1", "ep2"].iter().enumerate().map(|(i, name)| {
            let ports = PORTS
                .iter()
                .enumerate()
                .map(|(i, port)| json!({"name": port, "port": 11 + i, "protocol": "UDP"}));
            let spec = json!({
                "type": "LoadBalancer", "clusterIP": format!("10.0.0.{}", i + 1),
                "externalTrafficPolicy": "Local", "healthCheckNodePort": 32_000 + i,
                "ports": ports.collect::<Vec<_>>(),
            });
            service(name, spec)
        });
        let services: Vec<_> = services.collect();
        let with = |slices: &[Value]| [&services[..], slices].concat();
        let before = plan_of(&with(&self.before), &node());
        let after = plan_after(&before.tables, &with(&self.after), &node());
        let mut found = BTreeMap::new();
        let mut moved = Vec::new();
        for port in after.tables.services.values() {
            let short = port.name.trim_start_matches("default/");
            let members = sets(&after.tables, short).members;
            let short = short.trim_end_matches("/UDP/IPv4").to_owned();
            let same_name =
                |record: &&lb_userspace::tables::ServiceRecord| record.name == port.name;
            let old = before.tables.services.values().find(same_name);
            if old.is_some_and(|old| old.epoch != port.epoch) {
                moved.push(short.clone());
            }
            if !members.is_empty() {
                found.insert(short, members);
            }
        }
        let expected = self.expected.iter();
        let expected = expected.map(|(port, set)| ((*port).to_owned(), (*set).to_owned()));
        assert_eq!(found, expected.collect(), "{}", self.name);
        assert_eq!(moved, self.moved, "{}", self.name);
        let here: Vec<_> = after.health.values().map(|c| c.local_ready).collect();
        assert_eq!(here, self.here, "{}", self.name);
        if self.before == self.after {
            assert_eq!(diff(&before.tables, &after.tables), vec![], "{}", self.name);
        }
    }
}

/// A slice of UDP ports.
fn udp(name: &str, ports: &[&str], endpoints: &[&str]) -> Value {
    let ports: Vec<_> = ports.iter().map(|port| format!("{port}/UDP")).collect();
    let ports: Vec<_> = ports.iter().map(String::as_str).collect();
    slice(name, &ports, endpoints)
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table of cases")]
fn conformance_h101_endpoints_follow_their_slices() {
    let one = || udp("ep1_1", &["p11:11"], &["10.1.1.1"]);
    let here = || udp("ep1_1", &["p11:11"], &["10.1.1.1 on=edge-1"]);
    let two_ports = || {
        udp(
            "ep1_1",
            &["p11:11", "p12:12"],
            &["10.1.1.1 on=edge-1", "10.1.1.2"],
        )
    };
    let second = || {
        udp(
            "ep1_2",
            &["p13:13"],
            &["10.1.1.3 on=edge-1", "10.1.1.1 on=edge-1"],
        )
    };
    let unnamed = || slice("ep1_1", &[":11/UDP"], &["10.1.1.1"]);
    for case in [
        Update {
            name: "nothing",
            before: vec![],
            after: vec![],
            expected: &[],
            moved: &[],
            here: [0, 0],
        },
        Update {
            name: "no change, a port without a name: it joins none of the named",
            before: vec![unnamed()],
            after: vec![unnamed()],
            expected: &[],
            moved: &[],
            here: [0, 0],
        },
        Update {
            name: "no change, a named port here",
            before: vec![here()],
            after: vec![here()],
            expected: &[("ep1:p11", "10.1.1.1:11")],
            moved: &[],
            here: [1, 0],
        },
        Update {
            name: "no change, two ports",
            before: vec![two_ports()],
            after: vec![two_ports()],
            expected: &[
                ("ep1:p11", "10.1.1.1:11 10.1.1.2:11"),
                ("ep1:p12", "10.1.1.1:12 10.1.1.2:12"),
            ],
            moved: &[],
            here: [1, 0],
        },
        Update {
            name: "no change, two slices, one address in both",
            before: vec![two_ports(), second()],
            after: vec![two_ports(), second()],
            expected: &[
                ("ep1:p11", "10.1.1.1:11 10.1.1.2:11"),
                ("ep1:p12", "10.1.1.1:12 10.1.1.2:12"),
                ("ep1:p13", "10.1.1.1:13 10.1.1.3:13"),
            ],
            moved: &[],
            here: [2, 0],
        },
        Update {
            name: "a slice comes",
            before: vec![],
            after: vec![here()],
            expected: &[("ep1:p11", "10.1.1.1:11")],
            moved: &["ep1:p11"],
            here: [1, 0],
        },
        Update {
            name: "a slice goes",
            before: vec![here()],
            after: vec![],
            expected: &[],
            moved: &["ep1:p11"],
            here: [0, 0],
        },
        Update {
            name: "an address and a port come",
            before: vec![one()],
            after: vec![two_ports()],
            expected: &[
                ("ep1:p11", "10.1.1.1:11 10.1.1.2:11"),
                ("ep1:p12", "10.1.1.1:12 10.1.1.2:12"),
            ],
            moved: &["ep1:p11", "ep1:p12"],
            here: [1, 0],
        },
        Update {
            name: "an address and a port go",
            before: vec![two_ports()],
            after: vec![one()],
            expected: &[("ep1:p11", "10.1.1.1:11")],
            moved: &["ep1:p11", "ep1:p12"],
            here: [0, 0],
        },
        Update {
            name: "a second slice comes",
            before: vec![one()],
            after: vec![one(), second()],
            expected: &[
                ("ep1:p11", "10.1.1.1:11"),
                ("ep1:p13", "10.1.1.1:13 10.1.1.3:13"),
            ],
            moved: &["ep1:p13"],
            here: [2, 0],
        },
        Update {
            name: "one of two slices goes, with an address the other one has too",
            before: vec![one(), udp("ep1_2", &["p11:11"], &["10.1.1.1", "10.1.1.2"])],
            after: vec![one()],
            expected: &[("ep1:p11", "10.1.1.1:11")],
            moved: &["ep1:p11"],
            here: [0, 0],
        },
        Update {
            name: "a port is renamed",
            before: vec![one()],
            after: vec![udp("ep1_1", &["p12:11"], &["10.1.1.1"])],
            expected: &[("ep1:p12", "10.1.1.1:11")],
            moved: &["ep1:p11", "ep1:p12"],
            here: [0, 0],
        },
        Update {
            name: "a port gets another number",
            before: vec![one()],
            after: vec![udp("ep1_1", &["p11:22"], &["10.1.1.1"])],
            expected: &[("ep1:p11", "10.1.1.1:22")],
            moved: &["ep1:p11"],
            here: [0, 0],
        },
        Update {
            name: "much comes and goes at once",
            before: vec![
                two_ports(),
                udp("ep2_1", &["p11:11"], &["10.1.2.1 on=edge-1", "10.1.2.2"]),
            ],
            after: vec![
                udp("ep1_1", &["p11:11"], &["10.1.1.1 on=edge-1", "10.1.1.4"]),
                second(),
                udp("ep2_2", &["p12:12"], &["10.1.2.1"]),
            ],
            expected: &[
                ("ep1:p11", "10.1.1.1:11 10.1.1.4:11"),
                ("ep1:p13", "10.1.1.1:13 10.1.1.3:13"),
                ("ep2:p12", "10.1.2.1:12"),
            ],
            moved: &["ep1:p11", "ep1:p12", "ep1:p13", "ep2:p11", "ep2:p12"],
            here: [2, 0],
        },
        Update {
            name: "from none to one",
            before: vec![udp("ep1_1", &["p11:11"], &["10.1.1.1 unready deaf"])],
            after: vec![one()],
            expected: &[("ep1:p11", "10.1.1.1:11")],
            moved: &["ep1:p11"],
            here: [0, 0],
        },
    ] {
        case.check();
    }
}

fn web(number: usize) -> Value {
    let address = format!("10.0.0.{number}");
    service(
        &format!("web{number}"),
        json!({"clusterIP": address, "ports": [{"name": "http", "port": 80}]}),
    )
}

fn endpoints(number: usize, addresses: &[&str]) -> Value {
    slice(&format!("web{number}_1"), &["http:8080"], addresses)
}

/// Brings the tables to what the objects want and tells the operations that took.
fn sync(dataplane: &mut ModelDataplane, planner: &mut Planner, objects: &[Value]) -> Vec<TableOp> {
    let (snapshot, _) = read(objects);
    let previous = dataplane.tables().clone();
    let plan = planner.plan(&previous, &snapshot, &node(), &Quarantine::default());
    let ops = diff(&previous, &plan.tables);
    for op in &ops {
        dataplane.apply(op).expect("applied");
    }
    assert_eq!(dataplane.tables(), &plan.tables);
    ops
}

#[test]
fn conformance_h103_every_change_writes_what_it_changes() {
    let mut dataplane = ModelDataplane::default();
    let mut planner = Planner::default();
    let two = || {
        vec![
            web(1),
            endpoints(1, &["10.1.1.1"]),
            web(2),
            endpoints(2, &["10.1.2.1"]),
        ]
    };
    let three = || [two(), vec![web(3), endpoints(3, &["10.1.3.1"])]].concat();
    let with_slice = |addresses: &[&str]| [two(), vec![web(3), endpoints(3, addresses)]].concat();
    assert!(!sync(&mut dataplane, &mut planner, &two()).is_empty());
    let settled = dataplane.tables().clone();
    let one =
        |ops: &[TableOp], wanted: fn(&TableOp) -> bool| ops.iter().filter(|op| wanted(op)).count();

    // (what, objects, operations, backends written and removed among them)
    for (what, objects, count, backends) in [
        // Backend, member, extent, service port, frontend, address.
        ("a Service is added", three(), 6, 1),
        ("nothing changes", three(), 0, 0),
        // Address, frontend, service port, extent, member, backend.
        ("the Service is removed", two(), 6, 1),
        (
            "the Service comes before its slice",
            [two(), vec![web(3)]].concat(),
            3,
            0,
        ),
        // Backend, member, extent, service port.
        ("and the slice after it", three(), 4, 1),
        // Backend, member, extent, service port; extent.
        (
            "an endpoint is added",
            with_slice(&["10.1.3.1", "10.1.3.2"]),
            5,
            1,
        ),
        // Service port twice, extent, two members, two backends.
        ("every endpoint goes", with_slice(&[]), 7, 2),
        ("and comes back at once", with_slice(&["10.1.3.1"]), 4, 1),
        ("nothing changes", with_slice(&["10.1.3.1"]), 0, 0),
        ("and all is as before", two(), 6, 1),
    ] {
        let ops = sync(&mut dataplane, &mut planner, &objects);
        assert_eq!(ops.len(), count, "{what}: {ops:?}");
        let written = one(&ops, |op| {
            matches!(op, TableOp::SetBackend(..) | TableOp::RemoveBackend(_))
        });
        assert_eq!(written, backends, "{what}: {ops:?}");
    }
    assert_eq!(dataplane.tables(), &settled);
}

#[test]
fn conformance_h104_what_an_earlier_run_left_is_adopted() {
    let before = vec![
        web(1),
        endpoints(1, &["10.1.1.1"]),
        web(2),
        endpoints(2, &["10.1.2.1"]),
    ];
    let mut dataplane = ModelDataplane::default();
    sync(&mut dataplane, &mut Planner::default(), &before);
    let left = dataplane.tables().clone();

    // Another run finds what it wants and writes nothing.
    let mut again = ModelDataplane::new(left.clone());
    assert_eq!(sync(&mut again, &mut Planner::default(), &before), vec![]);

    // The cluster moved on meanwhile: one Service went, one came, one stayed.
    let after = vec![
        web(2),
        endpoints(2, &["10.1.2.1"]),
        web(3),
        endpoints(3, &["10.1.3.1"]),
    ];
    let ops = sync(&mut again, &mut Planner::default(), &after);
    let old = plan_of(&before, &node()).tables;
    let stayed = |tables: &TableSet| {
        let mut services = tables.services.iter();
        let found = services.find(|(_, record)| record.name.contains("web2"));
        found.map(|(id, record)| (*id, record.clone()))
    };
    assert_eq!(stayed(again.tables()), stayed(&old), "not touched");
    let id = stayed(&old).expect("it was served").0;
    assert!(
        ops.iter()
            .all(|op| !matches!(op, TableOp::SetService(set, _) if *set == id))
    );
    assert_eq!(
        ops.len(),
        12,
        "six operations for the one that went and the one that came: {ops:?}"
    );
}
