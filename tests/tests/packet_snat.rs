//! SNAT addresses and ports: which are chosen, when they collide, and what happens on a miss.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use lb_common::{
    conntrack::{REST_RESET, ticks_since},
    names,
    reason::{Counter, Event, Reason},
};
use lb_tests::{
    book::{BOOKS, Book, TCP_BOOKS, towards},
    case::{Case, case, from, run},
    flows::{Conversation, Mode},
    netns::poll_until,
    network::{INSIDE, OUTSIDE, Port},
    packet::{Packet, packet},
    run::{Hook, Lab, Verdict},
};
use lb_userspace::{preflight, refusals::Refused};

/// The sources all embryonic forward halves write: address and port.
fn written(lab: &Lab) -> Vec<([u32; 4], u16)> {
    let reverse = lb_common::conntrack::flag::REVERSE;
    let v4 = lab.flows4(names::EMBRYONIC_V4).into_values();
    let v6 = lab.flows6(names::EMBRYONIC_V6).into_values();
    v4.filter(|entry| entry.flags & reverse == 0)
        .map(|entry| ([entry.source.0, 0, 0, 0], entry.source_port.get()))
        .chain(
            v6.filter(|entry| entry.flags & reverse == 0)
                .map(|entry| (entry.source.0, entry.source_port.get())),
        )
        .collect()
}

fn written_ports(lab: &Lab) -> BTreeSet<u16> {
    written(lab).into_iter().map(|(_, port)| port).collect()
}

#[test]
fn a_taken_client_port_is_replaced_by_a_free_one() {
    let cases: Vec<Case> = BOOKS
        .into_iter()
        .map(|book| {
            let talk = Conversation::new(book, Mode::FullNat);
            // Another client with the same port meets the same backend.
            let rival = book.first(&book.far_client(40_000), &book.vip(443));
            case(format!("{}: collision", book.name()), talk.tables())
                .step(talk.request(&talk.first()).creates())
                .then(move |lab| {
                    let outcome = match lab.hook() {
                        Hook::Xdp => lab.xdp(&rival.bytes(), OUTSIDE),
                        _ => lab.ingress(&rival.bytes(), OUTSIDE),
                    };
                    assert_eq!(outcome.verdict, Verdict::Send);
                    let ports = written_ports(lab);
                    assert!(ports.contains(&40_000) && ports.len() == 2, "{ports:?}");
                    assert!(ports.iter().all(|port| *port >= 1_024), "{ports:?}");
                })
                .flows(0, 4)
        })
        .collect();
    run(cases);
}

#[test]
fn a_port_outside_the_range_is_replaced() {
    let cases: Vec<Case> = BOOKS
        .into_iter()
        .map(|book| {
            let first = book.first(&book.client(40_000), &book.vip(443));
            let tables = book.service().backends([book.backend(5, 8443).as_str()]);
            let out = first.clone().from(&book.snat(7)).to(&book.backend(5, 8443));
            case(format!("{}: one port", book.name()), tables)
                .then(|lab| lab.snat_ports(7, 1))
                .step(
                    from(OUTSIDE, &first)
                        .forwards(&towards(INSIDE, 5, &out))
                        .creates(),
                )
        })
        .collect();
    run(cases);
}

/// As many as the tables hold by default.
#[test]
fn new_flows_take_every_one_of_many_snat_addresses() {
    const MANY: u16 = 256;
    let cases = BOOKS.into_iter().map(|book| {
        let talk = Conversation::new(book, Mode::FullNat);
        case(format!("{}: {MANY} addresses", book.name()), talk.tables()).then(move |lab| {
            lab.snat_addresses(MANY);
            for port in 0..64 {
                let first = book.first(&book.client(40_000 + port), &book.vip(443));
                let outcome = match lab.hook() {
                    Hook::Xdp => lab.xdp(&first.bytes(), OUTSIDE),
                    _ => lab.ingress(&first.bytes(), OUTSIDE),
                };
                assert_eq!(outcome.verdict, Verdict::Send);
            }
            let addresses: BTreeSet<_> = written(lab).into_iter().map(|(ip, _)| ip).collect();
            // Two of 64 by chance have the same now and then.
            assert!(addresses.len() > 32, "{} addresses", addresses.len());
        })
    });
    run(cases.collect());
}

