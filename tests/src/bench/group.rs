//! Flows of one kind to one service, or spread over many.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr, SocketAddr},
};

use anyhow::{Context as _, Result};
use lb_common::{
    bench::{client, service},
    conntrack::flag,
};
use lb_userspace::tables::{FrontendId, Protocol, TableSet};

use crate::{
    network::{INSIDE, OUTSIDE, PODS, Port},
    packet::{Packet, packet},
};

/// First SNAT addresses of the backends' device.
pub(super) const SNAT: [&str; 2] = ["10.0.0.100", "2001:db8:a::64"];
/// Addresses of the node that are no VIP.
pub(super) const NODE: [&str; 2] = ["198.51.100.1", "2001:db8:100::1"];
/// Payload bytes of a packet: a small one.
const PAYLOAD: usize = 40;

/// What the flows of a group are for. Each has clients of its own.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Purpose {
    /// They are there and carry packets.
    Established,
    /// The packets make them.
    New,
    /// The packets promote them.
    Promoted,
}

/// How packets reach the backends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Mode {
    /// Elsewhere, the client's address is kept.
    Dnat,
    /// Elsewhere, from an SNAT address.
    FullNat,
    /// Pods of this node.
    Local,
    /// The node itself.
    Host,
}

/// What else the service asks for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Policy {
    /// Nothing.
    Plain,
    /// Session affinity.
    Affinity,
    /// A hundred source ranges, the clients in one of them.
    Admits,
    /// A hundred source ranges, the clients in none.
    Refuses,
    /// It has no endpoint.
    Empty,
}

/// Kind and number of the flows.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Shape {
    pub(super) v6: bool,
    pub(super) purpose: Purpose,
    pub(super) mode: Mode,
    pub(super) protocol: Protocol,
    pub(super) policy: Policy,
    /// Services the flows are spread over.
    pub(super) services: u32,
    /// Established flows.
    pub(super) flows: u32,
}

impl Shape {
    /// TCP flows to one plain service.
    pub(super) const fn tcp(v6: bool, mode: Mode, purpose: Purpose) -> Self {
        Self {
            v6,
            purpose,
            mode,
            protocol: Protocol::Tcp,
            policy: Policy::Plain,
            services: 1,
            flows: match purpose {
                Purpose::Established => super::FLOWS,
                Purpose::New | Purpose::Promoted => 0,
            },
        }
    }

    /// The family's name.
    pub(super) const fn family(self) -> &'static str {
        if self.v6 { "IPv6" } else { "IPv4" }
    }
}

/// The flows: client and reply tuple follow from the flow's number as in the wrapper.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Group {
    pub(super) shape: Shape,
    /// Its place among the groups of its tables.
    number: u16,
    /// Address of the first client; its port stands for every port.
    client: SocketAddr,
    /// Frontend of the first service; that of another is so many addresses further.
    vip: SocketAddr,
    /// Whom the backend sees.
    seen: IpAddr,
}

impl Group {
    /// The `number`-th group of some tables, which decides on its addresses.
    pub(super) fn new(number: u16, shape: Shape) -> Self {
        let pick = |v4: &str, v6: &str| parse(if shape.v6 { v6 } else { v4 });
        let client = match shape.purpose {
            Purpose::Established => pick("203.0.113.8", "2001:db8:ffff::8"),
            Purpose::New => pick("10.128.0.0", "2001:db8:fffe::"),
            Purpose::Promoted => pick("10.192.0.0", "2001:db8:fffd::"),
        };
        let vip = if shape.services > 1 {
            pick("10.64.0.0", "2001:db8:1::")
        } else {
            plus(pick("192.0.2.1", "2001:db8::1"), u32::from(number))
        };
        let [snat, snat6] = SNAT;
        Self {
            shape,
            number,
            client: SocketAddr::new(client, 0),
            vip: SocketAddr::new(vip, 443),
            seen: match shape.mode {
                Mode::FullNat => pick(snat, snat6),
                Mode::Dnat | Mode::Local | Mode::Host => client,
            },
        }
    }

    /// Device the backends are behind.
    pub(super) const fn port(&self) -> Port {
        match self.shape.mode {
            Mode::Dnat | Mode::FullNat => INSIDE,
            Mode::Local => PODS,
            // Their replies leave by the clients' device.
            Mode::Host => OUTSIDE,
        }
    }

