//! The device tables, decided from the network. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use lb_common::{
    addr::{Addr4, Addr6},
    device::{Device, SnatAddress, device_flag},
};
use tracing::warn;

use super::network::{Link, Network};

/// Where SNAT addresses come from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SnatPolicy {
    /// Addresses nobody else on the node uses. A family without one shares the node's own.
    pub addresses: Vec<IpAddr>,
    /// A masquerade on the node takes ports from 1,024 on: ours must lie below.
    pub masquerade: bool,
}

impl SnatPolicy {
    /// First port and number of ports on an address nobody else uses.
    const EXCLUSIVE: (u32, u32) = (1_024, 64_512);

    /// First port and number of ports on the node's own address.
    const fn shared(&self) -> (u32, u32) {
        if self.masquerade {
            (1, 1_023)
        } else {
            (1_024, 28_976)
        }
    }

    fn exclusive(&self, v4: bool) -> impl Iterator<Item = IpAddr> {
        self.addresses
            .iter()
            .copied()
            .filter(move |address| address.is_ipv4() == v4)
    }
}

/// `DEVICES`, `DEVICE_INDEX`, `SNAT_V4` and `SNAT_V6`.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct DeviceTables {
    /// By device index; 0 is never assigned.
    pub devices: BTreeMap<u32, Device>,
    /// By element.
    pub snat_v4: BTreeMap<u32, SnatAddress>,
    /// By element.
    pub snat_v6: BTreeMap<u32, SnatAddress>,
}

/// Capacities of the tables.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    pub(super) devices: u32,
    pub(super) snat: u32,
}

impl DeviceTables {
    /// The tables for `network`. Device indices and SNAT elements of `self` are kept: next hops and
    /// flows name them. `redirectable` are the devices XDP may send to. While nobody knows where
    /// SNAT addresses come from, they stay what they are.
    pub(super) fn decide(
        &self,
        network: &Network,
        redirectable: &BTreeSet<u32>,
        snat: Option<&SnatPolicy>,
        room: Room,
    ) -> Self {
        let mut next = Self::default();
        if snat.is_none() {
            next.snat_v4.clone_from(&self.snat_v4);
            next.snat_v6.clone_from(&self.snat_v6);
        }
        let mut indices: BTreeMap<u32, u32> = self
            .devices
            .iter()
            .map(|(index, device)| (device.ifindex, *index))
            .collect();
        let usable = |link: &Link| !link.loopback;
        indices.retain(|ifindex, _| network.links().get(ifindex).is_some_and(usable));
        // A fresh index before one used earlier: a next hop may still name that.
        let mut fresh = self.devices.keys().copied().max().unwrap_or(0) + 1;
        for (&ifindex, link) in network.links().iter().filter(|(_, link)| usable(link)) {
            let index = indices.get(&ifindex).copied().or_else(|| {
                let taken: BTreeSet<u32> = indices.values().copied().collect();
                let index = (fresh..room.devices)
                    .chain(1..fresh)
                    .find(|i| !taken.contains(i))?;
                fresh = index + 1;
                indices.insert(ifindex, index);
                Some(index)
            });
            let Some(index) = index.filter(|index| *index < room.devices) else {
                warn!(
                    device = link.name,
                    "DEVICES is full: the fast path does not use the device"
                );
                continue;
            };
            let slices = match snat {
                Some(snat) => {
                    let (v4, v6) = network.primary(ifindex);
                    let v4 =
                        snat_slice(&self.snat_v4, &mut next.snat_v4, snat, true, v4, room.snat);
                    let v6 =
                        snat_slice(&self.snat_v6, &mut next.snat_v6, snat, false, v6, room.snat);
                    (v4.unwrap_or_default(), v6.unwrap_or_default())
                }
                None => self.slices(index, ifindex),
            };
            let ((snat4_first, snat4_count), (snat6_first, snat6_count)) = slices;
            let mut flags = 0;
            if link.mac.is_none() {
                flags |= device_flag::NO_ETHERNET;
            } else if link.up && link.vlan.is_none() && redirectable.contains(&ifindex) {
                flags |= device_flag::REDIRECT;
            }
            let (vlan_parent, vlan_id) = link.vlan.unwrap_or_default();
            let device = Device {
                ifindex,
                mtu: link.mtu,
                mac: link.mac.unwrap_or_default(),
                flags,
                snat4_first,
                snat4_count,
                snat6_first,
                snat6_count,
                vlan_parent,
                vlan_id,
                index: u16::try_from(index).unwrap_or(0),
            };
            next.devices.insert(index, device);
        }
        next
    }

