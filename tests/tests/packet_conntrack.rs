//! The life of a flow after its birth: promotion, close, reset, retirement.

use std::time::Duration;

use lb_common::{
    conntrack::{Head, state},
    names,
    reason::{Event, Reason},
};
use lb_tests::{
    book::{TCP_BOOKS, UDP_BOOKS, towards},
    case::{case, from, run},
    flows::{Conversation, Mode},
    network::{INSIDE, OUTSIDE},
    run::Lab,
};
use lb_userspace::preflight;

fn tcp() -> impl Iterator<Item = Conversation> {
    TCP_BOOKS
        .into_iter()
        .flat_map(|book| [Mode::FullNat, Mode::Gateway].map(|mode| Conversation::new(book, mode)))
}

fn udp() -> impl Iterator<Item = Conversation> {
    UDP_BOOKS
        .into_iter()
        .flat_map(|book| [Mode::FullNat, Mode::Gateway].map(|mode| Conversation::new(book, mode)))
}

/// The states of all established halves.
fn states(lab: &Lab) -> Vec<u8> {
    let v4 = lab
        .flows4(names::FLOWS_V4)
        .into_values()
        .map(|entry| Head(entry.head).state() & !state::QUEUED);
    let v6 = lab
        .flows6(names::FLOWS_V6)
        .into_values()
        .map(|entry| Head(entry.head).state() & !state::QUEUED);
    v4.chain(v6).collect()
}

fn expect_states(lab: &Lab, mut expected: Vec<u8>) {
    let mut found = states(lab);
    found.sort_unstable();
    expected.sort_unstable();
    assert_eq!(
        found,
        expected,
        "states of the established halves\n{}",
        lab.describe_flows()
    );
}

#[test]
fn a_spoofed_acknowledgement_promotes_nothing() {
    let cases = tcp().map(|talk| {
        let guesses = [0, 1, 4_999, 5_001, u32::MAX].map(|ack| talk.third().ack(ack));
        case(format!("{}: spoofed ACK", talk.name()), talk.tables())
            .step(talk.request(&talk.first()).creates())
            .steps(guesses.each_ref().map(|guess| talk.request(guess)))
            .flows(0, 2)
            .step(talk.reply(&talk.second()))
            .steps(guesses.each_ref().map(|guess| talk.request(guess)))
            .flows(0, 2)
            .step(talk.request(&talk.third().flags(0x12)))
            .step(talk.request(&talk.third().flags(0x14)))
            .flows(0, 2)
            .step(talk.request(&talk.third()).promotes())
            .flows(2, 0)
    });
    run(cases.collect());
}

#[test]
fn the_packet_after_a_lost_third_one_promotes_too() {
    let cases = tcp().flat_map(|talk| {
        let fin = talk.third().flags(0x11);
        let all = [
            ("data at once", talk.question(), state::ESTABLISHED),
            ("FIN at once", fin, state::FIN),
        ];
        all.map(|(what, packet, becomes)| {
            case(format!("{}: {what}", talk.name()), talk.tables())
                .step(talk.request(&talk.first()).creates())
                .step(talk.reply(&talk.second()))
                .step(talk.request(&packet).promotes())
                .flows(2, 0)
                .then(move |lab| expect_states(lab, vec![becomes, state::ESTABLISHED]))
        })
    });
    run(cases.collect());
}

#[test]
fn udp_is_promoted_by_an_answer_to_a_reply_only() {
    let cases = udp().map(|talk| {
        case(format!("{}: promotion", talk.name()), talk.tables())
            .step(talk.request(&talk.first()).creates())
            .step(talk.request(&talk.first()))
            .step(talk.request(&talk.first()))
            .flows(0, 2)
            .step(talk.reply(&talk.second()))
            .flows(0, 2)
            .step(talk.request(&talk.first()).promotes())
            .flows(2, 0)
    });
    run(cases.collect());
}

#[test]
fn two_fins_close_a_flow() {
    let cases = tcp().map(|talk| {
        let (client_fin, backend_fin) = (talk.question().flags(0x11), talk.answer().flags(0x11));
        case(format!("{}: FIN FIN", talk.name()), talk.tables())
            .steps(talk.handshake())
            .step(talk.request(&client_fin))
            .then(|lab| expect_states(lab, vec![state::FIN, state::ESTABLISHED]))
            .step(talk.request(&client_fin))
            .step(talk.reply(&talk.answer()))
            .step(talk.reply(&backend_fin).event(Event::FlowClosed))
            .then(|lab| expect_states(lab, vec![state::CLOSED, state::CLOSED]))
            .step(talk.request(&talk.question()))
            .step(talk.reply(&backend_fin))
            .flows(2, 0)
    });
    run(cases.collect());
}

