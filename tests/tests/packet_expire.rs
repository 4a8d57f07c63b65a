//! How the agent ends flows: the idle ones, which a packet may still save, and those it must end.

use std::time::Duration;

use lb_common::{
    conntrack::{Head, Idle4, Idle6, state},
    names,
    reason::{Counter, Event, Reason},
};
use lb_tests::{
    book::{BOOKS, TCP_BOOKS},
    case::{Case, case, from, run},
    flows::{Conversation, Mode},
    netns::poll_until,
    network::OUTSIDE,
    run::{Hook, Lab},
};

/// Operations of `lb_expire`.
const CONDEMN: u8 = 1;
const DELETE: u8 = 2;
const END: u8 = 3;
const COUNT: u8 = 4;

/// The records of all halves of both families' tables, as the agent would read them now.
fn records(lab: &Lab, [v4, v6]: [&str; 2]) -> [(u8, Vec<Vec<u8>>); 2] {
    let head = |head: u64| head.to_ne_bytes();
    let records4 = lab.flows4(v4).into_iter().map(|(flow, entry)| {
        let idle = Idle4 {
            flow,
            head: entry.head,
        };
        let mut bytes: Vec<u8> = [idle.flow.source.0, idle.flow.destination.0]
            .into_iter()
            .flat_map(u32::to_ne_bytes)
            .collect();
        bytes.extend(idle.flow.source_port.0.to_ne_bytes());
        bytes.extend(idle.flow.destination_port.0.to_ne_bytes());
        bytes.extend(idle.flow.protocol.to_ne_bytes());
        bytes.extend(head(idle.head));
        bytes
    });
    let records6 = lab.flows6(v6).into_iter().map(|(flow, entry)| {
        let idle = Idle6 {
            flow,
            head: entry.head,
        };
        let addresses = idle
            .flow
            .source
            .0
            .into_iter()
            .chain(idle.flow.destination.0);
        let mut bytes: Vec<u8> = addresses.flat_map(u32::to_ne_bytes).collect();
        bytes.extend(idle.flow.source_port.0.to_ne_bytes());
        bytes.extend(idle.flow.destination_port.0.to_ne_bytes());
        bytes.extend(idle.flow.protocol.to_ne_bytes());
        bytes.extend(head(idle.head));
        bytes
    });
    [(4, records4.collect()), (6, records6.collect())]
}

/// Runs the expiry program on records; the number of halves changed.
fn apply(lab: &Lab, operation: u8, records: &[(u8, Vec<Vec<u8>>); 2]) -> u32 {
    records
        .iter()
        .filter(|(_, records)| !records.is_empty())
        .map(|(family, records)| {
            let records: Vec<&[u8]> = records.iter().map(Vec::as_slice).collect();
            lab.expire(operation, *family, &records)
        })
        .sum()
}

const ESTABLISHED: [&str; 2] = [names::FLOWS_V4, names::FLOWS_V6];
const EMBRYONIC: [&str; 2] = [names::EMBRYONIC_V4, names::EMBRYONIC_V6];

/// Runs the expiry program on every established half as it is now.
fn expire(lab: &Lab, operation: u8) -> u32 {
    apply(lab, operation, &records(lab, ESTABLISHED))
}

fn expect_states(lab: &Lab, expected: [u8; 2]) {
    let v4 = lab.flows4(names::FLOWS_V4).into_values().map(|e| e.head);
    let v6 = lab.flows6(names::FLOWS_V6).into_values().map(|e| e.head);
    let found: Vec<u8> = v4.chain(v6).map(|head| Head(head).state()).collect();
    assert_eq!(found, expected, "{}", lab.describe_flows());
}

fn expect_no_use(lab: &Lab) {
    let uses: Vec<(u32, u64)> = lab.map(names::FLOW_USE).read_all().expect("FLOW_USE");
    assert!(uses.iter().all(|(_, entries)| *entries == 0), "{uses:?}");
}

#[test]
fn a_condemned_flow_revives_or_is_deleted() {
    let cases = BOOKS.into_iter().map(|book| {
        let talk = Conversation::new(book, Mode::FullNat);
        case(format!("{}: expiry", talk.name()), talk.tables())
            .steps(talk.handshake())
            .then(|lab| {
                let deleted = expire(lab, DELETE);
                assert_eq!(deleted, 0, "what is not condemned cannot be deleted");
            })
            .then(|lab| assert_eq!(expire(lab, CONDEMN), 2, "both halves are condemned"))
            .then(|lab| expect_states(lab, [state::ESTABLISHED | state::CONDEMNED; 2]))
            .step(talk.request(&talk.question()))
            .step(talk.reply(&talk.answer()))
            .then(|lab| expect_states(lab, [state::ESTABLISHED; 2]))
            .then(|lab| assert_eq!(expire(lab, CONDEMN), 2, "both are condemned again"))
            .then(|lab| assert_eq!(expire(lab, DELETE), 2, "and deleted"))
            .flows(0, 0)
            .then(|lab| expect_no_use(lab))
    });
    run(cases.collect());
}

