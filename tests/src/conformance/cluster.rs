//! Two nodes with pods, a router and an outside client, in network namespaces.
//!
//! ```text
//!              outside (clients .7 .8: by way of node A, .107 .108: by way of node B)
//!                 │ 203.0.113.0/24  2001:db8:203::/64
//!              router
//!                 │ 10.0.0.0/24  2001:db8:a::/64
//!        ┌────────┴────────┐
//!     node A .10        node B .20          one device to the network, one to each pod
//!     │   │   │         │   │   │
//!     a1  a2  a3        b1  b2  b3          10.244.N.1x/32  2001:db8:f4:N::1x/128
//! ```
//! The router sends everything it has no route for, so every VIP, to the node of the client's address.
//! Pods reach pods by the nodes' routes. Only the switch's ports towards the nodes are tuned.

use std::{
    collections::BTreeMap,
    net::{IpAddr, TcpListener, UdpSocket},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use super::probe::Client;
use crate::netns::{
    Namespace, poll_until,
    server::{Server, http, udp_whoami},
    succeed,
    world::{Lan, cable},
};

/// How long a change may take to be in the tables, on a busy machine.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// One of the two nodes.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Side {
    /// Node A.
    A,
    /// Node B.
    B,
}

impl Side {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::A, Self::B];

    pub(super) const fn number(self) -> u8 {
        match self {
            Self::A => 1,
            Self::B => 2,
        }
    }

    pub(super) const fn letter(self) -> char {
        match self {
            Self::A => 'a',
            Self::B => 'b',
        }
    }

    /// Name of the Node object.
    pub const fn name(self) -> &'static str {
        match self {
            Self::A => "node-a",
            Self::B => "node-b",
        }
    }

    /// The zone its node is in at first.
    pub const fn zone(self) -> &'static str {
        match self {
            Self::A => "zone-a",
            Self::B => "zone-b",
        }
    }

    /// Primary address of the node.
    pub fn address(self, v4: bool) -> IpAddr {
        Self::on_lan(v4, u16::from(self.number()) * 10)
    }

    /// The address it masquerades with.
    pub fn snat_address(self, v4: bool) -> IpAddr {
        Self::on_lan(v4, 100 + u16::from(self.number()) * 10)
    }

    /// Another address of the node, in a network of its own.
    pub fn second_address(self, v4: bool) -> IpAddr {
        let number = self.number();
        let text = if v4 {
            format!("10.0.{number}.1")
        } else {
            format!("2001:db8:b:{number}::1")
        };
        text.parse().expect("an address")
    }

    fn on_lan(v4: bool, host: u16) -> IpAddr {
        let text = if v4 {
            format!("10.0.0.{host}")
        } else {
            format!("2001:db8:a::{host}")
        };
        text.parse().expect("an address")
    }

    pub(super) const fn index(self) -> usize {
        match self {
            Self::A => 0,
            Self::B => 1,
        }
    }

    /// The node of a pod such as `a1`, or of the host `node-a`.
    pub fn of(name: &str) -> Self {
        if name == Self::A.name() || name.starts_with('a') {
            Self::A
        } else {
            Self::B
        }
    }
}

/// Address and node of a pod or, for a host-network endpoint, of a node.
pub fn endpoint_address(name: &str, v4: bool) -> (IpAddr, Side) {
    let side = Side::of(name);
    if name == side.name() {
        return (side.address(v4), side);
    }
    let pod: u8 = name
        .get(1..)
        .and_then(|number| number.parse().ok())
        .unwrap_or_else(|| panic!("{name} is no pod"));
    let number = side.number();
    let text = if v4 {
        format!("10.244.{number}.1{pod}")
    } else {
        format!("2001:db8:f4:{number}::1{pod}")
    };
    (text.parse().expect("an address"), side)
}

/// The pods' gateway and its Ethernet address.
const GATEWAY: &str = "169.254.1.1";
const GATEWAY_MAC: &str = "ee:ee:ee:ee:ee:ee";

/// Pods of each node.
pub(super) const PODS: [&str; 3] = ["1", "2", "3"];

/// The namespaces, and servers in every pod: HTTP and UDP on port 8080.
#[derive(Debug)]
pub struct Cluster {
    outside: Namespace,
    router: Namespace,
    nodes: [Namespace; 2],
    pods: BTreeMap<String, Namespace>,
    servers: Mutex<BTreeMap<(String, u16), [Server; 2]>>,
    _lan: Lan,
}

