//! S: Services.

use super::{
    Mark::{N, T, Y},
    Row, row,
};

pub(super) const ROWS: &[Row] = &[
    row("S01", N, "the API server's own Service exists"),
    row(
        "S02",
        T,
        "a Service answers exactly from its current endpoints, from none to two and back",
    ),
    row(
        "S03",
        T,
        "each of two ports is backed by its own pod and number",
    ),
    row(
        "S04",
        T,
        "a port added to a live Service starts, and stops when removed; the first never does",
    ),
    row(
        "S05",
        Y,
        "pods of both nodes are seen with their own addresses through a cluster IP",
    ),
    row(
        "S06",
        Y,
        "a pod that is its Service's only endpoint reaches itself",
    ),
    row("S07", T, "Services come and go without touching each other"),
    row(
        "S08",
        T,
        "a Service made again under its name is served at its new address",
    ),
    row(
        "S09",
        Y,
        "Services are served before, during and after a restart of the agent",
    ),
    row(
        "S10",
        T,
        "an outage of the source changes nothing; afterwards new Services are served",
    ),
    row("S11", Y, "cluster IP and node ports of every node answer"),
    row(
        "S12",
        Y,
        "an external IP that no device has is served, also if written in capitals",
    ),
    row(
        "S13",
        Y,
        "cluster IP becomes node port, then TCP and UDP share port and node port",
    ),
    row("S14", T, "ExternalName becomes ClusterIP"),
    row("S15", T, "ExternalName becomes NodePort"),
    row(
        "S16",
        T,
        "ClusterIP becomes ExternalName: nothing of it is served",
    ),
    row(
        "S17",
        T,
        "NodePort becomes ExternalName: nothing of it is served",
    ),
    row("S18", N, "two Services may not ask for one node port"),
    row("S19", N, "a node port out of range is refused"),
    row("S20", T, "a deleted Service's node port is free again"),
    row(
        "S21",
        T,
        "endpoints published although not ready are served; no longer when they are not",
    ),
    row(
        "S22",
        T,
        "a ready and terminating endpoint is served on every way",
    ),
    row(
        "S23",
        T,
        "an endpoint that is terminating and neither ready nor serving is not served",
    ),
    row("S24", Y, "affinity at a cluster IP"),
    row("S25", Y, "affinity at a cluster IP ends with its timeout"),
    row(
        "S26",
        Y,
        "affinity at a cluster IP is switched on and off live",
    ),
    row("S27", Y, "affinity at a node port"),
    row("S28", Y, "affinity at a node port ends with its timeout"),
    row(
        "S29",
        Y,
        "affinity at a node port is switched on and off live",
    ),
    row(
        "S30",
        Y,
        "another proxy's Services are left alone; the label acts at once",
    ),
    row(
        "S31",
        Y,
        "the headless label takes a Service out of service, and back in",
    ),
    row(
        "S32",
        Y,
        "without endpoints connections are refused at once",
    ),
    row("S33", T, "an evicted pod's endpoint is gone: refused"),
    row(
        "S34",
        Y,
        "internal policy Local, pod to pod: only from the endpoint's node",
    ),
    row(
        "S35",
        Y,
        "internal policy Local, clients in the host network",
    ),
    row(
        "S36",
        Y,
        "internal policy Local, endpoint in the host network",
    ),
    row(
        "S37",
        T,
        "health check node port fails while the last endpoint terminates and still serves",
    ),
    row(
        "S38",
        T,
        "internal policy Cluster falls back to terminating endpoints",
    ),
    row(
        "S39",
        T,
        "internal policy Local falls back to this node's terminating endpoints",
    ),
    row(
        "S40",
        T,
        "external policy Cluster falls back to terminating endpoints",
    ),
    row(
        "S41",
        T,
        "external policy Local falls back to this node's terminating endpoints",
    ),
    row("S42", N, "the API lists Services of all namespaces"),
    row("S43", N, "the life of an Endpoints object"),
    row("S44", N, "the status subresource of a Service"),
    row("S45", N, "deletion of a collection of Services"),
    row("S46", Y, "TCP and UDP share a port; each stops alone"),
    row(
        "S47",
        Y,
        "a LoadBalancer without addresses serves TCP and UDP inside the cluster",
    ),
    row(
        "S48",
        Y,
        "SCTP is left to others, honestly; its module is not loaded",
    ),
    row(
        "S49",
        Y,
        "one named port has different numbers on different pods",
    ),
    row(
        "S50",
        T,
        "node ports and health check follow the external policy",
    ),
    row("S51", N, "ports of side-car containers"),
];
