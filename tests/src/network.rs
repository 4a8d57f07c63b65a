//! The network of the packet tests: one namespace, entered by the test's own thread, in which
//! devices, routes and neighbours are fixed, so that every expected frame is known in advance.
//!
//! ```text
//!   client 198.51.100.7 ──┐                       ┌── backends 10.0.0.5-7
//!   router 198.51.100.254 ┴── lb0 ──[ LB ]── lb1 ─┘
//!                                    ├────── pod0 ──── pods 10.1.0.5-7      (this node's)
//!                                    └────── slim0 ─── backends 10.2.0.5-7  (MTU 1300)
//! ```
//! IPv6 mirrors it: `2001:db8:100::/64` outside, `2001:db8:a::/64`, `2001:db8:b::/64`,
//! `2001:db8:c::/64` behind lb1, pod0 and slim0.

use std::{
    any::Any,
    fmt::Write as _,
    io::Write as _,
    process::Stdio,
    sync::{
        Mutex, OnceLock, PoisonError,
        mpsc::{Sender, channel},
    },
};

use nix::sched::{CloneFlags, unshare};

use crate::{packet::Mac, require};

/// A device of the load balancer in the test network.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Port {
    /// Name.
    pub name: &'static str,
    /// Interface index.
    pub ifindex: u32,
    /// Its MAC.
    pub mac: Mac,
    /// MTU.
    pub mtu: u32,
    /// Index into `DEVICES`.
    pub index: u16,
    /// IPv4 address and subnet part: `10.0.0` stands for `10.0.0.1/24`.
    v4: &'static str,
    /// The same for IPv6: `2001:db8:a` stands for `2001:db8:a::1/64`.
    v6: &'static str,
}

/// Where the clients are.
pub const OUTSIDE: Port = Port {
    name: "lb0",
    ifindex: 10,
    mac: [2, 0, 0, 0, 0, 1],
    mtu: 1500,
    index: 1,
    v4: "198.51.100",
    v6: "2001:db8:100",
};

/// Where the backends are.
pub const INSIDE: Port = Port {
    name: "lb1",
    ifindex: 20,
    mac: [2, 0, 0, 0, 0, 2],
    mtu: 1500,
    index: 2,
    v4: "10.0.0",
    v6: "2001:db8:a",
};

/// Where this node's pods are. XDP may not redirect to it.
pub const PODS: Port = Port {
    name: "pod0",
    ifindex: 30,
    mac: [2, 0, 0, 0, 0, 3],
    mtu: 1500,
    index: 3,
    v4: "10.1.0",
    v6: "2001:db8:b",
};

/// Backends behind an MTU of 1300.
pub const SLIM: Port = Port {
    name: "slim0",
    ifindex: 40,
    mac: [2, 0, 0, 0, 0, 4],
    mtu: 1300,
    index: 4,
    v4: "10.2.0",
    v6: "2001:db8:c",
};

/// Every device.
pub const PORTS: [Port; 4] = [OUTSIDE, INSIDE, PODS, SLIM];

/// MAC of the client.
pub const CLIENT: Mac = neighbour(OUTSIDE, 7);
/// MAC of the router through which every other client is reached.
pub const ROUTER: Mac = neighbour(OUTSIDE, 254);

/// MAC of the neighbour whose addresses end in `host`.
#[expect(
    clippy::cast_possible_truncation,
    reason = "interface indices here are small"
)]
pub const fn neighbour(port: Port, host: u8) -> Mac {
    [2, 0, 0, 1, port.ifindex as u8, host]
}

/// Last parts of the addresses which have a permanent neighbour entry on every device.
const HOSTS: [u8; 5] = [5, 6, 7, 8, 254];