impl Cluster {
    /// Builds it.
    pub fn new() -> Self {
        let lan = Lan::new("lan");
        let (outside, router) = (Namespace::new("outside"), Namespace::new("router"));
        let nodes = Side::BOTH.map(|side| Namespace::new(side.name()));
        router.forward();
        cable(&outside, "eth0", &router, "eth0");
        lan.plug(&router, "eth1");
        address_outside(&outside, &router);
        let mut pods = BTreeMap::new();
        for (side, node) in Side::BOTH.into_iter().zip(&nodes) {
            lan.plug_xdp(node, "eth0");
            address_node(node, side);
            for number in PODS {
                let name = format!("{}{number}", side.letter());
                let pod = Namespace::new(&name);
                address_pod(&pod, node, &name);
                pods.insert(name, pod);
            }
        }
        route_through(&router);
        let this = Self {
            outside,
            router,
            nodes,
            pods,
            servers: Mutex::default(),
            _lan: lan,
        };
        for name in this.pods.keys() {
            this.serve(name, 8080);
        }
        this
    }

    /// Serves HTTP and UDP on one more port of a pod or a node.
    pub fn serve(&self, name: &str, port: u16) {
        let namespace = self.namespace(name);
        self.servers()
            .entry((name.to_owned(), port))
            .or_insert_with(|| {
                [
                    http(namespace, name, port),
                    udp_whoami(namespace, name, port),
                ]
            });
    }

    /// Ends the servers of a port; nobody listens there any more.
    pub fn silence(&self, name: &str, port: u16) {
        self.servers().remove(&(name.to_owned(), port));
        poll_until("the servers to end", PATIENCE, || {
            let free = self.namespace(name).inside(|| {
                let any = (std::net::Ipv6Addr::UNSPECIFIED, port);
                let (tcp, udp) = (TcpListener::bind(any), UdpSocket::bind(any));
                tcp.is_ok() && udp.is_ok()
            });
            free.then_some(())
        });
    }

    fn servers(&self) -> std::sync::MutexGuard<'_, BTreeMap<(String, u16), [Server; 2]>> {
        self.servers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The namespace of a pod, of a node, of the `router` or `outside`.
    pub fn namespace(&self, name: &str) -> &Namespace {
        match name {
            "outside" => &self.outside,
            "router" => &self.router,
            "node-a" | "node-b" => self.node(Side::of(name)),
            pod => self.pods.get(pod).unwrap_or_else(|| panic!("no pod {pod}")),
        }
    }

    /// The namespace of a node.
    pub fn node(&self, side: Side) -> &Namespace {
        let [a, b] = &self.nodes;
        match side {
            Side::A => a,
            Side::B => b,
        }
    }

    /// A client in a pod.
    pub fn pod(&self, name: &str) -> Client<'_> {
        let addresses = [true, false].map(|v4| endpoint_address(name, v4).0);
        Client::new(name, self.namespace(name), addresses, Side::of(name))
    }

    /// A process of a node, of interest only where its packets reach the other node.
    pub fn host(&self, side: Side) -> Client<'_> {
        let addresses = [true, false].map(|v4| side.address(v4));
        Client::new(side.name(), self.node(side), addresses, side)
    }

    /// A client outside whose packets to VIPs come to the node.
    pub fn outside(&self, side: Side) -> Client<'_> {
        self.outsider(side, 7)
    }

    /// The same with another address.
    pub fn stranger(&self, side: Side) -> Client<'_> {
        self.outsider(side, 8)
    }

    fn outsider(&self, side: Side, host: u8) -> Client<'_> {
        let addresses = outside_addresses(side, host);
        let addresses = addresses.map(|text| text.parse().expect("an address"));
        let name = format!("outside {host} by way of {}", side.name());
        Client::new(&name, &self.outside, addresses, side)
    }
}

impl Default for Cluster {
    fn default() -> Self {
        Self::new()
    }
}

fn outside_addresses(side: Side, host: u8) -> [String; 2] {
    match side {
        Side::A => [format!("203.0.113.{host}"), format!("2001:db8:203::{host}")],
        Side::B => [
            format!("203.0.113.{}", 100 + host),
            format!("2001:db8:203::b:{host}"),
        ],
    }
}

