//! The namespaces of one peer: client, balancer and backends on cables, all peers alike.
//!
//! ```text
//!  client 198.51.100.7 ── eth0 [balancer] eth1 ── 10.0.0.11, 10.0.0.12 backends
//!                               mgmt 192.0.2.x ── API server
//! ```
//! Senders hand over full checksums, as frames from a wire have them: native XDP cannot carry others.
//! Segments are not merged either, for none of them.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::Result;
use lb_tests::netns::{Namespace, succeed, world::cable};

use crate::server::Server;

/// The client.
pub(crate) const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 7));
/// The balancer, as the backends see it.
pub(crate) const INSIDE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
/// An address of the balancer for source NAT alone.
pub(crate) const SNAT: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 100));
/// The balancer's devices, to clients and backends.
pub(crate) const DEVICES: [&str; 2] = ["eth0", "eth1"];
/// Where the devices towards the API server are plugged in.
const BRIDGE: &str = "mgmt0";

/// What forwards in the balancer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Router {
    /// The kernel, which takes one from the TTL.
    Kernel,
    /// A program that sends anew.
    Program,
}

/// One peer's namespaces.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) client: Namespace,
    pub(crate) balancer: Namespace,
    pub(crate) backend: Namespace,
    _server: Server,
}

/// Connects this program's namespace, where the API server is, to the balancers that will be.
pub(crate) fn connect_api_server() {
    for arguments in [
        ["link", "add", BRIDGE, "type", "bridge"].as_slice(),
        &["link", "set", BRIDGE, "up"],
        &["address", "add", "192.0.2.1/24", "dev", BRIDGE],
        // The API server wants a default route.
        &["route", "add", "default", "via", "192.0.2.254"],
    ] {
        succeed(std::process::Command::new("ip").args(arguments));
    }
}

impl World {
    /// Builds it; `role` ends the namespaces' names.
    pub(crate) fn new(role: &str) -> Result<Self> {
        let [client, balancer, backend] =
            ["client", "lb", "backend"].map(|part| Namespace::new(&format!("{role}-{part}")));
        cable(&client, "eth0", &balancer, "eth0");
        cable(&balancer, "eth1", &backend, "eth0");
        client.ip("addr add 198.51.100.7/24 dev eth0
            route add default via 198.51.100.1");
        balancer.ip("addr add 198.51.100.1/24 dev eth0
            addr add 10.0.0.1/24 dev eth1
            addr add 10.0.0.100/24 dev eth1");
        backend.ip("addr add 10.0.0.11/24 dev eth0
            addr add 10.0.0.12/24 dev eth0
            route add default via 10.0.0.1");
        for namespace in [&client, &backend] {
            namespace.ethtool("eth0", &["tx", "off", "gro", "on"]);
        }
        for device in DEVICES {
            balancer.ethtool(device, &["tx", "off", "gro", "on"]);
        }
        balancer.forward();
        // A client that asks too early is to learn it at once.
        balancer.sysctl("net/ipv4/icmp_ratelimit", "0");
        plug_management(&balancer);
        let server = Server::start(&backend)?;
        Ok(Self {
            client,
            balancer,
            backend,
            _server: server,
        })
    }
}

fn plug_management(balancer: &Namespace) {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let port = format!("mgmt{}", number + 1);
    let pair = ["link", "add", &port, "type", "veth", "peer", "name", "mgmt"];
    let mut add = std::process::Command::new("ip");
    succeed(add.args(pair).args(["netns", balancer.name()]));
    let mut plug = std::process::Command::new("ip");
    succeed(plug.args(["link", "set", &port, "master", BRIDGE, "up"]));
    let host = 10 + number % 240;
    balancer.ip(&format!(
        "addr add 192.0.2.{host}/24 dev mgmt\nlink set mgmt up"
    ));
}
