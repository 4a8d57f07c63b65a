//! Two nodes with pods, a router and an outside client, in network namespaces; and the agents on the
//! nodes, fed with files.
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
    path::PathBuf,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use lb_common::{
    addr::{Addr4, Be16},
    names,
    service::{Frontend, FrontendKey4},
};
use serde_json::{Value, json};

use super::{objects::Service, probe::Client};
use crate::netns::{
    Namespace,
    agent::Node,
    poll_until,
    server::{Server, http, udp_whoami},
    succeed,
    world::{Lan, cable},
};

/// How long a change may take to be in the tables, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

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

    const fn number(self) -> u8 {
        match self {
            Self::A => 1,
            Self::B => 2,
        }
    }

    const fn letter(self) -> char {
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

    const fn index(self) -> usize {
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
const PODS: [&str; 3] = ["1", "2", "3"];

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

/// The agents of both nodes and the objects they are given.
#[derive(Debug)]
pub struct Agents<'c> {
    nodes: [Node<'c>; 2],
    objects: Mutex<Objects>,
}

#[derive(Debug, Default)]
struct Objects {
    /// By name: Services with their slices, and others.
    all: BTreeMap<String, Vec<Value>>,
    revision: u16,
}

impl<'c> Agents<'c> {
    /// Agents with the tier's configuration, not yet started.
    pub fn new(cluster: &'c Cluster) -> Self {
        let nodes = Side::BOTH.map(|side| {
            let pods: Vec<String> = PODS
                .iter()
                .map(|number| format!("pod-{}{number}", side.letter()))
                .collect();
            let mut node = Node::on(cluster.node(side), ["--interface", "eth0"]);
            for pod in pods {
                node = node.with("--pod-interface").with(&pod);
            }
            for v4 in [true, false] {
                node = node.with(&format!("--snat-address={}", side.snat_address(v4)));
            }
            node = node.named(side.name());
            node.configure(&configuration(side));
            node
        });
        let this = Self {
            nodes,
            objects: Mutex::default(),
        };
        this.begin();
        this
    }

    /// The objects there are before any Service.
    fn begin(&self) {
        self.objects().all.clear();
        for side in Side::BOTH {
            self.label(side, side.zone());
        }
        self.object(
            "networks",
            vec![json!({
                "apiVersion": "networking.k8s.io/v1",
                "kind": "ServiceCIDR",
                "metadata": {"name": "kubernetes"},
                "spec": {"cidrs": ["10.96.0.0/16", "2001:db8:96::/112"]},
            })],
        );
    }

    /// Removes every object of a scenario and waits.
    pub fn clear(&self) {
        self.begin();
        self.sync();
    }

    /// Adds lines to the configuration of a node's agents to come.
    pub fn configure(&self, side: Side, more: &str) {
        self.node(side).configure(&(configuration(side) + more));
    }

    /// Starts both agents with the objects there are.
    #[must_use]
    pub fn start(mut self) -> Self {
        let text = self.text();
        for node in &mut self.nodes {
            node.manifest("all.json", &text);
            node.spawn();
        }
        for node in &mut self.nodes {
            node.wait_attached();
        }
        self.sync();
        self
    }

    /// A node's agent.
    pub fn node(&self, side: Side) -> &Node<'c> {
        let [a, b] = &self.nodes;
        match side {
            Side::A => a,
            Side::B => b,
        }
    }

    /// A node's agent, to start or stop it.
    pub fn node_mut(&mut self, side: Side) -> &mut Node<'c> {
        self.nodes
            .get_mut(side.index())
            .unwrap_or_else(|| unreachable!("two nodes"))
    }

    fn objects(&self) -> std::sync::MutexGuard<'_, Objects> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes any objects under a name; they take effect with [`Self::sync`].
    pub fn object(&self, name: &str, objects: Vec<Value>) {
        self.objects().all.insert(name.to_owned(), objects);
    }

    /// Gives a node's object a zone; none if it is empty.
    pub fn label(&self, side: Side, zone: &str) {
        let number = side.number();
        let labels = if zone.is_empty() {
            json!({})
        } else {
            json!({"topology.kubernetes.io/zone": zone})
        };
        let networks = [
            format!("10.244.{number}.0/24"),
            format!("2001:db8:f4:{number}::/64"),
        ];
        let node = json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": side.name(), "labels": labels},
            "spec": {"podCIDRs": networks},
            "status": {"addresses": [{"type": "InternalIP", "address": side.address(true)}]},
        });
        self.object(side.name(), vec![node]);
    }

    /// Writes Services and waits until both nodes serve exactly what they say.
    pub fn put(&self, services: &[&Service]) {
        for service in services {
            self.object(&service.name, service.objects());
        }
        self.sync();
    }

    /// Removes Services and waits.
    pub fn delete(&self, names: &[&str]) {
        for name in names {
            let gone = self.objects().all.remove(*name);
            assert!(gone.is_some(), "there is no {name}");
        }
        self.sync();
    }

    /// Waits until both nodes serve what the objects say.
    ///
    /// A Service of the rig's own gets another port twice: an agent applies one plan after the other,
    /// so when the second port is there the first plan is complete.
    pub fn sync(&self) {
        for _ in 0..2 {
            self.objects().revision += 1;
            let text = self.text();
            for node in &self.nodes {
                node.manifest("all.json", &text);
            }
            let port = self.objects().revision;
            for node in &self.nodes {
                poll_until("the objects to be in the tables", PATIENCE, || {
                    knows(node, port).then_some(())
                });
            }
        }
    }

    fn text(&self) -> String {
        let objects = self.objects();
        let mut lines: Vec<String> = objects
            .all
            .values()
            .flatten()
            .map(Value::to_string)
            .collect();
        let sync = json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "sync", "namespace": "rig"},
            "spec": {
                "type": "LoadBalancer",
                "ipFamilies": ["IPv4"],
                "ports": [{"port": objects.revision.max(1), "protocol": "UDP"}],
            },
            "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.254"}]}},
        });
        lines.push(sync.to_string());
        lines.join("\n")
    }

    /// The directory an agent reads.
    pub fn directory(&self, side: Side) -> PathBuf {
        self.node(side).manifests()
    }
}

impl Side {
    /// The zone its node is in at first.
    pub const fn zone(self) -> &'static str {
        match self {
            Self::A => "zone-a",
            Self::B => "zone-b",
        }
    }
}

fn knows(node: &Node<'_>, port: u16) -> bool {
    let key = FrontendKey4 {
        address: Addr4::from(std::net::Ipv4Addr::new(192, 0, 2, 254)),
        port: Be16::new(port),
        protocol: 17,
    };
    let frontends = node.map(names::FRONTENDS_V4);
    frontends.is_some_and(|map| matches!(map.lookup::<_, Frontend>(&key), Ok(Some(_))))
}

/// The agents' file: small tables, for several agents share the machine; yet closed flows rest for a
/// minute, and thousands are made in one.
fn configuration(side: Side) -> String {
    let (v4, v6) = (side.address(true), side.address(false));
    format!(
        "tables: {{flowsV4: 65536, flowsV6: 65536, embryonicV4: 16384, embryonicV6: 16384}}
podNetworks: [10.244.0.0/16, 2001:db8:f4::/48]
externalIPs: true
healthCheckNodePorts: on
healthAddress: [\"{v4}:10356\", \"[{v6}]:10356\"]
metricsAddress: \"{v4}:10350\"
"
    )
}
