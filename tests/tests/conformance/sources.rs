//! Source ranges of load balancers.

use std::{net::IpAddr, time::Duration};

use lb_common::reason::Reason;
use lb_tests::{
    conformance::{
        agents::Agents,
        cluster::{Cluster, Side},
        objects::Service,
        probe::Peer::{Kept, Masqueraded},
        raw::{self, Capture},
        record::Record,
    },
    netns::poll,
    packet::packet,
};
use serde_json::json;

use crate::Scenario;

pub(crate) const SCENARIO: Scenario = Scenario {
    name: "sources",
    rows: &[
        "B03", "H17", "H18", "H19", "H20", "H21", "H22", "H23", "H24", "H25", "H28", "H29", "I11",
    ],
    run,
};

/// Number of the Service, and of its second load-balancer addresses.
const NUMBERS: (u16, u16) = (1, 101);

fn run(record: &Record, cluster: &Cluster, agents: &mut Agents<'_>) {
    ranges(record, cluster, agents);
    swapped(record, cluster, agents);
}

fn ranges(record: &Record, cluster: &Cluster, agents: &Agents<'_>) {
    let (pod, allowed, other) = (
        cluster.pod("a3"),
        cluster.outside(Side::A),
        cluster.stranger(Side::A),
    );
    let both = ["a1", "b1"];
    let service = Service::new("ranged", NUMBERS.0).web().kind("LoadBalancer");
    let service = service.also_at(NUMBERS.1).on(&both);
    let ranges = json!([
        " 203.0.113.7/32",
        "2001:db8:203::7/128",
        format!("{}/32", Side::A.address(true)),
        format!("{}/128", Side::A.address(false)),
    ]);
    let service = service.spec("loadBalancerSourceRanges", ranges);
    agents.put(&[&service]);
    let [first, second] = [NUMBERS.0, NUMBERS.1].map(|number| service.balancer_at(number));
    record.row("H17", || pod.served(&service.cluster(), &both, Kept));
    record.row("H18", || {
        allowed.served(&service.node_port(Side::A), &both, Masqueraded);
    });
    record.row("H19", || {
        other.served(&service.node_port(Side::A), &both, Masqueraded);
    });
    record.rows(&["H20", "I11"], || {
        allowed.served(&first, &both, Masqueraded);
    });
    record.row("H21", || allowed.served(&second, &both, Masqueraded));
    for (rows, client, targets) in [
        (&["H22", "I11"][..], &other, &first),
        (&["H23"], &other, &second),
        (&["H24"], &pod, &first),
        (&["H25"], &pod, &second),
    ] {
        record.rows(rows, || {
            let before = agents.node(Side::A).reason(Reason::SourceRange);
            client.dropped(targets);
            let after = agents.node(Side::A).reason(Reason::SourceRange);
            assert!(
                after >= before + 4,
                "{before} then {after} packets outside the ranges"
            );
        });
    }
    // A process of the node that connects to an address bound there comes with that very address. What
    // it sends never meets our hooks; the rule is there all the same and shows on the wire.
    let local = service.nobody().on(&["a1"]);
    agents.put(&[&local]);
    for (rows, number) in [(&["H28", "I11"][..], NUMBERS.0), (&["H29"], NUMBERS.1)] {
        record.rows(rows, || {
            for target in &local.balancer_at(number).udp().0 {
                let own = target.address.ip();
                assert!(reaches(cluster, own, own), "{own} to itself");
                assert!(
                    !reaches(cluster, other.address(own.is_ipv4()), own),
                    "a stranger to {own}"
                );
            }
        });
        record.remark(
            rows,
            "shown with packets that carry the address as their source, from outside",
        );
    }
}

/// How far a packet may be behind one that was sent after it.
const LATE: Duration = Duration::from_millis(500);

/// Whether a datagram with this source, sent from outside, gets through to pod a1.
fn reaches(cluster: &Cluster, source: IpAddr, vip: IpAddr) -> bool {
    let eyes = Capture::new(cluster.namespace("a1"));
    let text = format!("from {source}");
    let packet = packet()
        .udp(&socket(source, 4444), &socket(vip, 80))
        .payload(text.as_bytes());
    raw::send(cluster.namespace("outside"), vip, &packet);
    // What follows on the same way tells when the first must have come.
    let last = cluster.outside(Side::A);
    let marker = packet_from(last.address(vip.is_ipv4()), vip);
    raw::send(cluster.namespace("outside"), vip, &marker);
    eyes.wait("the packet that follows", |seen| {
        seen.protocol == 17 && seen.segment.ends_with(b"the last")
    });
    // Another CPU may have carried it, and be late.
    let is_it = |seen: &raw::Seen| {
        seen.protocol == 17 && seen.source == source && seen.segment.ends_with(text.as_bytes())
    };
    poll(LATE, || eyes.saw(is_it).then_some(())).is_some()
}

fn packet_from(source: IpAddr, vip: IpAddr) -> lb_tests::packet::Packet {
    packet()
        .udp(&socket(source, 4445), &socket(vip, 80))
        .payload(b"the last")
}

fn socket(address: IpAddr, port: u16) -> String {
    std::net::SocketAddr::new(address, port).to_string()
}

fn swapped(record: &Record, cluster: &Cluster, agents: &Agents<'_>) {
    let (near, far) = (cluster.pod("a3"), cluster.pod("b3"));
    let both = ["a1", "b1"];
    let open = Service::new("swapped", 2)
        .web()
        .kind("LoadBalancer")
        .on(&both);
    let only = |pod: &lb_tests::conformance::probe::Client<'_>| {
        let ranges =
            [true, false].map(|v4| format!("{}/{}", pod.address(v4), if v4 { 32 } else { 128 }));
        open.clone().spec("loadBalancerSourceRanges", json!(ranges))
    };
    for (service, near_allowed, far_allowed) in [
        (only(&near), true, false),
        (only(&far), false, true),
        (open.clone(), true, true),
        (
            open.clone().spec("loadBalancerSourceRanges", json!([])),
            true,
            true,
        ),
    ] {
        agents.put(&[&service]);
        record.row("B03", || {
            for (client, allowed) in [(&near, near_allowed), (&far, far_allowed)] {
                if allowed {
                    client.served(&service.balancer(), &both, Masqueraded);
                } else {
                    client.dropped(&service.balancer());
                }
            }
        });
    }
}
