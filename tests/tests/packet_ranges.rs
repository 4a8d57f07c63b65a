//! Which sources a load-balancer VIP admits, and when it asks.

use lb_common::{config::UnknownFlows, reason::Reason, service::service_flag};
use lb_tests::{
    book::{BOOKS, Book, TCP_BOOKS, towards},
    case::{Case, Step, case, from, run},
    flows::{Conversation, MODES, Mode, rejected},
    network::{INSIDE, OUTSIDE},
};

fn per_book(name: &str, make: impl Fn(Book, String) -> Case) -> Vec<Case> {
    BOOKS
        .into_iter()
        .map(|book| make(book, format!("{}: {name}", book.name())))
        .collect()
}

/// The network of the client, 198.51.100.7, and one it is not in.
fn clients(book: Book) -> &'static str {
    book.pick("198.51.100.0/24", "2001:db8:100::/64")
}
fn others(book: Book) -> &'static str {
    book.pick("203.0.113.0/24", "2001:db8:ffff::/48")
}

/// Another flow of the same client, which makes a flow or is dropped.
fn admitted(talk: Conversation, client_port: u16) -> Step {
    let talk = Conversation {
        client_port,
        ..talk
    };
    talk.request(&talk.first()).creates()
}
fn blocked(talk: Conversation, client_port: u16) -> Step {
    let first = talk.book.first(&talk.book.client(client_port), &talk.vip());
    from(OUTSIDE, &first).drops(Reason::SourceRange)
}

/// Source ranges, by family.
type Networks = fn(Book) -> Vec<&'static str>;

#[test]
fn source_ranges_admit_their_networks_alone() {
    let rows: [(&str, bool, Networks); 9] = [
        ("its network", true, |b| vec![clients(b)]),
        ("its address", true, |b| {
            vec![b.pick("198.51.100.7/32", "2001:db8:100::7/128")]
        }),
        ("everything", true, |b| vec![b.pick("0.0.0.0/0", "::/0")]),
        ("among others", true, |b| vec![others(b), clients(b)]),
        ("a part of another's", true, |b| {
            vec![
                b.pick("198.51.0.0/16", "2001:db8::/32"),
                b.pick("198.51.100.8/32", "2001:db8:100::8/128"),
            ]
        }),
        ("another network", false, |b| vec![others(b)]),
        ("the neighbour", false, |b| {
            vec![b.pick("198.51.100.6/32", "2001:db8:100::6/128")]
        }),
        ("the other half", false, |b| {
            vec![b.pick("198.51.100.128/25", "2001:db8:100:0:8000::/65")]
        }),
        ("nothing", false, |_| vec![]),
    ];
    for (row, admits, networks) in rows {
        let cases = BOOKS.into_iter().flat_map(|book| {
            MODES.map(|mode| {
                let talk = Conversation::new(book, mode);
                let tables = networks(book)
                    .into_iter()
                    .fold(talk.tables().source_ranges(3, []), |tables, network| {
                        tables.source_ranges(3, [network])
                    });
                let case = case(format!("{}: {row}", talk.name()), tables);
                if admits {
                    case.steps(talk.handshake()).flows(2, 0)
                } else {
                    case.step(blocked(talk, 40_000)).flows(0, 0)
                }
            })
        });
        run(cases.collect());
    }
}

#[test]
fn a_blocked_source_is_dropped_before_anything_else() {
    run(per_book("no endpoint", |book, name| {
        let (client, vip) = (book.client(40_000), book.vip(443));
        let first = book.first(&client, &vip);
        let far = book.first(&book.far_client(40_000), &vip);
        case(name, book.service().source_ranges(1, [others(book)]))
            .step(from(OUTSIDE, &first).drops(Reason::SourceRange))
            .tables(book.service().source_ranges(1, [clients(book)]), 2)
            .step(rejected(book, OUTSIDE, &client, &vip, Reason::NoEndpoint))
            .step(from(OUTSIDE, &far).drops(Reason::SourceRange))
    }));
    run(per_book("no endpoint here", |book, name| {
        let first = book.first(&book.client(40_000), &book.vip(443));
        let tables = book
            .service()
            .backends([book.backend(5, 8443).as_str()])
            .flags(service_flag::EXTERNAL_LOCAL);
        case(name, tables.clone().source_ranges(1, [others(book)]))
            .step(from(OUTSIDE, &first).drops(Reason::SourceRange))
            .tables(tables.source_ranges(1, [clients(book)]), 2)
            .step(from(OUTSIDE, &first).drops(Reason::NoLocalEndpoint))
    }));
}