#[test]
fn a_plausible_reset_closes_and_a_blind_one_does_not() {
    let cases = tcp().map(|talk| {
        let far = talk.question().rst().seq(1_000 + (1 << 30));
        let near = talk.question().rst().seq(1_010);
        case(format!("{}: RST of the client", talk.name()), talk.tables())
            .steps(talk.handshake())
            .step(talk.request(&talk.question()))
            .step(talk.reply(&talk.answer()))
            .step(talk.request(&far).event(Event::ResetImplausible))
            .then(|lab| expect_states(lab, vec![state::ESTABLISHED; 2]))
            .step(talk.request(&near).event(Event::FlowClosed))
            .then(|lab| expect_states(lab, vec![state::RESET; 2]))
    });
    let backend = tcp().map(|talk| {
        let far = talk.answer().rst().seq(5_000 + (1 << 30));
        let near = talk.answer().rst().seq(5_000);
        case(
            format!("{}: RST of the backend", talk.name()),
            talk.tables(),
        )
        .steps(talk.handshake())
        .step(talk.reply(&far).event(Event::ResetImplausible))
        .step(talk.reply(&near).event(Event::FlowClosed))
        .then(|lab| expect_states(lab, vec![state::RESET; 2]))
    });
    run(cases.chain(backend).collect());
}

#[test]
fn data_after_a_reset_shows_that_it_was_none() {
    let cases = tcp().map(|talk| {
        case(format!("{}: life after RST", talk.name()), talk.tables())
            .steps(talk.handshake())
            .step(
                talk.request(&talk.question().rst().seq(1_000))
                    .event(Event::FlowClosed),
            )
            .step(talk.reply(&talk.answer()))
            .then(|lab| expect_states(lab, vec![state::ESTABLISHED; 2]))
    });
    run(cases.collect());
}

#[test]
fn a_syn_on_a_live_flow_goes_to_the_same_backend_and_changes_nothing() {
    let cases = tcp().map(|talk| {
        let book = talk.book;
        let others = book.service().backends([book.backend(6, 8443).as_str()]);
        let others = if talk.mode == Mode::Gateway {
            others.keep_source()
        } else {
            others
        };
        case(
            format!("{}: SYN on a live flow", talk.name()),
            talk.tables(),
        )
        .steps(talk.handshake())
        .tables(others.gone([talk.backend().as_str()]), 2)
        .step(talk.request(&talk.first().seq(77_777)))
        .then(|lab| expect_states(lab, vec![state::ESTABLISHED; 2]))
        .step(talk.request(&talk.question()))
        .step(talk.reply(&talk.answer()))
    });
    run(cases.collect());
}

#[test]
fn a_syn_on_a_closed_flow_keeps_the_backend_that_takes_new_flows() {
    let cases = tcp().map(|talk| {
        let again = talk.first().seq(123_456);
        let synack = talk.second().ack(123_457);
        let ack = talk.third().seq(123_457);
        case(
            format!("{}: SYN on a closed flow", talk.name()),
            talk.tables(),
        )
        .steps(talk.handshake())
        .step(talk.request(&talk.question().flags(0x11)))
        .step(
            talk.reply(&talk.answer().flags(0x11))
                .event(Event::FlowClosed),
        )
        .step(talk.request(&again).creates())
        .step(talk.reply(&synack))
        .step(talk.request(&ack).promotes())
        .then(|lab| expect_states(lab, vec![state::ESTABLISHED; 2]))
    });
    run(cases.collect());
}

#[test]
fn a_direct_connection_takes_over_the_tuple_of_a_closed_flow() {
    let cases = TCP_BOOKS.into_iter().flat_map(|book| {
        let direct = |config: &mut lb_common::config::Config| {
            config.flags = lb_common::config::config_flag::DIRECT_BACKEND_ACCESS;
        };
        [Mode::Gateway, Mode::Pod].map(|mode| {
            let talk = Conversation::new(book, mode);
            // The client's SYN went to the backend itself, past us or through us.
            let answer = |packet| from(talk.inside(), packet).passes(Some(Reason::NotOurs));
            case(format!("{}: direct", talk.name()), talk.tables())
                .config(direct)
                .steps(talk.handshake())
                .step(talk.request(&talk.question().flags(0x11)))
                .step(
                    talk.reply(&talk.answer().flags(0x11))
                        .event(Event::FlowClosed),
                )
                .step(answer(&talk.second().seq(777).ack(123_457)))
                .flows(0, 0)
                .step(answer(&talk.answer().seq(778)))
        })
    });
    run(cases.collect());
}

#[test]
fn a_syn_on_a_closed_flow_of_a_gone_backend_is_a_new_flow() {
    let cases = tcp().map(|talk| {
        let book = talk.book;
        let (old, new) = (talk.backend(), book.backend(6, 8443));
        let tables = talk.tables().draining([new.as_str()]);
        let later = book
            .service()
            .draining([old.as_str()])
            .backends([new.as_str()]);
        let later = if talk.mode == Mode::Gateway {
            later.keep_source()
        } else {
            later
        };
        let again = talk.first().seq(123_456);
        let out = again.clone().from(&talk.seen()).to(&new);
        case(format!("{}: SYN after a drain", talk.name()), tables)
            .steps(talk.handshake())
            .step(talk.request(&talk.question().flags(0x11)))
            .step(
                talk.reply(&talk.answer().flags(0x11))
                    .event(Event::FlowClosed),
            )
            .tables(later, 2)
            .step(
                from(OUTSIDE, &again)
                    .forwards(&towards(INSIDE, 6, &out))
                    .creates(),
            )
    });
    run(cases.collect());
}

