//! The gate: what the programs do while another layout serves, and while their tables are copied.

use lb_common::{
    conntrack::{Head, TICK_MASK, state},
    control::Gate,
    names,
    reason::{Event, Reason},
    service::{FragmentKey, FragmentPorts},
};
use lb_tests::{
    book::{BOOKS, Book, TCP_BOOKS, UDP_BOOKS, towards},
    case::{Case, case, from, run},
    flows::{Conversation, MODES, Mode, rejected},
    network::{INSIDE, OUTSIDE},
    packet::{describe, packet},
    run::{Lab, Verdict},
};

/// Ticks until a frozen gate's deadline: the cases' clock stands still.
const AHEAD: u32 = 5;

fn gate(case: Case, gate: impl Fn(&Lab) -> Gate + Send + Sync + 'static) -> Case {
    case.then(move |lab| lab.set_gate(gate(lab)))
}

fn freeze(case: Case) -> Case {
    gate(case, |lab| {
        Gate::frozen(lab.tick().wrapping_add(AHEAD) & TICK_MASK)
    })
}

fn open(case: Case) -> Case {
    gate(case, |_| Gate::OPEN)
}

fn talks() -> impl Iterator<Item = Conversation> {
    BOOKS
        .into_iter()
        .flat_map(|book| MODES.map(|mode| Conversation::new(book, mode)))
}

fn tcp() -> impl Iterator<Item = Conversation> {
    talks().filter(|talk| !talk.book.is_udp())
}

fn remote(books: [Book; 2]) -> impl Iterator<Item = Conversation> {
    books
        .into_iter()
        .flat_map(|book| [Mode::FullNat, Mode::Gateway].map(|mode| Conversation::new(book, mode)))
}

fn named(talk: Conversation, what: &str) -> Case {
    case(format!("{}: {what}", talk.name()), talk.tables())
}

/// The states of all established halves, in the order of their numbers.
fn expect_states(case: Case, expected: [u8; 2]) -> Case {
    case.then(move |lab| {
        let v4 = lab.flows4(names::FLOWS_V4).into_values().map(|e| e.head);
        let v6 = lab.flows6(names::FLOWS_V6).into_values().map(|e| e.head);
        let state = |head: u64| Head(head).state() & !state::QUEUED;
        let mut found: Vec<u8> = v4.chain(v6).map(state).collect();
        found.sort_unstable();
        assert_eq!(found, expected, "{}", lab.describe_flows());
    })
}

#[test]
fn in_standby_every_packet_is_left_to_the_next_program() {
    let cases = talks().map(|talk| {
        let book = talk.book;
        let other = Conversation {
            client_port: 40_001,
            ..talk
        };
        let standby = Some(Reason::Standby);
        let sent = talk.back(&talk.answer());
        let (router, vip) = (book.host(OUTSIDE, 254), book.vip_address());
        let stray = book.packet(&book.client(9), &book.at(&book.host(INSIDE, 8), 9));
        let before = named(talk, "standby").steps(talk.handshake());
        let case = gate(before, |_| Gate::STANDBY).steps([
            from(OUTSIDE, &other.first()).passes(standby),
            from(OUTSIDE, &talk.question()).passes(standby),
            from(talk.inside(), &talk.answer()).passes(standby),
            from(OUTSIDE, &talk.question().fragment(0, 16, true)).passes(standby),
            from(
                OUTSIDE,
                &packet().port_unreachable(&router, vip).quoting(&sent, 48),
            )
            .passes(standby),
            from(OUTSIDE, &stray).passes(standby),
        ]);
        open(case.flows(2, 0).then(|lab| {
            let kept: Vec<(FragmentKey, FragmentPorts)> =
                lab.map(names::FRAGMENTS).read_all().expect("FRAGMENTS");
            assert!(kept.is_empty(), "FRAGMENTS is written");
        }))
        .step(talk.request(&talk.question()))
        .step(talk.reply(&talk.answer()))
        .step(other.request(&other.first()).creates())
    });
    run(cases.collect());
}

#[test]
fn in_standby_a_vip_answers_nothing() {
    let cases = BOOKS.into_iter().map(|book| {
        let talk = Conversation::new(book, Mode::FullNat);
        let closed = book.vip(444);
        let answered = rejected(book, OUTSIDE, &talk.client(), &closed, Reason::NoFrontend);
        let first = book.first(&talk.client(), &closed);
        let case = gate(named(talk, "no frontend"), |_| Gate::STANDBY);
        open(case.step(from(OUTSIDE, &first).passes(Some(Reason::Standby)))).step(answered)
    });
    run(cases.collect());
}

