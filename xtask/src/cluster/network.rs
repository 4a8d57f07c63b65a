//! The namespaces and what connects them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::topology::{self, Node};
use crate::command;

const INTERFACE: &str = "eth0";
const NAMESPACES: &str = "/run/netns";

/// The network namespaces of one cluster.
#[derive(Clone)]
pub(super) struct Network {
    prefix: String,
}

impl Network {
    /// For the cluster whose namespaces start with `prefix`.
    pub(super) fn new(prefix: &str) -> Self {
        Self {
            prefix: prefix.to_owned(),
        }
    }

    /// The file of a namespace.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        Path::new(NAMESPACES).join(self.namespace(name))
    }

    /// A command that runs inside a namespace.
    ///
    /// Not `ip netns exec`: that mounts a /sys of its own, which hides control groups and the BPF
    /// file system.
    pub(super) fn within(&self, name: &str, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", self.file(name).display()))
            .arg("--")
            .arg(program.as_ref());
        command
    }

    /// Makes the namespaces and connects them.
    ///
    /// # Errors
    /// A command fails; what was made until then stays.
    pub(super) fn connect(&self, nodes: &[Node]) -> Result<()> {
        let fixed = ["router", "client", "control"];
        for name in fixed.into_iter().chain(names(nodes)) {
            self.add(name)?;
        }
        self.ip("router", "link add lan type bridge")?;
        self.ip("router", "link set lan up")?;
        for name in ["client", "control"].into_iter().chain(names(nodes)) {
            self.wire(name)?;
        }
        for name in ["control"].into_iter().chain(names(nodes)) {
            self.ip("router", &format!("link set {name} master lan"))?;
        }
        self.addresses("router", "client", &topology::ROUTER_OUTSIDE)?;
        self.addresses("router", "lan", &topology::ROUTER_INSIDE)?;
        self.addresses("client", INTERFACE, &topology::CLIENT)?;
        self.gateway("client", &topology::ROUTER_OUTSIDE)?;
        self.addresses("control", INTERFACE, &topology::CONTROL)?;
        // Pods reach the API server by its cluster IP even where no proxy runs.
        let api = topology::API_CLUSTER_IP;
        self.addresses("control", "lo", &[&format!("{api}/32")])?;
        self.gateway("control", &topology::ROUTER_INSIDE)?;
        let [control, _] = topology::CONTROL.map(topology::bare);
        self.ip("router", &format!("route add {api}/32 via {control}"))?;
        for node in nodes {
            // Never the source of the node's own traffic: only its load balancer uses them.
            let kinds = [
                (node.addresses().to_vec(), ""),
                (node.snat_addresses(), " preferred_lft 0"),
            ];
            for (addresses, lifetime) in kinds {
                for (address, bits) in addresses.iter().zip([24, 64]) {
                    let address = format!("{address}/{bits}");
                    self.ip(
                        &node.name,
                        &format!("address add {address} dev {INTERFACE}{lifetime}"),
                    )?;
                }
            }
        }
        for node in nodes {
            self.routes(node, nodes)
                .with_context(|| format!("connect {}", node.name))?;
        }
        self.edges(nodes)
    }

    /// Removes every namespace, and with them what is inside.
    ///
    /// # Errors
    /// The list of namespaces cannot be read, or one cannot be removed.
    pub(super) fn remove(&self) -> Result<()> {
        for name in self.all()? {
            command::output(Command::new("ip").args(["netns", "del", &name]))?;
        }
        Ok(())
    }

    /// Whether any namespace of this cluster is there.
    pub(super) fn exists(&self) -> bool {
        self.all().is_ok_and(|all| !all.is_empty())
    }

    fn all(&self) -> Result<Vec<String>> {
        if !Path::new(NAMESPACES).exists() {
            return Ok(Vec::new());
        }
        let entries = fs::read_dir(NAMESPACES).context("list the network namespaces")?;
        let names = entries
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<Result<Vec<_>>>()?;
        let ours = |name: &String| name.starts_with(&format!("{}-", self.prefix));
        Ok(names.into_iter().filter(ours).collect())
    }

    fn namespace(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    fn add(&self, name: &str) -> Result<()> {
        command::output(Command::new("ip").args(["netns", "add", &self.namespace(name)]))?;
        let forward = if matches!(name, "client" | "control") {
            "0"
        } else {
            "1"
        };
        // Addresses are ours alone: waiting for duplicates would only take seconds. Answers may
        // come another way than questions went: the edge nodes take turns.
        let script = format!(
            "cd /proc/sys/net
            echo 0 > ipv6/conf/default/accept_dad; echo 0 > ipv6/conf/all/accept_dad
            echo 0 > ipv4/conf/all/rp_filter; echo 0 > ipv4/conf/default/rp_filter
            echo {forward} > ipv4/ip_forward; echo {forward} > ipv6/conf/all/forwarding
            echo 1 > ipv4/fib_multipath_hash_policy; echo 1 > ipv6/fib_multipath_hash_policy
            ip link set lo up"
        );
        command::output(self.within(name, "sh").args(["-e", "-c", &script]))?;
        Ok(())
    }

    /// Connects a namespace's interface to one in the router that has the namespace's name.
    fn wire(&self, name: &str) -> Result<()> {
        let other = self.namespace(name);
        self.ip(
            "router",
            &format!("link add {name} type veth peer name {INTERFACE} netns {other}"),
        )?;
        self.ip("router", &format!("link set {name} up"))?;
        self.ip(name, &format!("link set {INTERFACE} up"))
    }

    fn routes(&self, node: &Node, nodes: &[Node]) -> Result<()> {
        self.gateway(&node.name, &topology::ROUTER_INSIDE)?;
        let others = nodes.iter().filter(|other| *other != node);
        for other in ["router"].into_iter().chain(names(others)) {
            for (subnet, address) in node.pod_subnets().iter().zip(node.addresses()) {
                self.ip(other, &format!("route add {subnet} via {address}"))?;
            }
        }
        if node.is_edge {
            // As a wire would bring them: whole packets with sums, segments joined by the node.
            let mut ethtool = self.within("router", "ethtool");
            command::output(ethtool.args(["-K", &node.name, "tx", "off", "gro", "on"]))?;
        }
        Ok(())
    }

    /// The router shares what is for services among the edge nodes, flow by flow.
    fn edges(&self, nodes: &[Node]) -> Result<()> {
        let edges: Vec<_> = nodes.iter().filter(|node| node.is_edge).collect();
        if edges.is_empty() {
            return Ok(());
        }
        for range in topology::EDGE_RANGES {
            let hops = edges.iter().map(|edge| {
                let [v4, v6] = edge.addresses();
                let via = if range.contains(':') { v6 } else { v4 };
                format!("nexthop via {via}")
            });
            let hops: Vec<_> = hops.collect();
            self.ip("router", &format!("route add {range} {}", hops.join(" ")))?;
        }
        Ok(())
    }

    fn addresses(&self, name: &str, interface: &str, addresses: &[&str]) -> Result<()> {
        addresses
            .iter()
            .try_for_each(|it| self.ip(name, &format!("address add {it} dev {interface}")))
    }

    fn gateway(&self, name: &str, addresses: &[&str]) -> Result<()> {
        addresses.iter().try_for_each(|it| {
            let gateway = topology::bare(it);
            self.ip(name, &format!("route add default via {gateway}"))
        })
    }

    fn ip(&self, name: &str, arguments: &str) -> Result<()> {
        let mut ip = Command::new("ip");
        ip.args(["-n", &self.namespace(name)])
            .args(arguments.split(' '));
        command::output(&mut ip)?;
        Ok(())
    }
}

fn names<'a>(nodes: impl IntoIterator<Item = &'a Node>) -> impl Iterator<Item = &'a str> {
    nodes.into_iter().map(|node| node.name.as_str())
}
