//! More clients than the tables hold: who yields, who does not, and who is told.

use std::net::SocketAddr;

use lb_common::{
    conntrack::{Entry as _, Head, flag, state},
    names,
    reason::{Counter, Event, Reason},
};
use lb_tests::{
    book::{BOOKS, Book, TCP_BOOKS, UDP_BOOKS},
    case::{Case, case, from, run},
    flows::{Conversation, Mode},
    network::{OUTSIDE, Port},
    packet::Packet,
    run::{Hook, Lab, Verdict},
};
use lb_userspace::refusals::Refused;

/// Both programs in their order, or the one under test.
fn send(lab: &Lab, packet: &Packet, port: Port) -> Verdict {
    let frame = packet
        .clone()
        .next_hop([2, 0, 0, 0, 0, 0xc], port.mac)
        .bytes();
    if lab.hook() == Hook::Xdp {
        let outcome = lab.xdp(&frame, port);
        if outcome.verdict != Verdict::Pass {
            return outcome.verdict;
        }
    }
    lab.ingress(&frame, port).verdict
}

/// A conversation by another client port.
fn by(talk: Conversation, client_port: u16) -> Conversation {
    Conversation {
        client_port,
        ..talk
    }
}

/// First packets of so many clients who are never heard of again.
fn flood(lab: &Lab, book: Book, clients: u16) {
    for port in 1..=clients {
        let first = book.first(&book.far_client(port), &book.vip(443));
        assert_eq!(send(lab, &first, OUTSIDE), Verdict::Send, "client {port}");
    }
}

/// A handshake whose every packet is forwarded. The backend answers whom it saw.
fn connect(lab: &Lab, talk: Conversation) {
    let name = format!("{} port {}", talk.name(), talk.client_port);
    assert_eq!(
        send(lab, &talk.first(), OUTSIDE),
        Verdict::Send,
        "{name}: first"
    );
    let seen = seen(lab, talk).unwrap_or_else(|| panic!("{name}: no flow"));
    let second = talk.book.second(&talk.backend(), &seen);
    assert_eq!(
        send(lab, &second, talk.inside()),
        Verdict::Send,
        "{name}: second"
    );
    assert_eq!(
        send(lab, &talk.third(), OUTSIDE),
        Verdict::Send,
        "{name}: third"
    );
}

/// Whom the backend sees, by the embryonic forward half.
fn seen(lab: &Lab, talk: Conversation) -> Option<String> {
    let book = talk.book;
    let client: SocketAddr = talk.client().parse().expect("an address and a port");
    let v4 = lab.flows4(names::EMBRYONIC_V4).into_iter();
    let v4 = v4.map(|(flow, entry)| {
        let key = (
            std::net::Ipv4Addr::from(flow.source).into(),
            flow.source_port,
        );
        (key, entry.flags(), entry.source_port)
    });
    let v6 = lab.flows6(names::EMBRYONIC_V6).into_iter();
    let v6 = v6.map(|(flow, entry)| {
        let key = (
            std::net::Ipv6Addr::from(flow.source).into(),
            flow.source_port,
        );
        (key, entry.flags(), entry.source_port)
    });
    let mut halves = v4.chain(v6);
    let half = halves.find(|((address, port), flags, _)| {
        let source = SocketAddr::new(*address, port.get());
        flags & flag::REVERSE == 0 && source == client
    });
    half.map(|(_, _, port)| match talk.mode {
        Mode::FullNat => book.snat(port.get()),
        Mode::Gateway | Mode::Pod => talk.client(),
    })
}

/// FIN of both sides; the backend sees the client's own port.
fn close(lab: &Lab, talk: Conversation) {
    let (fin, answer) = (talk.question().flags(0x11), talk.answer().flags(0x11));
    assert_eq!(send(lab, &fin, OUTSIDE), Verdict::Send);
    assert_eq!(send(lab, &answer, talk.inside()), Verdict::Send);
}

