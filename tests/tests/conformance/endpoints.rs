//! Which endpoints are used: none at all, unready, terminating.

use lb_common::reason::Reason;
use lb_tests::conformance::{
    agents::Agents,
    cluster::{Cluster, Side},
    objects::{Service, State},
    probe::{
        Client,
        Peer::{Any, Kept, Masqueraded},
    },
    record::Record,
    targets::Targets,
};

use crate::Scenario;

pub(crate) const SCENARIO: Scenario = Scenario {
    name: "endpoints",
    rows: &[
        "H01", "H02", "H03", "H04", "H05", "H06", "H83", "H84", "H85", "H86", "H87", "H88", "H89",
        "H90", "I13", "I14", "I15", "I16", "S21", "S22", "S23", "S32", "S33", "S34", "S36", "S38",
        "S39", "S40", "S41", "I10", "I12", "B15", "B18", "D21", "E20",
    ],
    run,
};

fn run(record: &Record, cluster: &Cluster, agents: &mut Agents<'_>) {
    for node in Side::BOTH {
        cluster.serve(node.name(), 8080);
    }
    no_endpoints(record, cluster, agents);
    terminating_local(record, cluster, agents);
    terminating_cluster(record, cluster, agents);
    published(record, cluster, agents);
    local_only(record, cluster, agents);
    fallbacks(record, cluster, agents);
    in_the_host_network(record, cluster, agents);
}

fn open(name: &str, number: u16) -> Service {
    Service::new(name, number)
        .web()
        .kind("LoadBalancer")
        .external()
}

/// The check, and that the node's packets were counted under the reason meanwhile.
fn counted(agents: &Agents<'_>, reason: Reason, check: impl FnOnce()) {
    let node = agents.node(Side::A);
    let before = node.reason(reason);
    check();
    assert!(
        node.reason(reason) > before,
        "{} does not count",
        reason.name()
    );
}

fn no_endpoints(record: &Record, cluster: &Cluster, agents: &Agents<'_>) {
    let (pod, outside) = (cluster.pod("a3"), cluster.outside(Side::A));
    let empty = open("empty", 1);
    agents.put(&[&empty]);
    let refused = |client: &Client<'_>, way: &Targets| {
        counted(agents, Reason::NoEndpoint, || client.refused(way));
    };
    record.rows(&["H01", "S32"], || refused(&pod, &empty.cluster()));
    record.rows(&["H02", "I10"], || refused(&outside, &empty.outer()));
    record.row("H03", || refused(&pod, &empty.node_port(Side::A)));
    record.row("H04", || refused(&outside, &empty.node_port(Side::A)));
    record.row("H05", || refused(&pod, &empty.balancer()));
    record.row("H06", || refused(&outside, &empty.balancer()));
    // The pod was evicted: its endpoint is gone, published or not.
    let evicted = empty.clone().spec("publishNotReadyAddresses", true);
    agents.put(&[&evicted.clone().on(&["b1"])]);
    record.row("S33", || pod.served(&evicted.cluster(), &["b1"], Kept));
    agents.put(&[&evicted]);
    record.row("S33", || refused(&pod, &evicted.cluster()));
}

fn terminating_local(record: &Record, cluster: &Cluster, agents: &Agents<'_>) {
    let (pod, outside) = (cluster.pod("a3"), cluster.outside(Side::A));
    let local = open("local", 2).external_local();
    let ready = local
        .clone()
        .on(&["a1", "b1"])
        .endpoint("a2", State::Draining)
        .endpoint("b2", State::Draining);
    agents.put(&[&ready]);
    record.rows(&["H83", "I14"], || {
        pod.served(&ready.cluster(), &["a1", "b1"], Kept);
        outside.served(&ready.balancer(), &["a1"], Kept);
        outside.served(&ready.outer(), &["a1"], Kept);
    });
    let apart = local
        .clone()
        .endpoint("a1", State::Draining)
        .endpoint("a2", State::Gone)
        .on(&["b1"])
        .endpoint("b2", State::Draining);
    agents.put(&[&apart]);
    record.rows(&["H84", "I16"], || {
        pod.served(&apart.cluster(), &["b1"], Kept);
        outside.served(&apart.balancer(), &["a1"], Kept);
        outside.served(&apart.outer(), &["a1"], Kept);
    });
    let elsewhere = local
        .clone()
        .endpoint("b1", State::Draining)
        .endpoint("b2", State::Gone);
    agents.put(&[&elsewhere]);
    record.row("H85", || {
        pod.served(&elsewhere.cluster(), &["b1"], Kept);
        counted(agents, Reason::NoLocalEndpoint, || {
            outside.dropped(&elsewhere.balancer());
        });
    });
    let unusable = local
        .clone()
        .endpoint("a1", State::Gone)
        .endpoint("b1", State::Unready);
    agents.put(&[&unusable]);
    let refused = || {
        pod.refused(&unusable.cluster());
        outside.refused(&unusable.balancer());
    };
    record.row("H86", refused);
    agents.put(&[&local.without_slices()]);
    record.row("H86", refused);
}

