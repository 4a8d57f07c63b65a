//! How long a UDP flow stays with its backend: as long as that one serves, whatever else changes.

use lb_common::{
    names,
    reason::{Event, Reason},
    service::{Selection, service_flag},
};
use lb_tests::{
    book::{BOOKS, UDP_BOOKS, towards},
    case::{Step, case, from, run},
    flows::{Conversation, Mode},
    network::{INSIDE, OUTSIDE, PODS},
    tables::{Tables, tables},
};

fn udp() -> impl Iterator<Item = Conversation> {
    UDP_BOOKS
        .into_iter()
        .flat_map(|book| [Mode::FullNat, Mode::Gateway].map(|mode| Conversation::new(book, mode)))
}

#[test]
fn udp_moves_when_its_backend_serves_no_longer() {
    let cases = udp().map(|talk| {
        let book = talk.book;
        let (old, new) = (talk.backend(), book.backend(6, 8443));
        let tables = talk.tables().draining([new.as_str()]);
        let draining = book
            .service()
            .draining([old.as_str()])
            .backends([new.as_str()]);
        let gone = book.service().gone([old.as_str()]).backends([new.as_str()]);
        let keep = |tables: Tables| {
            if talk.mode == Mode::Gateway {
                tables.keep_source()
            } else {
                tables
            }
        };
        let question = talk.question();
        let moved = towards(INSIDE, 6, &question.clone().from(&talk.seen()).to(&new));
        case(format!("{}: reselection", talk.name()), tables)
            .steps(talk.handshake())
            .tables(keep(draining), 2)
            .step(talk.request(&question))
            .tables(keep(gone), 3)
            .step(
                from(OUTSIDE, &question)
                    .forwards(&moved)
                    .creates()
                    .event(Event::FlowReselected),
            )
            .step(from(OUTSIDE, &question).forwards(&moved))
            .flows(0, 2)
    });
    run(cases.collect());
}

#[test]
fn an_endpoint_that_changes_its_port_is_another() {
    let cases = UDP_BOOKS.into_iter().map(|book| {
        let talk = Conversation::new(book, Mode::FullNat);
        let new = book.backend(5, 9443);
        let after = book
            .service()
            .gone([talk.backend().as_str()])
            .backends([new.as_str()]);
        let question = talk.question();
        let moved = towards(INSIDE, 5, &question.clone().from(&talk.seen()).to(&new));
        case(format!("{}: another port", talk.name()), talk.tables())
            .steps(talk.handshake())
            .tables(after, 2)
            .step(
                from(OUTSIDE, &question)
                    .forwards(&moved)
                    .creates()
                    .event(Event::FlowReselected),
            )
    });
    run(cases.collect());
}

#[test]
fn a_traffic_policy_moves_no_flow_of_a_backend_that_serves() {
    let cases = UDP_BOOKS.into_iter().map(|book| {
        let talk = Conversation::new(book, Mode::FullNat);
        let (remote, pod) = (talk.backend(), book.pod(5, 8443));
        let local = |tables: Tables| {
            tables
                .local_backends([pod.as_str()])
                .flags(service_flag::EXTERNAL_LOCAL)
        };
        let question = talk.question();
        let moved = towards(PODS, 5, &question.clone().to(&pod));
        case(format!("{}: Local", talk.name()), talk.tables())
            .steps(talk.handshake())
            .tables(local(talk.tables()), 2)
            .step(talk.request(&question))
            .tables(local(book.service().gone([remote.as_str()])), 3)
            .step(
                from(OUTSIDE, &question)
                    .forwards(&moved)
                    .creates()
                    .event(Event::FlowReselected)
                    .by_tcx(),
            )
    });
    run(cases.collect());
}

#[test]
fn what_moves_is_a_new_flow_to_policies_and_ranges() {
    let cases = UDP_BOOKS.into_iter().flat_map(|book| {
        let talk = Conversation::new(book, Mode::FullNat);
        let after = book
            .service()
            .gone([talk.backend().as_str()])
            .backends([book.backend(6, 8443).as_str()]);
        let nobody = after.clone().source_ranges(1, []);
        [
            (
                after.flags(service_flag::EXTERNAL_LOCAL),
                Reason::NoLocalEndpoint,
            ),
            (nobody, Reason::SourceRange),
        ]
        .map(|(tables, reason)| {
            case(format!("{}: {reason:?}", talk.name()), talk.tables())
                .steps(talk.handshake())
                .tables(tables, 2)
                .step(
                    from(OUTSIDE, &talk.question())
                        .drops(reason)
                        .event(Event::FlowReselected),
                )
                .flows(0, 0)
        })
    });
    run(cases.collect());
}

