//! Sluice as a DaemonSet on edge nodes of its own, without any kube-proxy.

use lb_tests::kubernetes::cluster::{Options, Shared, Turn};

#[path = "kubernetes/gateway.rs"]
mod gateway;
#[path = "kubernetes/traffic.rs"]
mod traffic;

static CLUSTER: Shared = Shared::new(Options {
    kube_proxy: "none",
    edges: 1,
    workers: 2,
    overlay: "test",
});

fn take() -> Option<Turn> {
    CLUSTER.take()
}