/// A flow to the node itself, established, and then what `lb_egress` makes of its replies.
fn host_flow(book: Book, what: &str) -> (Case, Conversation, String) {
    let talk = Conversation::new(book, Mode::Gateway);
    let backend = book.at(book.node_address(), 8443);
    let (first, third) = (talk.first(), talk.third());
    let tables = book.service().host_backends([backend.as_str()]);
    let second = book.second(&backend, &talk.client());
    let delivered = |packet: &lb_tests::packet::Packet| {
        from(OUTSIDE, packet).delivers(&packet.clone().to(&backend))
    };
    let case = case(format!("{}: the node, {what}", book.name()), tables)
        .step(delivered(&first).creates())
        .then(move |lab| {
            assert_eq!(lab.egress(&second.bytes(), OUTSIDE).verdict, Verdict::Pass);
        })
        .step(delivered(&third).promotes());
    (case, talk, backend)
}

/// A reply of the node by `lb_egress`: what becomes of it, and which counters move.
fn egress(
    case: Case,
    reply: &lb_tests::packet::Packet,
    verdict: Verdict,
    out: Option<&lb_tests::packet::Packet>,
    counted: &'static [&'static str],
) -> Case {
    let (reply, out) = (reply.clone(), out.cloned());
    case.then(move |lab| {
        let before = lab.counters();
        let outcome = lab.egress(&reply.bytes(), OUTSIDE);
        assert_eq!(outcome.verdict, verdict, "{}", describe(&reply.bytes()));
        if let Some(out) = &out {
            assert_eq!(describe(&outcome.frame), describe(&out.bytes()));
        }
        let after = lab.counters();
        let moved = after
            .iter()
            .filter(|&(name, tally)| before.get(name) != Some(tally));
        let moved: Vec<&str> = moved.map(|(name, _)| *name).collect();
        assert_eq!(moved, counted);
    })
}

#[test]
fn egress_obeys_the_gate_too() {
    let sent: &[&str] = &["egress_forwarded"];
    let cases = TCP_BOOKS.into_iter().map(|book| {
        let (case, talk, backend) = host_flow(book, "egress");
        let answer = talk.answer().from(&backend).to(&talk.client());
        let written = answer.clone().from(&talk.vip());
        let (end, ended) = (answer.clone().flags(0x11), written.clone().flags(0x11));
        let case = gate(case, |_| Gate::STANDBY);
        let case = freeze(egress(case, &answer, Verdict::Pass, Some(&answer), &[]));
        let case = egress(case, &answer, Verdict::Pass, Some(&written), sent);
        let case = open(egress(case, &end, Verdict::Drop, None, &["frozen"]));
        let case = expect_states(case, [state::ESTABLISHED; 2]);
        let case = egress(case, &end, Verdict::Pass, Some(&ended), sent);
        expect_states(case, [state::ESTABLISHED, state::FIN])
    });
    run(cases.collect());
}

#[test]
fn what_is_frozen_begins_no_flow_and_forwards_the_known() {
    let cases = talks().map(|talk| {
        let other = Conversation {
            client_port: 40_001,
            ..talk
        };
        let case = freeze(named(talk, "frozen").steps(talk.handshake()))
            .step(from(OUTSIDE, &other.first()).drops(Reason::Frozen))
            .step(talk.request(&talk.question()))
            .step(talk.reply(&talk.answer()))
            .then(|lab| lab.routes_changed())
            .step(talk.request(&talk.question()))
            .flows(2, 0);
        open(case).steps(other.handshake())
    });
    run(cases.collect());
}

#[test]
fn what_is_frozen_answers_and_passes_what_is_not_a_flow() {
    let cases = BOOKS.into_iter().map(|book| {
        let talk = Conversation::new(book, Mode::FullNat);
        let closed = book.vip(444);
        let stray = book.packet(&book.client(9), &book.at(&book.host(INSIDE, 8), 9));
        freeze(named(talk, "others"))
            .step(rejected(
                book,
                OUTSIDE,
                &talk.client(),
                &closed,
                Reason::NoFrontend,
            ))
            .step(from(OUTSIDE, &stray).passes(Some(Reason::NotOurs)))
    });
    run(cases.collect());
}

#[test]
fn a_gate_past_its_deadline_is_open() {
    let cases = talks().flat_map(|talk| {
        [0, 1, AHEAD].map(|behind| {
            let what = format!("{behind} ticks past the deadline");
            let past = move |lab: &Lab| Gate::frozen(lab.tick().wrapping_sub(behind) & TICK_MASK);
            gate(named(talk, &what), past).steps(talk.handshake())
        })
    });
    run(cases.collect());
}

#[test]
fn promotion_is_put_off_and_the_third_packet_goes_on() {
    let cases = talks().map(|talk| {
        let young = named(talk, "third packet")
            .step(talk.request(&talk.first()).creates())
            .step(talk.reply(&talk.second()));
        let case = freeze(young)
            .step(talk.request(&talk.third()))
            .step(talk.reply(&talk.second()))
            .flows(0, 2);
        open(case)
            .step(talk.request(&talk.third()).promotes())
            .flows(2, 0)
    });
    run(cases.collect());
}

