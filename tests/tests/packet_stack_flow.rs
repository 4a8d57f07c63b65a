//! Flows of the node's own stack that are older than our frontend: every packet of theirs passes.

use std::net::{IpAddr, SocketAddr};

use lb_common::{
    addr::Be16,
    conntrack::{Entry, Entry4, Entry6, Head, TICK_MASK, flag, state},
    control::Gate,
    flow::{Flow, protocol},
    names::{self, flow_use},
    reason::Reason,
};
use lb_tests::{
    book::{Book, UDP_BOOKS},
    case::{Case, Step, case, from, run},
    flows::{Conversation, Mode},
    network::OUTSIDE,
    packet::{Packet, packet},
    run::Lab,
};

const IDENTITY: u32 = 0x5eed_0001;

/// A UDP packet's key.
fn key<F: Flow>(source: &str, destination: &str) -> F
where
    F::Address: FromIp,
{
    let endpoint = |text: &str| text.parse::<SocketAddr>().expect("an endpoint");
    let (source, destination) = (endpoint(source), endpoint(destination));
    let port = |endpoint: SocketAddr| Be16::new(endpoint.port());
    F::new(
        F::Address::from_ip(source.ip()),
        port(source),
        F::Address::from_ip(destination.ip()),
        port(destination),
        protocol::UDP,
    )
}

trait FromIp {
    fn from_ip(ip: IpAddr) -> Self;
}

impl FromIp for lb_common::addr::Addr4 {
    fn from_ip(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(v4) => v4.into(),
            IpAddr::V6(v6) => panic!("{v6} is no IPv4 address"),
        }
    }
}

impl FromIp for lb_common::addr::Addr6 {
    fn from_ip(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().into(),
            IpAddr::V6(v6) => v6.into(),
        }
    }
}

/// Both halves of the conversation as the stack knows it, each with its key.
fn halves<E: Entry>(talk: Conversation, stamp: u32) -> [(E::Flow, E); 2]
where
    <E::Flow as Flow>::Address: FromIp,
{
    let forward: E::Flow = key(&talk.client(), &talk.vip());
    let reply: E::Flow = key(&talk.backend(), &talk.seen());
    let head = Head::new(IDENTITY, state::ESTABLISHED, stamp);
    let half = |written: E::Flow, flags| E::new(head, &written, flag::PASS | flags, 0, 0);
    [
        (forward, half(reply.reversed(), 0)),
        (reply, half(forward.reversed(), flag::REVERSE)),
    ]
}

/// Puts the first `count` halves into the table; their last packet came `idle` ticks ago.
fn import(lab: &Lab, talk: Conversation, count: usize, idle: u32) {
    let stamp = lab.tick().wrapping_sub(idle) & TICK_MASK;
    let (name, uses) = if talk.book.is_v6() {
        for (key, entry) in halves::<Entry6>(talk, stamp).iter().take(count) {
            lab.map(names::FLOWS_V6).update(key, entry).expect("a half");
        }
        (names::FLOWS_V6, [flow_use::V6, flow_use::UDP_V6])
    } else {
        for (key, entry) in halves::<Entry4>(talk, stamp).iter().take(count) {
            lab.map(names::FLOWS_V4).update(key, entry).expect("a half");
        }
        (names::FLOWS_V4, [flow_use::V4, flow_use::UDP_V4])
    };
    for element in uses {
        let entries = u64::try_from(count).expect("two at most");
        lab.map(names::FLOW_USE)
            .update(&element, &entries)
            .expect(name);
    }
}

fn imported(talk: Conversation, what: &str) -> Case {
    case(format!("{}: {what}", talk.name()), talk.tables()).then(move |lab| import(lab, talk, 2, 0))
}

fn talks() -> impl Iterator<Item = Conversation> {
    UDP_BOOKS
        .into_iter()
        .map(|book: Book| Conversation::new(book, Mode::FullNat))
}