    /// The SNAT elements of each family that a device uses now.
    fn slices(&self, index: u32, ifindex: u32) -> (Slice, Slice) {
        let device = self.devices.get(&index).filter(|d| d.ifindex == ifindex);
        device.map_or_else(Default::default, |device| {
            (
                (device.snat4_first, device.snat4_count),
                (device.snat6_first, device.snat6_count),
            )
        })
    }
}

/// First element, and number of elements.
type Slice = (u16, u16);

/// The elements a device uses: first and count. Puts them into `next`.
fn snat_slice(
    previous: &BTreeMap<u32, SnatAddress>,
    next: &mut BTreeMap<u32, SnatAddress>,
    policy: &SnatPolicy,
    v4: bool,
    own: Option<IpAddr>,
    room: u32,
) -> Option<Slice> {
    let element = |address: IpAddr, (first_port, port_count): (u32, u32)| SnatAddress {
        address: snat_address(address),
        first_port,
        port_count,
    };
    let exclusive: Vec<_> = policy
        .exclusive(v4)
        .map(|address| element(address, SnatPolicy::EXCLUSIVE))
        .collect();
    if !exclusive.is_empty() {
        let count = u16::try_from(exclusive.len().min(room as usize)).ok()?;
        next.extend((0_u32..u32::from(count)).zip(exclusive));
        return Some((0, count));
    }
    let wanted = element(own?, policy.shared());
    let same = |(_, e): &(&u32, &SnatAddress)| e.address == wanted.address;
    let free = |index: &u32| !next.contains_key(index);
    let index = next
        .iter()
        .find(same)
        .or_else(|| previous.iter().filter(|(index, _)| free(index)).find(same))
        .map(|(index, _)| *index)
        .or_else(|| (0..room).find(|i| free(i) && !previous.contains_key(i)))
        .or_else(|| (0..room).find(free))?;
    next.insert(index, wanted);
    Some((u16::try_from(index).ok()?, 1))
}

