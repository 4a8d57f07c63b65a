//! What netlink has told us, and which of it matters to a packet.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

/// Where kube-proxy in its IPVS mode holds the VIPs of all Services.
const IPVS: &str = "kube-ipvs0";

/// A network device.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Link {
    /// Name.
    pub name: String,
    /// MAC; `None` for devices without an Ethernet header.
    pub mac: Option<[u8; 6]>,
    /// MTU in bytes of IP packet.
    pub mtu: u32,
    /// Administratively up, and the carrier is there.
    pub up: bool,
    /// The loopback device.
    pub loopback: bool,
    /// Device below and VLAN id, of a VLAN device.
    pub vlan: Option<(u32, u16)>,
}

/// An address of a device. The kernel holds one several times if the prefix or the peer differs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Address {
    pub(super) ip: IpAddr,
    /// Bits of the network behind the device.
    pub(super) prefix: u8,
    /// The other end, on a point-to-point device.
    pub(super) peer: Option<IpAddr>,
    /// A source address the kernel itself would choose: global, not secondary, temporary,
    /// deprecated or tentative.
    pub(super) primary: bool,
}

impl Address {
    /// Whether it is the same one to the kernel.
    fn is_same(&self, other: &Self) -> bool {
        (self.ip, self.prefix, self.peer) == (other.ip, other.prefix, other.peer)
    }
}

/// How much a message changed; each includes what stands before it.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Change {
    /// Nothing a packet would notice.
    #[default]
    Nothing,
    /// A neighbour: flows must look again.
    Neighbours,
    /// A route: what leads where must be looked up again.
    Routes,
    /// A link or an address: the tables must be decided anew.
    Tables,
}

/// Links, addresses and neighbours of the node.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Network {
    links: BTreeMap<u32, Link>,
    addresses: BTreeMap<u32, Vec<Address>>,
    neighbours: BTreeMap<(u32, IpAddr), [u8; 6]>,
}

impl Network {
    /// Every device by interface index.
    pub const fn links(&self) -> &BTreeMap<u32, Link> {
        &self.links
    }

    /// Every address of the node, on any device but the loopback and that of kube-proxy, which holds VIPs.
    pub fn addresses(&self) -> BTreeSet<IpAddr> {
        let is_own = |ifindex: &u32| {
            let link = self.links.get(ifindex);
            link.is_none_or(|link| !link.loopback && link.name != IPVS)
        };
        let devices = self.addresses.iter().filter(|(ifindex, _)| is_own(ifindex));
        devices
            .flat_map(|(_, addresses)| addresses.iter().map(|a| a.ip))
            .collect()
    }

    /// The address of a device the kernel would use as a source, one of each family.
    pub fn primary(&self, ifindex: u32) -> (Option<IpAddr>, Option<IpAddr>) {
        let addresses = self
            .addresses
            .get(&ifindex)
            .map(Vec::as_slice)
            .unwrap_or_default();
        let first = |v4: bool| {
            let of_family = |a: &&Address| a.primary && a.ip.is_ipv4() == v4;
            addresses.iter().find(of_family).map(|a| a.ip)
        };
        (first(true), first(false))
    }

    /// Interface index of a device by name.
    pub fn index(&self, name: &str) -> Option<u32> {
        self.links
            .iter()
            .find(|(_, link)| link.name == name)
            .map(|(index, _)| *index)
    }

    pub(super) fn set_link(&mut self, ifindex: u32, link: Link) -> Change {
        if self.links.get(&ifindex) == Some(&link) {
            return Change::Nothing;
        }
        self.links.insert(ifindex, link);
        Change::Tables
    }

    pub(super) fn remove_link(&mut self, ifindex: u32) -> Change {
        self.addresses.remove(&ifindex);
        self.neighbours.retain(|(device, _), _| *device != ifindex);
        if self.links.remove(&ifindex).is_some() {
            Change::Tables
        } else {
            Change::Nothing
        }
    }

    pub(super) fn set_address(&mut self, ifindex: u32, address: Address) -> Change {
        let addresses = self.addresses.entry(ifindex).or_default();
        match addresses.iter_mut().find(|it| it.is_same(&address)) {
            Some(known) if *known == address => return Change::Nothing,
            Some(known) => *known = address,
            None => addresses.push(address),
        }
        Change::Tables
    }

    pub(super) fn remove_address(&mut self, ifindex: u32, address: &Address) -> Change {
        let Some(addresses) = self.addresses.get_mut(&ifindex) else {
            return Change::Nothing;
        };
        let before = addresses.len();
        addresses.retain(|it| !it.is_same(address));
        let change = if addresses.len() == before {
            Change::Nothing
        } else {
            Change::Tables
        };
        if addresses.is_empty() {
            self.addresses.remove(&ifindex);
        }
        change
    }

    /// Whether any device has this address.
    pub(super) fn has_address(&self, address: IpAddr) -> bool {
        let mut all = self.addresses.values().flatten();
        all.any(|it| it.ip == address)
    }

    /// Brings each device's addresses into the order another picture has them in, new ones last. The kernel lists
    /// them in another order than it tells of them, and the first is the primary one.
    pub(super) fn order_as(&mut self, known: &Self) {
        for (ifindex, addresses) in &mut self.addresses {
            let Some(before) = known.addresses.get(ifindex) else {
                continue;
            };
            let place = |address: &Address| before.iter().position(|it| it.is_same(address));
            addresses.sort_by_key(|address| place(address).unwrap_or(usize::MAX));
        }
    }