/// The client's next question, which goes to another host behind [`INSIDE`] as a new flow.
fn moves(talk: Conversation, host: u8) -> Step {
    let question = talk.question();
    let there = talk.book.backend(host, 8443);
    let moved = question.clone().from(&talk.seen()).to(&there);
    from(OUTSIDE, &question)
        .forwards(&towards(INSIDE, host, &moved))
        .creates()
        .event(Event::FlowReselected)
}

#[test]
fn who_takes_a_deleted_services_frontend_takes_its_flows() {
    let cases = UDP_BOOKS.into_iter().flat_map(|book| {
        let talk = Conversation::new(book, Mode::FullNat);
        let (old, new) = (talk.backend(), book.backend(6, 8443));
        let question = talk.question();
        let heir = book.service().gone([old.as_str()]).backends([new.as_str()]);
        let follows = || moves(talk, 6);
        let deleted = || tables().gone([old.as_str()]);
        let name = |what: &str| format!("{}: {what}", talk.name());
        [
            case(name("at once"), talk.tables())
                .steps(talk.handshake())
                .tables(heir.clone().id(2), 1)
                .step(follows()),
            case(name("after a while without"), talk.tables())
                .steps(talk.handshake())
                .tables(deleted(), 1)
                .step(talk.request(&question))
                .tables(heir.clone().id(2), 1)
                .step(follows()),
            case(name("with the same backend"), talk.tables())
                .steps(talk.handshake())
                .tables(
                    book.service().backends([old.as_str(), new.as_str()]).id(2),
                    1,
                )
                .step(talk.request(&question)),
        ]
    });
    run(cases.collect());
}

#[test]
fn who_takes_a_frontend_of_a_service_that_lives_on_takes_its_flows() {
    let cases = UDP_BOOKS.into_iter().flat_map(|book| {
        let talk = Conversation::new(book, Mode::FullNat);
        let (old, new) = (talk.backend(), book.backend(6, 8443));
        let question = talk.question();
        let follows = || moves(talk, 6);
        // Another frontend and its backends stay with the one that loses this.
        let loses = book.bare().frontend(&book.frontend(444));
        let takes = loses
            .clone()
            .backends([old.as_str()])
            .frontend(&book.frontend(443));
        let name = |what: &str| format!("{}: {what}", talk.name());
        [
            case(name("moves"), talk.tables())
                .steps(talk.handshake())
                .tables(takes.clone().backends([new.as_str()]), 2)
                .step(follows()),
            case(name("the same backend, then without it"), talk.tables())
                .steps(talk.handshake())
                .tables(takes.clone().backends([old.as_str(), new.as_str()]), 2)
                .step(talk.request(&question))
                .tables(takes.clone().backends([new.as_str()]), 2)
                .step(follows()),
            case(
                name("to one without backends, then with one"),
                talk.tables(),
            )
            .steps(talk.handshake())
            .tables(takes.clone(), 2)
            .step(talk.request(&question))
            .tables(takes.clone().backends([new.as_str()]), 2)
            .step(follows()),
            case(
                name("to nobody, where a node port has its number"),
                talk.tables(),
            )
            .steps(talk.handshake())
            .tables(
                loses
                    .clone()
                    .backends([old.as_str()])
                    .frontend(&book.frontend_at(book.pick("0.0.0.0:443", "[::]:443")))
                    .backends([new.as_str()]),
                2,
            )
            .step(talk.request(&question)),
            case(name("to nobody, then to another"), talk.tables())
                .steps(talk.handshake())
                .tables(loses.backends([old.as_str()]), 2)
                .step(talk.request(&question))
                .tables(takes.backends([new.as_str()]), 2)
                .step(follows()),
        ]
    });
    run(cases.collect());
}

#[test]
fn an_empty_selection_keeps_the_flows_it_had() {
    let cases = BOOKS.into_iter().map(|book| {
        let talk = Conversation::new(book, Mode::FullNat);
        let empty = book.service().gone([talk.backend().as_str()]);
        case(format!("{}: no backend left", talk.name()), talk.tables())
            .steps(talk.handshake())
            .tables(empty, 2)
            .then(|lab| {
                let services: Vec<(u32, lb_common::service::Service)> =
                    lab.map(names::SERVICES).read_all().expect("SERVICES");
                let word = services
                    .iter()
                    .find(|(id, _)| *id == 1)
                    .map(|(_, s)| s.cluster);
                assert_eq!(word.map(|word| Selection::from_word(word).length), Some(0));
            })
            .step(talk.request(&talk.question()))
            .step(talk.reply(&talk.answer()))
    });
    run(cases.collect());
}
