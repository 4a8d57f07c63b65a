use std::fmt::Write as _;

use serde_json::{Value, json};

use super::*;
use crate::watch::received::Kind;

/// One step of a watch, in a few words.
#[derive(Clone, Copy, Debug)]
enum Step {
    Init,
    Listed(&'static str),
    Done,
    Apply(&'static str),
    Delete(&'static str),
}

use Step::{Apply, Delete, Done, Init, Listed};

fn event<K: Kind>(step: Step, value: fn(&str) -> Value) -> Event<Received<K>> {
    let object = |text: &str| {
        // As a watch delivers it.
        let text = value(text).to_string();
        serde_json::from_str(&text).expect("a named object")
    };
    match step {
        Init => Event::Init,
        Listed(text) => Event::InitApply(object(text)),
        Done => Event::InitDone,
        Apply(text) => Event::Apply(object(text)),
        Delete(text) => Event::Delete(object(text)),
    }
}

/// `NAME PORT`, where the port may be nonsense, or `NAME TYPE`.
fn service(text: &str) -> Value {
    let (name, rest) = text.split_once(' ').unwrap_or((text, "80"));
    let mut value = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "name": name, "namespace": "default", "resourceVersion": "7",
            "managedFields": [{"manager": "kubectl", "fieldsV1": {"f:spec": {}}}],
        },
        "spec": {"clusterIP": "10.0.0.1", "ports": [{"port": 80}]},
    });
    match rest.parse::<u64>() {
        Ok(port) => value["spec"]["ports"][0]["port"] = port.into(),
        Err(_) if rest == "none" => value["spec"]["ports"][0]["port"] = rest.into(),
        Err(_) => value["spec"]["type"] = rest.into(),
    }
    value
}

fn slice(text: &str) -> Value {
    let (name, address) = text.split_once(' ').unwrap_or((text, "10.1.0.1"));
    json!({
        "metadata": {
            "name": name, "namespace": "default", "resourceVersion": "7",
            "labels": {"kubernetes.io/service-name": "web"},
        },
        "addressType": "IPv4",
        "ports": [{"name": "", "port": 8080}],
        "endpoints": [{"addresses": [address]}],
    })
}

fn node(text: &str) -> Value {
    let (name, zone) = text.split_once(' ').unwrap_or((text, "a"));
    json!({
        "metadata": {
            "name": name, "resourceVersion": "7",
            "labels": {"topology.kubernetes.io/zone": zone},
        },
    })
}

fn networks(text: &str) -> Value {
    let (name, network) = text.split_once(' ').unwrap_or((text, "10.0.0.0/16"));
    json!({"metadata": {"name": name, "resourceVersion": "7"}, "spec": {"cidrs": [network]}})
}

fn objects() -> Objects {
    Objects::new(Scope {
        node_name: "edge-1".to_owned(),
        service_proxy_name: None,
    })
}

/// Everything complete, without a Service.
fn complete() -> Objects {
    let mut objects = objects();
    for step in [Init, Done] {
        objects.apply(Seen::Service(event(step, service)));
        objects.apply(Seen::Slice(event(step, slice)));
        objects.apply(Seen::Networks(event(step, networks)));
    }
    for step in [Init, Listed("edge-1"), Done] {
        objects.apply(Seen::Node(event(step, node)));
    }
    objects
}

/// Services with their ports, then what is wrong.
fn text(state: &SourceState) -> String {
    let mut text = String::new();
    for service in state.snapshot.services.values() {
        let port = service.ports.first().map_or(0, |p| p.port);
        write!(text, "{} {port};", service.name.name).expect("a text");
    }
    for rejection in &state.rejections {
        write!(text, " {rejection};").expect("a text");
    }
    text
}