fn terminating_cluster(record: &Record, cluster: &Cluster, agents: &Agents<'_>) {
    let (pod, outside) = (cluster.pod("a3"), cluster.outside(Side::A));
    let open = open("open", 3);
    let used = |service: &Service, by: &[&str]| {
        pod.served(&service.cluster(), by, Kept);
        outside.served(&service.balancer(), by, Masqueraded);
    };
    let ready = open
        .clone()
        .on(&["a1", "b1"])
        .endpoint("a2", State::Draining)
        .endpoint("b2", State::Gone);
    agents.put(&[&ready]);
    record.rows(&["H87", "I13"], || used(&ready, &["a1", "b1"]));
    let draining = open
        .clone()
        .endpoint("a1", State::Draining)
        .endpoint("b1", State::Draining)
        .endpoint("b2", State::Gone);
    agents.put(&[&draining]);
    record.rows(&["H88", "I15"], || used(&draining, &["a1", "b1"]));
    let elsewhere = open.clone().endpoint("b1", State::Draining);
    agents.put(&[&elsewhere]);
    record.row("H89", || used(&elsewhere, &["b1"]));
    let unusable = open
        .clone()
        .endpoint("a1", State::Gone)
        .endpoint("b1", State::Unready);
    agents.put(&[&unusable]);
    let refused = || {
        pod.refused(&unusable.cluster());
        outside.refused(&unusable.balancer());
    };
    record.row("H90", refused);
    agents.put(&[&open.without_slices()]);
    record.rows(&["H90", "I15"], refused);
}

fn published(record: &Record, cluster: &Cluster, agents: &Agents<'_>) {
    let (near, far) = (cluster.pod("a3"), cluster.pod("b3"));
    let service = open("published", 4);
    let ready = service.clone().endpoint("a1", State::Published);
    let gone = service.clone().endpoint("a1", State::Gone);
    agents.put(&[&ready]);
    let ways = || {
        [
            service.cluster(),
            service.node_port(Side::A),
            service.node_port(Side::B),
        ]
    };
    let served = || {
        for way in ways() {
            far.served(&way, &["a1"], Any);
        }
    };
    record.rows(&["S21", "S22"], served);
    agents.put(&[&gone]);
    record.rows(&["S21", "S23"], || {
        for way in ways() {
            far.refused(&way);
            near.refused(&way);
        }
    });
    agents.put(&[&ready]);
    record.row("S21", served);
}

