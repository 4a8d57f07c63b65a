//! B and C: load balancers, UDP clients and invalid packets.

use super::{
    Mark::{N, T, Y},
    Row, row,
};

pub(super) const ROWS: &[Row] = &[
    row(
        "B01",
        T,
        "a TCP Service changes types, ports, node ports, endpoints",
    ),
    row(
        "B02",
        T,
        "the same for UDP; without endpoints an ICMP error answers",
    ),
    row("B03", Y, "source ranges are enforced, swapped and cleared"),
    row(
        "B04",
        Y,
        "affinity at a load balancer address, policy Local",
    ),
    row(
        "B05",
        Y,
        "affinity at a load balancer address, policy Local, switched live",
    ),
    row(
        "B06",
        Y,
        "affinity at a load balancer address, policy Cluster",
    ),
    row(
        "B07",
        Y,
        "affinity at a load balancer address, policy Cluster, switched live",
    ),
    row("B08", N, "finalizers of load balancers"),
    row(
        "B09",
        T,
        "a load balancer without node ports, and with them later",
    ),
    row(
        "B10",
        Y,
        "a UDP client moves on when its pod is replaced on another node",
    ),
    row(
        "B11",
        Y,
        "a UDP client moves on when its pod is replaced on the same node",
    ),
    row(
        "B12",
        T,
        "rolling updates under policy Cluster lose no request",
    ),
    row(
        "B13",
        T,
        "rolling updates under policy Local lose no request",
    ),
    row(
        "B14",
        T,
        "policy Local at a load balancer address keeps the client's address; health check closes with it",
    ),
    row(
        "B15",
        Y,
        "policy Local at node ports keeps the client's address",
    ),
    row(
        "B16",
        T,
        "only the node with the endpoint answers its health check; the address always works",
    ),
    row(
        "B17",
        T,
        "every node with an endpoint gets traffic and is healthy",
    ),
    row(
        "B18",
        Y,
        "a pod is seen with its own address through a load balancer address with policy Local",
    ),
    row("B19", T, "the external policy is changed back and forth"),
    row(
        "C01",
        Y,
        "a UDP client of a node port moves on to the next pod",
    ),
    row(
        "C02",
        Y,
        "a UDP client of a cluster IP moves on to the next pod",
    ),
    row(
        "C03",
        Y,
        "with internal policy Local it stays with the local pod, and moves on to the next local one",
    ),
    row("C04", Y, "a UDP client in the host network moves on"),
    row(
        "C05",
        Y,
        "a UDP client that began before the first endpoint was ready gets through",
    ),
    row(
        "C06",
        Y,
        "segments outside the window are no reason to reset",
    ),
];
