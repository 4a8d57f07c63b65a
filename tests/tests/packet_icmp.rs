//! ICMP and `ICMPv6` errors: translated inside and out, both directions; and the errors we send.

use lb_common::reason::{Event, Reason};
use lb_tests::{
    book::{BOOKS, to_client, towards},
    case::{Case, Step, case, from, run},
    flows::{Conversation, MODES, Mode},
    network::{CLIENT, INSIDE, OUTSIDE, PODS, ROUTER, SLIM, neighbour},
    packet::{Packet, packet},
};

/// Address part of an endpoint.
fn host(endpoint: &str) -> String {
    let endpoint: std::net::SocketAddr = endpoint.parse().expect("an endpoint");
    endpoint.ip().to_string()
}

/// The errors a router may send about a packet, each as (name, message).
fn errors(
    source: &str,
    destination: &str,
    quoted: &Packet,
    length: usize,
) -> [(&'static str, Packet); 4] {
    [
        ("too big", packet().too_big(source, destination, 1_300)),
        (
            "unreachable",
            packet().port_unreachable(source, destination),
        ),
        ("time exceeded", packet().time_exceeded(source, destination)),
        (
            "parameter problem",
            packet().icmp(source, destination, if quoted.is_v4() { 12 } else { 4 }, 0),
        ),
    ]
    .map(|(name, message)| (name, message.ttl(60).quoting(quoted, length)))
}

/// Lengths of quotations: the least a router must quote, and all.
fn lengths(v6: bool) -> [usize; 3] {
    if v6 { [48, 60, 1_000] } else { [28, 40, 500] }
}

/// A router outside complains about a packet of the backend: the backend must learn of it.
fn about_a_reply(talk: Conversation) -> Vec<(String, Step)> {
    let book = talk.book;
    let router = book.host(OUTSIDE, 254);
    let mut steps = Vec::new();
    for length in lengths(book.is_v6()) {
        // As the router saw it: rewritten, one hop on its way.
        let sent = talk.back(&talk.answer()).ttl(62);
        let original = talk.answer().ttl(62);
        let (vip, backend, seen) = (host(&talk.vip()), host(&talk.backend()), host(&talk.seen()));
        let before = errors(&router, &vip, &sent, length);
        // A backend that knows the client is told by the router; else by whom it talks to.
        let source = if talk.mode == Mode::FullNat {
            &seen
        } else {
            &router
        };
        let after = errors(source, &backend, &original, length);
        for ((name, input), (_, out)) in before.into_iter().zip(after) {
            let out = towards(talk.inside(), 5, &out);
            steps.push((
                format!("{name} {length}"),
                from(OUTSIDE, &input).translates(&out),
            ));
        }
    }
    steps
}

/// A router inside complains about a packet of the client: the client must learn of it.
fn about_a_request(talk: Conversation) -> Vec<(String, Step)> {
    let book = talk.book;
    let router = book.host(talk.inside(), 254);
    let mut steps = Vec::new();
    for length in lengths(book.is_v6()) {
        let sent = talk.out(&talk.question()).ttl(62);
        let original = talk.question().ttl(62);
        let (vip, client, seen) = (host(&talk.vip()), host(&talk.client()), host(&talk.seen()));
        let before = errors(&router, &seen, &sent, length);
        // The client knows the VIP, and nobody behind it.
        let after = errors(&vip, &client, &original, length);
        for ((name, input), (_, out)) in before.into_iter().zip(after) {
            let step = from(talk.inside(), &input).translates(&to_client(&out));
            // To XDP it goes from a stranger to a stranger, unless the address is of ours.
            let step = if talk.mode == Mode::FullNat {
                step
            } else {
                step.unseen_by_xdp()
            };
            steps.push((format!("{name} {length}"), step));
        }
    }
    steps
}

fn translation_cases(what: &str, steps: impl Fn(Conversation) -> Vec<(String, Step)>) -> Vec<Case> {
    let mut cases = Vec::new();
    for book in BOOKS {
        for mode in MODES {
            let talk = Conversation::new(book, mode);
            for (name, step) in steps(talk) {
                let name = format!("{}: {what}, {name}", talk.name());
                cases.push(case(name, talk.tables()).steps(talk.handshake()).step(step));
            }
        }
    }
    cases
}

#[test]
fn errors_about_replies_reach_the_backend() {
    run(translation_cases("about a reply", about_a_reply));
}

#[test]
fn errors_about_requests_reach_the_client() {
    run(translation_cases("about a request", about_a_request));
}

#[test]
fn errors_about_embryonic_flows_are_translated_too() {
    let cases = BOOKS.into_iter().map(|book| {
        let talk = Conversation::new(book, Mode::FullNat);
        let router = book.host(INSIDE, 254);
        let (vip, client, seen) = (host(&talk.vip()), host(&talk.client()), host(&talk.seen()));
        let input = packet()
            .port_unreachable(&router, &seen)
            .quoting(&talk.out(&talk.first()), 48);
        let out = packet()
            .port_unreachable(&vip, &client)
            .quoting(&talk.first().hop(), 48);
        case(format!("{}: embryonic", talk.name()), talk.tables())
            .step(talk.request(&talk.first()).creates())
            .step(from(INSIDE, &input).translates(&to_client(&out)))
    });
    run(cases.collect());
}

#[test]
fn errors_about_nothing_of_ours_are_dropped_at_a_vip_and_pass_elsewhere() {
    let cases = BOOKS.into_iter().map(|book| {
        let talk = Conversation::new(book, Mode::FullNat);
        let router = book.host(OUTSIDE, 254);
        // Nobody sent this.
        let never = book.packet(&talk.vip(), &book.client(41_000));
        let to_vip = packet()
            .port_unreachable(&router, &host(&talk.vip()))
            .quoting(&never, 48);
        let foreign = book.packet(&book.client(1), &book.far_client(2));
        let elsewhere = packet()
            .port_unreachable(&router, &host(&talk.client()))
            .quoting(&foreign, 48);
        case(format!("{}: unmatched", talk.name()), talk.tables())
            .steps(talk.handshake())
            .step(from(OUTSIDE, &to_vip).by_tcx().drops(Reason::IcmpUnmatched))
            .step(from(OUTSIDE, &elsewhere).passes(Some(Reason::NotOurs)))
    });
    run(cases.collect());
}

#[test]
fn a_packet_on_its_last_hop_is_answered_with_time_exceeded() {
    let cases = BOOKS.into_iter().flat_map(|book| {
        MODES.map(|mode| {
            let talk = Conversation::new(book, mode);
            let last = talk.question().ttl(1).next_hop(CLIENT, OUTSIDE.mac);
            let answer = packet()
                .time_exceeded(&host(&talk.vip()), &host(&talk.client()))
                .quoting(&last, quoted(&last));
            case(format!("{}: TTL 1", talk.name()), talk.tables())
                .steps(talk.handshake())
                .step(
                    from(OUTSIDE, &last)
                        .answers(&finish(answer), Event::TimeExceededSent)
                        .reason(Reason::TtlExceeded),
                )
        })
    });
    run(cases.collect());
}

/// Bytes our errors quote: the IP header and the transport header.
fn quoted(packet: &Packet) -> usize {
    let transport = if packet.is_udp() { 8 } else { 20 };
    transport + if packet.is_v4() { 20 } else { 40 }
}

fn finish(answer: Packet) -> Packet {
    answer.id(0).ttl(64).next_hop(OUTSIDE.mac, CLIENT)
}

#[test]
fn a_packet_too_long_for_its_way_is_answered_with_the_mtu() {
    let cases = BOOKS.into_iter().map(|book| {
        let backend = book.slim(5, 8443);
        let tables = book.service().backends([backend.as_str()]);
        let (client, vip) = (book.client(40_000), book.vip(443));
        let snat = book.snat_at(SLIM, 40_000);
        let out = |packet: &Packet| towards(SLIM, 5, &packet.clone().from(&snat).to(&backend));
        let first = book.first(&client, &vip);
        let header = if book.is_v6() { 40 } else { 20 } + if book.is_udp() { 8 } else { 20 };
        let fits = book.packet(&client, &vip).payload_length(1_300 - header);
        let long = book
            .packet(&client, &vip)
            .payload_length(1_301 - header)
            .next_hop(CLIENT, OUTSIDE.mac);
        let answer = packet()
            .too_big(&host(&vip), &host(&client), 1_300)
            .quoting(&long, quoted(&long));
        case(format!("{}: too big", book.name()), tables)
            .step(from(OUTSIDE, &first).forwards(&out(&first)).creates())
            .step(from(OUTSIDE, &fits).forwards(&out(&fits)))
            .step(
                from(OUTSIDE, &long)
                    .answers(&finish(answer), Event::TooBigSent)
                    .reason(Reason::TooBig),
            )
    });
    run(cases.collect());
}

#[test]
fn errors_of_pods_and_of_the_client_itself_are_translated() {
    let cases = BOOKS.into_iter().map(|book| {
        let talk = Conversation::new(book, Mode::Pod);
        let (vip, client, pod) = (
            host(&talk.vip()),
            host(&talk.client()),
            host(&talk.backend()),
        );
        // The pod's own stack refuses.
        let refused = packet()
            .port_unreachable(&pod, &client)
            .quoting(&talk.out(&talk.question()), 60);
        let told = packet()
            .port_unreachable(&vip, &client)
            .quoting(&talk.question().hop(), 60);
        // The client's stack refuses.
        let closed = packet()
            .port_unreachable(&client, &vip)
            .quoting(&talk.back(&talk.answer()), 60);
        let known = packet()
            .port_unreachable(&client, &pod)
            .quoting(&talk.answer().hop(), 60);
        case(format!("{}: by the ends", talk.name()), talk.tables())
            .steps(talk.handshake())
            .step(
                from(PODS, &refused)
                    .translates(&to_client(&told))
                    .unseen_by_xdp(),
            )
            .step(from(OUTSIDE, &closed).translates(&towards(PODS, 5, &known)))
    });
    run(cases.collect());
}

#[test]
fn neighbours_and_routers_have_the_addresses_the_cases_assume() {
    assert_ne!(ROUTER, CLIENT);
    assert_eq!(neighbour(OUTSIDE, 7), CLIENT);
}
