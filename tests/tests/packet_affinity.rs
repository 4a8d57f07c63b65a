//! Session affinity: where a client's next flow goes.

use std::{collections::BTreeSet, net::IpAddr};

use lb_common::{
    addr::Addr4,
    conntrack::TICK_MASK,
    maglev::{self, LENGTHS},
    names,
    reason::{Event, Reason},
    service::{
        affinity::{Affinity, AffinityKey},
        service_flag, source_class,
    },
};
use lb_tests::{
    book::{BOOKS, Book, UDP_BOOKS, towards},
    case::{Case, Step, case, from, run},
    network::{INSIDE, OUTSIDE, PODS, SLIM},
    run::{Hook, Lab},
    tables::Tables,
};
use lb_userspace::{dataplane::model::forward::Tuple, tables::Protocol};

const SECONDS: u32 = 60;

fn per_book(name: &str, make: impl Fn(Book, String) -> Case) -> Vec<Case> {
    BOOKS
        .into_iter()
        .map(|book| make(book, format!("{}: {name}", book.name())))
        .collect()
}

/// A service with backends 1 to 3 on hosts 5 to 7.
fn three(book: Book) -> Tables {
    with_three(book, book.service())
}

fn with_three(book: Book, service: Tables) -> Tables {
    let texts = [5, 6, 7].map(|host| book.backend(host, 8443));
    service.backends(texts.each_ref().map(String::as_str))
}

fn host_of(backend: u32) -> u8 {
    u8::try_from(backend + 4).expect("few backends")
}

/// The backend of [`three`] that the client's hash falls on, and another one.
fn chosen_and_other(book: Book, client: &str) -> (u32, u32) {
    let parse = |text: &str| text.parse().expect("an endpoint");
    let tuple = Tuple {
        source: parse(client),
        destination: parse(&book.vip(443)),
        protocol: Protocol::Tcp,
    };
    let hash = tuple.client_hash().expect("one family");
    let length = *LENGTHS.first().expect("a length");
    let chosen = maglev::slot(hash, length) % 3 + 1;
    (chosen, chosen % 3 + 1)
}

fn key(client: &str, service: u32) -> AffinityKey {
    let endpoint: std::net::SocketAddr = client.parse().expect("an endpoint");
    let client = match endpoint.ip() {
        IpAddr::V4(address) => Addr4::from(address).mapped(),
        IpAddr::V6(address) => address.into(),
    };
    AffinityKey { client, service }
}

/// The client was sent to a backend of the service port some time ago.
fn remember(lab: &Lab, client: &str, service: u32, backend: u32, ticks: u32) {
    let stamp = lab.tick().wrapping_sub(ticks) & TICK_MASK;
    let value = Affinity::new(backend, stamp);
    let map = lab.map(names::AFFINITY);
    map.update(&key(client, service), &value).expect("AFFINITY");
}

fn remembering(case: Case, client: String, backend: u32, ticks: u32) -> Case {
    case.then(move |lab| remember(lab, &client, 1, backend, ticks))
}

/// What is remembered: client, service port, backend; all of it from this tick.
fn expect(lab: &Lab, wanted: &[(&str, u32, u32)]) {
    let found: Vec<(AffinityKey, Affinity)> =
        lab.map(names::AFFINITY).read_all().expect("AFFINITY");
    let found: BTreeSet<_> = found.into_iter().collect();
    let stamp = lab.tick();
    let wanted = wanted
        .iter()
        .map(|&(client, service, backend)| (key(client, service), Affinity::new(backend, stamp)));
    assert_eq!(found, wanted.collect(), "remembered");
}

fn expecting(case: Case, client: String, backend: u32) -> Case {
    case.then(move |lab| expect(lab, &[(&client, 1, backend)]))
}

/// A new flow of the client at port `port`, which goes to a backend of [`three`].
fn flow(book: Book, client: &str, port: u16, backend: u32) -> Step {
    flow_to(book, client, &book.vip(443), port, backend)
}

fn flow_to(book: Book, client: &str, frontend: &str, port: u16, backend: u32) -> Step {
    let host = host_of(backend);
    let first = book.first(client, frontend);
    let to = book.backend(host, 8443);
    let out = first.clone().from(&book.snat(port)).to(&to);
    from(OUTSIDE, &first)
        .forwards(&towards(INSIDE, host, &out))
        .creates()
}

