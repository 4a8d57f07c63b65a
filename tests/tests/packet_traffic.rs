//! Traffic counted by id: how it gets there from the flows, and what becomes of it when an id is used again.

use std::time::Duration;

use lb_common::conntrack::Pending;
use lb_tests::{
    book::{BOOKS, TCP_BOOKS},
    case::{case, run},
    flows::{Conversation, Mode},
    netns::poll_until,
    network::OUTSIDE,
    run::{Hook, Lab, Verdict},
};
use lb_userspace::tables::TableSet;

/// Packets of the first service port's clients, without those that are pending in a flow.
fn handed_over(lab: &Lab) -> u64 {
    let counts = lab.handed_over();
    counts.services.get(&1).map_or(0, |it| it.forward.packets)
}

fn all(lab: &Lab) -> u64 {
    let counts = lab.counts();
    counts.services.get(&1).map_or(0, |it| it.forward.packets)
}

#[test]
fn a_flow_keeps_its_traffic_until_its_room_for_it_is_half_full() {
    let most = (1..64).find(|packets| Pending(Pending::packet(0) * packets).is_due());
    let most = u64::from(most.expect("a number of packets"));
    let cases = BOOKS.map(|book| {
        let talk = Conversation::new(book, Mode::FullNat);
        let asks = |times| (0..times).map(move |_| talk.request(&talk.question()));
        case(format!("{}: many packets", talk.name()), talk.tables())
            .only(Hook::Xdp)
            .steps(talk.handshake())
            .steps(asks(3 * most))
            .then(move |lab| {
                // A tick may end at any time, and then more is handed over.
                let pending = all(lab) - handed_over(lab);
                assert!(pending <= most, "{pending} of {most}");
                assert!(handed_over(lab) > most, "{}", handed_over(lab));
            })
    });
    run(cases.into());
}

#[test]
fn the_first_packet_of_a_tick_hands_over_what_the_last_one_left() {
    let cases = BOOKS.map(|book| {
        let talk = Conversation::new(book, Mode::FullNat);
        let question = talk.question().bytes();
        case(format!("{}: two ticks", talk.name()), talk.tables())
            .config(|config| config.tick_shift = 8)
            .only(Hook::Xdp)
            .steps(talk.handshake())
            .then(move |lab| {
                let ask = || {
                    assert_eq!(lab.xdp(&question, OUTSIDE).verdict, Verdict::Send);
                };
                poll_until("a packet to be pending", Duration::from_secs(5), || {
                    ask();
                    (handed_over(lab) < all(lab)).then_some(())
                });
                // Too slowly for the room to be used up.
                let before = handed_over(lab);
                poll_until("the next tick", Duration::from_secs(5), || {
                    std::thread::sleep(Duration::from_millis(100));
                    ask();
                    (handed_over(lab) > before).then_some(())
                });
                // That packet counts itself at once; what was there before it would stay.
                assert_eq!(handed_over(lab), all(lab));
            })
    });
    run(cases.into());
}

#[test]
fn an_id_given_to_another_service_and_backend_begins_at_zero() {
    let cases = TCP_BOOKS.map(|book| {
        let talk = Conversation::new(book, Mode::FullNat);
        let tables = talk.tables().build(1);
        case(format!("{}: one after another", book.name()), talk.tables())
            .steps(talk.handshake())
            .then(move |lab| {
                let counted = lab.counts();
                let (service, backend) = (counted.services.get(&1), counted.backends.get(&1));
                assert!(service.is_some_and(|traffic| traffic.new_flows > 0));
                assert!(backend.is_some_and(|traffic| traffic.new_flows > 0));

                // What lives on keeps what it counted.
                let mut changed = tables.clone();
                for service in changed.services.values_mut() {
                    service.epoch += 1;
                }
                lab.apply(&changed);
                assert_eq!(lab.counts().services.get(&1), service);
                assert_eq!(lab.counts().backends.get(&1), backend);

                // A backend of another incarnation does not, and its service port does.
                for backend in changed.backends.values_mut() {
                    backend.incarnation += 1;
                }
                lab.apply(&changed);
                assert_eq!(lab.counts().services.get(&1), service);
                assert_eq!(lab.counts().backends.get(&1), None);

                // Removed, so that flows may still count; and given away.
                lab.apply(&TableSet::default());
                assert_eq!(lab.counts().services.get(&1), service);
                lab.apply(&tables);
                assert_eq!(lab.counts().services.get(&1), None);
                assert_eq!(lab.counts().backends.get(&1), None);
            })
    });
    run(cases.into());
}