fn address_outside(outside: &Namespace, router: &Namespace) {
    for side in Side::BOTH {
        for host in [7, 8] {
            let [v4, v6] = outside_addresses(side, host);
            outside.ip(&format!(
                "addr add {v4}/24 dev eth0\naddr add {v6}/64 dev eth0 nodad"
            ));
        }
    }
    outside.ip("route add default via 203.0.113.1\nroute add default via 2001:db8:203::1");
    router.ip("addr add 203.0.113.1/24 dev eth0
        addr add 2001:db8:203::1/64 dev eth0 nodad
        addr add 10.0.0.1/24 dev eth1
        addr add 2001:db8:a::1/64 dev eth1 nodad");
}

fn address_node(node: &Namespace, side: Side) {
    node.forward();
    for device in ["all", "eth0"] {
        node.sysctl(&format!("net/ipv4/conf/{device}/send_redirects"), "0");
    }
    let [snat4, snat6] = [side.snat_address(true), side.snat_address(false)];
    let [second4, second6] = [side.second_address(true), side.second_address(false)];
    // Deprecated addresses are nobody's source unless he asks for them.
    node.ip(&format!(
        "addr add {}/24 dev eth0
        addr add {}/64 dev eth0 nodad
        addr add {snat4}/24 dev eth0
        addr add {snat6}/64 dev eth0 nodad preferred_lft 0
        addr add {second4}/32 dev eth0
        addr add {second6}/128 dev eth0 nodad preferred_lft 0",
        side.address(true),
        side.address(false),
    ));
    let other = if side == Side::A { Side::B } else { Side::A };
    let (other4, other6, number) = (other.address(true), other.address(false), other.number());
    let [far4, far6] = [other.second_address(true), other.second_address(false)];
    node.ip(&format!(
        "route add 203.0.113.0/24 via 10.0.0.1
        route add 2001:db8:203::/64 via 2001:db8:a::1
        route add 10.244.{number}.0/24 via {other4}
        route add 2001:db8:f4:{number}::/64 via {other6}
        route add {far4}/32 via {other4}
        route add {far6}/128 via {other6}"
    ));
}

fn address_pod(pod: &Namespace, node: &Namespace, name: &str) {
    let [v4, v6] = [true, false].map(|v4| endpoint_address(name, v4).0);
    let device = format!("pod-{name}");
    cable(pod, "eth0", node, &device);
    // The node's end has no address, as some networks have it: nobody answers for the gateway.
    pod.ip(&format!(
        "addr add {v4}/32 dev eth0
        addr add {v6}/128 dev eth0 nodad
        neigh add {GATEWAY} lladdr {GATEWAY_MAC} dev eth0
        route add {GATEWAY} dev eth0
        route add default via {GATEWAY}
        route add default via fe80::1 dev eth0"
    ));
    node.ip(&format!(
        "link set {device} address {GATEWAY_MAC}
        addr add fe80::1/64 dev {device} nodad
        route add {v4}/32 dev {device}
        route add {v6}/128 dev {device}"
    ));
}

/// Routes of the router: one table for each way to the VIPs.
fn route_through(router: &Namespace) {
    for (table, side) in [("100", Side::B), ("main", Side::A)] {
        router.ip(&format!(
            "route add default via {} table {table}
            route add default via {} table {table}",
            side.address(true),
            side.address(false),
        ));
        if table != "main" {
            router.ip(&format!(
                "route add 10.0.0.0/24 dev eth1 table {table}
                route add 2001:db8:a::/64 dev eth1 table {table}
                route add 203.0.113.0/24 dev eth0 table {table}
                route add 2001:db8:203::/64 dev eth0 table {table}"
            ));
        }
        for side in Side::BOTH {
            let (number, v4, v6) = (side.number(), side.address(true), side.address(false));
            let [second4, second6] = [true, false].map(|v4| side.second_address(v4));
            router.ip(&format!(
                "route add 10.244.{number}.0/24 via {v4} table {table}
                route add 2001:db8:f4:{number}::/64 via {v6} table {table}
                route add {second4}/32 via {v4} table {table}
                route add {second6}/128 via {v6} table {table}"
            ));
        }
    }
    for (family, network) in [("-4", "203.0.113.64/26"), ("-6", "2001:db8:203::b:0/112")] {
        let mut command = std::process::Command::new("ip");
        let rule = ["rule", "add", "from", network, "lookup", "100"];
        succeed(command.args([family, "-n", router.name()]).args(rule));
    }
}
