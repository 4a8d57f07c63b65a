use lb_common::conntrack::tcp_flag::{ACK, FIN, RST, SYN};

use super::*;
use crate::{
    node::NodeConfig,
    plan::{
        Quarantine,
        fixture::{ip, node, node_with_node_ports, service, slice, snapshot},
        plan,
    },
    snapshot::{ServiceObject, SliceObject, TrafficPolicy},
};

mod policy;

const CLIENT: &str = "203.0.113.5:40000";
const WEB: &str = "192.0.2.10:80";

fn packet(source: &str, destination: &str, tcp_flags: Option<u8>) -> ModelPacket {
    let parse = |text: &str| text.parse().expect("an endpoint");
    let protocol = if tcp_flags.is_some() {
        Protocol::Tcp
    } else {
        Protocol::Udp
    };
    let tuple = Tuple {
        source: parse(source),
        destination: parse(destination),
        protocol,
    };
    ModelPacket {
        tuple,
        tcp_flags: tcp_flags.unwrap_or(0),
    }
}

fn tables_after(
    previous: &TableSet,
    node: &NodeConfig,
    web: ServiceObject,
    slices: Vec<SliceObject>,
) -> TableSet {
    plan(
        previous,
        &snapshot([web], slices),
        node,
        &Quarantine::default(),
    )
    .tables
}

fn web() -> ServiceObject {
    service(
        "web",
        &["192.0.2.10", "2001:db8::10"],
        &["http:80@30080", "dns:53/UDP"],
    )
}

fn web_slice(endpoints: &[&str]) -> Vec<SliceObject> {
    vec![slice("web_1", &["http:8080", "dns:53/UDP"], endpoints)]
}

fn forwarder(unknown_flows: UnknownFlows) -> Forwarder {
    Forwarder::new(ForwarderConfig {
        unknown_flows,
        direct_backend_access: false,
        drop_unallocated: false,
    })
}

