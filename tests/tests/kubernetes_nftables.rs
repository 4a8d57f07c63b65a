//! Sluice as a DaemonSet beside a kube-proxy in nftables mode.

use lb_tests::kubernetes::cluster::{Options, Shared, Turn};

#[path = "kubernetes/coexist.rs"]
mod coexist;
#[path = "kubernetes/traffic.rs"]
mod traffic;

static CLUSTER: Shared = Shared::new(Options {
    kube_proxy: "nftables",
    edges: 1,
    workers: 2,
    overlay: "test",
});

fn take() -> Option<Turn> {
    CLUSTER.take()
}
