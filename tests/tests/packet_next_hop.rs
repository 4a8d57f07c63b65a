//! Where packets leave: cached next hops, and how they follow routes, neighbours and devices.

use std::{collections::BTreeSet, process::Command};

use lb_common::{
    conntrack::{Entry as _, Head, Route},
    device::{Device, NextHop, device_flag},
    names,
    reason::{Event, Reason},
};
use lb_tests::{
    book::{BOOKS, Book, towards},
    case::{Case, case, from, run},
    flows::{Conversation, Mode},
    netns::succeed,
    network::{INSIDE, OUTSIDE, Port, SLIM, neighbour},
    packet::{Mac, Packet, packet},
    run::{Hook, Lab},
};

/// Runs `ip` in the test network: the calling thread is inside.
fn ip(words: &str) {
    succeed(Command::new("ip").args(words.split(' ')));
}

fn colons(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// Gives backend host 5 a MAC.
fn set_mac(book: Book, mac: Mac) {
    let (address, mac) = (book.host(INSIDE, 5), colons(mac));
    ip(&format!(
        "neigh replace {address} lladdr {mac} dev lb1 nud permanent"
    ));
}

const MOVED: Mac = [2, 0, 0, 9, 9, 9];

#[test]
fn a_neighbours_new_mac_is_used_once_the_generation_moved() {
    let cases = BOOKS.into_iter().map(|book| {
        let talk = Conversation::new(book, Mode::FullNat);
        let moved = talk.out(&talk.question()).next_hop(INSIDE.mac, MOVED);
        case(format!("{}: new MAC", book.name()), talk.tables())
            .steps(talk.handshake())
            .then(move |_| set_mac(book, MOVED))
            // Within the tick the cached next hop holds.
            .step(talk.request(&talk.question()))
            .then(|lab| lab.routes_changed())
            .step(from(OUTSIDE, &talk.question()).forwards(&moved))
            .then(move |_| set_mac(book, neighbour(INSIDE, 5)))
            .then(|lab| lab.routes_changed())
            .step(talk.request(&talk.question()))
            .step(talk.reply(&talk.answer()))
    });
    run(cases.collect());
}

#[test]
fn one_flows_lookup_tells_every_flow_of_the_next_hop() {
    let cases = BOOKS.into_iter().map(|book| {
        let talk = Conversation::new(book, Mode::FullNat);
        let other = Conversation {
            client_port: 40_001,
            ..talk
        };
        let moved = |packet: &Packet| packet.clone().next_hop(INSIDE.mac, MOVED);
        let first = moved(&other.out(&other.first()));
        let question = moved(&talk.out(&talk.question()));
        case(format!("{}: shared next hop", book.name()), talk.tables())
            .steps(talk.handshake())
            .then(move |_| set_mac(book, MOVED))
            // A new flow looks the route up, and with it the neighbour, unless this tick's is remembered.
            .then(Lab::forget_routes)
            .step(from(OUTSIDE, &other.first()).forwards(&first).creates())
            .step(from(OUTSIDE, &talk.question()).forwards(&question))
            .then(move |_| set_mac(book, neighbour(INSIDE, 5)))
    });
    run(cases.collect());
}

#[test]
fn a_changed_route_is_taken_once_the_generation_moved() {
    let cases = BOOKS.into_iter().map(|book| {
        let talk = Conversation::new(book, Mode::FullNat);
        let target = book.host(INSIDE, 5);
        let by = book.host(INSIDE, 254);
        let rerouted = towards(
            INSIDE,
            254,
            &talk.question().from(&talk.seen()).to(&talk.backend()),
        );
        let (add, remove) = (
            format!("route add {target} via {by} dev lb1"),
            format!("route del {target} via {by}"),
        );
        case(format!("{}: new route", book.name()), talk.tables())
            .steps(talk.handshake())
            .then(move |_| ip(&add))
            .step(talk.request(&talk.question()))
            .then(|lab| lab.routes_changed())
            .step(from(OUTSIDE, &talk.question()).forwards(&rerouted))
            .then(move |_| ip(&remove))
            .then(|lab| lab.routes_changed())
            .step(talk.request(&talk.question()))
    });
    run(cases.collect());
}

#[test]
fn a_route_that_is_gone_drops_and_counts_until_it_is_back() {
    let cases = BOOKS.into_iter().map(|book| {
        let talk = Conversation::new(book, Mode::FullNat);
        let target = book.host(INSIDE, 5);
        let (add, remove) = (
            format!("route add unreachable {target}"),
            format!("route del unreachable {target}"),
        );
        case(format!("{}: no route", book.name()), talk.tables())
            .steps(talk.handshake())
            .then(move |_| ip(&add))
            .then(|lab| lab.routes_changed())
            .step(
                from(OUTSIDE, &talk.question())
                    .by_tcx()
                    .drops(Reason::NoRoute),
            )
            .then(move |_| ip(&remove))
            .then(|lab| lab.routes_changed())
            .step(talk.request(&talk.question()))
            .flows(2, 0)
    });
    run(cases.collect());
}

/// Takes from a device what lets XDP send to it, or gives it back.
fn set_redirect(lab: &Lab, device: Port, redirect: bool) {
    let devices = lab.map(names::DEVICES);
    let key = u32::from(device.index);
    let device: Device = devices.lookup(&key).expect("DEVICES").expect("an element");
    let flags = if redirect { device_flag::REDIRECT } else { 0 };
    devices
        .update(&key, &Device { flags, ..device })
        .expect("DEVICES");
}

#[test]
fn a_device_xdp_cannot_send_to_is_left_to_tcx() {
    let cases = BOOKS.into_iter().map(|book| {
        let talk = Conversation::new(book, Mode::FullNat);
        case(format!("{}: no redirect", book.name()), talk.tables())
            .steps(talk.handshake())
            .then(|lab| set_redirect(lab, INSIDE, false))
            .step(talk.request(&talk.question()).by_tcx())
            .step(talk.reply(&talk.answer()))
            .then(|lab| set_redirect(lab, INSIDE, true))
            .step(talk.request(&talk.question()))
    });
    run(cases.collect());
}

/// The refusal ends its flow: where XDP does so and leaves the packet to TCX, that must know it still.
#[test]
fn a_refusal_reaches_the_client_where_xdp_cannot_send() {
    let cases = BOOKS.into_iter().filter(|book| !book.is_udp()).map(|book| {
        let talk = Conversation::new(book, Mode::FullNat);
        let refusal = talk.second().flags(0x14);
        case(format!("{}: refused", book.name()), talk.tables())
            .then(|lab| set_redirect(lab, OUTSIDE, false))
            .step(talk.request(&talk.first()).creates())
            .step(talk.reply(&refusal).by_tcx())
            .flows(0, 0)
            .then(|lab| set_redirect(lab, OUTSIDE, true))
    });
    run(cases.collect());
}

#[test]
fn a_neighbour_that_is_lost_is_left_to_tcx_until_it_is_back() {
    let cases = BOOKS.into_iter().map(|book| {
        let talk = Conversation::new(book, Mode::FullNat);
        let lost = format!("neigh del {} dev lb1", book.host(INSIDE, 5));
        case(format!("{}: lost neighbour", book.name()), talk.tables())
            .only(Hook::Xdp)
            .steps(talk.handshake())
            .then(move |_| ip(&lost))
            .then(|lab| lab.routes_changed())
            .step(talk.request(&talk.question()).by_tcx())
            .then(move |_| set_mac(book, neighbour(INSIDE, 5)))
            .step(talk.request(&talk.question()).by_tcx())
            .step(talk.request(&talk.question()))
    });
    run(cases.collect());
}

#[test]
fn an_mtu_guessed_without_a_neighbour_is_not_remembered() {
    const MTU: u16 = 1_400;
    let cases = BOOKS.into_iter().map(|book| {
        let talk = Conversation::new(book, Mode::FullNat);
        let other = Conversation {
            client_port: 40_001,
            ..talk
        };
        let (target, by) = (book.host(INSIDE, 5), book.host(INSIDE, 254));
        let add = format!("route add {target} via {by} dev lb1 mtu lock {MTU}");
        let remove = format!("route del {target} via {by}");
        let lost = format!("neigh del {by} dev lb1");
        let mac = colons(neighbour(INSIDE, 254));
        let back = format!("neigh replace {by} lladdr {mac} dev lb1 nud permanent");
        let sent = |packet: &Packet| {
            let packet = packet.clone().from(&other.seen()).to(&other.backend());
            towards(INSIDE, 254, &packet)
        };
        case(format!("{}: a cold gateway", book.name()), talk.tables())
            .only(Hook::Xdp)
            .then(move |lab| {
                ip(&add);
                ip(&lost);
                lab.routes_changed();
            })
            // The kernel tells no MTU. TCX lets it find the neighbour, and notes that.
            .step(talk.request(&talk.first()).by_tcx().creates())
            .then(move |_| ip(&back))
            .step(talk.request(&talk.first()).by_tcx())
            .step(
                from(OUTSIDE, &other.first())
                    .forwards(&sent(&other.first()))
                    .creates(),
            )
            .then(move |lab| {
                ip(&remove);
                lab.routes_changed();
                let found = mtus(lab, 40_001);
                assert!(found.contains(&MTU), "{}: {found:?}", book.name());
            })
    });
    run(cases.collect());
}

/// MTUs in the embryonic halves of a client's port.
fn mtus(lab: &Lab, port: u16) -> Vec<u16> {
    let v4 = lab.flows4(names::EMBRYONIC_V4).into_iter();
    let v6 = lab.flows6(names::EMBRYONIC_V6).into_iter();
    let halves = v4
        .map(|(flow, entry)| (flow.source_port, entry.route))
        .chain(v6.map(|(flow, entry)| (flow.source_port, entry.route)));
    let of_port = halves
        .into_iter()
        .filter(|(source, _)| source.get() == port);
    of_port.map(|(_, route)| Route(route).mtu()).collect()
}

/// A stamp of zero lies in the future for months at a time: such a neighbour was never due to be asked for again.
#[test]
fn a_neighbour_counts_as_asked_for_at_first_sight() {
    let cases = BOOKS.into_iter().map(|book| {
        let talk = Conversation::new(book, Mode::FullNat);
        case(format!("{}: first sight", book.name()), talk.tables())
            .steps(talk.handshake())
            .then(|lab| {
                let ticks = stamps(lab);
                let hops: Vec<(u32, NextHop)> = lab.map(names::NEXT_HOPS).read_all().expect("hops");
                let seen: Vec<u32> = hops
                    .into_iter()
                    .filter(|(_, hop)| hop.ifindex != 0)
                    .map(|(_, hop)| hop.refreshed)
                    .collect();
                // The backend and the client.
                assert_eq!(seen.len(), 2, "{seen:?}");
                assert!(
                    seen.iter().all(|tick| ticks.contains(tick)),
                    "{seen:?}, flows {ticks:?}"
                );
                assert!(!seen.contains(&0), "a tick that is none");
            })
    });
    run(cases.collect());
}

/// The ticks of every flow's last packet.
fn stamps(lab: &Lab) -> BTreeSet<u32> {
    let v4 = lab
        .flows4(names::FLOWS_V4)
        .into_values()
        .map(|entry| entry.head());
    let v6 = lab
        .flows6(names::FLOWS_V6)
        .into_values()
        .map(|entry| entry.head());
    v4.chain(v6).map(Head::stamp).collect()
}

#[test]
fn without_next_hop_indices_packets_go_by_tcx() {
    let cases = BOOKS.into_iter().map(|book| {
        let talk = Conversation::new(book, Mode::Gateway);
        case(format!("{}: no index left", book.name()), talk.tables())
            .then(|lab| {
                let free = lab.map(names::NEXT_HOP_FREE);
                while free.pop::<u32>().expect("NEXT_HOP_FREE").is_some() {}
            })
            .step(talk.request(&talk.first()).by_tcx().creates())
            .step(talk.reply(&talk.second()).by_tcx())
            .step(talk.request(&talk.third()).by_tcx().promotes())
            .flows(2, 0)
    });
    run(cases.collect());
}

/// Answers to the backend: its packet cannot go on.
fn about_a_reply(
    name: &str,
    make: impl Fn(Conversation, Packet) -> (Packet, Packet, Event, Reason),
) {
    let cases: Vec<Case> = BOOKS
        .into_iter()
        .map(|book| {
            let talk = Conversation::new(book, Mode::FullNat);
            let (input, answer, event, reason) = make(talk, talk.answer());
            let input = input.next_hop(neighbour(INSIDE, 5), INSIDE.mac);
            let answer = answer
                .id(0)
                .ttl(64)
                .next_hop(INSIDE.mac, neighbour(INSIDE, 5));
            case(format!("{}: {name}", book.name()), talk.tables())
                .steps(talk.handshake())
                .step(from(INSIDE, &input).answers(&answer, event).reason(reason))
                .step(talk.reply(&talk.answer()))
        })
        .collect();
    run(cases);
}

fn quoted(packet: &Packet) -> usize {
    let transport = if packet.is_udp() { 8 } else { 20 };
    transport + if packet.is_v4() { 20 } else { 40 }
}

fn host(endpoint: &str) -> String {
    endpoint
        .parse::<std::net::SocketAddr>()
        .expect("an endpoint")
        .ip()
        .to_string()
}

#[test]
fn a_reply_on_its_last_hop_is_answered_to_the_backend() {
    about_a_reply("reply, TTL 1", |talk, answer| {
        let input = answer.ttl(1);
        let message = packet()
            .time_exceeded(&host(&talk.seen()), &host(&talk.backend()))
            .quoting(&input, quoted(&input));
        (input, message, Event::TimeExceededSent, Reason::TtlExceeded)
    });
}

#[test]
fn a_reply_too_long_for_the_clients_side_is_answered_to_the_backend() {
    about_a_reply("reply, too big", |talk, answer| {
        let input = answer.payload_length(1_480);
        let message = packet()
            .too_big(&host(&talk.seen()), &host(&talk.backend()), 1_500)
            .quoting(&input, quoted(&input));
        (input, message, Event::TooBigSent, Reason::TooBig)
    });
}

#[test]
fn a_slim_device_takes_what_fits() {
    let cases = BOOKS.into_iter().map(|book| {
        let backend = book.slim(5, 8443);
        let first = book.first(&book.client(40_000), &book.vip(443));
        let out = first.clone().from(&book.snat_at(SLIM, 40_000)).to(&backend);
        case(
            format!("{}: another device's SNAT address", book.name()),
            book.service().backends([backend.as_str()]),
        )
        .step(
            from(OUTSIDE, &first)
                .forwards(&towards(SLIM, 5, &out))
                .creates(),
        )
    });
    run(cases.collect());
}