/// What becomes of a packet without any flow.
fn first(tables: &TableSet, packet: ModelPacket) -> Outcome {
    forwarder(UnknownFlows::Select).forward(tables, &packet)
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table of cases")]
fn a_new_flow_or_the_reason_for_none() {
    let node = node_with_node_ports();
    let local = || ServiceObject {
        external_policy: TrafficPolicy::Local,
        ..web()
    };
    let gateway = NodeConfig {
        gateway: true,
        ..node.clone()
    };
    let syn = || packet(CLIENT, WEB, Some(SYN));
    let remote = || web_slice(&["10.1.0.1"]);
    for (name, object, slices, node, packet, expected) in [
        (
            "full NAT",
            web(),
            remote(),
            &node,
            syn(),
            Ok(("10.1.0.1:8080", ForwardingMode::FullNat)),
        ),
        (
            "UDP",
            web(),
            remote(),
            &node,
            packet(CLIENT, "192.0.2.10:53", None),
            Ok(("10.1.0.1:53", ForwardingMode::FullNat)),
        ),
        (
            "a gateway keeps the source",
            local(),
            remote(),
            &gateway,
            syn(),
            Ok(("10.1.0.1:8080", ForwardingMode::Dnat)),
        ),
        (
            "a pod of this node",
            web(),
            web_slice(&["10.1.0.1 on=edge-1"]),
            &node,
            syn(),
            Ok(("10.1.0.1:8080", ForwardingMode::Local)),
        ),
        (
            "the node itself",
            web(),
            web_slice(&["198.51.100.1"]),
            &node,
            syn(),
            Ok(("198.51.100.1:8080", ForwardingMode::Host)),
        ),
        (
            "a node port",
            web(),
            remote(),
            &node,
            packet(CLIENT, "198.51.100.1:30080", Some(SYN)),
            Ok(("10.1.0.1:8080", ForwardingMode::FullNat)),
        ),
        (
            "another port of the node",
            web(),
            remote(),
            &node,
            packet(CLIENT, "198.51.100.1:80", Some(SYN)),
            Err(Reason::NotOurs),
        ),
        (
            "a node port on a VIP",
            web(),
            remote(),
            &node,
            packet(CLIENT, "192.0.2.10:30080", Some(SYN)),
            Err(Reason::NoFrontend),
        ),
        (
            "another protocol",
            web(),
            remote(),
            &node,
            packet(CLIENT, WEB, None),
            Err(Reason::NoFrontend),
        ),
        (
            "another family, no slices",
            web(),
            remote(),
            &node,
            packet("[2001:db8:5::1]:4000", "[2001:db8::10]:80", Some(SYN)),
            Err(Reason::NoEndpoint),
        ),
        (
            "a stranger",
            web(),
            remote(),
            &node,
            packet(CLIENT, "192.0.2.99:80", Some(SYN)),
            Err(Reason::NotOurs),
        ),
        (
            "no endpoint",
            web(),
            vec![],
            &node,
            syn(),
            Err(Reason::NoEndpoint),
        ),
        (
            "no local endpoint",
            local(),
            remote(),
            &node,
            syn(),
            Err(Reason::NoLocalEndpoint),
        ),
        (
            "SYN-less, select",
            web(),
            remote(),
            &node,
            packet(CLIENT, WEB, Some(ACK)),
            Ok(("10.1.0.1:8080", ForwardingMode::FullNat)),
        ),
        (
            "a reset starts nothing",
            web(),
            remote(),
            &node,
            packet(CLIENT, WEB, Some(RST)),
            Err(Reason::UnknownFlow),
        ),
        (
            "SYN-less of a gateway backend",
            local(),
            remote(),
            &gateway,
            packet("10.1.0.1:8080", CLIENT, Some(SYN | ACK)),
            Err(Reason::GatewayMiss),
        ),
    ] {
        let tables = tables_after(&TableSet::default(), node, object, slices);
        let found = match first(&tables, packet) {
            Outcome::New(new) => Ok((new.endpoint.to_string(), new.mode)),
            Outcome::Refused(reason) => Err(reason),
            Outcome::Known(_) => unreachable!("no flows"),
        };
        assert_eq!(
            found,
            expected.map(|(e, mode)| (e.to_owned(), mode)),
            "{name}"
        );
    }
    let tables = tables_after(&TableSet::default(), &node, web(), remote());
    for (policy, reason) in [
        (UnknownFlows::Stack, Reason::UnknownFlowToStack),
        (UnknownFlows::Drop, Reason::UnknownFlow),
    ] {
        let outcome = forwarder(policy).forward(&tables, &packet(CLIENT, WEB, Some(ACK)));
        assert_eq!(outcome, Outcome::Refused(reason));
    }
}

#[test]
fn a_flow_keeps_its_backend_until_it_ends() {
    let before = tables_after(
        &TableSet::default(),
        &node(),
        web(),
        web_slice(&["10.1.0.1"]),
    );
    let after = tables_after(&before, &node(), web(), web_slice(&["10.1.0.2"]));
    let mut model = forwarder(UnknownFlows::Drop);
    let snat: SocketAddr = "198.51.100.1:700".parse().expect("an endpoint");
    let mut send = |tables: &TableSet, source: &str, destination: &str, flags: u8| {
        let packet = packet(source, destination, Some(flags));
        let outcome = model.forward(tables, &packet);
        model.commit(tables, &packet, &outcome, snat);
        match outcome {
            Outcome::Known(tuple) => tuple.to_string(),
            Outcome::New(new) => format!("new {}", new.endpoint),
            Outcome::Refused(reason) => reason.name().to_owned(),
        }
    };
    let request = "198.51.100.1:700 -> 10.1.0.1:8080 TCP";
    assert_eq!(send(&before, CLIENT, WEB, SYN), "new 10.1.0.1:8080");
    assert_eq!(
        send(&before, "10.1.0.1:8080", "198.51.100.1:700", SYN | ACK),
        "192.0.2.10:80 -> 203.0.113.5:40000 TCP"
    );
    assert_eq!(
        send(&after, CLIENT, WEB, ACK),
        request,
        "the backend is gone from the set"
    );
    assert_eq!(
        send(&TableSet::default(), CLIENT, WEB, ACK),
        request,
        "even with no rules at all"
    );
    assert_eq!(
        send(&after, CLIENT, WEB, SYN),
        request,
        "a SYN on a live flow changes nothing"
    );
    assert_eq!(send(&after, CLIENT, WEB, FIN | ACK), request);
    assert_eq!(
        send(&after, "10.1.0.1:8080", "198.51.100.1:700", FIN | ACK),
        "192.0.2.10:80 -> 203.0.113.5:40000 TCP"
    );
    assert_eq!(
        send(&before, CLIENT, WEB, SYN),
        request,
        "closed, the backend takes new flows"
    );
    assert_eq!(
        send(&after, CLIENT, WEB, SYN),
        "new 10.1.0.2:8080",
        "closed, the backend does not"
    );
}

#[test]
fn a_udp_flow_leaves_a_backend_that_stops_serving() {
    let at = |previous: &TableSet, endpoints: &[&str]| {
        tables_after(previous, &node(), web(), web_slice(endpoints))
    };
    let first = at(&TableSet::default(), &["10.1.0.1"]);
    let draining = at(&first, &["10.1.0.1 unready terminating", "10.1.0.2"]);
    let gone = at(&draining, &["10.1.0.2"]);
    let nobody = at(&first, &[]);
    let mut model = forwarder(UnknownFlows::Drop);
    let packet = packet(CLIENT, "192.0.2.10:53", None);
    let snat: SocketAddr = "198.51.100.1:700".parse().expect("an endpoint");
    for (name, tables, expected) in [
        ("first", &first, None),
        ("it still serves", &draining, Some(ip("10.1.0.1"))),
        ("nobody else serves", &nobody, Some(ip("10.1.0.1"))),
        ("it does not", &gone, None),
        ("the new one stays", &gone, Some(ip("10.1.0.2"))),
    ] {
        let outcome = model.forward(tables, &packet);
        let kept = match outcome {
            Outcome::Known(tuple) => Some(tuple.destination.ip()),
            _ => None,
        };
        assert_eq!(kept, expected, "{name}");
        model.commit(tables, &packet, &outcome, snat);
    }
}

#[test]
fn flows_spread_evenly_over_the_backends() {
    let tables = tables_after(
        &TableSet::default(),
        &node(),
        web(),
        web_slice(&["10.1.0.1", "10.1.0.2", "10.1.0.3"]),
    );
    let mut shares = BTreeMap::<_, u32>::new();
    for port in 10_000..13_000 {
        let outcome = first(
            &tables,
            packet(&format!("203.0.113.5:{port}"), WEB, Some(SYN)),
        );
        let Outcome::New(new) = outcome else {
            panic!("{outcome:?}")
        };
        *shares.entry(new.endpoint).or_default() += 1;
    }
    assert!(
        shares.values().all(|share| (850..1_150).contains(share)),
        "{shares:?}"
    );
}
