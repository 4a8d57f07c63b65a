//! Packets XDP leaves to TCX, or that are odd in another way: partial checksums, IPv4 options,
//! fragments, extension headers, tags, and backends that are the node itself.

use lb_common::reason::{Event, Reason};
use lb_tests::{
    book::{BOOKS, Book, TCP_BOOKS, UDP_BOOKS, towards},
    case::{Case, Step, case, from, run},
    flows::{Conversation, MODES, Mode},
    network::{INSIDE, OUTSIDE, PODS},
    packet::{Packet, packet},
    run::{Hook, Verdict},
};

fn full_nat() -> impl Iterator<Item = Conversation> {
    BOOKS
        .into_iter()
        .map(|book| Conversation::new(book, Mode::FullNat))
}

#[test]
fn what_looks_like_a_partial_checksum_is_left_to_tcx() {
    // A test run's skb has no partial mark, so TCX updates the sum as if it were full: the look of
    // the packet in XDP is what counts here, the namespace tests show the real thing.
    let cases = full_nat().map(|talk| {
        let partial = talk.question().partial_checksum();
        case(format!("{}: partial", talk.name()), talk.tables())
            .only(Hook::Xdp)
            .steps(talk.handshake())
            .then(move |lab| {
                let outcome = lab.xdp(&partial.bytes(), OUTSIDE);
                assert_eq!(outcome.verdict, Verdict::Pass);
                assert_eq!(outcome.frame, partial.bytes(), "unmodified");
                let outcome = lab.ingress(&partial.bytes(), OUTSIDE);
                assert_eq!(outcome.verdict, Verdict::Send);
            })
    });
    run(cases.collect());
}

#[test]
fn a_partial_first_packet_makes_its_flow_in_tcx() {
    let cases = full_nat().map(|talk| {
        let partial = talk.first().partial_checksum();
        case(
            format!("{}: partial first packet", talk.name()),
            talk.tables(),
        )
        .only(Hook::Xdp)
        .then(move |lab| {
            assert_eq!(lab.xdp(&partial.bytes(), OUTSIDE).verdict, Verdict::Pass);
            assert_eq!(
                lab.ingress(&partial.bytes(), OUTSIDE).verdict,
                Verdict::Send
            );
        })
        .flows(0, 2)
    });
    run(cases.collect());
}

#[test]
fn ipv4_udp_without_checksum_stays_without() {
    let book = UDP_BOOKS
        .into_iter()
        .find(|book| !book.is_v6())
        .expect("IPv4");
    let cases = MODES.map(|mode| {
        let talk = Conversation::new(book, mode);
        case(format!("{}: no checksum", talk.name()), talk.tables())
            .steps(talk.handshake())
            .step(talk.request(&talk.question().no_checksum()))
            .step(talk.reply(&talk.answer().no_checksum()))
    });
    run(cases.into());
}

#[test]
fn a_udp_checksum_that_comes_to_zero_is_sent_as_ones() {
    let cases = UDP_BOOKS.into_iter().map(|book| {
        let talk = Conversation::new(book, Mode::FullNat);
        // The two bytes that make the forwarded packet's sum come to zero.
        let question = (0..=u16::MAX)
            .map(|word| talk.question().payload(&word.to_be_bytes()))
            .find(|question| {
                let bytes = talk.out(question).ip_bytes();
                let at = bytes.len() - 4;
                bytes.get(at..at + 2) == Some([0xff, 0xff].as_slice())
            })
            .expect("some payload does");
        case(format!("{}: zero", talk.name()), talk.tables())
            .steps(talk.handshake())
            .step(talk.request(&question))
    });
    run(cases.collect());
}

#[test]
fn ipv4_options_are_kept() {
    // Router alert, end of list.
    let options = [0x94, 0x04, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00];
    let cases = BOOKS
        .into_iter()
        .filter(|book| !book.is_v6())
        .flat_map(|book| {
            MODES.map(|mode| {
                let talk = Conversation::new(book, mode);
                let question = talk.question().options(&options);
                let first = talk.first().options(&options);
                let other = Conversation {
                    client_port: 40_001,
                    ..talk
                };
                let other_first = other.first().options(&options);
                let answer = talk.answer().options(&options);
                let request = |talk: Conversation, packet: &Packet| {
                    from(OUTSIDE, packet).forwards(&talk.out(packet)).by_tcx()
                };
                let reply = from(talk.inside(), &answer).replies(&talk.back(&answer));
                let reply = if mode == Mode::Pod {
                    reply
                } else {
                    reply.by_tcx()
                };
                case(format!("{}: options", talk.name()), talk.tables())
                    .step(request(talk, &first).creates())
                    .step(talk.reply(&talk.second()))
                    .step(request(talk, &question).promotes())
                    .step(request(other, &other_first).creates())
                    .step(reply)
            })
        });
    run(cases.collect());
}