#[test]
fn services_follow_the_events() {
    for (name, steps, changes, expected) in [
        (
            "a list",
            vec![Init, Listed("web 80"), Listed("db 81"), Done],
            1,
            "db 81;web 80;",
        ),
        (
            "half a list is not seen",
            vec![Init, Listed("web 80")],
            0,
            "",
        ),
        (
            "changes",
            vec![Apply("web 80"), Apply("web 81")],
            2,
            "web 81;",
        ),
        (
            "the same again",
            vec![Apply("web 80"), Apply("web 80")],
            1,
            "web 80;",
        ),
        (
            "a deletion",
            vec![Apply("web 80"), Apply("db 81"), Delete("web 80")],
            3,
            "db 81;",
        ),
        (
            "a deletion of the unknown",
            vec![Apply("web 80"), Delete("db 81")],
            1,
            "web 80;",
        ),
        (
            "a new list takes the old one's place at its end",
            vec![
                Apply("web 80"),
                Apply("db 81"),
                Init,
                Listed("db 82"),
                Listed("x 83"),
                Done,
            ],
            3,
            "db 82;x 83;",
        ),
        (
            "until then nothing is missing",
            vec![Apply("web 80"), Apply("db 81"), Init, Listed("db 82")],
            2,
            "db 81;web 80;",
        ),
        (
            "a list that broke off is begun again",
            vec![
                Apply("web 80"),
                Init,
                Listed("gone 1"),
                Init,
                Listed("db 81"),
                Done,
            ],
            2,
            "db 81;",
        ),
        (
            "the same list again changes nothing",
            vec![Apply("web 80"), Init, Listed("web 80"), Done],
            1,
            "web 80;",
        ),
        (
            "an empty list empties",
            vec![Apply("web 80"), Init, Done],
            2,
            "",
        ),
        (
            "no longer ours: the label selector sends a deletion",
            vec![Apply("web 80"), Apply("web ExternalName")],
            2,
            "",
        ),
    ] {
        let mut objects = complete();
        let seen = steps
            .into_iter()
            .map(|step| Seen::Service(event(step, service)));
        let changed = seen.filter(|seen| objects.apply(seen.clone())).count();
        assert_eq!(
            (changed, text(&objects.state()).as_str()),
            (changes, expected),
            "{name}"
        );
        assert!(objects.is_complete() && !objects.state().unread, "{name}");
    }
}

#[test]
fn an_object_that_cannot_be_read() {
    const BROKEN: &str = "Service default/web: cannot be read: spec.ports[0].port: ";
    for (name, steps, expected) in [
        (
            "keeps its last good version",
            vec![Apply("web 80"), Apply("web none")],
            "web 80;",
        ),
        (
            "also over a list",
            vec![Apply("web 80"), Init, Listed("web none"), Done],
            "web 80;",
        ),
        (
            "takes nothing with it",
            vec![Init, Listed("web none"), Listed("db 81"), Done],
            "db 81;",
        ),
    ] {
        let mut objects = complete();
        for step in steps {
            objects.apply(Seen::Service(event(step, service)));
        }
        let state = objects.state();
        let text = text(&state);
        let rest = text
            .strip_prefix(expected)
            .unwrap_or_else(|| panic!("{name}: {text}"));
        assert!(
            rest.trim().starts_with(BROKEN) && state.unread,
            "{name}: {text}"
        );
        assert!(state.rejections[0].subject.is_some(), "{name}");
        objects.apply(Seen::Service(event(Apply("web 82"), service)));
        let state = objects.state();
        assert!(
            state.rejections.is_empty() && !state.unread,
            "{name}: put right"
        );
    }
}

#[test]
fn a_type_nobody_knows_keeps_what_was_before() {
    let mut objects = complete();
    for step in [Apply("web 80"), Apply("web Teleport")] {
        objects.apply(Seen::Service(event(step, service)));
    }
    assert_eq!(
        text(&objects.state()),
        "web 80; Service default/web: spec.type: `Teleport` is not a type of Service;"
    );
}