#[test]
fn tcp_stays_with_a_backend_that_left_the_service() {
    let cases = tcp().map(|talk| {
        let book = talk.book;
        let later = book.service().backends([book.backend(6, 8443).as_str()]);
        case(format!("{}: backend left", talk.name()), talk.tables())
            .steps(talk.handshake())
            .tables(later.gone([talk.backend().as_str()]), 2)
            .step(talk.request(&talk.question()))
            .step(talk.reply(&talk.answer()))
            .tables(book.bare().gone([talk.backend().as_str()]), 3)
            .step(talk.request(&talk.question()))
            .step(talk.reply(&talk.answer()))
    });
    run(cases.collect());
}

#[test]
fn a_backend_that_refuses_frees_the_tuple() {
    let cases = tcp().map(|talk| {
        let refusal = talk.second().flags(0x14);
        case(format!("{}: refused", talk.name()), talk.tables())
            .step(talk.request(&talk.first()).creates())
            .step(talk.reply(&refusal).by_tcx())
            .flows(0, 0)
            .step(talk.request(&talk.first()).creates())
    });
    run(cases.collect());
}

#[test]
fn a_full_table_refuses_syns_and_never_third_packets() {
    let cases = tcp().map(|talk| {
        let other = Conversation {
            client_port: 40_001,
            ..talk
        };
        let third = Conversation {
            client_port: 40_002,
            ..talk
        };
        case(format!("{}: full", talk.name()), talk.tables())
            .config(|config| (config.flows4_limit, config.flows6_limit) = (2, 2))
            .step(talk.request(&talk.first()).creates())
            .step(other.request(&other.first()).creates())
            .step(talk.reply(&talk.second()))
            .step(talk.request(&talk.third()).promotes())
            .step(from(OUTSIDE, &third.first()).drops(Reason::FlowTableFull))
            .step(other.reply(&other.second()))
            .step(other.request(&other.third()).promotes())
            .flows(4, 0)
            .step(from(OUTSIDE, &third.first()).drops(Reason::FlowTableFull))
            .step(talk.request(&talk.question()))
    });
    run(cases.collect());
}

#[test]
fn udp_over_its_quota_stays_embryonic_and_goes_on() {
    let cases = udp().map(|talk| {
        let other = Conversation {
            client_port: 40_001,
            ..talk
        };
        case(format!("{}: quota", talk.name()), talk.tables())
            .config(|config| (config.udp4_limit, config.udp6_limit) = (2, 2))
            .steps(talk.handshake())
            .step(other.request(&other.first()).creates())
            .step(other.reply(&other.second()))
            .step(other.request(&other.third()).event(Event::PromotionFailed))
            .flows(2, 2)
            .step(other.request(&other.third()).event(Event::PromotionFailed))
            .step(other.reply(&other.second()))
    });
    run(cases.collect());
}

#[test]
fn closed_flows_leave_when_new_ones_come() {
    let cases = tcp().map(|talk| {
        let other = Conversation {
            client_port: 40_001,
            ..talk
        };
        let closed = |talk: Conversation| {
            [
                talk.request(&talk.question().flags(0x11)),
                talk.reply(&talk.answer().flags(0x11))
                    .event(Event::FlowClosed),
            ]
        };
        case(format!("{}: retirement", talk.name()), talk.tables())
            .config(|config| config.closed_ticks = 0)
            .steps(talk.handshake())
            .steps(closed(talk))
            .flows(2, 0)
            .step(
                other
                    .request(&other.first())
                    .creates()
                    .event(Event::FlowRetired),
            )
            .flows(0, 2)
    });
    run(cases.collect());
}

#[test]
fn closed_flows_rest_while_there_is_room_and_leave_when_they_are_due() {
    const TICKS: u32 = 8;
    let hertz = preflight::jiffies_per_second().expect("the kernel's clock");
    // A fraction of a second.
    let shift = preflight::tick_shift(hertz) - 2;
    let rest = Duration::from_secs(((TICKS + 1) << shift).into()) / hertz;
    let cases = tcp().map(|talk| {
        let [other, third] = [40_001, 40_002].map(|client_port| Conversation {
            client_port,
            ..talk
        });
        case(format!("{}: rest", talk.name()), talk.tables())
            .config(move |config| (config.tick_shift, config.closed_ticks) = (shift, TICKS))
            .steps(talk.handshake())
            .step(talk.request(&talk.question().flags(0x11)))
            .step(
                talk.reply(&talk.answer().flags(0x11))
                    .event(Event::FlowClosed),
            )
            .step(other.request(&other.first()).creates())
            .flows(2, 2)
            .then(move |_| std::thread::sleep(rest))
            .step(
                third
                    .request(&third.first())
                    .creates()
                    .event(Event::FlowRetired),
            )
            .flows(0, 4)
    });
    run(cases.collect());
}
