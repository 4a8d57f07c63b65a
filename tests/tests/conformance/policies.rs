//! Who serves whom, and whose address the server sees: the policies and the masquerade matrix.
//!
//! One client of each kind on each way: a pod of node A that is no endpoint, and a client outside whose
//! packets come to node A. Each way is tried over both families and both transports.

use lb_tests::conformance::{
    agents::Agents,
    cluster::{Cluster, Side},
    objects::Service,
    probe::Peer::{Kept, Masqueraded},
    record::Record,
};

use crate::Scenario;

pub(crate) const SCENARIO: Scenario = Scenario {
    name: "policies",
    rows: &[
        "H34", "H35", "H36", "H37", "H38", "H39", "H40", "H41", "H42", "H43", "H44", "H45", "H46",
        "H47", "H48", "H49", "H50", "H54", "H55", "H56", "H57", "H58", "H59", "H63", "H64", "H65",
        "H66", "H67", "H68", "H72", "H73", "H74", "H78", "H79", "H80", "H81", "H82",
    ],
    run,
};

/// What is masqueraded where, said once for all these rows.
const DEVIATION: &str = "an endpoint on the balancing node sees the client itself (dnat); \
                         endpoints elsewhere see the node";

fn run(record: &Record, cluster: &Cluster, agents: &mut Agents<'_>) {
    let both = ["a1", "b1"];
    let open = |name, number| {
        Service::new(name, number)
            .web()
            .kind("LoadBalancer")
            .external()
    };
    let matrix = open("matrix", 1).on(&both);
    let outer = open("outer", 2).on(&both).external_local();
    let inner = open("inner", 3).on(&both).internal_local();
    agents.put(&[&matrix, &outer, &inner]);
    external_policies(record, cluster, [&matrix, &outer]);
    masquerade_matrix(record, cluster, [&matrix, &outer, &inner]);
    internal_policies(record, cluster, agents);
}

fn external_policies(record: &Record, cluster: &Cluster, [open, local]: [&Service; 2]) {
    let (pod, outside) = (cluster.pod("a3"), cluster.outside(Side::A));
    let (both, here) = (["a1", "b1"], ["a1"]);
    record.row("H34", || pod.served(&local.cluster(), &both, Kept));
    record.row("H35", || pod.served(&local.outer(), &both, Kept));
    record.row("H36", || outside.served(&local.outer(), &here, Kept));
    record.row("H37", || pod.served(&local.balancer(), &both, Kept));
    record.row("H38", || outside.served(&local.balancer(), &here, Kept));
    record.row("H39", || pod.served(&local.node_port(Side::A), &both, Kept));
    record.row("H40", || {
        outside.served(&local.node_port(Side::A), &here, Kept);
    });
    record.row("H41", || pod.served(&open.cluster(), &both, Kept));
    record.row("H42", || pod.served(&open.outer(), &both, Masqueraded));
    record.row("H43", || outside.served(&open.outer(), &both, Masqueraded));
    record.row("H44", || pod.served(&open.balancer(), &both, Masqueraded));
    record.row("H45", || {
        outside.served(&open.balancer(), &both, Masqueraded);
    });
    record.row("H46", || {
        pod.served(&open.node_port(Side::A), &both, Masqueraded);
    });
    record.row("H47", || {
        outside.served(&open.node_port(Side::A), &both, Masqueraded);
    });
    record.remark(&["H42", "H43", "H44", "H45", "H46", "H47"], DEVIATION);
}

fn masquerade_matrix(record: &Record, cluster: &Cluster, services: [&Service; 3]) {
    let (pod, outside) = (cluster.pod("a3"), cluster.outside(Side::A));
    let [open, outer, inner] = services;
    let (both, here) = (["a1", "b1"].as_slice(), ["a1"].as_slice());
    // Rows in the order cluster IP, node port, load balancer; a pod's, then an outside client's.
    for (service, rows) in [
        (
            open,
            [
                [
                    ("H48", both, Kept),
                    ("H49", both, Masqueraded),
                    ("H50", both, Masqueraded),
                ],
                [
                    ("H54", both, Masqueraded),
                    ("H55", both, Masqueraded),
                    ("H56", both, Masqueraded),
                ],
            ],
        ),
        (
            outer,
            [
                [
                    ("H57", both, Kept),
                    ("H58", both, Kept),
                    ("H59", both, Kept),
                ],
                [
                    ("H63", both, Masqueraded),
                    ("H64", here, Kept),
                    ("H65", here, Kept),
                ],
            ],
        ),
        (
            inner,
            [
                [
                    ("H66", here, Kept),
                    ("H67", both, Masqueraded),
                    ("H68", both, Masqueraded),
                ],
                [
                    ("H72", here, Masqueraded),
                    ("H73", both, Masqueraded),
                    ("H74", both, Masqueraded),
                ],
            ],
        ),
    ] {
        let ways = [
            service.cluster(),
            service.node_port(Side::A),
            service.balancer(),
        ];
        for (client, rows) in [&pod, &outside].into_iter().zip(rows) {
            for ((id, by, peer), way) in rows.into_iter().zip(&ways) {
                record.row(id, || client.served(way, by, peer));
                if peer == Masqueraded {
                    record.remark(&[id], DEVIATION);
                }
            }
        }
    }
}

fn internal_policies(record: &Record, cluster: &Cluster, agents: &Agents<'_>) {
    let pod = cluster.pod("a3");
    let service = |name, number| Service::new(name, number).web();
    let all = service("all", 11).on(&["a1", "b1", "b2"]);
    let one = service("one", 12).on(&["a1", "b1", "b2"]).internal_local();
    let some = service("some", 13).on(&["a1", "a2", "b1"]).internal_local();
    let none = service("none", 14).on(&["b1", "b2"]).internal_local();
    agents.put(&[&all, &one, &some, &none]);
    record.row("H78", || {
        pod.served(&all.cluster(), &["a1", "b1", "b2"], Kept);
    });
    record.row("H79", || pod.served(&one.cluster(), &["a1"], Kept));
    record.row("H80", || pod.served(&some.cluster(), &["a1", "a2"], Kept));
    record.row("H81", || pod.dropped(&none.cluster()));
    let gone = [all, one, some, none].map(Service::without_slices);
    agents.put(&gone.each_ref());
    for service in &gone {
        record.row("H82", || pod.refused(&service.cluster()));
    }
}