/// The hosts which flows of one client reach, without any expectation.
fn hosts(lab: &Lab, book: Book, ports: std::ops::Range<u16>) -> BTreeSet<u8> {
    let mut hosts = BTreeSet::new();
    for port in ports {
        let first = book.first(&book.client(port), &book.vip(443)).bytes();
        let outcome = match lab.hook() {
            Hook::Xdp => lab.xdp(&first, OUTSIDE),
            _ => lab.ingress(&first, OUTSIDE),
        };
        // The last byte of the destination address.
        let at = if book.is_v6() { 14 + 39 } else { 14 + 19 };
        hosts.insert(*outcome.frame.get(at).expect("an address"));
    }
    hosts
}

#[test]
fn a_client_returns_within_the_timeout_to_a_backend_that_is_in_the_set() {
    #[derive(Clone, Copy)]
    enum Set {
        Whole,
        Drains,
        Gone,
    }
    let rows = [
        ("just now", SECONDS, 0, Set::Whole, true),
        ("at the last moment", SECONDS, SECONDS, Set::Whole, true),
        ("too late", SECONDS, SECONDS + 1, Set::Whole, false),
        ("the default, in time", 10_800, 10_800, Set::Whole, true),
        ("the default, too late", 10_800, 10_801, Set::Whole, false),
        ("the longest, in time", 86_400, 86_400, Set::Whole, true),
        ("the longest, too late", 86_400, 86_401, Set::Whole, false),
        ("the shortest", 1, 2, Set::Whole, false),
        ("a backend that drains", SECONDS, 1, Set::Drains, false),
        ("a backend that is gone", SECONDS, 1, Set::Gone, false),
    ];
    let cases = rows
        .into_iter()
        .flat_map(|(row, seconds, ticks, set, returns)| {
            per_book(row, move |book, name| {
                let client = book.client(40_000);
                let (chosen, other) = chosen_and_other(book, &client);
                let out = book.backend(host_of(other), 8443);
                let rest = [5, 6, 7].map(|host| book.backend(host, 8443));
                let without = |service: Tables| {
                    let [one, two, three] = rest.each_ref().map(String::as_str);
                    match other {
                        1 => service.backends([two, three]),
                        2 => service.backends([one, three]),
                        _ => service.backends([one, two]),
                    }
                };
                let tables = match set {
                    Set::Whole => three(book),
                    Set::Drains => {
                        without(three(book).frontend(&book.frontend(443))).draining([&out])
                    }
                    Set::Gone => without(three(book).frontend(&book.frontend(443))),
                };
                // The first service only gives the backends their ids.
                let service = if matches!(set, Set::Whole) { 1 } else { 2 };
                let case = case(name, tables.affinity(seconds)).then({
                    let client = client.clone();
                    move |lab| remember(lab, &client, service, other, ticks)
                });
                if returns {
                    let case = case.step(flow(book, &client, 40_000, other));
                    expecting(case, client, other)
                } else if matches!(set, Set::Whole) {
                    let case = case.step(flow(book, &client, 40_000, chosen));
                    expecting(case, client, chosen)
                } else {
                    case.then(move |lab| {
                        let found = hosts(lab, book, 40_000..40_010);
                        assert_eq!(found.len(), 1, "one host: {found:?}");
                        assert!(!found.contains(&host_of(other)), "{found:?}");
                    })
                }
            })
        });
    run(cases.collect());
}

#[test]
fn the_timeout_is_in_seconds_whatever_a_tick_is() {
    let cases = [(58, true), (59, false)]
        .into_iter()
        .flat_map(|(ticks, returns)| {
            per_book(&format!("{ticks} ticks of 1.024 s"), move |book, name| {
                let client = book.client(40_000);
                let (chosen, other) = chosen_and_other(book, &client);
                let to = if returns { other } else { chosen };
                let case = case(name, three(book).affinity(SECONDS))
                    .config(|config| config.tick_millis = 1_024);
                let case = remembering(case, client.clone(), other, ticks);
                case.step(flow(book, &client, 40_000, to))
            })
        });
    run(cases.collect());
}

#[test]
fn the_first_flows_of_a_client_agree_before_anything_is_remembered() {
    run(per_book("agree", |book, name| {
        let client = book.client(40_000);
        let (chosen, _) = chosen_and_other(book, &client);
        let forget = move |lab: &mut Lab| {
            let map = lab.map(names::AFFINITY);
            map.delete_batch(&[key(&book.client(1), 1)])
                .expect("AFFINITY");
        };
        let case = case(name, three(book).affinity(SECONDS));
        (40_000..40_008).fold(case, |case, port| {
            case.step(flow(book, &book.client(port), port, chosen))
                .then(forget)
        })
    }));
}