#[test]
fn nothing_is_complete_before_every_list() {
    enum Given {
        Slices(Step),
        Node(Step),
        Networks(Step),
        NoNetworks,
    }
    use Given::{Networks, NoNetworks, Node, Slices};
    for (name, given, expected) in [
        ("Services alone", vec![], false),
        (
            "no Node",
            vec![Slices(Done), Networks(Done), Node(Init), Node(Done)],
            false,
        ),
        (
            "another Node",
            vec![
                Slices(Done),
                Networks(Done),
                Node(Listed("edge-2")),
                Node(Done),
            ],
            false,
        ),
        (
            "no slices",
            vec![
                Slices(Init),
                Networks(Done),
                Node(Listed("edge-1")),
                Node(Done),
            ],
            false,
        ),
        (
            "no networks yet",
            vec![Slices(Done), Node(Listed("edge-1")), Node(Done)],
            false,
        ),
        (
            "everything",
            vec![
                Slices(Done),
                Networks(Done),
                Node(Listed("edge-1")),
                Node(Done),
            ],
            true,
        ),
        (
            "a server without service networks",
            vec![Slices(Done), NoNetworks, Node(Listed("edge-1")), Node(Done)],
            true,
        ),
        (
            "a Node that comes later",
            vec![
                Slices(Done),
                Networks(Done),
                Node(Done),
                Node(Apply("edge-1")),
            ],
            true,
        ),
    ] {
        let mut objects = objects();
        objects.apply(Seen::Service(event(Done, service)));
        for given in given {
            match given {
                Slices(step) => drop(objects.apply(Seen::Slice(event(step, slice)))),
                Node(step) => drop(objects.apply(Seen::Node(event(step, node)))),
                Networks(step) => drop(objects.apply(Seen::Networks(event(step, networks)))),
                NoNetworks => drop(objects.without_networks()),
            }
        }
        assert_eq!(objects.is_complete(), expected, "{name}");
        assert_eq!(objects.state().complete, expected, "{name}");
    }
}

#[test]
fn the_node_stays_known_when_its_object_goes() {
    let mut objects = complete();
    let mut after = |step| {
        objects.apply(Seen::Node(event(step, node)));
        let node = objects.state().node.expect("a Node");
        assert!(objects.is_complete());
        (node.zone.expect("a zone"), node.deleting)
    };
    assert_eq!(after(Apply("edge-1 b")), ("b".to_owned(), false));
    assert_eq!(after(Delete("edge-1 b")), ("b".to_owned(), true));
    assert_eq!(after(Apply("edge-1 c")), ("c".to_owned(), false));
    after(Init);
    assert_eq!(after(Done), ("c".to_owned(), true), "a list without it");
}

#[test]
fn slices_and_networks_are_there_too() {
    let mut objects = complete();
    objects.apply(Seen::Slice(event(Apply("web-1 10.1.0.9"), slice)));
    objects.apply(Seen::Networks(event(Apply("a 10.0.0.0/16"), networks)));
    objects.apply(Seen::Networks(event(Apply("b 2001:db8::/112"), networks)));
    let state = objects.state();
    let slice = state.snapshot.slices.values().next().expect("a slice");
    assert_eq!(slice.endpoints[0].address.to_string(), "10.1.0.9");
    let networks = state.snapshot.service_networks.iter();
    let networks: Vec<_> = networks.map(ToString::to_string).collect();
    assert_eq!(networks, ["10.0.0.0/16", "2001:db8::/112"]);
}

#[test]
fn lists_and_events_are_read_as_the_server_writes_them() {
    let list = json!({
        "kind": "ServiceList", "apiVersion": "v1", "metadata": {"resourceVersion": "9"},
        "items": [service("web none"), service("db 81")],
    });
    let list: kube::core::ObjectList<Received<Service>> =
        serde_json::from_str(&list.to_string()).expect("a list");
    assert_eq!(list.items.len(), 2);
    let line = format!(r#"{{"type":"ADDED","object":{}}}"#, service("web none"));
    let event: kube::core::WatchEvent<Received<Service>> =
        serde_json::from_str(&line).expect("an event");
    assert!(matches!(event, kube::core::WatchEvent::Added(_)));
}
