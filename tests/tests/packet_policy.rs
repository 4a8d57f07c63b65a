//! What becomes of packets to our addresses that are not forwarded: rejected, dropped, answered, or
//! left to the stack, by policy.

use lb_common::{
    config::UnknownFlows,
    reason::{Event, Reason},
    service::service_flag,
};
use lb_tests::{
    book::{BOOKS, Book, TCP_BOOKS, towards},
    case::{Case, Step, case, from, run},
    flows::{self, Conversation, Mode},
    network::{CLIENT, INSIDE, OUTSIDE},
    packet::{Packet, packet},
    tables::Tables,
};

/// How every answer of ours leaves: TTL 64, no identification, back to the client's MAC.
fn finish(answer: Packet) -> Packet {
    answer.id(0).ttl(64).next_hop(OUTSIDE.mac, CLIENT)
}

fn rejected(book: Book, port: u16, reason: Reason) -> Step {
    let (client, vip) = (book.client(40_000), book.vip(port));
    flows::rejected(book, OUTSIDE, &client, &vip, reason)
}

fn per_book(name: &str, make: impl Fn(Book, String) -> Case) -> Vec<Case> {
    BOOKS
        .into_iter()
        .map(|book| make(book, format!("{}: {name}", book.name())))
        .collect()
}

#[test]
fn an_unknown_port_of_a_vip_is_rejected() {
    run(per_book("unknown port", |book, name| {
        case(name, Conversation::new(book, Mode::FullNat).tables())
            .step(rejected(book, 444, Reason::NoFrontend))
            .flows(0, 0)
    }));
}

#[test]
fn a_service_without_endpoints_is_rejected() {
    run(per_book("no endpoint", |book, name| {
        case(name, book.service())
            .step(rejected(book, 443, Reason::NoEndpoint))
            .flows(0, 0)
    }));
}

fn local(tables: Tables) -> Tables {
    tables.flags(service_flag::EXTERNAL_LOCAL)
}

#[test]
fn a_local_policy_without_endpoint_here_drops_silently() {
    run(per_book("Local, none here", |book, name| {
        let tables = local(book.service().backends([book.backend(5, 8443).as_str()]));
        let first = book.first(&book.client(40_000), &book.vip(443));
        case(name, tables)
            .step(from(OUTSIDE, &first).drops(Reason::NoLocalEndpoint))
            .flows(0, 0)
    }));
}

#[test]
fn a_local_policy_without_endpoint_anywhere_rejects() {
    run(per_book("Local, none anywhere", |book, name| {
        case(name, local(book.service())).step(rejected(book, 443, Reason::NoEndpoint))
    }));
}

#[test]
fn a_local_policy_uses_the_pods_of_this_node_alone() {
    run(per_book("Local, one here", |book, name| {
        let talk = Conversation::new(book, Mode::Pod);
        let remote = book.backend(6, 8443);
        let tables = local(
            book.service()
                .backends([remote.as_str()])
                .local_backends([talk.backend().as_str()]),
        );
        let others = (40_001..40_009).map(|client_port| {
            let other = Conversation {
                client_port,
                ..talk
            };
            other.request(&other.first()).creates()
        });
        case(name, tables).steps(others)
    }));
}

#[test]
fn a_cluster_ip_follows_the_internal_policy() {
    run(per_book("internal policy", |book, name| {
        let talk = Conversation::new(book, Mode::Pod);
        let remote = book.backend(6, 8443);
        let tables = book
            .service()
            .internal()
            .flags(service_flag::INTERNAL_LOCAL)
            .backends([remote.as_str()])
            .local_backends([talk.backend().as_str()]);
        let others = (40_001..40_009).map(|client_port| {
            let other = Conversation {
                client_port,
                ..talk
            };
            other.request(&other.first()).creates()
        });
        case(name, tables).steps(others)
    }));
}

#[test]
fn pings_of_a_vip_are_answered() {
    let cases = TCP_BOOKS.into_iter().map(|book| {
        let (client, vip) = (
            book.pick("198.51.100.7", "2001:db8:100::7"),
            book.vip_address(),
        );
        let steps = [0, 1, 56, 1_400].map(|length| {
            let question = packet()
                .ping(client, vip, 7, 9)
                .payload_length(length)
                .next_hop(CLIENT, OUTSIDE.mac);
            let answer = finish(packet().pong(vip, client, 7, 9).payload_length(length));
            from(OUTSIDE, &question).answers(&answer, Event::EchoReply)
        });
        case(format!("{}: ping", book.name()), book.service()).steps(steps)
    });
    run(cases.collect());
}

#[test]
fn other_icmp_messages_to_a_vip_are_dropped() {
    let cases = TCP_BOOKS.into_iter().map(|book| {
        let (client, vip) = (
            book.pick("198.51.100.7", "2001:db8:100::7"),
            book.vip_address(),
        );
        // A timestamp request, a node information query.
        let kind = if book.is_v6() { 139 } else { 13 };
        let message = packet().icmp(client, vip, kind, 0).payload_length(12);
        let pong = packet().pong(client, vip, 1, 1);
        case(format!("{}: other ICMP", book.name()), book.service())
            .step(from(OUTSIDE, &message).by_tcx().drops(Reason::IcmpOther))
            .step(from(OUTSIDE, &pong).by_tcx().drops(Reason::IcmpOther))
    });
    run(cases.collect());
}