fn established(lab: &Lab) -> Vec<u8> {
    let v4 = lab.flows4(names::FLOWS_V4).into_values().map(|e| e.head);
    let v6 = lab.flows6(names::FLOWS_V6).into_values().map(|e| e.head);
    v4.chain(v6).map(|head| Head(head).state()).collect()
}

fn counted(lab: &Lab, event: Event) -> u64 {
    lab.count(Counter::Event(event))
}

fn cases(cases: impl IntoIterator<Item = Case>) {
    run(cases.into_iter().collect());
}

#[test]
fn a_flood_evicts_embryonic_flows_only() {
    cases(BOOKS.into_iter().map(|book| {
        let talk = Conversation::new(book, Mode::FullNat);
        let later = by(talk, 40_001);
        case(format!("{}: flood", book.name()), talk.tables())
            .steps(talk.handshake())
            .then(move |lab| flood(lab, book, 2_000))
            .then(|lab| {
                let (established, embryonic) = lab.flow_entries();
                assert_eq!(established, 2);
                assert!((512..=1_024).contains(&embryonic), "{embryonic} embryonic");
            })
            .step(talk.request(&talk.question()))
            .step(talk.reply(&talk.answer()))
            .steps(later.handshake())
            .step(talk.request(&talk.question()))
            .then(|lab| assert_eq!(established(lab), [state::ESTABLISHED; 4]))
    }));
}

#[test]
fn ports_of_embryonic_flows_yield_to_newer_ones() {
    cases(BOOKS.into_iter().map(|book| {
        let talk = Conversation::new(book, Mode::FullNat);
        case(format!("{}: few ports", book.name()), talk.tables())
            .then(|lab| lab.snat_ports(40_000, 16))
            .steps(talk.handshake())
            .then(move |lab| {
                let before = counted(lab, Event::SnatTakenOver);
                flood(lab, book, 500);
                let taken = counted(lab, Event::SnatTakenOver) - before;
                assert!(taken >= 400, "{taken} ports taken over");
                // Whoever comes now is served in the middle of it, each time by a port of a newer one.
                for port in 50_000..50_008 {
                    connect(lab, by(talk, port));
                    flood(lab, book, 50);
                }
                let states = established(lab);
                assert_eq!(states, [state::ESTABLISHED; 18]);
            })
            .step(talk.request(&talk.question()))
            .step(talk.reply(&talk.answer()))
    }));
}

#[test]
fn spoofed_handshakes_promote_nothing() {
    cases(TCP_BOOKS.into_iter().map(|book| {
        let talk = Conversation::new(book, Mode::FullNat);
        case(format!("{}: spoofed", book.name()), talk.tables()).then(move |lab| {
            let before = counted(lab, Event::FlowPromoted);
            for port in 20_000..20_300 {
                let spoofed = by(talk, port);
                send(lab, &spoofed.first(), OUTSIDE);
                send(lab, &spoofed.second(), talk.inside());
                // What the backend acknowledges goes to the one who was made up.
                for guess in [0, 1, 4_999, 5_001, u32::from(port) << 12, u32::MAX] {
                    send(lab, &spoofed.third().ack(guess), OUTSIDE);
                    send(lab, &spoofed.question().ack(guess), OUTSIDE);
                }
            }
            assert_eq!(lab.flow_entries().0, 0);
            assert_eq!(counted(lab, Event::FlowPromoted), before);
        })
    }));
}

#[test]
fn one_way_udp_is_never_established() {
    cases(UDP_BOOKS.into_iter().map(|book| {
        let talk = Conversation::new(book, Mode::FullNat);
        case(format!("{}: one way", book.name()), talk.tables()).then(move |lab| {
            for _ in 0..3 {
                flood(lab, book, 300);
            }
            assert_eq!(lab.flow_entries().0, 0);
        })
    }));
}

