//! Packets that are not ours leave byte for byte as they came, whatever they look like.

use std::collections::BTreeMap;

use lb_common::reason::{Counter, Event, Reason, Verdict as Fate};
use lb_tests::{
    book::BOOKS,
    flows::{Conversation, Mode},
    network::{INSIDE, OUTSIDE, in_network},
    packet::{Packet, describe, packet},
    run::{CONFIG, Counts, Hook, Lab, Verdict, with_lab},
    tables::{Tables, tables},
};
use proptest::{
    prelude::*,
    test_runner::{Config as Cases, RngAlgorithm, TestRng, TestRunner},
};

fn in_lab(test: impl FnOnce(&mut Lab) + Send + 'static) {
    in_network(|| with_lab(&CONFIG, Hook::Xdp, test));
}

/// Services of both families, on a VIP and as node ports, and established flows to confuse with.
fn busy_tables() -> Tables {
    tables()
        .snat("10.0.0.100")
        .snat("2001:db8:a::64")
        .frontend("192.0.2.1:443/tcp")
        .backends(["10.0.0.5:8443"])
        .frontend("[2001:db8::1]:443/tcp")
        .backends(["[2001:db8:a::5]:8443"])
        .frontend("192.0.2.1:53/udp")
        .backends(["10.0.0.5:53"])
        .frontend("0.0.0.0:30080/tcp")
        .backends(["10.0.0.6:8080"])
        .keep_source()
        .node_ports_on("198.51.100.1")
        .frontend("[::]:30080/tcp")
        .backends(["[2001:db8:a::6]:8080"])
        .node_ports_on("2001:db8:100::1")
}

/// Addresses that are not VIPs nor SNAT addresses: the node's own, backends', strangers', and ones
/// that share a bit of the address filter with ours.
const V4: [&str; 7] = [
    "198.51.100.1",
    "198.51.100.7",
    "10.0.0.5",
    "10.0.0.6",
    "203.0.113.9",
    "192.0.2.3",
    "224.0.0.5",
];
const V6: [&str; 6] = [
    "2001:db8:100::1",
    "2001:db8:100::7",
    "2001:db8:a::5",
    "2001:db8:a::6",
    "2001:db8:ffff::9",
    "ff02::1",
];
/// Ports around ours.
const PORTS: [u16; 10] = [443, 442, 444, 53, 8443, 8080, 30_080, 30_081, 40_000, 1];

fn foreign() -> impl Strategy<Value = Packet> {
    let ends = prop_oneof![
        (prop::sample::select(&V4[..]), prop::sample::select(&V4[..])),
        (prop::sample::select(&V6[..]), prop::sample::select(&V6[..])),
    ];
    let ports = (
        prop::sample::select(&PORTS[..]),
        prop::sample::select(&PORTS[..]),
    );
    let shape = (0_u8..12, any::<u8>(), any::<u8>(), 0_usize..80);
    (ends, ports, shape).prop_map(|((source, destination), (from, to), shape)| {
        build(source, destination, from, to, shape)
    })
}

fn build(
    source: &str,
    destination: &str,
    from: u16,
    to: u16,
    (kind, flags, ttl, length): (u8, u8, u8, usize),
) -> Packet {
    let v6 = source.contains(':');
    let at = |address: &str, port: u16| {
        if v6 {
            format!("[{address}]:{port}")
        } else {
            format!("{address}:{port}")
        }
    };
    let (from, to) = (at(source, from), at(destination, to));
    let built = match kind {
        0..=3 => packet().tcp(&from, &to).flags(flags),
        4 | 5 => packet().udp(&from, &to),
        6 => packet().ping(source, destination, 1, 1),
        7 => packet()
            .port_unreachable(source, destination)
            .quoting(&packet().udp(&to, &from), 48),
        8 => packet().raw(source, destination, flags),
        9 => packet().tcp(&from, &to).flags(flags).tag(0x88a8, 7),
        10 if v6 => packet()
            .tcp(&from, &to)
            .extension(60, &[0, 1, 4, 0, 0, 0, 0]),
        10 => packet().tcp(&from, &to).options(&[0x94, 4, 0, 0]),
        _ => packet()
            .udp(&from, &to)
            .payload_length(64)
            .fragment(8, 16, true),
    };
    built.ttl(ttl).payload_extended(length)
}

/// True for packets that a rule of ours names after all: the node port, a gateway backend's answer.
fn is_ours(packet: &Packet) -> bool {
    let bytes = packet.bytes();
    let text = describe(&bytes);
    let to_node_port = text.contains("> 30080 ")
        && (text.contains("> 198.51.100.1 ") || text.contains("> 2001:db8:100::1 "));
    let of_gateway = text.contains(" tcp 8080 > ");
    to_node_port || of_gateway
}

#[test]
fn generated_frames_leave_unchanged() {
    in_lab(|lab| {
        lab.apply(&busy_tables().build(1));
        let before = lab.counts();
        let config = Cases {
            cases: 3_000,
            failure_persistence: None,
            ..Cases::default()
        };
        let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
        let mut runner = TestRunner::new_with_rng(config, rng);
        let outcome = runner.run(&foreign(), |packet| {
            prop_assume!(!is_ours(&packet));
            let frame = packet.bytes();
            for port in [OUTSIDE, INSIDE] {
                for outcome in [lab.xdp(&frame, port), lab.ingress(&frame, port)] {
                    prop_assert_eq!(outcome.verdict, Verdict::Pass, "{}", describe(&frame));
                    prop_assert_eq!(&outcome.frame, &frame, "{}", describe(&frame));
                }
            }
            Ok(())
        });
        outcome.unwrap_or_else(|error| panic!("{error}"));
        only_passing_reasons(&before, lab);
        assert_eq!(lab.flow_entries(), (0, 0));
    });
}

