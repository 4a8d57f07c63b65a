use super::*;
use crate::{
    diff::diff,
    plan::{
        Quarantine,
        fixture::{node, service, slice, snapshot},
        plan,
    },
};

const NOW: u64 = 1_000_000;
const LEFT: &str = "10.0.0.1";
const BOTH: [&str; 2] = [LEFT, "10.0.0.2"];

/// `default/web` with a drain deadline in seconds and endpoints, as [`slice`] takes them.
fn web(deadline: Option<u64>, endpoints: &[&str]) -> Snapshot {
    let mut web = service("web", &["192.0.2.1"], &["80"]);
    web.drain_deadline = deadline.map(Duration::from_secs);
    snapshot([web], [slice("web", &["8080"], endpoints)])
}

fn planned(previous: &TableSet, snapshot: &Snapshot) -> TableSet {
    plan(previous, snapshot, &node(), &Quarantine::default()).tables
}

/// Three flows of each backend of the tables.
fn hanging(tables: &TableSet) -> BTreeMap<MemberKey, Hanging> {
    let members = tables.members.keys().map(|&(service, backend)| {
        let endpoint = tables.backends.get(&backend).expect("a backend").endpoint;
        let hanging = Hanging { endpoint, flows: 3 };
        (MemberKey { service, backend }, hanging)
    });
    members.collect()
}

/// [`decide`] where no service port went.
fn decided(
    old: &BTreeMap<MemberKey, Deadline>,
    hanging: &BTreeMap<MemberKey, Hanging>,
    tables: &TableSet,
    snapshot: &Snapshot,
) -> BTreeMap<MemberKey, Deadline> {
    let gone = &BTreeMap::new();
    decide(old, hanging, ServicePorts { tables, gone }, snapshot, NOW)
}

/// What a backend at 10.0.0.1 is known by.
fn left(tables: &TableSet) -> MemberKey {
    let endpoint: SocketAddr = format!("{LEFT}:8080").parse().expect("an endpoint");
    let hanging = hanging(tables);
    let mut keys = hanging.iter().filter(|(_, h)| h.endpoint == endpoint);
    *keys.next().expect("a backend that will leave").0
}

/// The deadline of flows at 10.0.0.1, after `web` had two endpoints and became `after`.
fn deadline(after: &Snapshot, old: Option<Deadline>) -> Option<u64> {
    let before = planned(&TableSet::default(), &web(Some(60), &BOTH));
    let key = left(&before);
    let old = old.map(|old| (key, old)).into_iter().collect();
    let tables = planned(&before, after);
    let mut hanging = hanging(&before);
    hanging.retain(|hung, _| *hung == key);
    let decided = decided(&old, &hanging, &tables, after);
    assert!(decided.len() <= 1, "{decided:?}");
    decided.get(&key).map(|deadline| deadline.at)
}

#[test]
fn only_what_left_and_takes_nothing_new_has_a_deadline() {
    let minute = |endpoints: &[&str]| web(Some(60), endpoints);
    for (name, after, expected) in [
        ("all stay", minute(&BOTH), None),
        (
            "terminating",
            minute(&["10.0.0.1 unready terminating", "10.0.0.2"]),
            Some(NOW + 60),
        ),
        (
            "terminating and deaf",
            minute(&["10.0.0.1 unready deaf terminating", "10.0.0.2"]),
            Some(NOW + 60),
        ),
        ("removed", minute(&["10.0.0.2"]), Some(NOW + 60)),
        ("the last one removed", minute(&[]), Some(NOW + 60)),
        ("at once", web(Some(0), &["10.0.0.2"]), Some(NOW)),
        ("no deadline", web(None, &["10.0.0.2"]), None),
        (
            "not ready only",
            minute(&["10.0.0.1 unready deaf", "10.0.0.2"]),
            None,
        ),
        (
            "terminating, and nothing else is there",
            minute(&["10.0.0.1 unready terminating"]),
            None,
        ),
        ("Service gone without a word", Snapshot::default(), None),
    ] {
        assert_eq!(deadline(&after, None), expected, "{name}");
    }
}