/// XDP sees that it is a flow's, and that it has no route.
fn request(packet: &Packet) -> Step {
    from(OUTSIDE, packet)
        .passes(Some(Reason::StackFlow))
        .by_tcx()
}

fn reply(talk: Conversation, packet: &Packet) -> Step {
    from(talk.inside(), packet)
        .passes(Some(Reason::StackFlow))
        .by_tcx()
}

/// Every half has this stamp, counted in ticks before now, the state, and no route.
fn expect_halves(case: Case, expected: [(u32, u8); 2]) -> Case {
    case.then(move |lab| {
        let now = lab.tick();
        let v4 = lab.flows4(names::FLOWS_V4).into_values();
        let v6 = lab.flows6(names::FLOWS_V6).into_values();
        let v4 = v4.map(|e| (e.head(), e.route(), e.flags & flag::REVERSE));
        let v6 = v6.map(|e| (e.head(), e.route(), e.flags & flag::REVERSE));
        let mut found: Vec<_> = v4.chain(v6).collect();
        found.sort_by_key(|(_, _, reverse)| *reverse);
        let seen: Vec<(u32, u8)> = found
            .iter()
            .map(|(head, ..)| (now.wrapping_sub(head.stamp()) & TICK_MASK, head.state()))
            .collect();
        assert_eq!(seen, expected, "{}", lab.describe_flows());
        assert!(found.iter().all(|(_, route, _)| route.next_hop() == 0));
    })
}

const LIVE: [(u32, u8); 2] = [(0, state::ESTABLISHED); 2];

#[test]
fn a_flow_of_the_stack_passes_whatever_changes() {
    let cases = talks().map(|talk| {
        let other = Conversation {
            client_port: 40_001,
            ..talk
        };
        let (question, answer) = (talk.question(), talk.answer());
        let new = talk.book.backend(6, 8443);
        let gone = talk
            .book
            .service()
            .gone([talk.backend().as_str()])
            .backends([new.as_str()]);
        let case = imported(talk, "passes")
            .step(request(&question))
            .step(reply(talk, &answer))
            .steps(other.handshake())
            .then(|lab| lab.routes_changed())
            .step(request(&question))
            .step(reply(talk, &answer))
            .tables(gone, 2)
            .step(request(&question))
            .step(reply(talk, &answer))
            .flows(4, 0);
        case.then(|lab| lab.set_gate(Gate::frozen(lab.tick() + 1)))
            .step(request(&question))
            .then(|lab| lab.set_gate(Gate::STANDBY))
            .step(from(OUTSIDE, &question).passes(Some(Reason::Standby)))
    });
    run(cases.collect());
}

#[test]
fn its_fragments_and_errors_about_it_pass_too() {
    let cases = talks().flat_map(|talk| {
        let book = talk.book;
        let question = talk.question().may_fragment();
        let fragments = [
            question.clone().fragment(0, 16, true),
            question.fragment(16, 8, false),
        ];
        let sent = talk.back(&talk.answer()).ttl(62);
        let error = packet()
            .port_unreachable(&book.host(OUTSIDE, 254), book.vip_address())
            .quoting(&sent, 48);
        [
            imported(talk, "fragments").steps(fragments.each_ref().map(request)),
            imported(talk, "errors").step(request(&error)),
        ]
    });
    run(cases.collect());
}

#[test]
fn its_packets_keep_it_alive() {
    let cases = talks().flat_map(|talk| {
        let case = |what: &str, idle, count| {
            case(format!("{}: {what}", talk.name()), talk.tables())
                .then(move |lab| import(lab, talk, count, idle))
        };
        let old = case("idle for a while", 9, 2)
            .step(request(&talk.question()))
            .step(request(&talk.question()));
        let half = case("half of it left", 9, 1)
            .step(request(&talk.question()))
            .flows(1, 0);
        let old = expect_halves(old, [(0, state::ESTABLISHED), (9, state::ESTABLISHED)]);
        let old = expect_halves(old.step(reply(talk, &talk.answer())), LIVE);
        [old, half]
    });
    run(cases.collect());
}
