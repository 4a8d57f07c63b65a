//! Client, load balancer and backend in a row, on cables with a queue for each of two processors.
//!
//! ```text
//!   clients 203.0.113.8-11 ── 198.51.100.7 eth0 ══ eth0 [ LB ] eth1 ══ eth0 10.0.0.11 backend
//! ```
//! IPv6 mirrors it: `2001:db8:203::8` and on, `2001:db8:100::/64`, `2001:db8:a::/64`.

use std::process::Command;

use crate::netns::{Namespace, succeed, world::World};

/// MACs: of the client, of both devices of the load balancer, of the backend.
pub const MACS: [[u8; 6]; 4] = [
    [2, 0, 0, 0, 0x57, 1],
    [2, 0, 0, 0, 0x57, 2],
    [2, 0, 0, 0, 0x57, 3],
    [2, 0, 0, 0, 0x57, 4],
];

/// SNAT addresses of each family; so many flows fit the ports of one as of one client.
pub const SNAT: [[&str; 4]; 2] = [
    ["10.0.0.100", "10.0.0.101", "10.0.0.102", "10.0.0.103"],
    [
        "2001:db8:a::64",
        "2001:db8:a::65",
        "2001:db8:a::66",
        "2001:db8:a::67",
    ],
];

/// Builds it. The load balancer takes what is redirected to it also where it has no XDP program.
pub fn line() -> World {
    let [client, lb, backend] = ["client", "lb", "backend"].map(Namespace::new);
    lb.forward();
    let [from, outside, inside, to] = MACS;
    cable([(&client, "eth0", from), (&lb, "eth0", outside)]);
    cable([(&lb, "eth1", inside), (&backend, "eth0", to)]);
    for device in ["eth0", "eth1"] {
        // A veth device takes redirected frames only if it polls: with GRO, or an XDP program.
        lb.ethtool(device, &["gro", "on"]);
    }
    client.ip("addr add 198.51.100.7/24 dev eth0
        addr add 2001:db8:100::7/64 dev eth0 nodad
        route add default via 198.51.100.1
        route add default via 2001:db8:100::1");
    lb.ip("addr add 198.51.100.1/24 dev eth0
        addr add 2001:db8:100::1/64 dev eth0 nodad
        route add 203.0.113.0/24 via 198.51.100.7
        route add 2001:db8:203::/64 via 2001:db8:100::7
        addr add 10.0.0.1/24 dev eth1
        addr add 2001:db8:a::1/64 dev eth1 nodad");
    for (addresses, length) in SNAT.into_iter().zip(["24", "64 nodad"]) {
        for address in addresses {
            let (length, nodad) = length.split_once(' ').unwrap_or((length, ""));
            lb.ip(&format!("addr add {address}/{length} dev eth1 {nodad}"));
        }
    }
    backend.ip("addr add 10.0.0.11/24 dev eth0
        addr add 2001:db8:a::11/64 dev eth0 nodad
        route add default via 10.0.0.1
        route add default via 2001:db8:a::1");
    World {
        client,
        lb,
        backends: vec![backend],
        routers: Vec::new(),
        lans: Vec::new(),
        interfaces: vec!["eth0", "eth1"],
    }
}

fn cable(ends: [(&Namespace, &str, [u8; 6]); 2]) {
    let queues = ["numtxqueues", "2", "numrxqueues", "2"];
    let mut link = Command::new("ip");
    link.args(["link", "add"]);
    for (number, (namespace, device, mac)) in ends.into_iter().enumerate() {
        if number > 0 {
            link.args(["type", "veth", "peer"]);
        }
        let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
        link.args(["name", device, "netns", namespace.name()]);
        link.args(["address", &mac]).args(queues);
    }
    succeed(&mut link);
    for (namespace, device, _) in ends {
        namespace.ip(&format!("link set {device} up"));
    }
}