    /// Bits of [`flag`] of the forward half.
    pub(super) const fn entry_flags(&self) -> u32 {
        match self.shape.mode {
            Mode::Dnat => 0,
            Mode::FullNat => flag::FULL_NAT,
            Mode::Local => flag::LOCAL,
            Mode::Host => flag::HOST,
        }
    }

    /// The frontend of a service.
    pub(super) fn vip(&self, service: u32) -> SocketAddr {
        SocketAddr::new(plus(self.vip.ip(), service), self.vip.port())
    }

    /// Eight backends of the one service; the first has the established flows.
    pub(super) fn backends(&self) -> [SocketAddr; 8] {
        std::array::from_fn(|index| {
            let index = u16::try_from(index).expect("eight backends");
            SocketAddr::new(self.host(index), 8_000 + 8 * self.number + index)
        })
    }

    /// The one backend of each of many services.
    pub(super) fn backend(&self, service: u32) -> SocketAddr {
        if self.shape.services == 1 {
            let [first, ..] = self.backends();
            return first;
        }
        let host = u16::try_from(service % 4).expect("four hosts");
        let port = 20_000 + u16::try_from(service / 4).expect("65,536 services at most");
        SocketAddr::new(self.host(host), port)
    }

    /// Hosts 5 to 8 are neighbours in the test network.
    fn host(&self, index: u16) -> IpAddr {
        let [node, node6] = NODE;
        let (v4, v6) = match self.shape.mode {
            Mode::Dnat | Mode::FullNat => ("10.0.0.5", "2001:db8:a::5"),
            Mode::Local => ("10.1.0.5", "2001:db8:b::5"),
            Mode::Host => return parse(if self.shape.v6 { node6 } else { node }),
        };
        let first = parse(if self.shape.v6 { v6 } else { v4 });
        plus(first, u32::from(index % 4))
    }

    /// Which service a flow goes to.
    pub(super) const fn service(&self, number: u32) -> u32 {
        service(number, self.shape.services)
    }

    /// Source and destination of a client's packet.
    pub(super) fn request(&self, number: u32) -> (SocketAddr, SocketAddr) {
        let (port, offset) = client(number);
        let source = SocketAddr::new(plus(self.client.ip(), offset), port);
        (source, self.vip(self.service(number)))
    }

    /// Source and destination of a client's packet once it is rewritten. The reply is its reverse.
    pub(super) fn forwarded(&self, number: u32) -> (SocketAddr, SocketAddr) {
        let (port, offset) = client(number);
        let source = SocketAddr::new(plus(self.seen, offset), port);
        (source, self.backend(self.service(number)))
    }

    /// Ids of service port and backend for each of the services.
    pub(super) fn ids(&self, tables: &TableSet) -> Result<Vec<(u32, u32)>> {
        let backends: BTreeMap<SocketAddr, u32> = tables
            .backends
            .iter()
            .map(|(id, backend)| (backend.endpoint, *id))
            .collect();
        let ids = (0..self.shape.services).map(|service| {
            let vip = self.vip(service);
            let frontend = tables.frontends.get(&FrontendId {
                address: vip.ip(),
                port: vip.port(),
                protocol: self.shape.protocol,
            })?;
            let backend = backends.get(&self.backend(service))?;
            Some((frontend.service, *backend))
        });
        ids.collect::<Option<_>>()
            .context("the tables lack a service of the benchmark")
    }

    /// The first flow's packet, client to VIP. TCP acknowledges [`super::flows::ANSWERED`].
    pub(super) fn question(&self) -> Packet {
        let (client, vip) = self.request(0);
        self.packet(client, vip)
    }

    /// The first flow's packet that asks for a connection.
    pub(super) fn syn(&self) -> Packet {
        let (client, vip) = self.request(0);
        packet().tcp(&client.to_string(), &vip.to_string()).syn()
    }

    /// The first flow's packet, backend to whom it sees.
    pub(super) fn answer(&self) -> Packet {
        let (seen, backend) = self.forwarded(0);
        let Port { mac, .. } = self.port();
        self.packet(backend, seen)
            .next_hop([2, 0, 0, 0, 0, 0xc], mac)
    }

    /// A packet between two addresses no table names.
    pub(super) fn transit(&self, source: IpAddr, destination: IpAddr) -> Packet {
        self.packet(
            SocketAddr::new(source, 443),
            SocketAddr::new(destination, 443),
        )
    }

    fn packet(&self, source: SocketAddr, destination: SocketAddr) -> Packet {
        let (source, destination) = (source.to_string(), destination.to_string());
        let packet = match self.shape.protocol {
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

fn parse(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

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
