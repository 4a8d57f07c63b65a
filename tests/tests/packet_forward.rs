//! Flows from their first packet on, in every mode, family and transport.

use lb_tests::{
    book::{BOOKS, to_router, towards},
    case::{Case, case, from, run},
    flows::{Conversation, MODES, Mode},
    network::{INSIDE, OUTSIDE},
};

fn conversations() -> impl Iterator<Item = Conversation> {
    BOOKS
        .into_iter()
        .flat_map(|book| MODES.map(|mode| Conversation::new(book, mode)))
}

#[test]
fn a_flow_is_made_answered_and_promoted_by_the_third_packet() {
    let cases = conversations().map(|talk| {
        case(format!("{}: handshake", talk.name()), talk.tables())
            .step(talk.request(&talk.first()).creates())
            .flows(0, 2)
            .step(talk.reply(&talk.second()))
            .flows(0, 2)
            .step(talk.request(&talk.third()).promotes())
            .flows(2, 0)
            .step(talk.request(&talk.question()))
            .step(talk.reply(&talk.answer()))
            .flows(2, 0)
    });
    run(cases.collect());
}

#[test]
fn repeated_packets_of_a_handshake_change_nothing() {
    let cases = conversations().map(|talk| {
        let unproven = talk.request(&talk.first());
        case(format!("{}: repeated", talk.name()), talk.tables())
            .step(talk.request(&talk.first()).creates())
            .step(unproven)
            .step(talk.reply(&talk.second()))
            .step(talk.reply(&talk.second()))
            .flows(0, 2)
            .step(talk.request(&talk.third()).promotes())
            .step(talk.request(&talk.third()))
            .step(talk.reply(&talk.second()))
            .flows(2, 0)
    });
    run(cases.collect());
}

#[test]
fn payloads_of_every_length_keep_their_checksums() {
    let cases = conversations().map(|talk| {
        let lengths = [0, 1, 2, 3, 7, 512, 1_399, 1_400];
        case(format!("{}: lengths", talk.name()), talk.tables())
            .steps(talk.handshake())
            .steps(lengths.map(|length| talk.request(&talk.question().payload_length(length))))
            .steps(lengths.map(|length| talk.reply(&talk.answer().payload_length(length))))
    });
    run(cases.collect());
}

#[test]
fn fields_that_are_not_ours_survive() {
    let cases = conversations().map(|talk| {
        let dressed = talk
            .question()
            .traffic_class(0xb9)
            .id(0xbeef)
            .may_fragment()
            .ttl(2);
        case(format!("{}: other fields", talk.name()), talk.tables())
            .steps(talk.handshake())
            .step(talk.request(&dressed))
            .step(talk.reply(&talk.answer().traffic_class(0x03).ttl(255)))
    });
    run(cases.collect());
}

#[test]
fn short_frames_keep_their_padding() {
    let cases = conversations().map(|talk| {
        let question = talk
            .book
            .packet(&talk.client(), &talk.vip())
            .payload(b"")
            .trailer(6);
        case(format!("{}: padded", talk.name()), talk.tables())
            .steps(talk.handshake())
            .step(talk.request(&question))
    });
    run(cases.collect());
}

#[test]
fn a_wrong_checksum_stays_wrong() {
    let cases = conversations().map(|talk| {
        let damaged = talk.question().wrong_checksum();
        case(format!("{}: damaged", talk.name()), talk.tables())
            .steps(talk.handshake())
            .step(talk.request(&damaged))
    });
    run(cases.collect());
}

#[test]
fn clients_behind_a_router_are_answered_through_it() {
    let cases = BOOKS.into_iter().map(|book| {
        let (client, vip) = (book.far_client(40_000), book.vip(443));
        let (backend, snat) = (book.backend(5, 8443), book.snat(40_000));
        let first = book.first(&client, &vip);
        let second = book.second(&backend, &snat);
        let tables = book.service().backends([backend.as_str()]);
        case(format!("{}: far client", book.name()), tables)
            .step(
                from(OUTSIDE, &first)
                    .forwards(&towards(INSIDE, 5, &first.clone().from(&snat).to(&backend)))
                    .creates(),
            )
            .step(from(INSIDE, &second).replies(&to_router(&second.clone().from(&vip).to(&client))))
    });
    run(cases.collect());
}

#[test]
fn a_client_on_the_gateway_backends_own_network_gets_full_nat() {
    let cases = BOOKS.into_iter().map(|book| {
        let (client, backend) = (book.backend(7, 40_000), book.backend(5, 8443));
        let (vip, snat) = (book.vip(443), book.snat(40_000));
        let first = book.first(&client, &vip);
        let second = book.second(&backend, &snat);
        let tables = book.service().backends([backend.as_str()]).keep_source();
        case(
            format!("{}: client beside the backend", book.name()),
            tables,
        )
        .step(
            from(INSIDE, &first)
                .forwards(&towards(INSIDE, 5, &first.clone().from(&snat).to(&backend)))
                .creates(),
        )
        .step(from(INSIDE, &second).replies(&towards(
            INSIDE,
            7,
            &second.clone().from(&vip).to(&client),
        )))
    });
    run(cases.collect());
}

#[test]
fn node_ports_are_served_on_their_addresses_alone() {
    let cases = BOOKS.into_iter().map(|book| {
        let node = book.node_address();
        let any = book.at(book.pick("0.0.0.0", "::"), 30_080);
        let tables = book
            .bare()
            .frontend(&book.frontend_at(&any))
            .backends([book.backend(5, 8443).as_str()])
            .node_ports_on(node);
        let first = book.first(&book.client(40_000), &book.at(node, 30_080));
        let out = first
            .clone()
            .from(&book.snat(40_000))
            .to(&book.backend(5, 8443));
        let other = book.first(&book.client(40_000), &book.at(node, 30_081));
        case(format!("{}: node port", book.name()), tables)
            .step(
                from(OUTSIDE, &first)
                    .forwards(&towards(INSIDE, 5, &out))
                    .creates(),
            )
            .step(from(OUTSIDE, &other).passes(Some(lb_common::reason::Reason::NotOurs)))
    });
    run(cases.collect());
}

#[test]
fn two_frontends_share_a_service_port() {
    let cases: Vec<Case> = BOOKS
        .into_iter()
        .map(|book| {
            let talk = Conversation::new(book, Mode::FullNat);
            let second_vip = book.at(book.pick("192.0.2.2", "2001:db8::2"), 443);
            let tables = talk.tables().also(&book.frontend_at(&second_vip));
            let first = book.first(&book.client(40_001), &second_vip);
            let out = first.clone().from(&book.snat(40_001)).to(&talk.backend());
            case(format!("{}: two VIPs", book.name()), tables)
                .step(talk.request(&talk.first()).creates())
                .step(
                    from(OUTSIDE, &first)
                        .forwards(&towards(INSIDE, 5, &out))
                        .creates(),
                )
        })
        .collect();
    run(cases);
}
