use super::*;
use crate::plan::{
    Quarantine,
    fixture::{node, service, slice, snapshot},
    plan,
};

const NOW: u64 = 1_000_000;
const LEFT: &str = "10.0.0.1";

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

/// What a backend at 10.0.0.1 is known by.
fn left(tables: &TableSet) -> MemberKey {
    let endpoint: SocketAddr = format!("{LEFT}:8080").parse().expect("an endpoint");
    let hanging = hanging(tables);
    let mut keys = hanging.iter().filter(|(_, h)| h.endpoint == endpoint);
    *keys.next().expect("a backend that will leave").0
}

#[test]
fn only_what_left_and_takes_nothing_new_has_a_deadline() {
    let found = |at| Some(Deadline::found(at));
    let set = |at, allowed| {
        Some(Deadline {
            at,
            allowed: Some(allowed),
        })
    };
    let both = [LEFT, "10.0.0.2"];
    for (name, after, old, expected) in [
        ("all stay", web(Some(60), &both), None, None),
        (
            "terminating",
            web(Some(60), &["10.0.0.1 unready terminating", "10.0.0.2"]),
            None,
            Some(NOW + 60),
        ),
        (
            "terminating and deaf",
            web(Some(60), &["10.0.0.1 unready deaf terminating", "10.0.0.2"]),
            None,
            Some(NOW + 60),
        ),
        (
            "removed",
            web(Some(60), &["10.0.0.2"]),
            None,
            Some(NOW + 60),
        ),
        (
            "removed, at once",
            web(Some(0), &["10.0.0.2"]),
            None,
            Some(NOW),
        ),
        ("no deadline", web(None, &["10.0.0.2"]), None, None),
        (
            "not ready only",
            web(Some(60), &["10.0.0.1 unready deaf", "10.0.0.2"]),
            None,
            None,
        ),
        (
            "terminating, and nothing else is there",
            web(Some(60), &["10.0.0.1 unready terminating"]),
            None,
            None,
        ),
        (
            "the last one removed",
            web(Some(60), &[]),
            None,
            Some(NOW + 60),
        ),
        (
            "the deadline goes on",
            web(Some(60), &["10.0.0.2"]),
            set(NOW + 7, 60),
            Some(NOW + 7),
        ),
        (
            "so it does after a restart",
            web(Some(60), &["10.0.0.2"]),
            found(NOW - 7),
            Some(NOW - 7),
        ),
        ("back", web(Some(60), &both), set(NOW + 7, 60), None),
        (
            "annotation gone",
            web(None, &["10.0.0.2"]),
            set(NOW + 7, 60),
            None,
        ),
        (
            "more time",
            web(Some(100), &["10.0.0.2"]),
            set(NOW + 7, 60),
            Some(NOW + 47),
        ),
        (
            "less time",
            web(Some(10), &["10.0.0.2"]),
            set(NOW + 7, 60),
            Some(NOW - 43),
        ),
        (
            "Service gone, noted when it went",
            Snapshot::default(),
            set(NOW + 7, 60),
            Some(NOW + 7),
        ),
        (
            "Service gone without a word",
            Snapshot::default(),
            None,
            None,
        ),
    ] {
        let before = planned(&TableSet::default(), &web(Some(60), &both));
        let key = left(&before);
        let old = old.map(|old| (key, old)).into_iter().collect();
        let tables = planned(&before, &after);
        let mut hanging = hanging(&before);
        hanging.retain(|hung, _| *hung == key);
        let decided = decide(&old, &hanging, &tables, &after, NOW);
        let expected: Vec<_> = expected.map(|at| (key, at)).into_iter().collect();
        let decided: Vec<_> = decided.iter().map(|(key, d)| (*key, d.at)).collect();
        assert_eq!(decided, expected, "{name}");
    }
}

#[test]
fn another_port_of_the_same_address_is_another_backend() {
    let before = planned(&TableSet::default(), &web(Some(60), &[LEFT]));
    let mut after = web(Some(60), &[]);
    let moved = slice("web", &["9090"], &[LEFT]);
    after.slices.insert(moved.name.clone(), moved.into());
    let tables = planned(&before, &after);
    let decided = decide(&BTreeMap::new(), &hanging(&before), &tables, &after, NOW);
    assert!(decided.contains_key(&left(&before)));
}

#[test]
fn a_service_that_cannot_be_read_keeps_its_deadlines() {
    let before = planned(&TableSet::default(), &web(Some(60), &[LEFT, "10.0.0.2"]));
    let key = left(&before);
    let mut tables = before.clone();
    tables.members.remove(&(key.service, key.backend));
    let old = BTreeMap::from([(key, Deadline::found(NOW + 7))]);
    let decide = |tables| decide(&old, &hanging(&before), tables, &Snapshot::default(), NOW);
    assert_eq!(decide(&tables), old);
    // Kept as it was, it takes new flows.
    assert!(decide(&before).is_empty());
}

#[test]
fn without_flows_there_is_no_deadline() {
    let before = planned(&TableSet::default(), &web(Some(60), &[LEFT, "10.0.0.2"]));
    let after = web(Some(60), &["10.0.0.2"]);
    let tables = planned(&before, &after);
    let old = BTreeMap::from([(left(&before), Deadline::found(NOW + 7))]);
    assert!(decide(&old, &BTreeMap::new(), &tables, &after, NOW).is_empty());
}

#[test]
fn a_deadline_is_never_early() {
    let deadline = Deadline::new(NOW, whole_seconds(Duration::from_millis(1_500)));
    for (now, passed) in [(NOW, false), (NOW + 2, false), (NOW + 3, true)] {
        assert_eq!(deadline.has_passed(now), passed, "{}", now - NOW);
    }
}
