//! Which machines the cluster has and what their addresses are; decided here, made elsewhere.
//!
//! ```text
//!  client ───────── router ────┬── control      API server and its friends
//!  198.51.100.2     │          ├── edge1, …     labelled sluice.dev/edge; VIPs are routed here
//!  2001:db8:c::2    │          └── worker1, …
//!              bridge "lan"
//!              10.200.0.1/24, 2001:db8:200::1/64
//! ```
//! Each is a network namespace with an interface `eth0`. A node's number is the last part of its
//! addresses and names its pods' subnets: `10.201.NUMBER.0/24` and
//! `2001:db8:201:NUMBER::/64`.

use anyhow::{Result, ensure};

/// The label of nodes that balance.
pub(super) const EDGE_LABEL: &str = "sluice.dev/edge";
/// The annotation with a node's addresses for SNAT.
pub(super) const SNAT_ANNOTATION: &str = "sluice.dev/snat-addresses";

/// The outside client's addresses and its side of the router.
pub(super) const CLIENT: [&str; 2] = ["198.51.100.2/24", "2001:db8:c::2/64"];
/// The router's addresses towards the client.
pub(super) const ROUTER_OUTSIDE: [&str; 2] = ["198.51.100.1/24", "2001:db8:c::1/64"];
/// The router's addresses towards the nodes.
pub(super) const ROUTER_INSIDE: [&str; 2] = ["10.200.0.1/24", "2001:db8:200::1/64"];
/// The control plane's addresses.
pub(super) const CONTROL: [&str; 2] = ["10.200.0.2/24", "2001:db8:200::2/64"];

/// Where all pods are, for kube-proxy.
pub(super) const POD_RANGES: &str = "10.201.0.0/16,2001:db8:201::/48";
/// Where all cluster IPs are.
pub(super) const SERVICE_RANGES: [&str; 2] = ["10.202.0.0/16", "2001:db8:202::/112"];
/// The cluster IP of the API server, which is the first of its range.
pub(super) const API_CLUSTER_IP: &str = "10.202.0.1";
/// What the router sends to the edge nodes: addresses of load balancers, external IPs, cluster IPs.
pub(super) const EDGE_RANGES: [&str; 5] = [
    "192.0.2.0/24",
    "203.0.113.0/24",
    SERVICE_RANGES[0],
    "2001:db8:f::/48",
    SERVICE_RANGES[1],
];

/// Most nodes of a kind: more would run into the next kind's numbers.
const MOST: [(&str, u8); 2] = [("edges", 9), ("workers", 70)];
const FIRST_EDGE: u8 = 11;
const FIRST_WORKER: u8 = 21;

/// One node of the cluster.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Node {
    /// Its name in the API, and of its namespace after the prefix.
    pub(super) name: String,
    /// Whether it is labelled to balance.
    pub(super) is_edge: bool,
    number: u8,
}

/// The nodes of a cluster, edges first.
///
/// # Errors
/// There are too many to number.
pub(super) fn nodes(edges: u8, workers: u8) -> Result<Vec<Node>> {
    for ((kind, most), count) in MOST.into_iter().zip([edges, workers]) {
        ensure!(
            count <= most,
            "{kind}: {count}, but there are addresses for {most}"
        );
    }
    ensure!(edges + workers > 0, "a cluster without any node");
    let kind = |name: &'static str, count: u8, first: u8| {
        (1..=count).map(move |index| Node {
            name: format!("{name}{index}"),
            is_edge: first == FIRST_EDGE,
            number: first + index - 1,
        })
    };
    Ok(kind("edge", edges, FIRST_EDGE)
        .chain(kind("worker", workers, FIRST_WORKER))
        .collect())
}

impl Node {
    /// Its addresses, IPv4 and IPv6.
    pub(super) fn addresses(&self) -> [String; 2] {
        host(u16::from(self.number))
    }

    /// The addresses only its load balancer uses towards backends; none if it is no edge.
    pub(super) fn snat_addresses(&self) -> Vec<String> {
        if self.is_edge {
            host(u16::from(self.number) + 100).into()
        } else {
            Vec::new()
        }
    }

    /// The subnets of its pods.
    pub(super) fn pod_subnets(&self) -> [String; 2] {
        [
            format!("10.201.{}.0/24", self.number),
            format!("2001:db8:201:{}::/64", self.number),
        ]
    }

    /// Its zone: neighbours by number are in different ones.
    pub(super) fn zone(&self) -> &'static str {
        if self.number % 2 == 1 {
            "zone-a"
        } else {
            "zone-b"
        }
    }
}

/// An address without its prefix length.
pub(super) fn bare(address: &str) -> &str {
    address.split_once('/').map_or(address, |(bare, _)| bare)
}

fn host(number: u16) -> [String; 2] {
    [
        format!("10.200.0.{number}"),
        format!("2001:db8:200::{number}"),
    ]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{bare, nodes};

    #[test]
    fn no_two_nodes_share_a_name_or_an_address() {
        let nodes = nodes(9, 70).expect("the most there can be");
        let names: BTreeSet<_> = nodes.iter().map(|node| &node.name).collect();
        assert_eq!(names.len(), 79);
        let addresses: Vec<_> = nodes
            .iter()
            .flat_map(|node| [node.addresses().to_vec(), node.snat_addresses()].concat())
            .collect();
        let different: BTreeSet<_> = addresses.iter().collect();
        assert_eq!(different.len(), addresses.len());
        assert_eq!(addresses.len(), 2 * (79 + 9));
    }

    #[test]
    fn the_first_edge_and_worker() {
        let nodes = nodes(1, 1).expect("two nodes");
        let [edge, worker] = nodes.as_slice() else {
            panic!("not two nodes: {nodes:?}");
        };
        assert_eq!(edge.name, "edge1");
        assert_eq!(edge.addresses(), ["10.200.0.11", "2001:db8:200::11"]);
        assert_eq!(edge.snat_addresses(), ["10.200.0.111", "2001:db8:200::111"]);
        assert_eq!(worker.name, "worker1");
        assert!(worker.snat_addresses().is_empty());
        assert_eq!(
            worker.pod_subnets(),
            ["10.201.21.0/24", "2001:db8:201:21::/64"]
        );
    }

    #[test]
    fn numbers_have_an_end() {
        assert!(nodes(10, 0).is_err());
        assert!(nodes(0, 71).is_err());
        assert!(nodes(0, 0).is_err());
    }

    #[test]
    fn bare_addresses() {
        assert_eq!(bare("10.200.0.1/24"), "10.200.0.1");
        assert_eq!(bare("2001:db8::1"), "2001:db8::1");
    }
}
