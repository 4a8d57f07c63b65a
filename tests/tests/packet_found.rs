//! Cases for what a review or an operator found: each was wrong once.

use lb_common::{
    config::UnknownFlows,
    conntrack::{Closing4, Head, state},
    flow::Flow4,
    names,
    reason::{Event, Reason},
};
use lb_tests::{
    book::{Book, TCP_BOOKS, UDP_BOOKS},
    case::{Case, case, run},
    flows::{Conversation, Mode},
    network::{INSIDE, OUTSIDE},
    packet::{Packet, packet},
    run::{Hook, Lab, Verdict},
};

const STRANGER: [u8; 6] = [2, 0, 0, 0, 9, 9];
const EVERYBODY: [u8; 6] = [0xff; 6];

fn v4() -> Book {
    TCP_BOOKS[0]
}

fn counter(lab: &Lab, name: &str) -> u64 {
    let counts = lab.counts().counters;
    counts.get(name).map_or(0, |tally| tally.packets)
}

/// Runs the expiry program on one half; the number of halves changed.
fn expire(lab: &Lab, operation: u8, flow: Flow4, head: Head) -> u32 {
    let mut record = Vec::from(flow.source.0.to_ne_bytes());
    record.extend(flow.destination.0.to_ne_bytes());
    record.extend(flow.source_port.0.to_ne_bytes());
    record.extend(flow.destination_port.0.to_ne_bytes());
    record.extend(flow.protocol.to_ne_bytes());
    record.extend(head.0.to_ne_bytes());
    lab.expire(operation, 4, &[&record])
}

/// By XDP, and by TCX what XDP passes.
fn both(lab: &Lab, packet: &Packet, port: lb_tests::network::Port) -> Verdict {
    let frame = packet
        .clone()
        .next_hop([2, 0, 0, 0, 0, 0xc], port.mac)
        .bytes();
    let outcome = lab.xdp(&frame, port);
    if outcome.verdict != Verdict::Pass {
        return outcome.verdict;
    }
    lab.ingress(&frame, port).verdict
}

#[test]
fn frames_flooded_or_mirrored_to_us_are_left_alone() {
    let cases: Vec<Case> = TCP_BOOKS
        .into_iter()
        .chain(UDP_BOOKS)
        .map(|book| {
            let talk = Conversation::new(book, Mode::FullNat);
            case(format!("{}: another's frame", book.name()), talk.tables()).then(move |lab| {
                for mac in [STRANGER, EVERYBODY] {
                    for packet in [
                        talk.first(),
                        book.first(&book.client(40_000), &book.vip(444)),
                    ] {
                        let frame = packet.next_hop([2, 0, 0, 0, 0, 0xc], mac).bytes();
                        let outcome = lab.xdp(&frame, OUTSIDE);
                        assert_eq!((outcome.verdict, &outcome.frame), (Verdict::Pass, &frame));
                        let outcome = lab.ingress(&frame, OUTSIDE);
                        assert_eq!((outcome.verdict, &outcome.frame), (Verdict::Pass, &frame));
                    }
                }
                assert_eq!(lab.flow_entries(), (0, 0));
            })
        })
        .collect();
    run(cases);
}

#[test]
fn a_flow_that_closes_and_opens_again_is_queued_once() {
    let talk = Conversation::new(v4(), Mode::FullNat);
    let reset = v4().packet(&talk.client(), &talk.vip()).rst().seq(1_001);
    run(vec![
        case("reset and data in turns", talk.tables())
            .steps(talk.handshake())
            .then(move |lab| {
                for _ in 0..20 {
                    both(lab, &reset, OUTSIDE);
                    both(lab, &talk.answer(), INSIDE);
                }
                let queue = lab.map(names::CLOSING_V4);
                let mut records = 0;
                while queue.pop::<Closing4>().expect("a queue").is_some() {
                    records += 1;
                }
                assert_eq!(records, 1);
            }),
    ]);
}