    /// How much another picture differs from this one.
    pub(super) fn difference(&self, other: &Self) -> Change {
        if self.links != other.links || self.addresses != other.addresses {
            Change::Tables
        } else if self.neighbours != other.neighbours {
            Change::Neighbours
        } else {
            Change::Nothing
        }
    }

    /// `mac` is `None` for a neighbour that cannot be sent to.
    pub(super) fn set_neighbour(
        &mut self,
        ifindex: u32,
        address: IpAddr,
        mac: Option<[u8; 6]>,
    ) -> Change {
        let before = match mac {
            Some(mac) => self.neighbours.insert((ifindex, address), mac),
            None => self.neighbours.remove(&(ifindex, address)),
        };
        // Most messages only say that a neighbour is still, or no longer, confirmed.
        if before == mac {
            Change::Nothing
        } else {
            Change::Neighbours
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn only_what_a_packet_would_notice_is_a_change() {
        let mut network = Network::default();
        let link = Link {
            name: "lb0".to_owned(),
            mtu: 1500,
            up: true,
            ..Link::default()
        };
        let neighbour = address("192.0.2.9");
        let steps = [
            (
                "new link",
                network.set_link(2, link.clone()),
                Change::Tables,
            ),
            (
                "same link",
                network.set_link(2, link.clone()),
                Change::Nothing,
            ),
            (
                "MTU",
                network.set_link(2, Link { mtu: 1400, ..link }),
                Change::Tables,
            ),
            (
                "resolved",
                network.set_neighbour(2, neighbour, Some([1; 6])),
                Change::Neighbours,
            ),
            (
                "confirmed",
                network.set_neighbour(2, neighbour, Some([1; 6])),
                Change::Nothing,
            ),
            (
                "moved",
                network.set_neighbour(2, neighbour, Some([2; 6])),
                Change::Neighbours,
            ),
            (
                "failed",
                network.set_neighbour(2, neighbour, None),
                Change::Neighbours,
            ),
            (
                "still failed",
                network.set_neighbour(2, neighbour, None),
                Change::Nothing,
            ),
            ("link gone", network.remove_link(2), Change::Tables),
            ("unknown link", network.remove_link(2), Change::Nothing),
        ];
        for (name, change, expected) in steps {
            assert_eq!(change, expected, "{name}");
        }
    }

    #[test]
    fn an_address_with_two_prefixes_is_there_until_both_are_gone() {
        let with = |prefix, peer| Address {
            ip: address("192.0.2.2"),
            prefix,
            peer,
            primary: true,
        };
        let (narrow, wide) = (with(24, None), with(23, None));
        let pointed = with(24, Some(address("192.0.2.9")));
        let mut network = Network::default();
        for one in [&narrow, &wide, &pointed] {
            assert_eq!(network.set_address(2, *one), Change::Tables);
            assert_eq!(network.set_address(2, *one), Change::Nothing);
        }
        for (gone, left) in [(&narrow, true), (&pointed, true), (&wide, false)] {
            assert_eq!(network.remove_address(2, gone), Change::Tables, "{gone:?}");
            assert_eq!(network.remove_address(2, gone), Change::Nothing, "{gone:?}");
            assert_eq!(network.primary(2).0.is_some(), left, "{gone:?}");
            assert_eq!(network.has_address(narrow.ip), left, "{gone:?}");
        }
        assert_eq!(network, Network::default());
    }

    #[test]
    fn a_list_does_not_change_which_address_comes_first() {
        let one = |text| Address {
            ip: address(text),
            prefix: 64,
            peer: None,
            primary: true,
        };
        let (first, second, third) = (one("2001:db8::1"), one("2001:db8::2"), one("2001:db8::3"));
        let (mut told, mut found) = (Network::default(), Network::default());
        for known in [first, second] {
            told.set_address(2, known);
        }
        for listed in [third, second, first] {
            found.set_address(2, listed);
        }
        found.order_as(&told);
        assert_eq!(found.primary(2), told.primary(2));
        told.set_address(2, third);
        assert_eq!(told.difference(&found), Change::Nothing);
    }

    #[test]
    fn a_picture_differs_by_what_a_packet_would_notice() {
        let mut told = Network::default();
        told.set_link(2, Link::default());
        let mut found = told.clone();
        assert_eq!(told.difference(&found), Change::Nothing);
        found.set_neighbour(2, address("192.0.2.9"), Some([1; 6]));
        assert_eq!(told.difference(&found), Change::Neighbours);
        found.remove_link(2);
        assert_eq!(told.difference(&found), Change::Tables);
    }

    #[test]
    fn addresses_of_the_loopback_and_of_kube_proxy_are_not_the_node_s() {
        let mut network = Network::default();
        network.set_link(
            1,
            Link {
                loopback: true,
                ..Link::default()
            },
        );
        network.set_link(2, Link::default());
        network.set_link(
            3,
            Link {
                name: "kube-ipvs0".to_owned(),
                ..Link::default()
            },
        );
        for (ifindex, text, primary) in [
            (1, "192.0.2.1", true),
            (3, "192.0.2.9", true),
            (2, "192.0.2.2", false),
            (2, "192.0.2.3", true),
        ] {
            network.set_address(
                ifindex,
                Address {
                    ip: address(text),
                    prefix: 24,
                    peer: None,
                    primary,
                },
            );
        }
        assert_eq!(
            network.addresses(),
            BTreeSet::from([address("192.0.2.2"), address("192.0.2.3")])
        );
        assert_eq!(network.primary(2), (Some(address("192.0.2.3")), None));
    }
}
