use super::*;
use crate::tables::FrontendRecord;

fn id(text: &str, protocol: Protocol) -> FrontendId {
    let end: SocketAddr = text.parse().expect("an end");
    FrontendId {
        address: end.ip(),
        port: end.port(),
        protocol,
    }
}

const RECORD: FrontendRecord = FrontendRecord {
    service: 1,
    flags: 0,
};

fn tables(frontends: &[(&str, Protocol)], addresses: &[&str]) -> TableSet {
    let frontends = frontends.iter().map(|(end, it)| (id(end, *it), RECORD));
    let ip = |text: &&str| text.parse().expect("an address");
    TableSet {
        frontends: frontends.collect(),
        addresses: addresses
            .iter()
            .map(|it| (ip(it), address_role::NODE_PORT))
            .collect(),
        ..TableSet::default()
    }
}

#[test]
fn connections_to_what_goes_live_are_meant() {
    use Protocol::{Tcp, Udp};
    let vip = |it| TableOp::SetFrontend(id("192.0.2.1:53", it), RECORD);
    let node_port = TableOp::SetFrontend(id("0.0.0.0:30053", Udp), RECORD);
    let role = |role| TableOp::SetAddress("10.0.0.1".parse().expect("an address"), role);
    let nothing = tables(&[], &[]);
    let served = tables(
        &[("192.0.2.1:53", Udp), ("0.0.0.0:30053", Udp)],
        &["10.0.0.1"],
    );
    let addressless = tables(&[("0.0.0.0:30053", Udp)], &["10.0.0.2"]);
    for (name, tables, ops, meant) in [
        (
            "a new frontend",
            &nothing,
            vec![vip(Udp)],
            &["192.0.2.1:53"][..],
        ),
        ("TCP tells by itself", &nothing, vec![vip(Tcp)], &[]),
        (
            "an old frontend",
            &served,
            vec![vip(Udp), node_port.clone()],
            &[],
        ),
        (
            "a node port and its address",
            &nothing,
            vec![role(address_role::NODE_PORT), node_port.clone()],
            &["10.0.0.1:30053"],
        ),
        (
            "a node port nobody serves",
            &nothing,
            vec![node_port.clone()],
            &[],
        ),
        (
            "another address for an old node port",
            &addressless,
            vec![role(address_role::NODE_PORT | address_role::SNAT)],
            &["10.0.0.1:30053", "10.0.0.2:30053"],
        ),
        (
            "an address as it was",
            &served,
            vec![role(address_role::NODE_PORT)],
            &[],
        ),
        (
            "an address for SNAT",
            &addressless,
            vec![role(address_role::SNAT)],
            &[],
        ),
        (
            "another service removed",
            &served,
            vec![TableOp::RemoveFrontend(id("192.0.2.1:53", Udp))],
            &[],
        ),
    ] {
        let added = Frontends::added(&ops, tables);
        let ends = [
            "192.0.2.1:53",
            "10.0.0.1:30053",
            "10.0.0.2:30053",
            "10.0.0.1:53",
        ];
        let found: Vec<_> = ends
            .into_iter()
            .filter(|end| added.contain(end.parse().expect("an end")))
            .collect();
        let mut meant = meant.to_vec();
        meant.sort_unstable_by_key(|end| ends.iter().position(|it| it == end));
        assert_eq!(found, meant, "{name}");
    }
}

#[test]
fn all_frontends_are_meant_at_the_start() {
    use Protocol::{Tcp, Udp};
    let tables = tables(
        &[
            ("192.0.2.1:53", Udp),
            ("192.0.2.1:80", Tcp),
            ("[::]:30053", Udp),
        ],
        &["10.0.0.1", "2001:db8::1"],
    );
    let all = Frontends::all(&tables);
    for (end, expected) in [
        ("192.0.2.1:53", true),
        ("192.0.2.1:80", false),
        ("[2001:db8::1]:30053", true),
        ("10.0.0.1:30053", false),
        ("[2001:db8::2]:30053", false),
    ] {
        assert_eq!(all.contain(end.parse().expect("an end")), expected, "{end}");
    }
    assert!(Frontends::all(&TableSet::default()).is_empty());
}

#[test]
fn both_directions_pass_and_name_each_other() {
    let end = |text: &str| -> SocketAddr { text.parse().expect("an end") };
    let tracked = Tracked {
        original: Ends {
            source: end("198.51.100.7:40000"),
            destination: end("192.0.2.1:53"),
        },
        reply: Ends {
            source: end("10.0.0.11:5353"),
            destination: end("10.0.0.1:61000"),
        },
        replied: true,
    };
    let head = Head::new(7, state::ESTABLISHED, 9);
    let address = |ip| v4(ip).map(Into::into);
    let halves = halves::<Flow4, Entry4>(&tracked, head, address).expect("both halves");
    let [(forward, there), (reverse, back)] = halves;
    assert_eq!(there.written(protocol::UDP).reversed(), reverse);
    assert_eq!(back.written(protocol::UDP).reversed(), forward);
    assert_eq!(there.flags(), flag::PASS);
    assert_eq!(back.flags(), flag::PASS | flag::REVERSE);
    for entry in [there, back] {
        assert_eq!(entry.head(), head);
        assert_eq!((entry.service(), entry.backend()), (0, 0));
        assert_eq!(entry.route().next_hop(), 0);
    }
    let other = super::halves::<Flow6, Entry6>(&tracked, head, |ip| v6(ip).map(Into::into));
    assert!(other.is_none(), "of another family");
}
