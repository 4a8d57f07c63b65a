//! The network of the gate: an edge node between clients and remote backends, with pods of its own.
//!
//! ```text
//! client ─┬─ eth0, eth1 ─ outside ─ lb eth0         lb eth1 ─ inside ─┬─ eth0, eth1 ─ b0, b1
//!         └─ eth2 ─────── outside ─ bypass ──────── bypass ─ inside ──┘
//!                                                   lb pod0 ─ pod
//! ```
//! Client and backends have two devices each, so that a route can lead over either. A backend answers at
//! every address of a network of its own, as a node full of pods would. From the client's third address the
//! backends are reached by way of `bypass`, an ordinary router: as many hops, over the same bridges, with the
//! load balancer left out.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    process::Command,
};

use super::server::PORT;
use crate::netns::{
    Namespace,
    agent::Node,
    succeed,
    world::{Lan, cable},
};

/// Remote backends.
pub const REMOTE: usize = 2;
/// The number of the pod's network, behind those of the backends.
pub const POD: usize = 9;
/// MAC of the device by which a flood arrives.
pub const FLOODED: [u8; 6] = [2, 0, 0, 0, 0x18, 1];
/// The node's name in EndpointSlices.
pub const NODE: &str = "edge";

/// The namespaces and what connects them.
#[derive(Debug)]
pub struct Scene {
    /// Where the flows begin.
    pub client: Namespace,
    /// The edge node.
    pub lb: Namespace,
    /// Remote backends.
    pub backends: Vec<Namespace>,
    /// Pods of the edge node.
    pub pod: Namespace,
    _bypass: Namespace,
    lans: [Lan; 2],
}

/// An address at which backend `network` answers; the pod's network is [`POD`].
pub fn endpoint(network: usize, host: u16, v6: bool) -> IpAddr {
    let network = u16::try_from(network).expect("few networks");
    if v6 {
        Ipv6Addr::new(0x2001, 0xdb8, 9, network, 0, 0, 0, host).into()
    } else {
        let byte = |number| u8::try_from(number).expect("networks and hosts have one byte");
        Ipv4Addr::new(10, 9, byte(network), byte(host)).into()
    }
}

/// Whether a backend is a pod of the edge node.
pub fn is_pod(backend: IpAddr) -> bool {
    (1..=2).any(|host| {
        [false, true]
            .map(|v6| endpoint(POD, host, v6))
            .contains(&backend)
    })
}

/// Where control flows go: both backends, by way of the bypass.
pub fn controls() -> Vec<SocketAddr> {
    let both = |network| [false, true].map(|v6| endpoint(network, 1, v6));
    let all = (0..REMOTE).flat_map(both);
    all.map(|address| SocketAddr::new(address, PORT)).collect()
}