fn local_only(record: &Record, cluster: &Cluster, agents: &Agents<'_>) {
    let (near, far) = (cluster.pod("a3"), cluster.pod("b3"));
    let outside = Side::BOTH.map(|side| cluster.outside(side));
    let inner = open("inner", 5).internal_local().on(&["a1"]);
    let outer = open("outer", 6).external_local().on(&["a1", "b1", "b2"]);
    agents.put(&[&inner, &outer]);
    record.row("S34", || {
        near.served(&inner.cluster(), &["a1"], Kept);
        far.dropped(&inner.cluster());
    });
    let own: [&[&str]; 2] = [&["a1"], &["b1", "b2"]];
    for ((side, client), own) in Side::BOTH.into_iter().zip(&outside).zip(own) {
        record.rows(&["B15", "I12"], || {
            client.served(&outer.node_port(side), own, Kept);
        });
        record.row("I12", || client.served(&outer.balancer(), own, Kept));
        record.row("I10", || client.served(&outer.outer(), own, Kept));
    }
    let all = ["a1", "b1", "b2"];
    record.row("B15", || {
        near.served(&outer.node_port(Side::A), &all, Kept);
        far.served(&outer.node_port(Side::B), &all, Kept);
        far.served(&outer.node_port(Side::A), &all, Masqueraded);
    });
    record.remark(
        &["B15"],
        "a pod is seen itself by the endpoints of the node it asks; from another node's pod it reaches \
         the others too, masqueraded, for the answers must come back",
    );
    record.row("B18", || {
        near.served(&outer.balancer(), &["a1", "b1", "b2"], Kept);
        far.served(&outer.balancer(), &["a1", "b1", "b2"], Kept);
    });
    let first = &outside[0];
    let everywhere = open("everywhere", 7).on(&["a1", "b1"]);
    agents.put(&[&everywhere]);
    record.row("I10", || {
        first.served(&everywhere.outer(), &["a1", "b1"], Masqueraded);
    });
}

fn fallbacks(record: &Record, cluster: &Cluster, agents: &Agents<'_>) {
    let (near, far) = (cluster.pod("a3"), cluster.pod("b3"));
    let outside = cluster.outside(Side::A);
    let draining = |service: Service| service.endpoint("a1", State::Draining);
    let any = draining(open("any", 8));
    let inner = draining(open("fall-inner", 9).internal_local());
    let outer = draining(open("fall-outer", 10).external_local());
    agents.put(&[&any, &inner, &outer]);
    record.row("S38", || {
        near.served(&any.cluster(), &["a1"], Kept);
        far.served(&any.cluster(), &["a1"], Kept);
    });
    record.row("S39", || {
        near.served(&inner.cluster(), &["a1"], Kept);
        far.dropped(&inner.cluster());
    });
    record.row("S40", || {
        near.served(&any.node_port(Side::A), &["a1"], Any);
        far.served(&any.node_port(Side::A), &["a1"], Any);
        outside.served(&any.node_port(Side::A), &["a1"], Any);
    });
    record.row("S41", || {
        far.served(&outer.node_port(Side::A), &["a1"], Any);
        outside.served(&outer.node_port(Side::A), &["a1"], Kept);
        cluster
            .host(Side::B)
            .served(&outer.node_port(Side::A), &["a1"], Kept);
        cluster.host(Side::A).dropped(&outer.node_port(Side::B));
        outside.dropped(&outer.node_port(Side::B));
    });
    record.remark(
        &["S41"],
        "the client that fails at the other node comes with a node's address, as a pod's packets do \
         behind a network that masquerades them",
    );
}

fn in_the_host_network(record: &Record, cluster: &Cluster, agents: &Agents<'_>) {
    let (near, far) = (cluster.pod("a3"), cluster.pod("b3"));
    let outside = cluster.outside(Side::A);
    let hosts = ["node-a", "node-b"];
    let local = open("host-local", 11).internal_local().on(&["node-a"]);
    let all = open("hosts", 12).on(&hosts);
    agents.put(&[&local, &all]);
    record.row("S36", || {
        near.served(&local.cluster(), &["node-a"], Kept);
        far.dropped(&local.cluster());
    });
    record.remark(
        &["S36", "D21", "E20"],
        "clients are pods and outside: the host's own are not ours",
    );
    for (row, family) in [
        ("D21", Targets::v4 as fn(Targets) -> Targets),
        ("E20", Targets::v6),
    ] {
        record.row(row, || {
            near.served(&family(all.cluster()), &hosts, Kept);
            near.served(&family(all.node_port(Side::A)), &hosts, Masqueraded);
            far.served(&family(all.cluster()), &hosts, Kept);
            outside.served(&family(all.node_port(Side::A)), &hosts, Masqueraded);
            outside.served(&family(all.balancer()), &hosts, Masqueraded);
            near.exchanges(&family(all.cluster()), 2_000);
            outside.exchanges(&family(all.node_port(Side::A)), 2_000);
        });
    }
}