/// A datagram of 40 bytes in two pieces.
fn pieces(whole: &Packet) -> [Packet; 2] {
    [
        whole.clone().fragment(0, 24, true),
        whole.clone().fragment(24, 100, false),
    ]
}

/// The pieces' rewrite, whose checksum covers the whole datagram.
fn pieces_out(talk: Conversation, whole: &Packet) -> [Packet; 2] {
    pieces(&talk.out(whole))
}

fn fragment_step(piece: &Packet, out: &Packet) -> Step {
    from(OUTSIDE, piece).forwards(out).by_tcx()
}

#[test]
fn fragments_follow_the_first() {
    let cases = BOOKS.into_iter().flat_map(|book| {
        [Mode::FullNat, Mode::Gateway].map(|mode| {
            let talk = Conversation::new(book, mode);
            let whole = talk.question().payload_length(64);
            let [first, last] = pieces(&whole);
            let [first_out, last_out] = pieces_out(talk, &whole);
            case(format!("{}: fragments", talk.name()), talk.tables())
                .steps(talk.handshake())
                .step(fragment_step(&first, &first_out))
                .step(fragment_step(&last, &last_out))
        })
    });
    run(cases.collect());
}

#[test]
fn a_later_fragment_alone_is_dropped_at_a_vip() {
    let cases = full_nat().map(|talk| {
        let [_, last] = pieces(&talk.question().payload_length(64).id(0x7777));
        case(format!("{}: later fragment", talk.name()), talk.tables())
            .steps(talk.handshake())
            .step(from(OUTSIDE, &last).by_tcx().drops(Reason::Fragment))
    });
    run(cases.collect());
}

#[test]
fn ipv6_extension_headers_to_a_vip_are_dropped_and_counted() {
    let cases = TCP_BOOKS
        .into_iter()
        .chain(UDP_BOOKS)
        .filter(|book| book.is_v6())
        .map(|book| {
            let talk = Conversation::new(book, Mode::FullNat);
            // Hop-by-hop and destination options, each with padding only (RFC 8200 §4.2).
            let padded = [0, 1, 4, 0, 0, 0, 0];
            let hop = talk.question().extension(0, &padded);
            let destination = talk.question().extension(60, &padded);
            let routing = talk.question().extension(43, &[0, 4, 0, 0, 0, 0, 0]);
            case(format!("{}: extension headers", talk.name()), talk.tables())
                .steps(talk.handshake())
                .steps([hop, destination, routing].map(|packet| {
                    from(OUTSIDE, &packet)
                        .by_tcx()
                        .drops(Reason::ExtensionHeader)
                }))
        });
    run(cases.collect());
}

#[test]
fn headers_that_promise_too_much_are_dropped_at_a_vip() {
    let cases = full_nat().map(|talk| {
        let name = format!("{}: cut short", talk.name());
        case(name, talk.tables())
            .steps(talk.handshake())
            .then(move |lab| {
                let whole = talk.question().bytes();
                let before = lab.counts();
                // Cut in the payload: the IP header says there is more.
                let cut = whole.get(..whole.len() - 3).expect("a payload").to_vec();
                if lab.hook() == Hook::Xdp {
                    let outcome = lab.xdp(&cut, OUTSIDE);
                    assert_eq!((outcome.verdict, &outcome.frame), (Verdict::Pass, &cut));
                }
                assert_eq!(lab.ingress(&cut, OUTSIDE).verdict, Verdict::Drop);
                let after = lab.counts();
                let name = Reason::Truncated.name();
                let count = |counts: &lb_tests::run::Counts| {
                    counts.counters.get(name).map_or(0, |tally| tally.packets)
                };
                assert_eq!(count(&after) - count(&before), 1, "{after:?}");
            })
    });
    run(cases.collect());
}

