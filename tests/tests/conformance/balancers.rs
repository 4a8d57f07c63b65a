//! Load balancers from outside: changes of type and ports, health checks, rolling updates.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    time::Duration,
};

use lb_tests::{
    conformance::{
        agents::Agents,
        cluster::{Cluster, Side},
        objects::{Service, State},
        probe::{
            Answer,
            Peer::{Any, Kept, Masqueraded},
        },
        record::Record,
        targets::Targets,
    },
    netns::poll_until,
};
use serde_json::json;

use crate::Scenario;

pub(crate) const SCENARIO: Scenario = Scenario {
    name: "balancers",
    rows: &[
        "B01", "B02", "B09", "B12", "B13", "B14", "B16", "B17", "B19", "S37", "S50", "D01", "I02",
    ],
    run,
};

fn run(record: &Record, cluster: &Cluster, agents: &mut Agents<'_>) {
    changes(record, cluster, agents);
    without_node_ports(record, cluster, agents);
    rolling_updates(record, cluster, agents);
    health_checks(record, cluster, agents);
    policy_changes(record, cluster, agents);
    record.row("D01", || own_health(cluster));
}

fn changes(record: &Record, cluster: &Cluster, agents: &Agents<'_>) {
    let outside = cluster.outside(Side::A);
    let both = ["a1", "b1"];
    let base = Service::new("changes", 1).web();
    let rows: [(&str, Transport); 2] = [("B01", Targets::tcp), ("B02", Targets::udp)];
    let check = |expect: &dyn Fn(Transport)| {
        for (row, transport) in rows {
            record.row(row, || expect(transport));
        }
    };
    let inner = base.clone().on(&both);
    let ported = inner.clone().kind("NodePort");
    let balanced = inner.clone().kind("LoadBalancer");
    agents.put(&[&inner]);
    check(&|transport| {
        outside.unserved(&transport(ported.node_port(Side::A)));
        outside.unserved(&transport(balanced.balancer()));
    });
    agents.put(&[&ported]);
    check(&|transport| {
        for side in Side::BOTH {
            outside.served(&transport(ported.node_port(side)), &both, Masqueraded);
        }
        outside.unserved(&transport(balanced.balancer()));
    });
    agents.put(&[&balanced]);
    check(&|transport| {
        outside.served(&transport(balanced.balancer()), &both, Masqueraded);
        outside.served(&transport(balanced.node_port(Side::A)), &both, Masqueraded);
    });
    let moved = balanced.clone().node_ports_from(30_500);
    agents.put(&[&moved]);
    check(&|transport| {
        outside.served(&transport(moved.node_port(Side::A)), &both, Masqueraded);
        outside.unserved(&transport(balanced.node_port(Side::A)));
        outside.served(&transport(moved.balancer()), &both, Masqueraded);
    });
    let renumbered = Service::new("changes", 1)
        .tcp("http", 81, 8080)
        .udp("echo", 81, 8080);
    let renumbered = renumbered.kind("LoadBalancer").node_ports_from(30_500);
    for (service, by) in [
        (renumbered.clone().on(&both), &both[..]),
        (renumbered.clone(), &[]),
        (renumbered.clone().on(&["b1"]), &["b1"]),
    ] {
        agents.put(&[&service]);
        check(&|transport| {
            // The address is the Service's: what it has no port for is refused.
            outside.refused(&transport(balanced.balancer()));
            for way in [service.balancer(), service.node_port(Side::A)] {
                if by.is_empty() {
                    outside.refused(&transport(way));
                } else {
                    outside.served(&transport(way), by, Masqueraded);
                }
            }
        });
    }
    agents.put(&[&inner]);
    check(&|transport| {
        outside.unserved(&transport(renumbered.node_port(Side::A)));
        outside.unserved(&transport(renumbered.balancer()));
        outside.served(&transport(inner.cluster()), &both, Masqueraded);
    });
}

fn without_node_ports(record: &Record, cluster: &Cluster, agents: &Agents<'_>) {
    let outside = cluster.outside(Side::A);
    let both = ["a1", "b1"];
    let with = Service::new("portless", 2)
        .web()
        .kind("LoadBalancer")
        .on(&both);
    let without = with
        .clone()
        .without_node_ports()
        .spec("allocateLoadBalancerNodePorts", false);
    agents.put(&[&without]);
    record.row("B09", || {
        outside.served(&without.balancer(), &both, Masqueraded);
        outside.unserved(&with.node_port(Side::A));
    });
    agents.put(&[&with]);
    record.row("B09", || {
        outside.served(&with.balancer(), &both, Masqueraded);
        outside.served(&with.node_port(Side::A), &both, Masqueraded);
    });
}

