//! The services of the benchmark and the flows to each.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use lb_common::bench::{client, service};
use lb_userspace::tables::{FrontendId, Protocol, TableSet};

use crate::{
    packet::{Packet, packet},
    tables::tables as no_tables,
};

/// Flows each group with established flows has.
pub(super) const FLOWS: u32 = 65_536;
/// Flows, and services, of [`Purpose::Spread`].
pub(super) const SERVICES: u32 = 1_024;
/// SNAT addresses of the backends' device.
pub(super) const SNAT_ADDRESSES: u16 = 4;
/// First SNAT addresses.
pub(super) const SNAT: [&str; 2] = ["10.0.0.100", "2001:db8:a::64"];
/// An address of the node that is no VIP.
pub(super) const NODE: &str = "198.51.100.1";

/// What the flows of a group are for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Purpose {
    /// They are there and carry packets.
    Established,
    /// The same, each of another service.
    Spread,
    /// The packets make them.
    New,
    /// The packets promote them.
    Promoted,
}

/// Flows to one service: client and reply tuple follow from the flow's number as in the wrapper.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Group {
    pub(super) purpose: Purpose,
    pub(super) full_nat: bool,
    pub(super) protocol: Protocol,
    /// Address of the first client; its port stands for every port.
    client: SocketAddr,
    vip: SocketAddr,
    /// Whom the backend sees.
    seen: IpAddr,
    /// Eight backends; the first one has the established flows.
    backends: [SocketAddr; 8],
}

/// Every group. Which number it has decides on its addresses.
pub(super) fn groups() -> Vec<Group> {
    use Purpose::{Established, New, Promoted, Spread};
    let mut groups = Vec::new();
    let mut add = |v6, purpose, full_nat, protocol| {
        let number = u16::try_from(groups.len()).expect("few groups");
        groups.push(Group::new(number, v6, purpose, full_nat, protocol));
    };
    for v6 in [false, true] {
        for full_nat in [false, true] {
            add(v6, Established, full_nat, Protocol::Tcp);
            add(v6, New, full_nat, Protocol::Tcp);
        }
        add(v6, Promoted, true, Protocol::Tcp);
    }
    add(false, Established, true, Protocol::Udp);
    add(false, Spread, false, Protocol::Tcp);
    groups
}

/// The tables of all groups.
pub(super) fn tables(groups: &[Group]) -> TableSet {
    let mut tables = no_tables().node_ports_on(NODE);
    for first in SNAT {
        for number in 0..u32::from(SNAT_ADDRESSES) {
            let address = plus(first.parse().expect("an address"), number);
            tables = tables.snat(&address.to_string());
        }
    }
    for group in groups {
        let backends = group.backends.map(|backend| backend.to_string());
        let services = if group.purpose == Purpose::Spread {
            SERVICES
        } else {
            1
        };
        for number in 0..services {
            let vip = group.vip(number);
            tables = tables.frontend(&format!("{vip}/{}", group.protocol).to_lowercase());
            if !group.full_nat {
                tables = tables.keep_source();
            }
            tables = tables.backends(backends.each_ref().map(String::as_str));
        }
    }
    tables.build(1)
}

impl Group {
    fn new(number: u16, v6: bool, purpose: Purpose, full_nat: bool, protocol: Protocol) -> Self {
        let pick = |v4: &str, v6_text: &str| -> IpAddr {
            let text = if v6 { v6_text } else { v4 };
            text.parse().expect("an address")
        };
        let client = match purpose {
            Purpose::Established | Purpose::Spread => pick("203.0.113.8", "2001:db8:ffff::8"),
            Purpose::New => pick("10.128.0.0", "2001:db8:fffe::"),
            Purpose::Promoted => pick("10.192.0.0", "2001:db8:fffd::"),
        };
        let vip = if purpose == Purpose::Spread {
            pick("10.64.0.0", "2001:db8:1::")
        } else {
            plus(pick("192.0.2.1", "2001:db8::1"), u32::from(number))
        };
        // Hosts 5 to 8 are neighbours in the test network.
        let backend = pick("10.0.0.5", "2001:db8:a::5");
        let [first_snat, first_snat6] = SNAT;
        Self {
            purpose,
            full_nat,
            protocol,
            client: SocketAddr::new(client, 0),
            vip: SocketAddr::new(vip, 443),
            seen: if full_nat {
                pick(first_snat, first_snat6)
            } else {
                client
            },
            backends: std::array::from_fn(|index| {
                let index = u16::try_from(index).expect("eight backends");
                let host = plus(backend, u32::from(index % 4));
                SocketAddr::new(host, 8000 + 2 * number + index / 4)
            }),
        }
    }