#[test]
fn a_tag_inside_the_frame_is_not_taken_for_our_packet() {
    let cases = full_nat().flat_map(|talk| {
        [("802.1Q", 0x8100), ("802.1ad", 0x88a8)].map(|(name, protocol)| {
            let tagged = talk.question().tag(protocol, 42);
            case(format!("{}: {name}", talk.name()), talk.tables())
                .steps(talk.handshake())
                .step(from(OUTSIDE, &tagged).passes(Some(Reason::NotIp)))
        })
    });
    run(cases.collect());
}

fn host_backend(book: Book) -> (Case, String) {
    let backend = book.at(book.node_address(), 8443);
    let tables = book.service().host_backends([backend.as_str()]);
    (
        case(format!("{}: the node itself", book.name()), tables),
        backend,
    )
}

#[test]
fn a_backend_that_is_the_node_itself_is_met_by_the_stack_and_at_egress() {
    let cases = BOOKS.into_iter().map(|book| {
        let (case, backend) = host_backend(book);
        let (client, vip) = (book.client(40_000), book.vip(443));
        let (first, third) = (book.first(&client, &vip), book.third(&client, &vip));
        let second = book.second(&backend, &client);
        let answered = second.clone().from(&vip);
        case.step(
            from(OUTSIDE, &first)
                .delivers(&first.clone().to(&backend))
                .creates(),
        )
        .then(move |lab| {
            let before = lab.counts();
            let outcome = lab.egress(&second.bytes(), OUTSIDE);
            assert_eq!(outcome.verdict, Verdict::Pass);
            let (found, expected) = (outcome.frame, answered.bytes());
            assert_eq!(
                lb_tests::packet::describe(&found),
                lb_tests::packet::describe(&expected)
            );
            assert_eq!(found, expected);
            let after = lab.counts();
            let name = Event::EgressForwarded.name();
            let count = |counts: &lb_tests::run::Counts| {
                counts.counters.get(name).map_or(0, |tally| tally.packets)
            };
            assert_eq!(count(&after) - count(&before), 1, "{after:?}");
        })
        .step(
            from(OUTSIDE, &third)
                .delivers(&third.clone().to(&backend))
                .promotes(),
        )
        .flows(2, 0)
    });
    run(cases.collect());
}

#[test]
fn egress_touches_only_replies_of_the_node_itself() {
    let cases = full_nat().map(|talk| {
        case(format!("{}: egress", talk.name()), talk.tables())
            .steps(talk.handshake())
            .then(move |lab| {
                let before = lab.counts();
                for packet in [
                    talk.answer(),
                    talk.question(),
                    talk.out(&talk.question()),
                    talk.back(&talk.answer()),
                    packet().ping("198.51.100.1", "198.51.100.7", 1, 1),
                ] {
                    let outcome = lab.egress(&packet.bytes(), INSIDE);
                    assert_eq!(outcome.verdict, Verdict::Pass);
                    assert_eq!(outcome.frame, packet.bytes());
                }
                assert_eq!(lab.counts(), before, "egress counts nothing of others");
            })
    });
    run(cases.collect());
}

#[test]
fn pods_of_this_node_keep_the_client_and_are_left_to_tcx() {
    let cases = BOOKS.into_iter().map(|book| {
        let talk = Conversation::new(book, Mode::Pod);
        let stray = book.packet(&book.pod(5, 33_333), &book.client(9));
        case(format!("{}: pod's own traffic", talk.name()), talk.tables())
            .steps(talk.handshake())
            .step(from(PODS, &stray).passes(Some(Reason::NotOurs)))
            .step(talk.reply(&talk.answer()))
    });
    run(cases.collect());
}

#[test]
fn an_unresolved_neighbour_is_left_to_tcx() {
    let cases = BOOKS.into_iter().map(|book| {
        // Host 99 has no neighbour entry.
        let backend = book.backend(99, 8443);
        let tables = book.service().backends([backend.as_str()]);
        let first = book.first(&book.client(40_000), &book.vip(443));
        let out = towards(
            INSIDE,
            99,
            &first.clone().from(&book.snat(40_000)).to(&backend),
        );
        case(format!("{}: no neighbour", book.name()), tables)
            .step(from(OUTSIDE, &first).forwards(&out).by_tcx().creates())
            .step(from(OUTSIDE, &first).forwards(&out).by_tcx())
    });
    run(cases.collect());
}