#[test]
fn a_deadline_goes_on_while_its_reason_does() {
    let set = Deadline {
        at: NOW + 7,
        allowed: Some(60),
    };
    let found = Deadline::found(NOW - 7);
    let gone = |deadline| web(deadline, &["10.0.0.2"]);
    for (name, after, old, expected) in [
        ("goes on", gone(Some(60)), set, Some(NOW + 7)),
        ("after a restart", gone(Some(60)), found, Some(NOW - 7)),
        ("back", web(Some(60), &BOTH), set, None),
        ("annotation gone", gone(None), set, None),
        ("more time", gone(Some(100)), set, Some(NOW + 47)),
        ("less time", gone(Some(10)), set, Some(NOW - 43)),
        ("Service gone", Snapshot::default(), set, Some(NOW + 7)),
    ] {
        assert_eq!(deadline(&after, Some(old)), expected, "{name}");
    }
}

#[test]
fn another_port_of_the_same_address_is_another_backend() {
    let before = planned(&TableSet::default(), &web(Some(60), &[LEFT]));
    let mut after = web(Some(60), &[]);
    let moved = slice("web", &["9090"], &[LEFT]);
    after.slices.insert(moved.name.clone(), moved.into());
    let tables = planned(&before, &after);
    let decided = decided(&BTreeMap::new(), &hanging(&before), &tables, &after);
    assert!(decided.contains_key(&left(&before)));
}

#[test]
fn a_service_port_that_went_is_judged_by_its_service() {
    let before = planned(&TableSet::default(), &web(Some(60), &BOTH));
    let key = left(&before);
    let named = |name: &str, deadline: Option<u64>, endpoints: &[&str]| {
        let mut web = service(name, &["192.0.2.1"], &["pg:80", "metrics:9187"]);
        web.drain_deadline = deadline.map(Duration::from_secs);
        let slice = slice(name, &["pg:8080", "metrics:9187"], endpoints);
        snapshot([web], [slice])
    };
    let renamed = |endpoints: &[&str]| named("web", Some(60), endpoints);
    let begun = Deadline {
        at: NOW - 7,
        allowed: Some(60),
    };
    for (name, after, expected) in [
        ("the port's name changed", renamed(&BOTH), None),
        (
            "and one is not ready",
            renamed(&["10.0.0.1 unready", "10.0.0.2"]),
            None,
        ),
        (
            "and one is terminating",
            renamed(&["10.0.0.1 unready terminating", "10.0.0.2"]),
            Some(NOW - 7),
        ),
        ("and one is gone", renamed(&["10.0.0.2"]), Some(NOW - 7)),
        ("the Service is gone", Snapshot::default(), Some(NOW - 7)),
        (
            "it is gone, another one has its pods",
            named("other", Some(60), &BOTH),
            Some(NOW - 7),
        ),
        (
            "it is back, with more time, without the pod",
            named("web", Some(100), &["10.0.0.2"]),
            Some(NOW + 33),
        ),
        (
            "it is back, without a deadline",
            named("web", None, &["10.0.0.2"]),
            None,
        ),
    ] {
        let tables = planned(&before, &after);
        assert!(!tables.services.contains_key(&key.service), "another id");
        let record = before.services.get(&key.service).expect("a service port");
        let gone = BTreeMap::from([(key.service, record.name.clone())]);
        let ports = ServicePorts {
            tables: &tables,
            gone: &gone,
        };
        let mut hanging = hanging(&before);
        hanging.retain(|hung, _| *hung == key);
        let old = BTreeMap::from([(key, begun)]);
        let decided = decide(&old, &hanging, ports, &after, NOW);
        let at = decided.get(&key).map(|deadline| deadline.at);
        assert_eq!(at, expected, "{name}");
    }
}

#[test]
fn a_service_that_cannot_be_read_keeps_its_deadlines() {
    let before = planned(&TableSet::default(), &web(Some(60), &BOTH));
    let key = left(&before);
    let mut tables = before.clone();
    tables.members.remove(&(key.service, key.backend));
    let old = BTreeMap::from([(key, Deadline::found(NOW + 7))]);
    let decided = |tables| decided(&old, &hanging(&before), tables, &Snapshot::default());
    assert_eq!(decided(&tables), old);
    // Kept as it was, it takes new flows.
    assert!(decided(&before).is_empty());
}