/// The address as `SNAT_V4` and `SNAT_V6` hold it: IPv4 in the first word.
fn snat_address(address: IpAddr) -> Addr6 {
    match address {
        IpAddr::V4(address) => Addr6([Addr4::from(address).0, 0, 0, 0]),
        IpAddr::V6(address) => address.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::network::Address, *};

    const ROOM: Room = Room {
        devices: 8,
        snat: 4,
    };
    const SHARED: SnatPolicy = SnatPolicy {
        addresses: Vec::new(),
        masquerade: true,
    };

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn network(links: &[(u32, &str)]) -> Network {
        let mut network = Network::default();
        network.set_link(
            1,
            Link {
                loopback: true,
                ..Link::default()
            },
        );
        for (ifindex, address) in links {
            let link = Link {
                name: format!("lb{ifindex}"),
                mac: Some([2, 0, 0, 0, 0, 1]),
                mtu: 1500,
                up: true,
                ..Link::default()
            };
            network.set_link(*ifindex, link);
            network.set_address(
                *ifindex,
                Address {
                    ip: ip(address),
                    prefix: 24,
                    peer: None,
                    primary: true,
                },
            );
        }
        network
    }

    #[test]
    fn indices_stay_and_are_not_reused_at_once() {
        let redirectable = BTreeSet::from([4]);
        let before = DeviceTables::default().decide(
            &network(&[(3, "192.0.2.3"), (4, "192.0.2.4")]),
            &redirectable,
            Some(&SHARED),
            ROOM,
        );
        assert_eq!(before.devices.keys().copied().collect::<Vec<_>>(), [1, 2]);
        assert_eq!(before.devices[&1].flags, 0);
        assert_eq!(before.devices[&2].flags, device_flag::REDIRECT);
        let after = before.decide(
            &network(&[(4, "192.0.2.4"), (9, "192.0.2.9")]),
            &redirectable,
            Some(&SHARED),
            ROOM,
        );
        let pairs: Vec<_> = after.devices.iter().map(|(i, d)| (*i, d.ifindex)).collect();
        assert_eq!(pairs, [(2, 4), (3, 9)]);
        assert_eq!(
            after.devices[&2].snat4_first,
            before.devices[&2].snat4_first
        );
        assert_eq!(after.snat_v4.len(), 2);
    }

    #[test]
    fn shared_addresses_leave_the_masquerade_s_ports_alone() {
        for (masquerade, expected) in [(true, (1, 1_023)), (false, (1_024, 28_976))] {
            let policy = SnatPolicy {
                masquerade,
                ..SHARED
            };
            let tables = DeviceTables::default().decide(
                &network(&[(3, "192.0.2.3")]),
                &BTreeSet::new(),
                Some(&policy),
                ROOM,
            );
            let element = tables.snat_v4[&0];
            assert_eq!((element.first_port, element.port_count), expected);
        }
    }

    #[test]
    fn exclusive_addresses_serve_every_device() {
        let policy = SnatPolicy {
            addresses: vec![ip("203.0.113.1"), ip("2001:db8::1"), ip("203.0.113.2")],
            masquerade: true,
        };
        let tables = DeviceTables::default().decide(
            &network(&[(3, "192.0.2.3"), (4, "192.0.2.4")]),
            &BTreeSet::new(),
            Some(&policy),
            ROOM,
        );
        for device in tables.devices.values() {
            assert_eq!((device.snat4_first, device.snat4_count), (0, 2));
            assert_eq!((device.snat6_first, device.snat6_count), (0, 1));
        }
        assert_eq!(tables.snat_v4[&1].first_port, 1_024);
        assert_eq!(tables.snat_v4[&1].port_count, 64_512);
    }

    #[test]
    fn tables_without_room_leave_devices_out() {
        let links: Vec<_> = (2..20).map(|ifindex| (ifindex, "192.0.2.3")).collect();
        let tables =
            DeviceTables::default().decide(&network(&links), &BTreeSet::new(), Some(&SHARED), ROOM);
        assert_eq!(tables.devices.len(), 7);
        // One address, one element.
        assert_eq!(tables.snat_v4.len(), 1);
    }

    #[test]
    fn snat_addresses_stay_while_nobody_knows_them() {
        let decide = |tables: &DeviceTables, links: &[(u32, &str)], policy| {
            tables.decide(&network(links), &BTreeSet::new(), policy, ROOM)
        };
        let policy = SnatPolicy {
            addresses: vec![ip("203.0.113.1")],
            masquerade: true,
        };
        let before = decide(&DeviceTables::default(), &[(3, "192.0.2.3")], Some(&policy));
        let unknown = decide(&before, &[(3, "192.0.2.30"), (4, "192.0.2.4")], None);
        assert_eq!(unknown.snat_v4, before.snat_v4);
        let counts: Vec<_> = unknown.devices.values().map(|d| d.snat4_count).collect();
        assert_eq!(counts, [1, 0]);
        let known = decide(
            &unknown,
            &[(3, "192.0.2.30"), (4, "192.0.2.4")],
            Some(&policy),
        );
        assert_eq!(known.snat_v4, before.snat_v4);
        let counts: Vec<_> = known.devices.values().map(|d| d.snat4_count).collect();
        assert_eq!(counts, [1, 1]);
    }
}