#[test]
fn clients_share_the_backends() {
    run(per_book("clients", |book, name| {
        let (v4, v6) = ("203.0.113.", "2001:db8:ffff::");
        case(name, three(book).affinity(SECONDS)).then(move |lab| {
            let mut found = BTreeSet::new();
            for number in 1..60 {
                let client = book.at(&format!("{}{number}", book.pick(v4, v6)), 40_000);
                let first = book.first(&client, &book.vip(443)).bytes();
                let outcome = lab.ingress(&first, OUTSIDE);
                let at = if book.is_v6() { 14 + 39 } else { 14 + 19 };
                found.insert(*outcome.frame.get(at).expect("an address"));
            }
            assert_eq!(found, [5, 6, 7].into());
        })
    }));
}

#[test]
fn only_new_flows_prolong_it() {
    run(per_book("prolong", |book, name| {
        let client = book.client(40_000);
        let (_, other) = chosen_and_other(book, &client);
        let (vip, backend) = (book.vip(443), book.backend(host_of(other), 8443));
        let (third, second) = (
            book.third(&client, &vip),
            book.second(&backend, &book.snat(40_000)),
        );
        let case = case(name, three(book).affinity(SECONDS));
        let case = remembering(case, client.clone(), other, 30);
        let case = case.step(flow(book, &client, 40_000, other));
        let case = expecting(case, client.clone(), other);
        let old = |lab: &Lab, client: &str| {
            let found: Option<Affinity> = lab
                .map(names::AFFINITY)
                .lookup(&key(client, 1))
                .expect("AFFINITY");
            let stamp = found.expect("it is remembered").stamp;
            assert_eq!(lab.tick().wrapping_sub(stamp) & TICK_MASK, 30);
        };
        let again = book.client(40_001);
        let case = remembering(case, client.clone(), other, 30)
            .then(move |lab| {
                lab.ingress(&second.bytes(), INSIDE);
                lab.ingress(&third.bytes(), OUTSIDE);
                lab.ingress(&third.bytes(), OUTSIDE);
                old(lab, &client);
            })
            .step(flow(book, &again, 40_001, other));
        expecting(case, again, other)
    }));
}

#[test]
fn it_is_switched_on_and_off_for_new_flows() {
    run(per_book("on and off", |book, name| {
        let all: BTreeSet<u8> = [5, 6, 7].into();
        let (_, other) = chosen_and_other(book, &book.client(40_000));
        let spread = move |lab: &mut Lab| assert_eq!(hosts(lab, book, 40_000..40_040), all);
        let before = spread.clone();
        let stays = {
            // A flow of before: wherever it went it goes on.
            let client = book.client(40_000);
            move |lab: &mut Lab| {
                let found = hosts(lab, book, 40_000..40_040);
                assert_eq!(found.len(), 3, "the old flows go on: {found:?}");
                remember(lab, &client, 1, other, 0);
            }
        };
        case(name, three(book))
            .then(before)
            .then(|lab| expect(lab, &[]))
            .tables(three(book).affinity(SECONDS), 2)
            .then(stays)
            .then(move |lab| {
                let found = hosts(lab, book, 41_000..41_040);
                assert_eq!(found, [host_of(other)].into());
            })
            .tables(three(book), 3)
            .then(move |lab| {
                let found = hosts(lab, book, 42_000..42_040);
                assert_eq!(found.len(), 3, "{found:?}");
            })
    }));
}

#[test]
fn frontends_of_a_service_port_share_it_and_service_ports_do_not() {
    run(per_book("shared", |book, name| {
        let client = |port| book.client(port);
        let (chosen, other) = chosen_and_other(book, &client(1));
        let at = |v4, v6, port| book.at(book.pick(v4, v6), port);
        let second_vip = at("192.0.2.2", "2001:db8::2", 443);
        let node_port = book.at(book.node_address(), 30_080);
        let tables = three(book)
            .affinity(SECONDS)
            .also(&book.frontend_at(&second_vip))
            .also(&book.frontend_at(&at("0.0.0.0", "::", 30_080)))
            .node_ports_on(book.node_address())
            .frontend(&book.frontend(444));
        let tables = with_three(book, tables).affinity(SECONDS);
        let case = case(name, tables);
        let port_two = book.vip(444);
        let step = |frontend: &str, port, to| flow_to(book, &client(port), frontend, port, to);
        remembering(case, client(1), other, 1)
            .step(step(&book.vip(443), 40_000, other))
            .step(step(&second_vip, 40_001, other))
            .step(step(&node_port, 40_002, other))
            .step(step(&port_two, 40_003, chosen))
            .step(step(&second_vip, 40_004, other))
            .then({
                let client = client(1);
                move |lab| expect(lab, &[(&client, 1, other), (&client, 2, chosen)])
            })
    }));
}