#[test]
fn replies_of_ours_are_limited() {
    run(per_book("rate limit", |book, name| {
        let first = book
            .first(&book.client(40_000), &book.vip(444))
            .next_hop(CLIENT, OUTSIDE.mac);
        let limited = from(OUTSIDE, &first)
            .drops(Reason::NoFrontend)
            .reason(Reason::RateLimited)
            .by_tcx();
        case(name, book.service())
            .config(|config| config.replies_per_tick = 2)
            .step(rejected(book, 444, Reason::NoFrontend))
            .step(rejected(book, 444, Reason::NoFrontend))
            .step(limited)
    }));
}

#[test]
fn segments_without_syn_of_unknown_flows_follow_the_configuration() {
    let cases = TCP_BOOKS.into_iter().flat_map(|book| {
        [
            UnknownFlows::Select,
            UnknownFlows::Stack,
            UnknownFlows::Drop,
        ]
        .map(|policy| {
            let talk = Conversation::new(book, Mode::FullNat);
            let stray = talk.question();
            let step = match policy {
                UnknownFlows::Select => talk.request(&stray).creates(),
                UnknownFlows::Stack => from(OUTSIDE, &stray)
                    .by_tcx()
                    .passes(Some(Reason::UnknownFlowToStack)),
                UnknownFlows::Drop => from(OUTSIDE, &stray).drops(Reason::UnknownFlow),
            };
            case(format!("{}: {policy:?}", book.name()), talk.tables())
                .config(|config| config.unknown_flows = policy as u32)
                .step(step)
                .step(first_step(Conversation {
                    client_port: 40_001,
                    ..talk
                }))
        })
    });
    run(cases.collect());
}

/// A SYN makes a flow whatever the policy says of others.
fn first_step(talk: Conversation) -> Step {
    talk.request(&talk.first()).creates()
}

#[test]
fn a_reset_of_an_unknown_flow_makes_none() {
    let cases = TCP_BOOKS.into_iter().map(|book| {
        let talk = Conversation::new(book, Mode::FullNat);
        let reset = talk.question().rst();
        case(format!("{}: stray RST", book.name()), talk.tables())
            .step(from(OUTSIDE, &reset).drops(Reason::UnknownFlow))
            .flows(0, 0)
    });
    run(cases.collect());
}

#[test]
fn several_backends_share_the_flows() {
    run(per_book("shares", |book, name| {
        let texts = [
            book.backend(5, 8443),
            book.backend(6, 8443),
            book.backend(7, 8443),
        ];
        let tables = book
            .service()
            .backends(texts.each_ref().map(String::as_str));
        case(name, tables).then(move |lab| {
            let mut hosts = std::collections::BTreeMap::new();
            for port in 40_000..40_300 {
                let first = book.first(&book.client(port), &book.vip(443)).bytes();
                let outcome = match lab.hook() {
                    lb_tests::run::Hook::Xdp => lab.xdp(&first, OUTSIDE),
                    _ => lab.ingress(&first, OUTSIDE),
                };
                // The last byte of the destination address.
                let at = if book.is_v6() { 14 + 39 } else { 14 + 19 };
                let host = outcome.frame.get(at).copied().expect("an address");
                *hosts.entry(host).or_insert(0_u32) += 1;
            }
            assert_eq!(
                hosts.keys().copied().collect::<Vec<_>>(),
                [5, 6, 7],
                "{hosts:?}"
            );
            assert!(
                hosts.values().all(|&share| (60..140).contains(&share)),
                "{hosts:?}"
            );
        })
    }));
}

#[test]
fn service_and_backend_counters_name_the_right_ones() {
    run(per_book("ids", |book, name| {
        let second_vip = book.at(book.pick("192.0.2.2", "2001:db8::2"), 443);
        let tables = book
            .service()
            .backends([book.backend(5, 8443).as_str()])
            .frontend(&book.frontend_at(&second_vip))
            .backends([book.backend(6, 8443).as_str()]);
        let first = book.first(&book.client(40_000), &second_vip);
        let out = first
            .clone()
            .from(&book.snat(40_000))
            .to(&book.backend(6, 8443));
        let before = std::sync::Mutex::new(None);
        let before = std::sync::Arc::new(before);
        let (store, load) = (std::sync::Arc::clone(&before), before);
        case(name, tables)
            .then(move |lab| *store.lock().expect("not poisoned") = Some(lab.counts()))
            .step(
                from(OUTSIDE, &first)
                    .forwards(&towards(INSIDE, 6, &out))
                    .creates(),
            )
            .then(move |lab| {
                let before = load.lock().expect("not poisoned").take().expect("stored");
                let after = lab.counts();
                let flows = |counts: &lb_tests::run::Counts| {
                    let of =
                        |map: &std::collections::BTreeMap<u32, lb_common::traffic::Traffic>| {
                            [1, 2].map(|id| map.get(&id).map_or(0, |traffic| traffic.new_flows))
                        };
                    (of(&counts.services), of(&counts.backends))
                };
                let ((services, backends), (services_then, backends_then)) =
                    (flows(&after), flows(&before));
                assert_eq!(
                    (services[0], services[1]),
                    (services_then[0], services_then[1] + 1)
                );
                assert_eq!(
                    (backends[0], backends[1]),
                    (backends_then[0], backends_then[1] + 1)
                );
            })
    }));
}