fn script() -> String {
    let mut out = String::from("link set lo up\n");
    for port in PORTS {
        let Port {
            name,
            ifindex,
            mtu,
            v4,
            v6,
            ..
        } = port;
        let mac = colons(port.mac);
        let peer = ifindex + 1;
        let mut line = |text: String| writeln!(out, "{text}").expect("a string takes everything");
        // The peers are silent: no address, no ARP, no IPv6 of their own.
        line(format!(
            "link add {name} index {ifindex} address {mac} mtu {mtu} type veth \
             peer name {name}p index {peer} mtu {mtu}"
        ));
        line(format!("link set {name}p up arp off"));
        line(format!("link set {name} up"));
        line(format!("addr add {v4}.1/24 dev {name}"));
        line(format!("addr add {v6}::1/64 dev {name} nodad"));
        for host in HOSTS {
            let mac = colons(neighbour(port, host));
            for address in [format!("{v4}.{host}"), format!("{v6}::{host:x}")] {
                line(format!(
                    "neigh add {address} lladdr {mac} dev {name} nud permanent"
                ));
            }
        }
    }
    out.push_str("route add unreachable 10.99.0.0/16\nroute add unreachable 2001:db8:dead::/48\n");
    out.push_str("route add default via 198.51.100.254 dev lb0\n");
    out.push_str("route add default via 2001:db8:100::fe dev lb0\n");
    out
}

fn colons(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// Runs `test` in a network namespace with the network above. The namespace belongs to one thread,
/// which runs the tests of a program one after the other and goes with the process.
///
/// `/sys/fs/bpf` stays visible: only the network is unshared.
pub fn in_network(test: impl FnOnce() + Send + 'static) {
    type Job = (Box<dyn FnOnce() + Send>, Sender<std::thread::Result<()>>);
    static WORKER: OnceLock<Mutex<Sender<Job>>> = OnceLock::new();
    if !require::kernel_tests() {
        return;
    }
    let worker = WORKER.get_or_init(|| {
        let (jobs, queue) = channel::<Job>();
        std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
            build();
            for (job, done) in queue {
                let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(job));
                done.send(outcome).expect("the test waits");
            }
        });
        Mutex::new(jobs)
    });
    let (done, outcome) = channel();
    let jobs = worker
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone();
    jobs.send((Box::new(test), done)).expect("the worker lives");
    if let Err(panic) = outcome.recv().expect("the network can be built") {
        // What the worker prints is kept with the test that came first.
        eprintln!("{}", words_of(&*panic));
        std::panic::resume_unwind(panic);
    }
}

/// What a panic said.
pub fn words_of(panic: &(dyn Any + Send)) -> &str {
    let words = panic.downcast_ref::<String>().map(String::as_str);
    let words = words.or_else(|| panic.downcast_ref::<&str>().copied());
    words.unwrap_or("a panic without words")
}

fn build() {
    for (key, value) in [
        ("ipv6/conf/default/accept_ra", "0"),
        ("ipv6/conf/default/addr_gen_mode", "1"),
        ("ipv6/conf/default/router_solicitations", "0"),
        ("ipv4/conf/all/forwarding", "1"),
        ("ipv6/conf/all/forwarding", "1"),
    ] {
        // This thread's view: /proc/sys/net follows the reading task's namespace.
        std::fs::write(format!("/proc/sys/net/{key}"), value).expect("a sysctl");
    }
    let mut ip = std::process::Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("ip of iproute2");
    ip.stdin
        .take()
        .expect("a pipe")
        .write_all(script().as_bytes())
        .expect("ip reads");
    let output = ip.wait_with_output().expect("ip ends");
    assert!(
        output.status.success(),
        "ip: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

impl Port {
    /// Its SNAT addresses, which belong to SNAT alone.
    pub const fn snat(self) -> (&'static str, &'static str) {
        if self.ifindex == SLIM.ifindex {
            ("10.2.0.100", "2001:db8:c::64")
        } else if self.ifindex == PODS.ifindex {
            ("10.1.0.100", "2001:db8:b::64")
        } else {
            ("10.0.0.100", "2001:db8:a::64")
        }
    }
}

impl Port {
    /// Whether an address is in its networks.
    pub(crate) fn holds(self, address: std::net::IpAddr) -> bool {
        let text = address.to_string();
        let prefix = if address.is_ipv6() { self.v6 } else { self.v4 };
        text.strip_prefix(prefix)
            .is_some_and(|rest| rest.starts_with(['.', ':']))
    }

    /// The leading parts of its networks.
    pub(crate) const fn networks(self) -> (&'static str, &'static str) {
        (self.v4, self.v6)
    }
}