    pub(super) const fn is_v6(&self) -> bool {
        self.vip.is_ipv6()
    }

    /// Flows the group has while its rows are measured.
    pub(super) const fn established(&self) -> u32 {
        match self.purpose {
            Purpose::Established if matches!(self.protocol, Protocol::Udp) => 1,
            Purpose::Established => FLOWS,
            Purpose::Spread => SERVICES,
            Purpose::New | Purpose::Promoted => 0,
        }
    }

    /// Source and destination of a client's packet.
    pub(super) fn request(&self, number: u32) -> (SocketAddr, SocketAddr) {
        let (port, offset) = client(number);
        let service = if self.purpose == Purpose::Spread {
            service(number, SERVICES)
        } else {
            0
        };
        (
            SocketAddr::new(plus(self.client.ip(), offset), port),
            self.vip(service),
        )
    }

    /// The frontend of a service.
    fn vip(&self, service: u32) -> SocketAddr {
        SocketAddr::new(plus(self.vip.ip(), service), self.vip.port())
    }

    /// Source and destination of a client's packet once it is rewritten. The reply is its reverse.
    pub(super) fn forwarded(&self, number: u32) -> (SocketAddr, SocketAddr) {
        let (port, offset) = client(number);
        let [backend, ..] = self.backends;
        (SocketAddr::new(plus(self.seen, offset), port), backend)
    }

    /// Ids of the service port and of the backend of a flow.
    pub(super) fn ids(&self, number: u32, tables: &TableSet) -> Option<(u32, u32)> {
        let (_, vip) = self.request(number);
        let (_, endpoint) = self.forwarded(number);
        let frontend = tables.frontends.get(&FrontendId {
            address: vip.ip(),
            port: vip.port(),
            protocol: self.protocol,
        })?;
        let backend = tables
            .backends
            .iter()
            .find(|(_, backend)| backend.endpoint == endpoint)?;
        Some((frontend.service, *backend.0))
    }

    /// The first flow's packet, client to VIP. TCP acknowledges [`super::flows::ANSWERED`].
    pub(super) fn question(&self) -> Packet {
        let (client, vip) = self.request(0);
        self.packet(client, vip)
    }

    /// The first flow's packet that asks for a connection.
    pub(super) fn syn(&self) -> Packet {
        let (client, vip) = self.request(0);
        let empty = packet().tcp(&client.to_string(), &vip.to_string());
        empty.syn().payload_length(PAYLOAD)
    }

    /// The first flow's packet, backend to whom it sees.
    pub(super) fn answer(&self) -> Packet {
        let (seen, backend) = self.forwarded(0);
        self.packet(backend, seen)
    }

    fn packet(&self, source: SocketAddr, destination: SocketAddr) -> Packet {
        let (source, destination) = (source.to_string(), destination.to_string());
        let packet = match self.protocol {
            Protocol::Tcp => packet()
                .tcp(&source, &destination)
                .ack_only()
                .seq(1_000)
                .ack(super::flows::ANSWERED),
            Protocol::Udp => packet().udp(&source, &destination),
        };
        packet.payload_length(PAYLOAD)
    }
}

/// Payload bytes: enough for the header words the wrapper restores.
pub(super) const PAYLOAD: usize = 40;

/// The address `amount` further on, as the wrapper counts: in the last 32 bits.
pub(super) fn plus(address: IpAddr, amount: u32) -> IpAddr {
    match address {
        IpAddr::V4(v4) => IpAddr::V4(v4.to_bits().wrapping_add(amount).into()),
        IpAddr::V6(v6) => {
            let bits = v6.to_bits();
            let low = u32::try_from(bits & u128::from(u32::MAX)).expect("32 bits");
            let bits = (bits - u128::from(low)) + u128::from(low.wrapping_add(amount));
            IpAddr::V6(Ipv6Addr::from_bits(bits))
        }
    }
}
