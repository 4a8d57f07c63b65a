//! Sluice as a DaemonSet beside a kube-proxy in iptables mode, Kubernetes' default: everything that
//! happens to services, agents and the API server.

use lb_tests::kubernetes::cluster::{Options, Shared, Turn};

#[path = "kubernetes/agent.rs"]
mod agent;
#[path = "kubernetes/changes.rs"]
mod changes;
#[path = "kubernetes/coexist.rs"]
mod coexist;
#[path = "kubernetes/cutover.rs"]
mod cutover;
#[path = "kubernetes/deploy.rs"]
mod deploy;
#[path = "kubernetes/disruption.rs"]
mod disruption;
#[path = "kubernetes/input.rs"]
mod input;
#[path = "kubernetes/outage.rs"]
mod outage;
#[path = "kubernetes/traffic.rs"]
mod traffic;

static CLUSTER: Shared = Shared::new(Options {
    kube_proxy: "iptables",
    edges: 1,
    workers: 2,
    overlay: "test",
});

fn take() -> Option<Turn> {
    CLUSTER.take()
}