#[test]
fn source_ranges_are_those_of_load_balancer_vips() {
    run(per_book("other frontends", |book, name| {
        let talk = Conversation::new(book, Mode::FullNat);
        let external = book.at(book.pick("192.0.2.2", "2001:db8::2"), 443);
        let any = book.at(book.pick("0.0.0.0", "::"), 30_080);
        let node_port = book.at(book.node_address(), 30_080);
        let tables = talk
            .tables()
            .source_ranges(1, [others(book)])
            .also(&book.frontend_at(&external))
            .also(&book.frontend_at(&any))
            .node_ports_on(book.node_address());
        let step = |frontend: &str, port: u16| {
            let first = book.first(&book.client(port), frontend);
            let out = first.clone().from(&book.snat(port)).to(&talk.backend());
            from(OUTSIDE, &first)
                .forwards(&towards(INSIDE, 5, &out))
                .creates()
        };
        case(name, tables)
            .step(blocked(talk, 40_000))
            .step(step(&external, 40_001))
            .step(step(&node_port, 40_002))
    }));
}

#[test]
fn source_ranges_of_another_service_do_not_count() {
    run(per_book("two sets", |book, name| {
        let talk = Conversation::new(book, Mode::FullNat);
        let second_vip = book.at(book.pick("192.0.2.2", "2001:db8::2"), 443);
        let tables = talk
            .tables()
            .source_ranges(1, [others(book)])
            .frontend(&book.frontend_at(&second_vip))
            .backends([book.backend(6, 8443).as_str()])
            .source_ranges(2, [clients(book)]);
        let first = book.first(&book.client(40_001), &second_vip);
        let out = first
            .clone()
            .from(&book.snat(40_001))
            .to(&book.backend(6, 8443));
        case(name, tables).step(blocked(talk, 40_000)).step(
            from(OUTSIDE, &first)
                .forwards(&towards(INSIDE, 6, &out))
                .creates(),
        )
    }));
}

#[test]
fn changed_source_ranges_are_for_new_flows_alone() {
    let cases = BOOKS.into_iter().flat_map(|book| {
        MODES.map(|mode| {
            let talk = Conversation::new(book, mode);
            let young = Conversation {
                client_port: 40_001,
                ..talk
            };
            let tables = |set, network| talk.tables().source_ranges(set, [network]);
            case(
                format!("{}: other ranges", talk.name()),
                tables(1, clients(book)),
            )
            .steps(talk.handshake())
            .step(young.request(&young.first()).creates())
            .tables(tables(2, others(book)), 2)
            .step(blocked(talk, 40_002))
            .step(talk.request(&talk.question()))
            .step(talk.reply(&talk.answer()))
            .step(young.reply(&young.second()))
            .step(young.request(&young.third()).promotes())
            .tables(talk.tables(), 3)
            .step(admitted(talk, 40_002))
            .tables(talk.tables().source_ranges(4, []), 4)
            .step(blocked(talk, 40_003))
            .tables(tables(1, clients(book)), 5)
            .step(admitted(talk, 40_003))
            .step(talk.request(&talk.question()))
        })
    });
    run(cases.collect());
}

#[test]
fn connections_of_another_proxy_outlive_a_change_of_the_ranges() {
    let cases = TCP_BOOKS.into_iter().map(|book| {
        let talk = Conversation::new(book, Mode::FullNat);
        let stray = talk.question();
        let tables = talk.tables().source_ranges(1, [others(book)]);
        case(format!("{}: left to the stack", book.name()), tables)
            .config(|config| config.unknown_flows = UnknownFlows::Stack as u32)
            .step(
                from(OUTSIDE, &stray)
                    .by_tcx()
                    .passes(Some(Reason::UnknownFlowToStack)),
            )
            .step(blocked(talk, 40_000))
    });
    run(cases.collect());
}