#[test]
fn exhaustion_by_established_flows_is_counted() {
    let cases: Vec<Case> = BOOKS
        .into_iter()
        .map(|book| {
            let talk = Conversation::new(book, Mode::FullNat);
            let rival = book.first(&book.far_client(40_000), &book.vip(443));
            let vip: SocketAddr = book.vip(443).parse().expect("an address and a port");
            case(format!("{}: exhausted", book.name()), talk.tables())
                .then(|lab| {
                    lab.snat_ports(40_000, 1);
                    lab.refusals();
                })
                .steps(talk.handshake())
                .step(from(OUTSIDE, &rival).drops(Reason::SnatExhausted))
                .then(move |lab| {
                    let told = lab.refusals();
                    let refused = Refused {
                        reason: Reason::SnatExhausted as u32,
                        destination: vip.ip(),
                        port: vip.port(),
                        protocol: if book.is_udp() { 17 } else { 6 },
                    };
                    assert_eq!(told, [(refused, 1)].into());
                })
                .flows(2, 0)
                .step(talk.request(&talk.question()))
        })
        .collect();
    run(cases);
}

/// Ticks of a fraction of a second.
fn short_ticks() -> u32 {
    let hertz = preflight::jiffies_per_second().expect("a coarse clock");
    preflight::tick_shift(hertz) - 2
}

/// The same flow's port is the only one, and a rival's SYN wants it.
fn contested(book: Book, what: &str) -> (Case, Conversation, Packet) {
    let talk = Conversation::new(book, Mode::FullNat);
    let rival = book.first(&book.far_client(40_000), &book.vip(443));
    let begun = case(format!("{}: {what}", book.name()), talk.tables())
        .only(Hook::Xdp)
        .config(|config| config.tick_shift = short_ticks())
        .then(|lab| lab.snat_ports(40_000, 1))
        .steps(talk.handshake())
        .step(from(OUTSIDE, &rival).drops(Reason::SnatExhausted));
    (begun, talk, rival)
}

fn wait_ticks(lab: &Lab, ticks: u32) {
    let start = lab.tick();
    poll_until("ticks", Duration::from_secs(30), || {
        (ticks_since(lab.tick(), start) >= ticks).then_some(())
    });
}

#[test]
fn a_closed_holder_of_a_port_gives_it_up_once_it_has_rested() {
    let cases = TCP_BOOKS.into_iter().flat_map(|book| {
        ["FIN", "RST", "RST after a long silence"].map(|what| {
            let (begun, talk, rival) = contested(book, what);
            let fins = [
                talk.request(&talk.question().flags(0x11)),
                talk.reply(&talk.answer().flags(0x11))
                    .event(Event::FlowClosed),
            ];
            let reset = talk
                .request(&talk.question().rst())
                .event(Event::FlowClosed);
            let ended = match what {
                "FIN" => begun.steps(fins),
                "RST" => begun.step(reset),
                _ => begun
                    .then(|lab| wait_ticks(lab, REST_RESET + 1))
                    .step(reset),
            };
            ended
                // Its last packets may still be under way.
                .step(from(OUTSIDE, &rival).drops(Reason::SnatExhausted))
                .then(move |lab| {
                    let retired = lab.count(Counter::Event(Event::FlowRetired));
                    let bytes = rival.bytes();
                    poll_until("the port", Duration::from_secs(30), || {
                        (lab.xdp(&bytes, OUTSIDE).verdict == Verdict::Send).then_some(())
                    });
                    let more = lab.count(Counter::Event(Event::FlowRetired)) - retired;
                    assert_eq!(more, 1, "flows retired");
                    assert_eq!(written_ports(lab), [40_000].into());
                })
                .flows(0, 2)
        })
    });
    run(cases.collect());
}

#[test]
fn a_flow_whose_reset_was_no_true_one_keeps_its_port() {
    let cases = TCP_BOOKS.into_iter().map(|book| {
        let (begun, talk, rival) = contested(book, "false RST");
        let reset = talk
            .request(&talk.question().rst())
            .event(Event::FlowClosed);
        begun
            .step(reset)
            .step(talk.reply(&talk.answer()))
            .then(|lab| wait_ticks(lab, REST_RESET + 1))
            .step(from(OUTSIDE, &rival).drops(Reason::SnatExhausted))
            .step(talk.request(&talk.question()))
            .flows(2, 0)
    });
    run(cases.collect());
}

#[test]
fn the_oldest_embryonic_holder_of_a_port_gives_it_up() {
    let cases: Vec<Case> = BOOKS
        .into_iter()
        .map(|book| {
            let talk = Conversation::new(book, Mode::FullNat);
            let rival = book.first(&book.far_client(40_000), &book.vip(443));
            let out = rival.clone().from(&talk.seen()).to(&talk.backend());
            case(format!("{}: taken over", book.name()), talk.tables())
                .then(|lab| lab.snat_ports(40_000, 1))
                .step(talk.request(&talk.first()).creates())
                .step(
                    from(OUTSIDE, &rival)
                        .forwards(&towards(INSIDE, 5, &out))
                        .creates()
                        .event(Event::SnatTakenOver),
                )
        })
        .collect();
    run(cases);
}