/// Pods are replaced one after the other, five times over, under requests of one connection each.
fn rolling_updates(record: &Record, cluster: &Cluster, agents: &Agents<'_>) {
    let outside = cluster.outside(Side::A);
    let pods = ["a1", "a2", "b1", "b2"];
    let base = Service::new("rolls", 3).web().kind("LoadBalancer");
    for (row, service) in [("B12", base.clone()), ("B13", base.external_local())] {
        agents.put(&[&service.clone().on(&pods)]);
        record.row(row, || {
            let (stop, good, bad) = (AtomicBool::new(false), AtomicU32::new(0), AtomicU32::new(0));
            std::thread::scope(|scope| {
                for target in service.balancer().tcp().0 {
                    let (stop, good, bad, outside) = (&stop, &good, &bad, &outside);
                    scope.spawn(move || {
                        while !stop.load(Ordering::Relaxed) {
                            let served = matches!(outside.attempt(target), Answer::Served { .. });
                            let count = if served { good } else { bad };
                            count.fetch_add(1, Ordering::Relaxed);
                            std::thread::sleep(Duration::from_millis(2));
                        }
                    });
                }
                for _ in 0..5 {
                    for pod in pods {
                        roll(cluster, agents, &service, &pods, pod);
                    }
                }
                stop.store(true, Ordering::Relaxed);
            });
            let (good, bad) = (good.into_inner(), bad.into_inner());
            assert!(good > 200, "only {good} requests served");
            assert_eq!(bad, 0, "{bad} requests failed, {good} were served");
        });
    }
}

/// One pod's way out and back in.
fn roll(cluster: &Cluster, agents: &Agents<'_>, service: &Service, pods: &[&str], pod: &str) {
    let with = |state: Option<State>| {
        let mut next = service.clone();
        for name in pods {
            next = match state {
                Some(state) if *name == pod => next.endpoint(name, state),
                None if *name == pod => next,
                _ => next.on(&[name]),
            };
        }
        next
    };
    agents.put(&[&with(Some(State::Draining))]);
    agents.put(&[&with(None)]);
    cluster.silence(pod, 8080);
    cluster.serve(pod, 8080);
    agents.put(&[&with(Some(State::Unready))]);
    agents.put(&[&with(Some(State::Ready))]);
}

/// A transport's targets out of all.
type Transport = fn(Targets) -> Targets;

/// Port of the health check of a Service.
const CHECK: u16 = 32_000;

fn checked(number: u16) -> Service {
    let service = Service::new(&format!("checked-{number}"), number)
        .web()
        .kind("LoadBalancer");
    service
        .external_local()
        .spec("healthCheckNodePort", CHECK + number)
}

/// What the health check of a node says, by IPv4 and by IPv6: 200, 503, or nothing.
fn status(cluster: &Cluster, side: Side, number: u16) -> [Option<u16>; 2] {
    let outside = cluster.outside(Side::A);
    [true, false].map(|v4| {
        let address = SocketAddr::new(side.address(v4), CHECK + number);
        outside.get(address, "/healthz").map(|(status, _)| status)
    })
}

/// The servers follow the tables at once, but on their own.
fn becomes(cluster: &Cluster, side: Side, number: u16, expected: Option<u16>) {
    let what = format!("{} to say {expected:?}", side.name());
    poll_until(&what, Duration::from_secs(5), || {
        (status(cluster, side, number) == [expected; 2]).then_some(())
    });
}

