//! Section K: what is read from slices, and when they change.

use std::time::Duration;

use lb_userspace::{diff::diff, metrics::Causes};
use serde_json::{Value, json};

use super::fixture::{
    Sets, frontend_names, node, plan_after, plan_of, read, rejections, service, sets, slice,
    with_metadata,
};

fn web() -> Value {
    let spec = json!({
        "type": "NodePort", "clusterIP": "10.0.0.1", "externalTrafficPolicy": "Local",
        "ports": [{"name": "http", "port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"}],
    });
    service("web", spec)
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table of cases")]
fn conformance_k11_endpoints_out_of_slices() {
    let mut nameless = slice("web_1", &["http:80", "dns:53/UDP"], &["10.1.0.1"]);
    nameless["ports"][0]["name"] = Value::Null;
    let mut numberless = slice("web_1", &["http:80"], &["10.1.0.1"]);
    numberless["ports"][0]["port"] = Value::Null;
    let mut zero = slice("web_1", &["http:80"], &["10.1.0.1"]);
    zero["ports"][0]["port"] = 0.into();
    let mut portless = slice("web_1", &[], &["10.1.0.1"]);
    portless["ports"] = Value::Null;
    let mut several = slice("web_1", &["http:80"], &["10.1.0.1"]);
    several["endpoints"][0]["addresses"] = json!(["10.1.0.1", "10.1.0.2"]);
    let mut empty = slice("web_1", &["http:80"], &["10.1.0.1"]);
    empty["endpoints"][0]["addresses"] = json!([]);
    let mut names = slice("web_1", &["http:80"], &["10.1.0.1"]);
    names["addressType"] = "FQDN".into();
    let mut orphan = slice("web_1", &["http:80"], &["10.1.0.1"]);
    orphan["metadata"]["labels"] = json!({});
    let http = |texts: &[&str]| slice("web_1", &["http:80"], texts);
    for (name, slices, cluster, local, members, said) in [
        (
            "one slice, three endpoints",
            vec![http(&["10.1.0.3", "10.1.0.1", "10.1.0.2"])],
            "10.1.0.1:80 10.1.0.2:80 10.1.0.3:80",
            "",
            "10.1.0.1:80 10.1.0.2:80 10.1.0.3:80",
            0,
        ),
        (
            "two slices of one port",
            vec![
                http(&["10.1.0.1"]),
                slice("web_2", &["http:80"], &["10.1.0.2"]),
            ],
            "10.1.0.1:80 10.1.0.2:80",
            "",
            "10.1.0.1:80 10.1.0.2:80",
            0,
        ),
        (
            "two slices with different numbers: the targetPort had a name",
            vec![
                http(&["10.1.0.1"]),
                slice("web_2", &["http:8080"], &["10.1.0.2"]),
            ],
            "10.1.0.1:80 10.1.0.2:8080",
            "",
            "10.1.0.1:80 10.1.0.2:8080",
            0,
        ),
        (
            "one endpoint in two slices, here by one of them",
            vec![
                http(&["10.1.0.1"]),
                slice("web_2", &["http:80"], &["10.1.0.1 on=edge-1", "10.1.0.2"]),
            ],
            "10.1.0.1:80 10.1.0.2:80",
            "10.1.0.1:80",
            "10.1.0.1:80 10.1.0.2:80",
            0,
        ),
        (
            "of two copies the more usable one",
            vec![
                http(&["10.1.0.1 unready deaf"]),
                slice("web_2", &["http:80"], &["10.1.0.1"]),
            ],
            "10.1.0.1:80",
            "",
            "10.1.0.1:80",
            0,
        ),
        (
            "none ready: they are known but take nothing",
            vec![http(&["10.1.0.1 unready", "10.1.0.2 unready deaf"])],
            "",
            "",
            "10.1.0.1:80",
            0,
        ),
        ("a port without a name", vec![nameless], "", "", "", 0),
        ("a port without a number", vec![numberless], "", "", "", 0),
        ("port 0", vec![zero], "", "", "", 0),
        ("no ports", vec![portless], "", "", "", 0),
        (
            "only the first address counts",
            vec![several],
            "10.1.0.1:80",
            "",
            "10.1.0.1:80",
            0,
        ),
        ("no address", vec![empty], "", "", "", 0),
        (
            "an address of the wrong family",
            vec![http(&["10.1.0.1", "2001:db8:9::1"])],
            "10.1.0.1:80",
            "",
            "10.1.0.1:80",
            1,
        ),
        ("host names", vec![names], "", "", "", 1),
        ("of no Service", vec![orphan], "", "", "", 1),
        (
            "another name, another protocol",
            vec![slice("web_1", &["https:80", "dns:80"], &["10.1.0.1"])],
            "",
            "",
            "",
            0,
        ),
        (
            "a Service of another name",
            vec![slice("other_1", &["http:80"], &["10.1.0.1"])],
            "",
            "",
            "",
            0,
        ),
    ] {
        let objects = [vec![web()], slices].concat();
        let found = sets(&plan_of(&objects, &node()).tables, "web:http/TCP/IPv4");
        let expected = Sets {
            cluster: cluster.to_owned(),
            local: local.to_owned(),
            members: members.to_owned(),
            any: !cluster.is_empty(),
        };
        assert_eq!(found, expected, "{name}");
        let said_of = rejections(&objects, &node());
        assert_eq!(said_of.len(), said, "{name}: {said_of:?}");
    }
}

#[test]
fn conformance_k12_changes_of_slices_in_one_batch() {
    let one = || slice("web_1", &["http:80"], &["10.1.0.1"]);
    let other = || slice("web_2", &["http:80"], &["10.1.0.2"]);
    let changed = || slice("web_1", &["http:80"], &["10.1.0.3"]);
    // What the world was at each sync; between two of them anything may have happened.
    for (name, before, after, changes) in [
        ("an identical update", vec![one()], vec![one()], false),
        (
            "added and removed between two syncs",
            vec![one()],
            vec![one()],
            false,
        ),
        ("removed without having been there", vec![], vec![], false),
        (
            "changed and changed back",
            vec![one(), other()],
            vec![one(), other()],
            false,
        ),
        (
            "in another order",
            vec![one(), other()],
            vec![other(), one()],
            false,
        ),
        (
            "moved from slice to slice",
            vec![one()],
            vec![slice("web_2", &["http:80"], &["10.1.0.1"])],
            false,
        ),
        (
            "in two slices now",
            vec![one()],
            vec![one(), slice("web_2", &["http:80"], &["10.1.0.1"])],
            false,
        ),
        ("added", vec![one()], vec![one(), other()], true),
        ("removed", vec![one(), other()], vec![one()], true),
        ("changed", vec![one()], vec![changed()], true),
        ("changed and removed", vec![one()], vec![], true),
        (
            "a slice of nobody",
            vec![one()],
            vec![one(), slice("x_1", &["http:80"], &["10.1.0.9"])],
            false,
        ),
    ] {
        let with = |slices: Vec<Value>| [vec![web()], slices].concat();
        let first = plan_of(&with(before), &node()).tables;
        let second = plan_after(&first, &with(after), &node()).tables;
        let ops = diff(&first, &second);
        assert_eq!(!ops.is_empty(), changes, "{name}: {ops:?}");
    }

    // Before its Service and after it a slice changes nothing; both orders end alike.
    let alone = plan_of(&[one()], &node()).tables;
    assert_eq!(diff(&plan_of(&[], &node()).tables, &alone), vec![]);
    let late = plan_after(&alone, &[one(), web()], &node()).tables;
    let early = plan_of(&[web()], &node()).tables;
    let early = plan_after(&early, &[web(), one()], &node()).tables;
    let port = "web:http/TCP/IPv4";
    assert_eq!(sets(&late, port), sets(&early, port));
    assert_eq!(frontend_names(&late), frontend_names(&early));
}

#[test]
fn conformance_k13_the_time_a_change_was_triggered() {
    let key = "endpoints.kubernetes.io/last-change-trigger-time";
    let at = |name: &str, time: &str| {
        with_metadata(
            slice(name, &["http:80"], &["10.1.0.1"]),
            "annotations",
            key,
            time,
        )
    };
    let read = |slices: &[Value]| read(slices).0.slices;
    // Every list of slices since the last sync, and the delays at 00:01:00.
    for (name, lists, expected) in [
        (
            "one update",
            vec![vec![at("web_1", "2026-01-01T00:00:50Z")]],
            &[10.0][..],
        ),
        (
            "with a fraction",
            vec![vec![at("web_1", "2026-01-01T00:00:59.5Z")]],
            &[0.5],
        ),
        (
            "no annotation",
            vec![vec![slice("web_1", &["http:80"], &["10.1.0.1"])]],
            &[],
        ),
        ("no time", vec![vec![at("web_1", "yesterday")]], &[]),
        (
            "several updates of one slice",
            vec![
                vec![at("web_1", "2026-01-01T00:00:40Z")],
                vec![at("web_1", "2026-01-01T00:00:50Z")],
            ],
            &[20.0, 10.0],
        ),
        (
            "two slices",
            vec![vec![
                at("web_1", "2026-01-01T00:00:40Z"),
                at("web_2", "2026-01-01T00:00:50Z"),
            ]],
            &[20.0, 10.0],
        ),
        (
            "a removed slice tells nothing",
            vec![vec![at("web_1", "2026-01-01T00:00:40Z")], vec![]],
            &[],
        ),
    ] {
        let time = |text: &str| -> i64 {
            let time: jiff::Timestamp = text.parse().expect("a time");
            time.as_millisecond()
        };
        let mut causes = Causes::new(time("2026-01-01T00:00:00Z"));
        for list in &lists {
            causes.note(&read(list));
        }
        let found = causes.reached(time("2026-01-01T00:01:00Z"));
        let expected: Vec<_> = expected
            .iter()
            .copied()
            .map(Duration::from_secs_f64)
            .collect();
        assert_eq!(found, expected, "{name}");
    }
}