#[test]
fn a_device_without_an_snat_address_forwards_no_full_nat() {
    let cases: Vec<Case> = BOOKS
        .into_iter()
        .map(|book| {
            // The backend lies outside, where no SNAT address is.
            let backend = book.at(&book.host(OUTSIDE, 8), 8443);
            let tables = book.service().backends([backend.as_str()]);
            let first = book.first(&book.client(40_000), &book.vip(443));
            case(format!("{}: no SNAT address", book.name()), tables)
                .step(from(OUTSIDE, &first).drops(Reason::NoSnatAddress))
                .flows(0, 0)
        })
        .collect();
    run(cases);
}

#[test]
fn one_client_port_to_two_vips_meets_one_backend_twice() {
    let cases: Vec<Case> = BOOKS
        .into_iter()
        .map(|book| {
            let talk = Conversation::new(book, Mode::Gateway);
            let second_vip = book.at(book.pick("192.0.2.2", "2001:db8::2"), 443);
            let tables = talk.tables().also(&book.frontend_at(&second_vip));
            let first = book.first(&talk.client(), &second_vip);
            case(format!("{}: two VIPs", talk.name()), tables)
                .step(talk.request(&talk.first()).creates())
                .then(move |lab| {
                    let outcome = match lab.hook() {
                        Hook::Xdp => lab.xdp(&first.bytes(), OUTSIDE),
                        _ => lab.ingress(&first.bytes(), OUTSIDE),
                    };
                    assert_eq!(outcome.verdict, Verdict::Send);
                    let ports = written_ports(lab);
                    assert!(ports.contains(&40_000) && ports.len() == 2, "{ports:?}");
                })
        })
        .collect();
    run(cases);
}

#[test]
fn a_miss_on_an_snat_address_is_dropped_and_counted() {
    let cases = BOOKS.into_iter().map(|book| {
        let stray = book.second(&book.backend(5, 8443), &book.snat(50_000));
        let talk = Conversation::new(book, Mode::FullNat);
        case(format!("{}: SNAT miss", book.name()), talk.tables())
            .step(from(INSIDE, &stray).drops(Reason::SnatMiss))
    });
    run(cases.collect());
}

#[test]
fn a_gateway_backends_answer_without_a_flow_is_dropped() {
    let stray = |book: Book, port: Port| {
        let source = book.backend(5, 8443);
        let packet = book.second(&source, &book.client(50_000));
        from(port, &packet)
    };
    let cases = TCP_BOOKS.into_iter().flat_map(|book| {
        let talk = Conversation::new(book, Mode::Gateway);
        // The backend's own connections are none of our business.
        let own = book.first(&book.backend(5, 33_333), &book.client(443));
        let data = book.packet(&book.backend(5, 33_333), &book.client(443));
        [
            case(format!("{}: gateway miss", book.name()), talk.tables())
                .step(stray(book, INSIDE).drops(Reason::GatewayMiss))
                .step(from(INSIDE, &own).passes(Some(Reason::NotOurs)))
                .step(from(INSIDE, &data).passes(Some(Reason::NotOurs))),
            case(format!("{}: direct access", book.name()), talk.tables())
                .config(|config| {
                    config.flags = lb_common::config::config_flag::DIRECT_BACKEND_ACCESS;
                })
                .step(stray(book, INSIDE).passes(Some(Reason::NotOurs))),
        ]
    });
    run(cases.collect());
}

#[test]
fn a_frontend_without_route_to_its_backend_counts_it() {
    let cases = BOOKS.into_iter().map(|book| {
        let backend = book.at(book.pick("10.99.0.9", "2001:db8:dead::9"), 8443);
        let tables = book.service().backends([backend.as_str()]);
        let first = book.first(&book.client(40_000), &book.vip(443));
        case(format!("{}: no route", book.name()), tables)
            .step(from(OUTSIDE, &first).by_tcx().drops(Reason::NoRoute))
            .flows(0, 0)
    });
    run(cases.collect());
}

#[test]
fn packets_of_unbalanced_protocols_pass() {
    let sctp = packet()
        .raw("198.51.100.7", "192.0.2.1", 132)
        .payload_length(32);
    let sctp6 = packet()
        .raw("2001:db8:100::7", "2001:db8::1", 132)
        .payload_length(32);
    let book = |index: usize| TCP_BOOKS.get(index).copied().expect("two books");
    let tables = |index| Conversation::new(book(index), Mode::FullNat).tables();
    run(vec![
        case("IPv4: SCTP", tables(0)).step(
            from(OUTSIDE, &sctp)
                .by_tcx()
                .passes(Some(Reason::UnsupportedProtocol)),
        ),
        case("IPv6: SCTP", tables(1)).step(
            from(OUTSIDE, &sctp6)
                .by_tcx()
                .passes(Some(Reason::UnsupportedProtocol)),
        ),
    ]);
}