fn health_checks(record: &Record, cluster: &Cluster, agents: &Agents<'_>) {
    let outside = Side::BOTH.map(|side| cluster.outside(side));
    let [by_a, _] = &outside;
    // Drain.
    let service = checked(4);
    agents.put(&[&service.clone().on(&["a1", "b1"])]);
    record.row("S37", || {
        becomes(cluster, Side::A, 4, Some(200));
        by_a.served(&service.node_port(Side::A), &["a1"], Kept);
    });
    agents.put(&[&service.clone().endpoint("a1", State::Draining).on(&["b1"])]);
    record.row("S37", || {
        becomes(cluster, Side::A, 4, Some(503));
        becomes(cluster, Side::B, 4, Some(200));
        by_a.served(&service.node_port(Side::A), &["a1"], Kept);
    });
    // The source is kept; the port closes with the type.
    let service = checked(5).on(&["a1"]);
    agents.put(&[&service]);
    record.row("B14", || {
        by_a.served(&service.balancer(), &["a1"], Kept);
        becomes(cluster, Side::A, 5, Some(200));
    });
    agents.put(&[&Service::new("checked-5", 5).web().on(&["a1"])]);
    record.row("B14", || becomes(cluster, Side::A, 5, None));
    // One endpoint moves from node to node; whoever asks the checks finds it.
    let service = checked(6);
    for (name, here) in [("a1", Side::A), ("b1", Side::B), ("a2", Side::A)] {
        agents.put(&[&service.clone().on(&[name])]);
        record.row("B16", || {
            for (side, client) in Side::BOTH.into_iter().zip(&outside) {
                becomes(cluster, side, 6, Some(if side == here { 200 } else { 503 }));
                if side == here {
                    client.served(&service.balancer(), &[name], Kept);
                } else {
                    client.dropped(&service.balancer());
                }
            }
        });
    }
    let service = checked(7).on(&["a1", "a2", "b1"]);
    agents.put(&[&service]);
    let own: [&[&str]; 2] = [&["a1", "a2"], &["b1"]];
    record.row("B17", || {
        for ((side, client), own) in Side::BOTH.into_iter().zip(&outside).zip(own) {
            becomes(cluster, side, 7, Some(200));
            client.served(&service.balancer(), own, Kept);
        }
    });
    // Whatever Services exist and forbid, the port answers on every node-port address.
    let service = checked(8).on(&["a1"]);
    let service = service.spec("loadBalancerSourceRanges", json!(["192.0.2.200/32"]));
    agents.put(&[&service]);
    record.row("I02", || {
        becomes(cluster, Side::A, 8, Some(200));
        let stranger = cluster.stranger(Side::A);
        for address in [
            Side::A.address(true),
            Side::A.second_address(true),
            Side::A.second_address(false),
        ] {
            let answer = stranger.get(SocketAddr::new(address, CHECK + 8), "/healthz");
            let (status, text) = answer.unwrap_or_else(|| panic!("no answer at {address}"));
            assert_eq!(status, 200, "{text}");
            assert!(text.contains("\"localEndpoints\": 1"), "{text}");
        }
    });
}

fn policy_changes(record: &Record, cluster: &Cluster, agents: &Agents<'_>) {
    let (near, far) = (cluster.outside(Side::A), cluster.outside(Side::B));
    let local = checked(9).on(&["a1"]);
    let open = Service::new("checked-9", 9)
        .web()
        .kind("LoadBalancer")
        .on(&["a1"]);
    for (service, is_local) in [
        (&local, true),
        (&open, false),
        (&local, true),
        (&open, false),
    ] {
        agents.put(&[service]);
        record.rows(&["S50", "B19"], || {
            if is_local {
                becomes(cluster, Side::A, 9, Some(200));
                becomes(cluster, Side::B, 9, Some(503));
                near.served(&service.node_port(Side::A), &["a1"], Kept);
                near.served(&service.balancer(), &["a1"], Kept);
                far.dropped(&service.node_port(Side::B));
                far.dropped(&service.balancer());
            } else {
                becomes(cluster, Side::A, 9, None);
                becomes(cluster, Side::B, 9, None);
                near.served(&service.node_port(Side::A), &["a1"], Any);
                far.served(&service.node_port(Side::B), &["a1"], Masqueraded);
                far.served(&service.balancer(), &["a1"], Masqueraded);
            }
        });
    }
}

/// The agent's own health and metrics.
fn own_health(cluster: &Cluster) {
    let outside = cluster.outside(Side::A);
    let ask = |v4: bool, port: u16, path: &str| {
        let address = SocketAddr::new(Side::A.address(v4), port);
        let answer = outside.get(address, path);
        let (status, text) = answer.unwrap_or_else(|| panic!("no answer at {address}{path}"));
        assert_eq!(status, 200, "{address}{path}: {text}");
        text
    };
    for v4 in [true, false] {
        for path in ["/healthz", "/livez"] {
            let text = ask(v4, 10_356, path);
            assert!(
                text.contains("200 OK") && text.contains("lastUpdated"),
                "{path}: {text}"
            );
        }
        ask(v4, 10_356, "/readyz");
    }
    let metrics = ask(true, 10_350, "/metrics");
    assert!(metrics.contains("sluice_"), "{metrics}");
}