#[test]
fn a_local_policy_looks_for_it_in_the_local_set() {
    run(per_book("Local", |book, name| {
        let pod = book.pod(5, 8443);
        let (client, inside) = (book.client(40_000), book.slim(6, 40_000));
        let tables = three(book)
            .local_backends([pod.as_str()])
            .affinity(SECONDS)
            .flags(service_flag::EXTERNAL_LOCAL)
            .class(
                book.pick("10.2.0.0/24", "2001:db8:c::/64"),
                source_class::POD,
            );
        let first = |port| book.first(&book.client(port), &book.vip(443));
        let local = |port| {
            let out = first(port).to(&pod);
            from(OUTSIDE, &first(port))
                .forwards(&towards(PODS, 5, &out))
                .creates()
                .by_tcx()
        };
        let of_pod = |port, host| {
            let first = book.first(&book.slim(6, port), &book.vip(443));
            let to = book.backend(host, 8443);
            let out = first.clone().from(&book.snat(port)).to(&to);
            from(SLIM, &first)
                .forwards(&towards(INSIDE, host, &out))
                .creates()
        };
        let case = case(name, tables);
        remembering(case, client.clone(), 2, 1)
            .step(local(40_000))
            .then({
                let client = client.clone();
                move |lab| expect(lab, &[(&client, 1, 4)])
            })
            .step(local(40_001))
            .then({
                let inside = inside.clone();
                move |lab| remember(lab, &inside, 1, 2, 1)
            })
            .step(of_pod(40_002, 6))
            .then(move |lab| expect(lab, &[(&client, 1, 4), (&inside, 1, 2)]))
    }));
}

#[test]
fn a_udp_flow_that_moves_is_remembered_where_it_went() {
    let cases = UDP_BOOKS.into_iter().map(|book| {
        let (client, vip) = (book.client(40_000), book.vip(443));
        let (old, new) = (book.backend(5, 8443), book.backend(6, 8443));
        let first = book.first(&client, &vip);
        let out = |to: &str| first.clone().from(&book.snat(40_000)).to(to);
        let before = book.service().backends([old.as_str()]).affinity(SECONDS);
        let after = book
            .service()
            .gone([old.as_str()])
            .backends([new.as_str()])
            .affinity(SECONDS);
        let case = case(format!("{}: moves", book.name()), before).step(
            from(OUTSIDE, &first)
                .forwards(&towards(INSIDE, 5, &out(&old)))
                .creates(),
        );
        let case = expecting(case, client.clone(), 1).tables(after, 2).step(
            from(OUTSIDE, &first)
                .forwards(&towards(INSIDE, 6, &out(&new)))
                .creates()
                .event(Event::FlowReselected),
        );
        expecting(case, client, 2)
    });
    run(cases.collect());
}

#[test]
fn what_makes_no_flow_is_not_remembered() {
    run(per_book("no flow", |book, name| {
        let first = book.first(&book.client(40_000), &book.vip(443));
        // The backend lies outside, where no SNAT address is.
        let lost = book.at(&book.host(OUTSIDE, 8), 8443);
        let tables = book.service().backends([lost.as_str()]);
        let ranges = book.pick("203.0.113.0/24", "2001:db8:ffff::/48");
        let partial = first.clone().partial_checksum();
        case(name, tables.affinity(SECONDS))
            .step(from(OUTSIDE, &first).drops(Reason::NoSnatAddress))
            .tables(three(book).affinity(SECONDS).source_ranges(1, [ranges]), 2)
            .step(from(OUTSIDE, &first).drops(Reason::SourceRange))
            .tables(three(book).affinity(SECONDS), 3)
            .then(move |lab| {
                // XDP leaves it to TCX, which will.
                if lab.hook() == Hook::Xdp {
                    lab.xdp(&partial.bytes(), OUTSIDE);
                }
                expect(lab, &[]);
            })
            .flows(0, 0)
    }));
}