/// Nothing was counted but reasons to pass (and frames XDP looked at twice).
fn only_passing_reasons(before: &Counts, lab: &Lab) {
    let counts = lab.counts();
    let mut unexpected = BTreeMap::new();
    for counter in Counter::all() {
        let passing = match counter {
            Counter::Reason(reason) => reason.verdict() == Fate::Pass,
            Counter::Event(event) => event == Event::HandedToTcx,
        };
        if let Some(tally) = counts.counters.get(counter.name())
            && before.counters.get(counter.name()) != Some(tally)
            && !passing
        {
            unexpected.insert(counter.name(), *tally);
        }
    }
    assert!(unexpected.is_empty(), "{unexpected:?}");
    let traffic = (&counts.services, &counts.backends);
    assert_eq!(traffic, (&before.services, &before.backends));
}

#[test]
fn frames_truncated_at_every_byte_leave_unchanged() {
    in_lab(|lab| {
        lab.apply(&busy_tables().build(1));
        for (source, destination) in [
            ("198.51.100.7:40000", "198.51.100.1:22"),
            ("203.0.113.9:443", "10.0.0.5:8443"),
            ("[2001:db8:100::7]:40000", "[2001:db8:100::1]:22"),
            ("[2001:db8:ffff::9]:443", "[2001:db8:a::5]:8443"),
        ] {
            for whole in [
                packet().tcp(source, destination).syn().payload_length(12),
                packet().udp(source, destination).payload_length(12),
                packet()
                    .udp(source, destination)
                    .payload_length(12)
                    .tag(0x8100, 5),
            ] {
                let whole = whole.bytes();
                // The kernel takes no shorter frame than an Ethernet header.
                for length in 14..=whole.len() {
                    let frame = whole.get(..length).expect("shorter");
                    let outcome = lab.xdp(frame, OUTSIDE);
                    let text = format!("{length} of {}: {}", whole.len(), describe(frame));
                    assert_eq!(outcome.verdict, Verdict::Pass, "XDP, {text}");
                    assert_eq!(outcome.frame, frame, "XDP, {text}");
                }
            }
        }
    });
}

#[test]
fn truncated_frames_of_ours_are_never_changed_unless_forwarded() {
    in_lab(|lab| {
        for book in BOOKS {
            let talk = Conversation::new(book, Mode::FullNat);
            lab.apply(&talk.tables().build(1));
            let whole = talk.first().payload(b"").bytes();
            for length in 14..whole.len() {
                let frame = whole.get(..length).expect("shorter");
                let outcome = lab.xdp(frame, OUTSIDE);
                let text = format!("{length} of {}: {}", whole.len(), describe(frame));
                assert_eq!(outcome.verdict, Verdict::Pass, "XDP, {text}");
                assert_eq!(outcome.frame, frame, "XDP, {text}");
            }
            assert_eq!(lab.flow_entries(), (0, 0), "{}", talk.name());
        }
    });
}

#[test]
fn near_misses_are_named_one_by_one() {
    in_lab(|lab| {
        lab.apply(&busy_tables().build(1));
        let client = "198.51.100.7:40000";
        let arp: Vec<u8> = [[0xff; 6].as_slice(), &[2, 0, 0, 0, 0, 9], &[8, 6], &[0; 28]].concat();
        let other_version = {
            let mut frame = packet().tcp(client, "198.51.100.1:22").syn().bytes();
            *frame.get_mut(14).expect("an IP header") = 0x65;
            frame
        };
        for (name, frame, reason) in [
            ("ARP", arp, Reason::NotIp),
            ("another version", other_version, Reason::NotOurs),
            (
                "another port of the node",
                packet().tcp(client, "198.51.100.1:30081").syn().bytes(),
                Reason::NotOurs,
            ),
            (
                "the node port by UDP",
                packet().udp(client, "198.51.100.1:30080").bytes(),
                Reason::NotOurs,
            ),
            (
                "the node port on another address of the node",
                packet().tcp(client, "10.0.0.1:30080").syn().bytes(),
                Reason::NotOurs,
            ),
            (
                "the frontend's port on another address",
                packet().tcp(client, "192.0.2.2:443").syn().bytes(),
                Reason::NotOurs,
            ),
            (
                "a double tag",
                packet()
                    .tcp(client, "192.0.2.1:443")
                    .syn()
                    .tag(0x8100, 1)
                    .tag(0x88a8, 2)
                    .bytes(),
                Reason::NotIp,
            ),
            (
                "a backend talks to the world",
                packet()
                    .tcp("10.0.0.5:33333", "203.0.113.9:443")
                    .syn()
                    .bytes(),
                Reason::NotOurs,
            ),
            (
                "ping of the node",
                packet().ping("198.51.100.7", "198.51.100.1", 1, 1).bytes(),
                Reason::NotOurs,
            ),
        ] {
            let before = lab.counts();
            let outcome = lab.xdp(&frame, OUTSIDE);
            assert_eq!(
                (outcome.verdict, &outcome.frame),
                (Verdict::Pass, &frame),
                "XDP: {name}"
            );
            let outcome = lab.ingress(&frame, OUTSIDE);
            assert_eq!(
                (outcome.verdict, &outcome.frame),
                (Verdict::Pass, &frame),
                "TCX: {name}"
            );
            let after = lab.counts();
            let count = |counts: &Counts| {
                counts
                    .counters
                    .get(reason.name())
                    .map_or(0, |tally| tally.packets)
            };
            assert_eq!(
                count(&after) - count(&before),
                1,
                "{name}: {reason:?}, {after:?}"
            );
        }
    });
}