/// Ends what `tables` hold: `halves` leave, as one flow if there are any.
fn ends(case: Case, tables: [&'static str; 2], halves: u32) -> Case {
    case.then(move |lab| {
        let counter = Counter::Event(Event::FlowEnded);
        let before = lab.count(counter);
        assert_eq!(apply(lab, END, &records(lab, tables)), halves);
        let flows = u64::from(halves != 0);
        assert_eq!(lab.count(counter) - before, flows, "flows ended");
    })
    .flows(0, 0)
    .then(|lab| expect_no_use(lab))
}

#[test]
fn a_flow_is_ended_whatever_its_state() {
    let cases = BOOKS.into_iter().flat_map(|book| {
        let talk = Conversation::new(book, Mode::FullNat);
        let named = |what: &str| case(format!("{}: {what}", talk.name()), talk.tables());
        let young = named("embryonic").step(talk.request(&talk.first()).creates());
        let live = named("established").steps(talk.handshake());
        let idle = named("condemned")
            .steps(talk.handshake())
            .then(|lab| assert_eq!(expire(lab, CONDEMN), 2));
        [
            ends(young, EMBRYONIC, 2),
            ends(live, ESTABLISHED, 2),
            ends(idle, ESTABLISHED, 2),
        ]
    });
    run(cases.collect());
}

#[test]
fn a_closed_flow_is_ended_and_its_place_in_the_queue_means_nothing() {
    let cases = TCP_BOOKS.into_iter().map(|book| {
        let talk = Conversation::new(book, Mode::FullNat);
        let other = Conversation {
            client_port: 40_001,
            ..talk
        };
        let closed = case(format!("{}: closed", talk.name()), talk.tables())
            .config(|config| config.closed_ticks = 0)
            .steps(talk.handshake())
            .step(talk.request(&talk.question().flags(0x11)))
            .step(
                talk.reply(&talk.answer().flags(0x11))
                    .event(Event::FlowClosed),
            );
        ends(closed, ESTABLISHED, 2)
            .step(other.request(&other.first()).creates())
            .flows(0, 2)
    });
    run(cases.collect());
}

#[test]
fn what_follows_an_ended_flow_is_a_packet_no_flow_knows() {
    let cases = TCP_BOOKS.into_iter().map(|book| {
        let talk = Conversation::new(book, Mode::FullNat);
        let live = case(format!("{}: afterwards", talk.name()), talk.tables())
            .config(|config| {
                config.unknown_flows = lb_common::config::UnknownFlows::Drop as u32;
            })
            .steps(talk.handshake());
        ends(live, ESTABLISHED, 2)
            .step(from(OUTSIDE, &talk.question()).drops(Reason::UnknownFlow))
            .step(from(talk.inside(), &talk.answer()).drops(Reason::SnatMiss))
            .steps(talk.handshake())
    });
    run(cases.collect());
}

/// Records of the established halves' keys under other flows' identities.
fn of_others(lab: &Lab) -> [(u8, Vec<Vec<u8>>); 2] {
    let mut seen = records(lab, ESTABLISHED);
    let last = seen.iter_mut().flat_map(|(_, records)| records);
    // The identity is the upper half of the head, which comes last.
    for byte in last.filter_map(|record| record.last_mut()) {
        *byte ^= 1;
    }
    seen
}

#[test]
fn another_flow_under_the_same_key_is_not_ended() {
    let cases = BOOKS.into_iter().map(|book| {
        let talk = Conversation::new(book, Mode::FullNat);
        case(format!("{}: another identity", talk.name()), talk.tables())
            .steps(talk.handshake())
            .then(|lab| {
                assert_eq!(apply(lab, END, &of_others(lab)), 0);
            })
            .step(talk.request(&talk.question()))
            .step(talk.reply(&talk.answer()))
            .flows(2, 0)
    });
    run(cases.collect());
}

/// A flow with traffic pending in both directions.
fn pending(talk: Conversation, what: &str) -> Case {
    case(format!("{}: {what}", talk.name()), talk.tables())
        .only(Hook::Xdp)
        .steps(talk.handshake())
        .then(move |lab| {
            // What the first packet of a tick brings is not pending.
            poll_until("traffic to be pending", Duration::from_secs(5), || {
                for (port, packet) in [(OUTSIDE, talk.question()), (talk.inside(), talk.answer())] {
                    lab.xdp(&packet.bytes(), port);
                }
                let ways = lab.counts().services.get(&1).copied().unwrap_or_default();
                let there = lab
                    .handed_over()
                    .services
                    .get(&1)
                    .copied()
                    .unwrap_or_default();
                (ways.forward != there.forward && ways.reply != there.reply).then_some(())
            });
        })
}

#[test]
fn what_a_flow_has_pending_is_counted_when_it_is_silent_and_when_it_leaves() {
    let counted = |lab: &mut Lab, act: fn(&Lab)| {
        let before = lab.counts();
        act(lab);
        let after = lab.handed_over();
        assert_eq!(after.services, before.services);
        assert_eq!(after.backends, before.backends);
    };
    let cases = BOOKS.into_iter().flat_map(|book| {
        let talk = Conversation::new(book, Mode::FullNat);
        [
            pending(talk, "silent")
                .then(move |lab| counted(lab, |lab| assert_eq!(expire(lab, COUNT), 2)))
                .step(talk.request(&talk.question()))
                .step(talk.reply(&talk.answer()))
                .flows(2, 0),
            pending(talk, "deleted").then(move |lab| {
                counted(lab, |lab| {
                    assert_eq!(expire(lab, CONDEMN), 2);
                    assert_eq!(expire(lab, DELETE), 2);
                });
            }),
            pending(talk, "ended")
                .then(move |lab| counted(lab, |lab| assert_eq!(expire(lab, END), 2))),
        ]
    });
    run(cases.collect());
}

#[test]
fn another_flow_under_the_same_key_keeps_what_it_has_pending() {
    let cases = BOOKS.into_iter().map(|book| {
        pending(Conversation::new(book, Mode::FullNat), "another identity").then(|lab| {
            let before = lab.handed_over();
            assert_eq!(apply(lab, COUNT, &of_others(lab)), 0);
            assert_eq!(lab.handed_over(), before);
        })
    });
    run(cases.collect());
}
