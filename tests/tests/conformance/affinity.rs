//! Session affinity: at every kind of frontend, switched live, and ending with its timeout.

use std::time::Duration;

use lb_tests::conformance::{
    agents::Agents,
    cluster::{Cluster, Side},
    objects::{Service, set},
    probe::{Client, Peer::Any},
    record::Record,
    targets::Targets,
};

use crate::Scenario;

pub(crate) const SCENARIO: Scenario = Scenario {
    name: "affinity",
    rows: &[
        "S24", "S25", "S26", "S27", "S28", "S29", "B04", "B05", "B06", "B07", "D17", "D18", "E16",
        "E17", "I09",
    ],
    run,
};

/// Longer than any scenario.
const LONG: u32 = 10_800;
/// A timeout worth waiting for, and a wait beyond it: the data path counts in ticks of a second.
const SHORT: u32 = 4;
const EXPIRED: Duration = Duration::from_secs(6);

/// A way to the Service.
type Way = fn(&Service) -> Targets;

fn run(record: &Record, cluster: &Cluster, agents: &mut Agents<'_>) {
    sticks(record, cluster, agents);
    switched(record, cluster, agents);
    expires(record, cluster, agents);
    shares(record, cluster, agents);
}

fn open(name: &str, number: u16) -> Service {
    Service::new(name, number).web().kind("LoadBalancer")
}

fn node_port(service: &Service) -> Targets {
    service.node_port(Side::A)
}

fn sticks(record: &Record, cluster: &Cluster, agents: &Agents<'_>) {
    let (pod, outside) = (cluster.pod("a3"), cluster.outside(Side::A));
    let all = ["a1", "a2", "b1", "b2"];
    let everywhere = open("everywhere", 1).sticky(LONG).on(&all);
    let local = open("local", 2).sticky(LONG).external_local().on(&all);
    agents.put(&[&everywhere, &local]);
    record.row("S24", || drop(pod.sticks(&everywhere.cluster())));
    record.row("S27", || {
        drop(outside.sticks(&everywhere.node_port(Side::A)));
    });
    record.row("B06", || drop(outside.sticks(&everywhere.balancer())));
    record.row("B04", || {
        for name in outside.sticks(&local.balancer()).values() {
            assert!(name.starts_with('a'), "{name} is not on this node");
        }
    });
    record.row("D17", || drop(pod.sticks(&everywhere.cluster().v4().tcp())));
    record.row("D18", || drop(pod.sticks(&everywhere.cluster().v4().udp())));
    record.row("E16", || drop(pod.sticks(&everywhere.cluster().v6().tcp())));
    record.row("E17", || drop(pod.sticks(&everywhere.cluster().v6().udp())));
    record.row("S24", || {
        // All frontends of a port share a client's endpoint; clients are apart.
        let ways = [
            everywhere.cluster(),
            everywhere.node_port(Side::A),
            everywhere.balancer(),
        ];
        let [first, second, third] = ways.map(|way| outside.sticks(&way));
        assert_eq!(first, second, "cluster IP and node port");
        assert_eq!(first, third, "cluster IP and load balancer");
    });
}

fn switched(record: &Record, cluster: &Cluster, agents: &Agents<'_>) {
    let (pod, outside) = (cluster.pod("a3"), cluster.outside(Side::A));
    let (here, all) = (["a1", "a2"].as_slice(), ["a1", "a2", "b1", "b2"].as_slice());
    let free = open("switched", 3).on(all);
    let free_local = open("switched-local", 4).external_local().on(all);
    let rows: [(&str, &Client<'_>, &Service, Way, &[&str]); 4] = [
        ("S26", &pod, &free, Service::cluster, all),
        ("S29", &outside, &free, node_port, all),
        ("B07", &outside, &free, Service::balancer, all),
        ("B05", &outside, &free_local, Service::balancer, here),
    ];
    for sticky in [false, true, false, true] {
        let set = |service: &Service| {
            if sticky {
                service.clone().sticky(LONG)
            } else {
                service.clone()
            }
        };
        agents.put(&[&set(&free), &set(&free_local)]);
        for (row, client, service, way, by) in rows {
            record.row(row, || {
                if sticky {
                    client.sticks(&way(service));
                } else {
                    client.served(&way(service), by, Any);
                }
            });
        }
    }
}

fn expires(record: &Record, cluster: &Cluster, agents: &Agents<'_>) {
    let (pod, outside) = (cluster.pod("a3"), cluster.outside(Side::A));
    let service = open("expires", 5).sticky(SHORT);
    let rows: [(&[&str], &Client<'_>, Way); 2] = [
        (&["S25", "I09"], &pod, Service::cluster),
        (&["S28"], &outside, node_port),
    ];
    for (ids, client, way) in rows {
        let way = way(&service).v4().tcp();
        record.rows(ids, || {
            let stay = |both: &Service| {
                agents.put(&[both]);
                let found = client.sticks(&way).into_values().next();
                found.expect("one target")
            };
            let both = service.clone().on(&["a1", "b1"]);
            let first = stay(&both);
            let other = if first == "a1" { "b1" } else { "a1" };
            // Without its endpoint the client gets the other one, and keeps it when the first is back.
            assert_eq!(stay(&service.clone().on(&[other])), other);
            assert_eq!(stay(&both), other, "the timeout has not passed");
            std::thread::sleep(EXPIRED);
            assert_eq!(stay(&both), first, "the timeout has passed");
        });
    }
    record.remark(
        &["S25", "S28"],
        "a client whose affinity ended is chosen for anew by its address; so the check moves it to \
         another endpoint first and sees it return",
    );
}

/// Two Services at one address, each with an affinity of its own.
fn shares(record: &Record, cluster: &Cluster, agents: &Agents<'_>) {
    let outside = cluster.outside(Side::A);
    let first = open("share-1", 6).sticky(LONG).on(&["a1", "b1"]);
    let second = Service::new("share-2", 7)
        .tcp("http", 81, 8080)
        .kind("LoadBalancer");
    let second = second.sticky(LONG).on(&["a2", "b2"]);
    let mut objects = second.objects();
    for (service, model) in objects.iter_mut().zip(first.objects()).take(1) {
        let status = model.get("status").cloned();
        set(service, "status", status.expect("it is a load balancer"));
    }
    agents.object("share-2", objects);
    agents.put(&[&first]);
    record.row("I09", || {
        for name in outside.sticks(&first.balancer()).values() {
            assert!(["a1", "b1"].contains(&name.as_str()), "{name}");
        }
        for name in outside.sticks(&first.balancer().tcp().port(81)).values() {
            assert!(["a2", "b2"].contains(&name.as_str()), "{name}");
        }
    });
}