impl Scene {
    /// Builds it.
    pub fn new() -> Self {
        let (outside, inside) = (Lan::new("outside"), Lan::new("inside"));
        let lb = Namespace::new("lb");
        lb.forward();
        outside.plug_xdp(&lb, "eth0");
        inside.plug_xdp(&lb, "eth1");
        lb.ip("addr add 198.51.100.1/25 dev eth0
            addr add 2001:db8:100::1/64 dev eth0 nodad
            addr add 10.0.0.1/24 dev eth1
            addr add 10.0.0.100/24 dev eth1
            addr add 2001:db8:a::1/64 dev eth1 nodad
            addr add 2001:db8:a::64/64 dev eth1 nodad");
        let client = client(&outside);
        let bypass = bypass(&outside, &inside);
        let backends: Vec<_> = (0..REMOTE).map(|number| backend(&inside, number)).collect();
        let pod = Namespace::new("pod");
        cable(&pod, "eth0", &lb, "pod0");
        lb.ip("addr add 10.1.0.1/24 dev pod0
            addr add 2001:db8:b::1/64 dev pod0 nodad");
        pod.ip("addr add 10.1.0.2/24 dev eth0
            addr add 2001:db8:b::2/64 dev eth0 nodad
            route add default via 10.1.0.1
            route add default via 2001:db8:b::1");
        answer_at_all(&pod, POD);
        let this = Self {
            client,
            lb,
            backends,
            pod,
            _bypass: bypass,
            lans: [outside, inside],
        };
        this.route_client(0);
        this.restore_inside();
        this.lb.ip(&format!(
            "route add 10.9.{POD}.0/24 via 10.1.0.2
            route add 2001:db8:9:{POD:x}::/64 via 2001:db8:b::2"
        ));
        this
    }

    /// Sets up what `eth1` lost if it was down.
    pub fn restore_inside(&self) {
        self.lb.ip("addr replace 2001:db8:a::1/64 dev eth1 nodad
            addr replace 2001:db8:a::64/64 dev eth1 nodad");
        for number in 0..REMOTE {
            self.route_backend(number, 0);
        }
    }

    /// Leads the way to the client over one of its devices.
    pub fn route_client(&self, device: usize) {
        let host = client_host(device);
        self.lb.ip(&format!(
            "route replace 203.0.113.0/24 via 198.51.100.{host}
            route replace 2001:db8:203::/64 via 2001:db8:100::{host}"
        ));
    }

    /// Leads the way to a backend over one of its devices.
    pub fn route_backend(&self, number: usize, device: usize) {
        let host = backend_host(number, device);
        self.lb.ip(&format!(
            "route replace 10.9.{number}.0/24 via 10.0.0.{host}
            route replace 2001:db8:9:{number:x}::/64 via 2001:db8:a::{host}"
        ));
    }

    /// An agent for the edge node, with SNAT addresses and in the gateway role; not yet started.
    pub fn node(&self) -> Node<'_> {
        let interfaces = ["--interface", "eth0", "--interface", "eth1"];
        let pods = ["--pod-interface", "pod0"];
        Node::on(&self.lb, interfaces.into_iter().chain(pods))
            .named(NODE)
            .gateway()
            .snat()
    }

    /// Where clients that do not exist send from: 198.18.0.0/16 and `2001:db8:18::/64`, behind `eth2` of the edge
    /// node, whose MAC is [`FLOODED`].
    pub fn flooder(&self) -> Namespace {
        let flooder = Namespace::new("flooder");
        // A queue for each of two processors.
        let queues = ["numtxqueues", "2", "numrxqueues", "2"];
        let mut link = Command::new("ip");
        link.args(["link", "add", "eth0", "netns", flooder.name()]);
        link.args(queues)
            .args(["type", "veth", "peer", "name", "eth2"]);
        succeed(link.args(["netns", self.lb.name()]).args(queues));
        flooder.ip("link set eth0 up");
        self.lb.ip("link set eth2 up");
        flooder.ethtool("eth0", &["gro", "on"]);
        flooder.ip("addr add 198.51.101.2/24 dev eth0
            addr add 2001:db8:180::2/64 dev eth0 nodad");
        self.lb.ip(&format!(
            "link set eth2 address {}
            addr add 198.51.101.1/24 dev eth2
            addr add 2001:db8:180::1/64 dev eth2 nodad
            route add 198.18.0.0/16 via 198.51.101.2
            route add 2001:db8:18::/64 via 2001:db8:180::2",
            FLOODED.map(|byte| format!("{byte:02x}")).join(":")
        ));
        flooder
    }

    /// The switch the backends hang on, and its port towards the edge node.
    pub fn inside_port(&self) -> (&Namespace, &'static str) {
        let [_, inside] = &self.lans;
        (inside.switch(), "p0")
    }

    /// Every namespace that serves.
    pub fn servers(&self) -> Vec<&Namespace> {
        self.backends.iter().chain([&self.pod]).collect()
    }
}

impl Default for Scene {
    fn default() -> Self {
        Self::new()
    }
}

fn client_host(device: usize) -> usize {
    7 + device
}

fn backend_host(number: usize, device: usize) -> usize {
    11 + number + 10 * device
}

fn client(outside: &Lan) -> Namespace {
    let client = Namespace::new("client");
    for device in 0..2 {
        outside.plug(&client, &format!("eth{device}"));
        moves(&client, &format!("eth{device}"));
        let host = client_host(device);
        client.ip(&format!(
            "addr add 198.51.100.{host}/25 dev eth{device}
            addr add 2001:db8:100::{host}/64 dev eth{device} nodad"
        ));
    }
    outside.plug(&client, "eth2");
    client.ip("addr add 198.51.100.131/25 dev eth2
        addr add 2001:db8:101::131/64 dev eth2 nodad
        route add 10.9.0.0/16 via 198.51.100.130
        route add 2001:db8:9::/48 via 2001:db8:101::130
        addr add 203.0.113.7/32 dev lo
        addr add 2001:db8:203::7/128 dev lo nodad
        route add default via 198.51.100.1 src 203.0.113.7
        route add default via 2001:db8:100::1 src 2001:db8:203::7");
    client
}

fn backend(inside: &Lan, number: usize) -> Namespace {
    let backend = Namespace::new(&format!("b{number}"));
    for device in 0..2 {
        inside.plug(&backend, &format!("eth{device}"));
        moves(&backend, &format!("eth{device}"));
        let host = backend_host(number, device);
        backend.ip(&format!(
            "addr add 10.0.0.{host}/24 dev eth{device}
            addr add 2001:db8:a::{host}/64 dev eth{device} nodad"
        ));
    }
    backend.ip("route add default via 10.0.0.1
        route add default via 2001:db8:a::1
        route add 198.51.100.128/25 via 10.0.0.130
        route add 2001:db8:101::/64 via 2001:db8:a::130");
    answer_at_all(&backend, number);
    backend
}

/// A router beside the load balancer.
fn bypass(outside: &Lan, inside: &Lan) -> Namespace {
    let bypass = Namespace::new("bypass");
    bypass.forward();
    outside.plug(&bypass, "eth0");
    inside.plug(&bypass, "eth1");
    bypass.ip("addr add 198.51.100.130/25 dev eth0
        addr add 2001:db8:101::130/64 dev eth0 nodad
        addr add 10.0.0.130/24 dev eth1
        addr add 2001:db8:a::130/64 dev eth1 nodad");
    for number in 0..REMOTE {
        let host = backend_host(number, 0);
        bypass.ip(&format!(
            "route add 10.9.{number}.0/24 via 10.0.0.{host}
            route add 2001:db8:9:{number:x}::/64 via 2001:db8:a::{host}"
        ));
    }
    bypass
}

/// Takes every address of a network for its own.
fn answer_at_all(namespace: &Namespace, network: usize) {
    namespace.ip(&format!(
        "route add local 10.9.{network}.0/24 dev lo
        route add local 2001:db8:9:{network:x}::/64 dev lo"
    ));
}

/// A device that tells its neighbours of a new MAC, as a virtual machine that moved would, and answers for
/// its own addresses only.
fn moves(namespace: &Namespace, device: &str) {
    for (key, value) in [
        ("ipv4/conf/all/rp_filter", "0".to_owned()),
        (&format!("ipv4/conf/{device}/rp_filter"), "0".to_owned()),
        (&format!("ipv4/conf/{device}/arp_ignore"), "1".to_owned()),
        (&format!("ipv4/conf/{device}/arp_announce"), "2".to_owned()),
        (&format!("ipv4/conf/{device}/arp_notify"), "1".to_owned()),
        (&format!("ipv6/conf/{device}/ndisc_notify"), "1".to_owned()),
    ] {
        namespace.sysctl(&format!("net/{key}"), &value);
    }
}
