//! The topologies of the namespace tests. Clients and backends keep their devices' defaults: they
//! hang on bridges, and only the bridge port that faces the load balancer is tuned, as native XDP
//! on veth needs it (full checksums towards XDP, NAPI for what XDP sends).

use std::sync::atomic::{AtomicU32, Ordering};

use super::{Namespace, succeed};

/// A bridge in a namespace of its own.
#[derive(Debug)]
pub struct Lan {
    switch: Namespace,
    ports: AtomicU32,
}

impl Lan {
    /// An empty bridge.
    pub fn new(role: &str) -> Self {
        let switch = Namespace::new(role);
        switch.sysctl("net/ipv6/conf/all/disable_ipv6", "1");
        switch.ip("link add br0 type bridge forward_delay 0 mcast_snooping 0\nlink set br0 up");
        Self {
            switch,
            ports: AtomicU32::new(0),
        }
    }

    /// Plugs a device of `namespace` in; both ends keep their offloads.
    pub fn plug(&self, namespace: &Namespace, device: &str) -> String {
        let number = self.ports.fetch_add(1, Ordering::Relaxed);
        let port = format!("p{number}");
        succeed(std::process::Command::new("ip").args([
            "link",
            "add",
            device,
            "netns",
            namespace.name(),
            "type",
            "veth",
            "peer",
            "name",
            &port,
            "netns",
            self.switch.name(),
        ]));
        self.switch.ip(&format!("link set {port} master br0 up"));
        namespace.ip(&format!("link set {device} up"));
        port
    }

    /// Plugs the load balancer in: the port is tuned for native XDP behind it.
    pub fn plug_xdp(&self, namespace: &Namespace, device: &str) {
        let port = self.plug(namespace, device);
        self.switch.ethtool(&port, &["tx", "off", "gro", "on"]);
    }

    /// The bridge's namespace.
    pub fn switch(&self) -> &Namespace {
        &self.switch
    }
}

/// A cable without a switch: both ends keep their offloads.
pub fn cable(left: &Namespace, left_device: &str, right: &Namespace, right_device: &str) {
    succeed(std::process::Command::new("ip").args([
        "link",
        "add",
        left_device,
        "netns",
        left.name(),
        "type",
        "veth",
        "peer",
        "name",
        right_device,
        "netns",
        right.name(),
    ]));
    left.ip(&format!("link set {left_device} up"));
    right.ip(&format!("link set {right_device} up"));
}

/// Client, load balancer and backends, with what connects them.
#[derive(Debug)]
pub struct World {
    /// The client: 198.51.100.7, `2001:db8:100::7`, device `eth0`.
    pub client: Namespace,
    /// The load balancer.
    pub lb: Namespace,
    /// The backends: 10.0.0.11 and `2001:db8:a::11` and on, device `eth0`.
    pub backends: Vec<Namespace>,
    /// Routers, if any.
    pub routers: Vec<Namespace>,
    /// The bridges.
    pub lans: Vec<Lan>,
    /// The devices the agent takes.
    pub interfaces: Vec<&'static str>,
}

/// The VIPs of every test.
pub const VIP4: &str = "192.0.2.1";
/// The VIPs of every test.
pub const VIP6: &str = "2001:db8::1";

/// Both VIPs with a port, as socket addresses.
pub fn vips(port: u16) -> [String; 2] {
    [format!("{VIP4}:{port}"), format!("[{VIP6}]:{port}")]
}

/// IPv4 address of a backend.
pub fn backend4(number: usize) -> String {
    format!("10.0.0.{}", 11 + number)
}

/// IPv6 address of a backend.
pub fn backend6(number: usize) -> String {
    format!("2001:db8:a::{}", 11 + number)
}

fn client() -> Namespace {
    Namespace::new("client")
}