#[test]
fn segments_are_measured_with_their_options() {
    let book = v4();
    let tables = book.service().backends([book.slim(5, 8443).as_str()]);
    run(vec![
        case("GSO with timestamps", tables)
            .only(Hook::Tcx)
            .then(move |lab| {
                let syn = book.first(&book.client(40_000), &book.vip(443));
                assert_eq!(lab.ingress(&syn.bytes(), OUTSIDE).verdict, Verdict::Send);
                let timestamps = [1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2];
                // 20 bytes of IP header and 32 of TCP header leave 1248 of the route's 1300.
                for (size, too_big) in [(1_248_u32, 0), (1_249, 1)] {
                    let data = book
                        .packet(&book.client(40_000), &book.vip(443))
                        .tcp_options(&timestamps)
                        .payload_length(2_600)
                        .bytes();
                    let before = counter(lab, Event::TooBigSent.name());
                    lab.ingress_gso(&data, OUTSIDE, size);
                    let after = counter(lab, Event::TooBigSent.name());
                    assert_eq!(after - before, too_big, "segments of {size}");
                }
            }),
    ]);
}

#[test]
fn half_a_flow_is_not_expired() {
    let book = UDP_BOOKS[0];
    let talk = Conversation::new(book, Mode::FullNat);
    run(vec![
        case("the other half lives", talk.tables())
            .steps(talk.handshake())
            .then(move |lab| {
                let flows = lab.flows4(names::FLOWS_V4);
                assert_eq!(flows.len(), 2);
                let (&flow, entry) = flows.iter().next().expect("a half");
                let head = Head(entry.head);
                let condemned = head.touched(head.state() | state::CONDEMNED, head.stamp());
                assert_eq!(expire(lab, 1, flow, head), 1);
                assert_eq!(expire(lab, 2, flow, condemned), 0);
                assert_eq!(lab.flows4(names::FLOWS_V4).len(), 2);
            }),
    ]);
}

#[test]
fn fragmented_pings_of_a_vip_do_not_reach_the_stack() {
    let book = TCP_BOOKS[1];
    let tables = book.service().backends([book.backend(5, 8443).as_str()]);
    run(vec![
        case("ICMPv6 in fragments", tables)
            .only(Hook::Tcx)
            .then(move |lab| {
                let before = counter(lab, Reason::Fragment.name());
                let ping = packet()
                    .ping("2001:db8:100::7", book.vip_address(), 1, 1)
                    .payload_length(64)
                    .fragment(0, 40, true);
                assert_eq!(lab.ingress(&ping.bytes(), OUTSIDE).verdict, Verdict::Drop);
                assert_eq!(counter(lab, Reason::Fragment.name()) - before, 1);
            }),
    ]);
}

#[test]
fn what_belongs_to_the_stacks_connections_passes_as_they_do() {
    let book = v4();
    let tables = book.service().backends([book.backend(5, 8443).as_str()]);
    let stack = case("unknownFlows: stack", tables)
        .config(|config| config.unknown_flows = UnknownFlows::Stack as u32)
        .only(Hook::Tcx);
    run(vec![stack.then(move |lab| {
        let before = counter(lab, Reason::UnknownFlowToStack.name());
        let quoted = book
            .packet(&book.vip(443), "198.51.100.7:55555")
            .payload(b"0123456789");
        let error = packet()
            .too_big("198.51.100.254", book.vip_address(), 1_300)
            .quoting(&quoted, 28);
        assert_eq!(lab.ingress(&error.bytes(), OUTSIDE).verdict, Verdict::Pass);
        let fragment = book
            .packet("198.51.100.7:55555", &book.vip(443))
            .payload_length(64)
            .fragment(40, 24, false);
        assert_eq!(
            lab.ingress(&fragment.bytes(), OUTSIDE).verdict,
            Verdict::Pass
        );
        assert_eq!(counter(lab, Reason::UnknownFlowToStack.name()) - before, 2);
    })]);
}