#[test]
fn without_flows_there_is_no_deadline() {
    let before = planned(&TableSet::default(), &web(Some(60), &BOTH));
    let after = web(Some(60), &["10.0.0.2"]);
    let tables = planned(&before, &after);
    let old = BTreeMap::from([(left(&before), Deadline::found(NOW + 7))]);
    assert!(decided(&old, &BTreeMap::new(), &tables, &after).is_empty());
}

#[test]
fn a_deadline_is_never_early() {
    let deadline = Deadline::new(NOW, whole_seconds(Duration::from_millis(1_500)));
    for (now, passed) in [(NOW, false), (NOW + 2, false), (NOW + 3, true)] {
        assert_eq!(deadline.has_passed(now), passed, "{}", now - NOW);
    }
}

#[test]
fn operations_end_and_begin_deadlines() {
    let leaving = "10.0.0.1 unready terminating";
    let (all, one) = (web(Some(60), &BOTH), web(Some(60), &[leaving, "10.0.0.2"]));
    let before = planned(&TableSet::default(), &all);
    let key = left(&before);
    let others: Vec<_> = hanging(&before).into_keys().filter(|k| *k != key).collect();
    let other = *others.first().expect("two backends");
    let without = planned(&before, &one);
    for (name, from, made_of, to, old, expected) in [
        (
            "it leaves, which is seen later",
            &before,
            &all,
            planned(&before, &one),
            None,
            vec![],
        ),
        (
            "it is back",
            &without,
            &one,
            planned(&without, &all),
            Some(NOW - 7),
            vec![],
        ),
        (
            "another change",
            &without,
            &one,
            planned(&without, &web(Some(60), &[leaving, "10.0.0.2", "10.0.0.3"])),
            Some(NOW - 7),
            vec![(key, NOW - 7)],
        ),
        (
            "the Service goes",
            &before,
            &all,
            TableSet::default(),
            None,
            vec![(key, NOW + 60), (other, NOW + 60)],
        ),
        (
            "the Service goes while it drains",
            &without,
            &one,
            TableSet::default(),
            Some(NOW + 7),
            vec![(key, NOW + 7), (other, NOW + 60)],
        ),
        (
            "the Service goes, without a deadline",
            &before,
            &web(None, &BOTH),
            TableSet::default(),
            None,
            vec![],
        ),
    ] {
        let old = old.map(|at| (key, Deadline::found(at)));
        let old = old.into_iter().collect();
        let ports = ServicePorts {
            tables: from,
            gone: &BTreeMap::new(),
        };
        let decided = expect(&old, &hanging(from), &diff(from, &to), ports, made_of, NOW);
        let decided: Vec<_> = decided.iter().map(|(key, d)| (*key, d.at)).collect();
        assert_eq!(decided, expected, "{name}");
    }
}

#[test]
fn a_service_that_goes_takes_the_flows_of_its_ports_of_old_along() {
    let first = planned(&TableSet::default(), &web(Some(60), &BOTH));
    let key = left(&first);
    let record = first.services.get(&key.service).expect("a service port");
    let mut renamed = service("web", &["192.0.2.1"], &["pg:80"]);
    renamed.drain_deadline = Some(Duration::from_mins(1));
    let renamed = snapshot([renamed], [slice("web", &["pg:8080"], &BOTH)]);
    let tables = planned(&first, &renamed);
    let goes = diff(&tables, &TableSet::default());
    for (name, owner, expected) in [
        ("its own", record.name.as_str(), Some(NOW + 60)),
        ("another's", "default/other:80/TCP/IPv4", None),
    ] {
        let gone = BTreeMap::from([(key.service, owner.to_owned())]);
        let ports = ServicePorts {
            tables: &tables,
            gone: &gone,
        };
        let begun = expect(
            &BTreeMap::new(),
            &hanging(&first),
            &goes,
            ports,
            &renamed,
            NOW,
        );
        let at = begun.get(&key).map(|deadline| deadline.at);
        assert_eq!(at, expected, "{name}");
    }
}
