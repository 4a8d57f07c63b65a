//! rtnetlink messages as changes of a [`Network`].

use std::net::IpAddr;

use rtnetlink::packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope},
    link::{InfoData, InfoVlan, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage},
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteType},
};

use super::network::{Address, Change, Link, Network};

/// Takes a message in and says what it changed.
pub(super) fn take(network: &mut Network, message: &RouteNetlinkMessage) -> Change {
    match message {
        // A bridge tells of its ports in its own family: with little in them, and of one that leaves it as if the
        // device itself were gone. Each change of a device comes without a family too.
        RouteNetlinkMessage::NewLink(message) | RouteNetlinkMessage::DelLink(message)
            if message.header.interface_family != AddressFamily::Unspec =>
        {
            Change::Nothing
        }
        RouteNetlinkMessage::NewLink(message) => link(network, message),
        RouteNetlinkMessage::DelLink(message) => network.remove_link(message.header.index),
        RouteNetlinkMessage::NewAddress(message) => match address(message) {
            Some(address) => network.set_address(message.header.index, address),
            None => Change::Nothing,
        },
        RouteNetlinkMessage::DelAddress(message) => match address(message) {
            Some(address) => network.remove_address(message.header.index, &address),
            None => Change::Nothing,
        },
        RouteNetlinkMessage::NewNeighbour(message) => neighbour(network, message, false),
        RouteNetlinkMessage::DelNeighbour(message) => neighbour(network, message, true),
        RouteNetlinkMessage::NewRoute(message) | RouteNetlinkMessage::DelRoute(message) => {
            if matters(message) {
                Change::Routes
            } else {
                Change::Nothing
            }
        }
        RouteNetlinkMessage::NewRule(_) | RouteNetlinkMessage::DelRule(_) => Change::Routes,
        _ => Change::Nothing,
    }
}

/// The device a looked-up route leaves by. `None` for what is delivered here or nowhere.
pub(super) fn output_device(route: &RouteMessage) -> Option<u32> {
    if route.header.kind != RouteType::Unicast {
        return None;
    }
    route
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Oif(index) => Some(*index),
            _ => None,
        })
}

fn link(network: &mut Network, message: &LinkMessage) -> Change {
    let ifindex = message.header.index;
    let Some(name) = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name.clone()),
            _ => None,
        })
    else {
        return Change::Nothing;
    };
    let flags = message.header.flags;
    let mut link = Link {
        name,
        mtu: network.links().get(&ifindex).map_or(0, |known| known.mtu),
        up: flags.contains(LinkFlags::Up | LinkFlags::LowerUp),
        loopback: flags.contains(LinkFlags::Loopback),
        ..Link::default()
    };
    let ethernet = message.header.link_layer_type == LinkLayerType::Ether;
    let (mut below, mut vlan) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Address(bytes) if ethernet => {
                link.mac = bytes.as_slice().try_into().ok();
            }
            LinkAttribute::Link(index) => below = Some(*index),
            LinkAttribute::LinkInfo(infos) => vlan = infos.iter().find_map(vlan_id),
            _ => {}
        }
    }
    link.vlan = below.zip(vlan);
    network.set_link(ifindex, link)
}

fn vlan_id(info: &LinkInfo) -> Option<u16> {
    let LinkInfo::Data(InfoData::Vlan(data)) = info else {
        return None;
    };
    data.iter().find_map(|info| match info {
        InfoVlan::Id(id) => Some(*id),
        _ => None,
    })
}

fn address(message: &AddressMessage) -> Option<Address> {
    let (mut own, mut peer, mut flags) = (None, None, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(address) => own = Some(*address),
            AddressAttribute::Address(address) => peer = Some(*address),
            AddressAttribute::Flags(all) => flags = Some(*all),
            _ => {}
        }
    }
    // On a point-to-point device `Address` is the peer's, and `Local` ours.
    let address = own.or(peer)?;
    // The full flags repeat the header's eight.
    let flags = flags.unwrap_or_else(|| {
        AddressFlags::from_bits_truncate(u32::from(header_bits(message.header.flags)))
    });
    let unfit = AddressFlags::Secondary
        | AddressFlags::Deprecated
        | AddressFlags::Tentative
        | AddressFlags::Dadfailed;
    let global = message.header.scope == AddressScope::Universe;
    Some(Address {
        ip: address,
        prefix: message.header.prefix_len,
        peer: peer.filter(|peer| *peer != address),
        primary: global && !flags.intersects(unfit),
    })
}

const fn header_bits(flags: AddressHeaderFlags) -> u8 {
    flags.bits()
}

fn neighbour(network: &mut Network, message: &NeighbourMessage, deleted: bool) -> Change {
    let (mut address, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(to)) => {
                address = Some(IpAddr::from(*to));
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(to)) => {
                address = Some(IpAddr::from(*to));
            }
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.as_slice().try_into().ok(),
            _ => {}
        }
    }
    let usable = matches!(
        message.header.state,
        NeighbourState::Reachable
            | NeighbourState::Stale
            | NeighbourState::Delay
            | NeighbourState::Probe
            | NeighbourState::Permanent
            | NeighbourState::Noarp
    );
    // Bridge entries (family AF_BRIDGE) have no address.
    let Some(address) = address else {
        return Change::Nothing;
    };
    let mac = if usable && !deleted { mac } else { None };
    network.set_neighbour(message.header.ifindex, address, mac)
}

/// Routes a forwarded packet can take; not multicast, not the cache's clones.
fn matters(message: &RouteMessage) -> bool {
    use rtnetlink::packet_route::route::RouteFlags;
    let multicast = message.attributes.iter().any(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(to)) => to.is_multicast(),
        RouteAttribute::Destination(RouteAddress::Inet6(to)) => to.is_multicast(),
        _ => false,
    });
    !multicast && !message.header.flags.contains(RouteFlags::Cloned)
}