#[test]
fn what_a_client_must_acknowledge_waits_until_it_can_be_noted() {
    let cases = tcp().map(|talk| {
        let young = named(talk, "second packet").step(talk.request(&talk.first()).creates());
        let dropped = |packet| from(talk.inside(), packet).drops(Reason::Frozen);
        let case = freeze(young)
            .step(dropped(&talk.second()))
            .step(dropped(&talk.answer().rst()).by_tcx())
            .step(talk.request(&talk.first()))
            .flows(0, 2);
        open(case)
            .step(talk.reply(&talk.second()))
            .step(talk.request(&talk.third()).promotes())
    });
    let udp = remote(UDP_BOOKS).map(|talk| {
        let young = named(talk, "first reply").step(talk.request(&talk.first()).creates());
        let case = freeze(young)
            .step(talk.reply(&talk.second()))
            .step(talk.request(&talk.third()))
            .flows(0, 2);
        open(case)
            .step(talk.reply(&talk.second()))
            .step(talk.request(&talk.third()).promotes())
    });
    run(cases.chain(udp).collect());
}

#[test]
fn no_established_flow_changes_its_state() {
    let cases = tcp().map(|talk| {
        let dropped = |packet| from(OUTSIDE, packet).drops(Reason::Frozen);
        let (fin, rst) = (talk.question().flags(0x11), talk.question().rst());
        let far = talk.question().rst().seq(1_000 + (1 << 30));
        // A pod's is looked at by both programs.
        let blind =
            (talk.mode != Mode::Pod).then(|| talk.request(&far).event(Event::ResetImplausible));
        let case = freeze(named(talk, "FIN and RST").steps(talk.handshake()))
            .step(dropped(&fin))
            .step(dropped(&rst))
            .steps(blind)
            .step(talk.request(&talk.first()))
            .step(from(talk.inside(), &talk.answer().flags(0x11)).drops(Reason::Frozen));
        let case = open(expect_states(case, [state::ESTABLISHED; 2])).step(talk.request(&fin));
        // A FIN repeated changes nothing; its answer would.
        let case = freeze(expect_states(case, [state::ESTABLISHED, state::FIN]))
            .step(talk.request(&fin))
            .step(talk.reply(&talk.answer()))
            .step(from(talk.inside(), &talk.answer().flags(0x11)).drops(Reason::Frozen));
        open(expect_states(case, [state::ESTABLISHED, state::FIN])).step(
            talk.reply(&talk.answer().flags(0x11))
                .event(Event::FlowClosed),
        )
    });
    run(cases.collect());
}

#[test]
fn a_closed_flow_stays_closed() {
    let cases = remote(TCP_BOOKS).map(|talk| {
        let fin = talk.question().flags(0x11);
        let closed = named(talk, "SYN on a closed flow")
            .steps(talk.handshake())
            .step(talk.request(&fin))
            .step(
                talk.reply(&talk.answer().flags(0x11))
                    .event(Event::FlowClosed),
            );
        let case = freeze(closed)
            .step(from(OUTSIDE, &talk.first()).drops(Reason::Frozen))
            .step(talk.request(&talk.question()));
        open(expect_states(case, [state::CLOSED; 2]))
            .step(talk.request(&talk.first()).creates())
            .flows(0, 2)
    });
    let reset = remote(TCP_BOOKS).map(|talk| {
        let before = named(talk, "data after an RST")
            .steps(talk.handshake())
            .step(
                talk.request(&talk.question().rst())
                    .event(Event::FlowClosed),
            );
        let case = freeze(before).step(from(OUTSIDE, &talk.question()).drops(Reason::Frozen));
        open(expect_states(case, [state::RESET; 2])).step(talk.request(&talk.question()))
    });
    run(cases.chain(reset).collect());
}

#[test]
fn udp_is_selected_again_when_the_gate_is_open() {
    let cases = UDP_BOOKS.into_iter().flat_map(|book| {
        let talk = Conversation::new(book, Mode::FullNat);
        let new = book.backend(6, 8443);
        let gone = book
            .service()
            .gone([talk.backend().as_str()])
            .backends([new.as_str()]);
        let question = talk.question();
        let moved = towards(INSIDE, 6, &question.clone().from(&talk.seen()).to(&new));
        let established = named(talk, "its backend left").steps(talk.handshake());
        let young =
            named(talk, "its backend left early").step(talk.request(&talk.first()).creates());
        [(established, (2, 0)), (young, (0, 2))].map(|(case, (old, fresh))| {
            let case = freeze(case.tables(gone.clone(), 2))
                .step(from(OUTSIDE, &question).drops(Reason::Frozen))
                .flows(old, fresh);
            open(case)
                .step(
                    from(OUTSIDE, &question)
                        .forwards(&moved)
                        .creates()
                        .event(Event::FlowReselected),
                )
                .flows(0, 2)
        })
    });
    run(cases.collect());
}