fn address_client(client: &Namespace) {
    client.ip("addr add 198.51.100.7/24 dev eth0
        addr add 2001:db8:100::7/64 dev eth0 nodad
        route add default via 198.51.100.1
        route add default via 2001:db8:100::1");
}

fn address_backend(backend: &Namespace, number: usize, gateway: bool) {
    let (v4, v6) = (backend4(number), backend6(number));
    backend.ip(&format!(
        "addr add {v4}/24 dev eth0\naddr add {v6}/64 dev eth0 nodad"
    ));
    if gateway {
        backend.ip("route add default via 10.0.0.1\nroute add default via 2001:db8:a::1");
    }
}

fn balancer() -> Namespace {
    let lb = Namespace::new("lb");
    lb.forward();
    lb
}

impl World {
    /// The client downloads `bytes` bytes from an HTTP endpoint by curl, and all of them arrive.
    pub fn fetch(&self, endpoint: &str, bytes: u64) {
        let url = format!("http://{endpoint}/bytes/{bytes}");
        let size = self.client.run(
            "curl",
            [
                "-sS",
                "--max-time",
                "20",
                "-o",
                "/dev/null",
                "-w",
                "%{size_download}",
                &url,
            ],
        );
        assert_eq!(size, bytes.to_string(), "{url}");
    }

    /// One device, everything on one bridge: replies come back only because the source was
    /// replaced (`full-nat`).
    pub fn one_armed(backends: usize) -> Self {
        let (lan, client, lb) = (Lan::new("lan"), client(), balancer());
        lan.plug(&client, "eth0");
        address_client(&client);
        lan.plug_xdp(&lb, "eth0");
        lb.ip("addr add 198.51.100.1/24 dev eth0
            addr add 10.0.0.1/24 dev eth0
            addr add 10.0.0.100/24 dev eth0
            addr add 2001:db8:100::1/64 dev eth0 nodad
            addr add 2001:db8:a::1/64 dev eth0 nodad
            addr add 2001:db8:a::64/64 dev eth0 nodad");
        lb.sysctl("net/ipv4/conf/all/send_redirects", "0");
        lb.sysctl("net/ipv4/conf/eth0/send_redirects", "0");
        let backends = (0..backends)
            .map(|number| {
                let backend = Namespace::new(&format!("b{number}"));
                lan.plug(&backend, "eth0");
                address_backend(&backend, number, false);
                backend
            })
            .collect();
        let interfaces = vec!["eth0"];
        Self {
            client,
            lb,
            backends,
            routers: Vec::new(),
            lans: vec![lan],
            interfaces,
        }
    }

    /// Two devices on two bridges; the backends' way to the client leads through the load balancer.
    pub fn two_armed(backends: usize) -> Self {
        let (outside, inside) = (Lan::new("outside"), Lan::new("inside"));
        let (client, lb) = (client(), balancer());
        outside.plug(&client, "eth0");
        address_client(&client);
        outside.plug_xdp(&lb, "eth0");
        inside.plug_xdp(&lb, "eth1");
        address_two_armed(&lb);
        let backends = (0..backends)
            .map(|number| {
                let backend = Namespace::new(&format!("b{number}"));
                inside.plug(&backend, "eth0");
                address_backend(&backend, number, true);
                backend
            })
            .collect();
        let (lans, interfaces) = (vec![outside, inside], vec!["eth0", "eth1"]);
        Self {
            client,
            lb,
            backends,
            routers: Vec::new(),
            lans,
            interfaces,
        }
    }

    /// The backends are pods of the load balancer's own node, one veth each (`pod0`, ...). The
    /// client hangs on a cable. All offloads are at their defaults.
    pub fn local_pod() -> Self {
        let (client, lb, pod) = (client(), balancer(), Namespace::new("pod"));
        cable(&client, "eth0", &lb, "eth0");
        address_client(&client);
        lb.ip("addr add 198.51.100.1/24 dev eth0
            addr add 2001:db8:100::1/64 dev eth0 nodad");
        cable(&pod, "eth0", &lb, "pod0");
        lb.ip("addr add 10.0.0.1/24 dev pod0
            addr add 2001:db8:a::1/64 dev pod0 nodad");
        address_backend(&pod, 0, true);
        let (backends, interfaces) = (vec![pod], vec!["eth0", "pod0"]);
        Self {
            client,
            lb,
            backends,
            routers: Vec::new(),
            lans: Vec::new(),
            interfaces,
        }
    }

    /// As [`World::two_armed`] with one backend, and a router on either side that forwards no packet
    /// longer than 1300 bytes away from the load balancer. Neither client nor backend knows: their
    /// own devices have an MTU of 1500. The client is 203.0.113.7, the backend 10.9.0.11.
    pub fn narrow() -> Self {
        let (outside, inside) = (Lan::new("outside"), Lan::new("inside"));
        let (client, lb) = (client(), balancer());
        let (near, far) = (Namespace::new("near"), Namespace::new("far"));
        near.forward();
        far.forward();
        outside.plug(&near, "eth1");
        outside.plug_xdp(&lb, "eth0");
        inside.plug_xdp(&lb, "eth1");
        inside.plug(&far, "eth0");
        address_two_armed(&lb);
        cable(&client, "eth0", &near, "eth0");
        client.ip("addr add 203.0.113.7/24 dev eth0
            addr add 2001:db8:203::7/64 dev eth0 nodad
            route add default via 203.0.113.1
            route add default via 2001:db8:203::1");
        near.ip("addr add 203.0.113.1/24 dev eth0
            addr add 2001:db8:203::1/64 dev eth0 nodad
            addr add 198.51.100.8/24 dev eth1
            addr add 2001:db8:100::8/64 dev eth1 nodad
            route add default via 198.51.100.1
            route add default via 2001:db8:100::1
            route add 203.0.113.7/32 dev eth0 mtu lock 1300
            route add 2001:db8:203::7/128 dev eth0 mtu lock 1300");
        let backend = Namespace::new("b0");
        cable(&backend, "eth0", &far, "eth1");
        backend.ip("addr add 10.9.0.11/24 dev eth0
            addr add 2001:db8:9::11/64 dev eth0 nodad
            route add default via 10.9.0.1
            route add default via 2001:db8:9::1");
        far.ip("addr add 10.0.0.8/24 dev eth0
            addr add 2001:db8:a::8/64 dev eth0 nodad
            addr add 10.9.0.1/24 dev eth1
            addr add 2001:db8:9::1/64 dev eth1 nodad
            route add default via 10.0.0.1
            route add default via 2001:db8:a::1
            route add 10.9.0.11/32 dev eth1 mtu lock 1300
            route add 2001:db8:9::11/128 dev eth1 mtu lock 1300");
        lb.ip("route add 203.0.113.0/24 via 198.51.100.8
            route add 2001:db8:203::/64 via 2001:db8:100::8
            route add 10.9.0.0/24 via 10.0.0.8
            route add 2001:db8:9::/64 via 2001:db8:a::8");
        Self {
            client,
            lb,
            backends: vec![backend],
            routers: vec![near, far],
            lans: vec![outside, inside],
            interfaces: vec!["eth0", "eth1"],
        }
    }

    /// As [`World::two_armed`], with one backend and two routers between the load balancer and the
    /// client 203.0.113.7. The way to the client leads through the first (198.51.100.8), the way
    /// back too; the second is 198.51.100.9.
    pub fn two_routers() -> Self {
        let (outside, inside, far) = (Lan::new("outside"), Lan::new("inside"), Lan::new("far"));
        let (client, lb, backend) = (client(), balancer(), Namespace::new("b0"));
        outside.plug_xdp(&lb, "eth0");
        inside.plug_xdp(&lb, "eth1");
        inside.plug(&backend, "eth0");
        far.plug(&client, "eth0");
        address_two_armed(&lb);
        address_backend(&backend, 0, true);
        client.ip("addr add 203.0.113.7/24 dev eth0
            addr add 2001:db8:203::7/64 dev eth0 nodad
            route add default via 203.0.113.8
            route add default via 2001:db8:203::8");
        let routers = [8, 9].map(|host| {
            let router = Namespace::new("router");
            router.forward();
            outside.plug(&router, "eth0");
            far.plug(&router, "eth1");
            router.ip(&format!(
                "addr add 198.51.100.{host}/24 dev eth0
                addr add 2001:db8:100::{host}/64 dev eth0 nodad
                addr add 203.0.113.{host}/24 dev eth1
                addr add 2001:db8:203::{host}/64 dev eth1 nodad
                route add default via 198.51.100.1
                route add default via 2001:db8:100::1"
            ));
            router
        });
        lb.ip("route add 203.0.113.0/24 via 198.51.100.8
            route add 2001:db8:203::/64 via 2001:db8:100::8");
        Self {
            client,
            lb,
            backends: vec![backend],
            routers: routers.into(),
            lans: vec![outside, inside, far],
            interfaces: vec!["eth0", "eth1"],
        }
    }

    /// The only backend, or the first.
    pub fn backend(&self) -> &Namespace {
        self.backends.first().expect("a backend")
    }
}

fn address_two_armed(lb: &Namespace) {
    lb.ip("addr add 198.51.100.1/24 dev eth0
        addr add 2001:db8:100::1/64 dev eth0 nodad
        addr add 10.0.0.1/24 dev eth1
        addr add 10.0.0.100/24 dev eth1
        addr add 2001:db8:a::1/64 dev eth1 nodad
        addr add 2001:db8:a::64/64 dev eth1 nodad");
}
