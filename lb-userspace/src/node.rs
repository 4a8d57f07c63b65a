//! What a plan needs to know about this node.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;

use crate::{config::TableSizes, tables::Family};

/// This node, as the plan sees it. Addresses change at run time: then everything is planned again.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct NodeConfig {
    /// Name by which EndpointSlices know the node.
    pub name: String,
    /// Zone, for topology hints.
    pub zone: Option<String>,
    /// The backends' replies are routed through this node.
    pub gateway: bool,
    /// Every address of the node, on any device but `lo`. None of them is ever a VIP.
    pub addresses: BTreeSet<IpAddr>,
    /// Those of them that serve node ports, see [`NodePortAddresses::select`].
    pub node_port_addresses: BTreeSet<IpAddr>,
    /// SNAT addresses nobody else on the node uses.
    pub snat_addresses: BTreeSet<IpAddr>,
    /// The cluster's pod networks: whoever sends from there is a pod.
    pub pod_networks: BTreeSet<IpNet>,
    /// Those this node's pods have their addresses from.
    pub local_pod_networks: BTreeSet<IpNet>,
    /// The primary address of each family.
    pub primary: Vec<IpAddr>,
    /// Whether `spec.externalIPs` are served.
    pub external_ips: bool,
    /// Sizes of the tables.
    pub sizes: TableSizes,
}

/// Which of the node's addresses serve node ports.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum NodePortAddresses {
    /// All.
    #[default]
    All,
    /// The primary address of each family.
    Primary,
    /// Those inside these networks. None at all if there is no network; a family of which there is
    /// none while the other has some uses all its addresses.
    Networks(Vec<IpNet>),
}

impl NodePortAddresses {
    /// The addresses, out of the node's own and its primary ones.
    pub fn select(&self, addresses: &BTreeSet<IpAddr>, primary: &[IpAddr]) -> BTreeSet<IpAddr> {
        let usable = addresses
            .iter()
            .filter(|a| crate::snapshot::address::unusable(**a).is_none());
        match self {
            Self::All => usable.copied().collect(),
            Self::Primary => usable.filter(|a| primary.contains(a)).copied().collect(),
            Self::Networks(networks) => {
                let of_family = |family: Family| {
                    networks
                        .iter()
                        .any(|network| Family::of(network.addr()) == family)
                };
                let is_chosen = |a: &IpAddr| {
                    let foreign = !networks.is_empty() && !of_family(Family::of(*a));
                    foreign || networks.iter().any(|network| network.contains(a))
                };
                usable.filter(|a| is_chosen(a)).copied().collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_port_addresses_are_chosen_by_network() {
        let addresses = ["192.0.2.1", "198.51.100.1", "2001:db8::1", "fe80::1"]
            .map(|a| a.parse().expect("an address"));
        let addresses: BTreeSet<IpAddr> = addresses.into_iter().collect();
        let primary: Vec<IpAddr> = vec!["192.0.2.1".parse().expect("an address")];
        let networks = |list: &[&str]| {
            let parse = |text: &&str| text.parse().expect("a network");
            NodePortAddresses::Networks(list.iter().map(parse).collect())
        };
        for (name, choice, expected) in [
            (
                "all",
                NodePortAddresses::All,
                vec!["192.0.2.1", "198.51.100.1", "2001:db8::1"],
            ),
            ("primary", NodePortAddresses::Primary, vec!["192.0.2.1"]),
            ("none", networks(&[]), vec![]),
            (
                "one network",
                networks(&["192.0.2.0/24"]),
                vec!["192.0.2.1", "2001:db8::1"],
            ),
            (
                "both families",
                networks(&["192.0.2.0/24", "2001:db8:1::/48"]),
                vec!["192.0.2.1"],
            ),
            (
                "everything",
                networks(&["0.0.0.0/0", "192.0.2.0/24", "::/0"]),
                vec!["192.0.2.1", "198.51.100.1", "2001:db8::1"],
            ),
        ] {
            let selected = choice.select(&addresses, &primary);
            let selected: Vec<_> = selected.iter().map(ToString::to_string).collect();
            assert_eq!(selected, expected, "{name}");
        }
    }
}
