use super::*;
use crate::plan::fixture::{node, slice};

const ALL: Wanted = Wanted {
    cluster: true,
    local: true,
    topology: true,
};

/// Cluster set, local set, members with their flags, as text.
fn sets_of(slices: &[SliceObject], node: &NodeConfig) -> [String; 3] {
    let slices: Vec<_> = slices.iter().collect();
    let sets = sets(&slices, "http", Protocol::Tcp, node, ALL);
    let join = |list: &[SocketAddr]| {
        list.iter()
            .map(|e| e.to_string().replace("10.1.0.", ""))
            .collect::<Vec<_>>()
            .join(" ")
    };
    let members: Vec<_> = sets
        .members
        .iter()
        .map(|m| {
            format!(
                "{}={}",
                m.endpoint.to_string().replace("10.1.0.", ""),
                m.flags
            )
        })
        .collect();
    [join(&sets.cluster), join(&sets.local), members.join(" ")]
}

#[test]
fn conditions_decide_with_two_independent_fallbacks() {
    for (name, endpoints, cluster, local, members) in [
        (
            "ready",
            vec!["10.1.0.1", "10.1.0.2 on=edge-1"],
            "1:80 2:80",
            "2:80",
            "1:80=5 2:80=7",
        ),
        (
            "ready although terminating (publishNotReadyAddresses)",
            vec!["10.1.0.1 terminating", "10.1.0.2 deaf"],
            "1:80 2:80",
            "",
            "1:80=5 2:80=5",
        ),
        (
            "serving alone is not usable",
            vec!["10.1.0.1 unready", "10.1.0.2 unready deaf terminating"],
            "",
            "",
            "1:80=4",
        ),
        (
            "terminating ones serve when nothing is ready",
            vec![
                "10.1.0.1 unready terminating",
                "10.1.0.2 unready terminating deaf",
            ],
            "1:80",
            "",
            "1:80=5",
        ),
        (
            "a ready one ends the fallback",
            vec!["10.1.0.1 unready terminating", "10.1.0.2"],
            "2:80",
            "",
            "1:80=4 2:80=5",
        ),
        (
            "remote ready, local terminating",
            vec!["10.1.0.1", "10.1.0.2 unready terminating on=edge-1"],
            "1:80",
            "2:80",
            "1:80=5 2:80=6",
        ),
        (
            "on another node",
            vec!["10.1.0.1 on=edge-10"],
            "1:80",
            "",
            "1:80=5",
        ),
    ] {
        let slices = [slice("web_1", &["http:80"], &endpoints)];
        assert_eq!(
            sets_of(&slices, &node()),
            [cluster, local, members],
            "{name}"
        );
    }
}

#[test]
fn topology_hints_count_when_every_ready_endpoint_has_one() {
    for (name, zone, endpoints, expected) in [
        (
            "same zone",
            "z1",
            vec!["10.1.0.1 zone=z1", "10.1.0.2 zone=z2"],
            "1:80",
        ),
        (
            "several zones",
            "z1",
            vec!["10.1.0.1 zone=z1", "10.1.0.2 zone=z2 zone=z1"],
            "1:80 2:80",
        ),
        (
            "one without a hint",
            "z1",
            vec!["10.1.0.1 zone=z1", "10.1.0.2"],
            "1:80 2:80",
        ),
        (
            "none for us",
            "z3",
            vec!["10.1.0.1 zone=z1", "10.1.0.2 zone=z2"],
            "1:80 2:80",
        ),
        (
            "no zone of ours",
            "",
            vec!["10.1.0.1 zone=z1", "10.1.0.2 zone=z2"],
            "1:80 2:80",
        ),
        (
            "unready ones do not vote",
            "z1",
            vec!["10.1.0.1 zone=z1", "10.1.0.2 zone=z2", "10.1.0.3 unready"],
            "1:80",
        ),
        (
            "node before zone",
            "z1",
            vec![
                "10.1.0.1 zone=z1 fornode=edge-2",
                "10.1.0.2 zone=z2 fornode=edge-1",
            ],
            "2:80",
        ),
        (
            "zone when no node hint names us",
            "z1",
            vec![
                "10.1.0.1 zone=z1 fornode=edge-2",
                "10.1.0.2 zone=z2 fornode=edge-3",
            ],
            "1:80",
        ),
        (
            "terminating ones ignore it",
            "z1",
            vec!["10.1.0.1 unready terminating zone=z2"],
            "1:80",
        ),
    ] {
        let zone = Some(zone.to_owned()).filter(|z| !z.is_empty());
        let node = NodeConfig { zone, ..node() };
        let slices = [slice("web_1", &["http:80"], &endpoints)];
        assert_eq!(sets_of(&slices, &node)[0], expected, "{name}");
    }
}

#[test]
fn slices_are_joined_by_port_name_and_protocol_and_copies_count_once() {
    let one = |endpoints: &[&str]| slice("web_1", &["http:80"], endpoints);
    for (name, slices, cluster, local) in [
        (
            "another number on another pod",
            vec![
                one(&["10.1.0.1"]),
                slice("web_2", &["http:8080"], &["10.1.0.2"]),
            ],
            "1:80 2:8080",
            "",
        ),
        (
            "another name, another protocol",
            vec![
                one(&["10.1.0.1"]),
                slice("web_2", &["https:443", "http:80/UDP"], &["10.1.0.2"]),
            ],
            "1:80",
            "",
        ),
        (
            "the most usable copy counts",
            vec![
                one(&["10.1.0.1 unready"]),
                slice("web_2", &["http:80"], &["10.1.0.1"]),
            ],
            "1:80",
            "",
        ),
        (
            "a copy on this node makes it local",
            vec![
                one(&["10.1.0.1"]),
                slice("web_2", &["http:80"], &["10.1.0.1 unready on=edge-1"]),
            ],
            "1:80",
            "1:80",
        ),
    ] {
        let found = sets_of(&slices, &node());
        assert_eq!([&found[0], &found[1]], [cluster, local], "{name}");
    }
}