#[test]
fn closed_flows_leave_at_once_where_the_table_is_full() {
    cases(TCP_BOOKS.into_iter().map(|book| {
        let talk = Conversation::new(book, Mode::FullNat);
        let [one, two, three] = [1, 2, 3].map(|n| by(talk, 40_000 + n));
        let closed = |talk: Conversation| {
            [
                talk.request(&talk.question().flags(0x11)),
                talk.reply(&talk.answer().flags(0x11))
                    .event(Event::FlowClosed),
            ]
        };
        case(format!("{}: rest cut short", book.name()), talk.tables())
            .config(|config| (config.flows4_limit, config.flows6_limit) = (4, 4))
            .steps(talk.handshake())
            .steps(one.handshake())
            .steps(closed(one))
            .flows(4, 0)
            .step(
                two.request(&two.first())
                    .creates()
                    .event(Event::FlowRetired),
            )
            .flows(2, 2)
            .step(two.reply(&two.second()))
            .step(two.request(&two.third()).promotes())
            // None of these is closed: they do not yield.
            .step(from(OUTSIDE, &three.first()).drops(Reason::FlowTableFull))
            .step(talk.request(&talk.question()))
            .step(two.request(&two.question()))
    }));
}

#[test]
fn short_connections_go_on_with_nobody_to_clean_up() {
    cases(TCP_BOOKS.into_iter().map(|book| {
        let talk = Conversation::new(book, Mode::FullNat);
        let long = by(talk, 39_999);
        case(format!("{}: ten times over", book.name()), talk.tables())
            .config(|config| (config.flows4_limit, config.flows6_limit) = (100, 100))
            .steps(long.handshake())
            .then(move |lab| {
                for port in 0..1_000 {
                    let short = by(talk, 40_000 + port);
                    connect(lab, short);
                    close(lab, short);
                    let entries = lab.flow_entries().0;
                    assert!(entries <= 100, "{entries} entries");
                }
            })
            .step(long.request(&long.question()))
            .step(long.reply(&long.answer()))
    }));
}

#[test]
fn udp_does_not_take_the_room_of_tcp() {
    cases([false, true].map(|v6| {
        let book = |udp| {
            let books = BOOKS.into_iter();
            let mut books = books.filter(|book| book.is_v6() == v6 && book.is_udp() == udp);
            books.next().expect("a book")
        };
        let [tcp, udp] = [false, true].map(|udp| Conversation::new(book(udp), Mode::FullNat));
        let tables = tcp.tables().frontend(&udp.book.frontend(443));
        let tables = tables.backends([udp.backend().as_str()]);
        case(format!("{}: UDP at its quota", tcp.book.name()), tables)
            .config(|config| {
                (config.flows4_limit, config.flows6_limit) = (40, 40);
                (config.udp4_limit, config.udp6_limit) = (20, 20);
            })
            .then(move |lab| {
                for port in 0..50 {
                    connect(lab, by(udp, 41_000 + port));
                }
                assert_eq!(lab.flow_entries().0, 20);
                for port in 0..10 {
                    connect(lab, by(tcp, 42_000 + port));
                }
                assert_eq!(lab.flow_entries().0, 40);
            })
    }));
}

#[test]
fn who_is_refused_for_want_of_room_is_told_of() {
    cases(TCP_BOOKS.into_iter().map(|book| {
        let talk = Conversation::new(book, Mode::FullNat);
        let rival = by(talk, 40_001);
        let vip: SocketAddr = talk.vip().parse().expect("an address and a port");
        case(format!("{}: full", book.name()), talk.tables())
            .config(|config| (config.flows4_limit, config.flows6_limit) = (2, 2))
            .then(|lab| drop(lab.refusals()))
            .steps(talk.handshake())
            .step(from(OUTSIDE, &rival.first()).drops(Reason::FlowTableFull))
            .then(move |lab| {
                let refused = Refused {
                    reason: Reason::FlowTableFull as u32,
                    destination: vip.ip(),
                    port: vip.port(),
                    protocol: 6,
                };
                assert_eq!(lab.refusals(), [(refused, 1)].into());
            })
    }));
}
