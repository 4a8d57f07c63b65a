//! The addresses of the packet tests, one book per family, so that a case is written once for both.

use crate::{
    network::{CLIENT, INSIDE, OUTSIDE, PODS, Port, ROUTER, SLIM, neighbour},
    packet::{Packet, packet},
    tables::{Tables, tables},
};

/// Addresses of one family and ports of one transport.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Book {
    v6: bool,
    udp: bool,
}

/// TCP and UDP over both families.
pub const BOOKS: [Book; 4] = [
    Book {
        v6: false,
        udp: false,
    },
    Book {
        v6: false,
        udp: true,
    },
    Book {
        v6: true,
        udp: false,
    },
    Book {
        v6: true,
        udp: true,
    },
];

/// TCP over both families.
pub const TCP_BOOKS: [Book; 2] = [
    Book {
        v6: false,
        udp: false,
    },
    Book {
        v6: true,
        udp: false,
    },
];

/// UDP over both families.
pub const UDP_BOOKS: [Book; 2] = [
    Book {
        v6: false,
        udp: true,
    },
    Book {
        v6: true,
        udp: true,
    },
];

impl Book {
    /// `IPv4/TCP`.
    pub const fn name(self) -> &'static str {
        match (self.v6, self.udp) {
            (false, false) => "IPv4/TCP",
            (false, true) => "IPv4/UDP",
            (true, false) => "IPv6/TCP",
            (true, true) => "IPv6/UDP",
        }
    }

    /// True for IPv6.
    pub const fn is_v6(self) -> bool {
        self.v6
    }

    /// True for UDP.
    pub const fn is_udp(self) -> bool {
        self.udp
    }

    /// The book's own value of two.
    pub const fn pick<'a>(self, v4: &'a str, v6: &'a str) -> &'a str {
        if self.v6 { v6 } else { v4 }
    }

    /// An address with a port, as it is written in this family.
    pub fn at(self, address: &str, port: u16) -> String {
        if self.v6 {
            format!("[{address}]:{port}")
        } else {
            format!("{address}:{port}")
        }
    }

    /// A client on the outside network.
    pub fn client(self, port: u16) -> String {
        self.at(self.pick("198.51.100.7", "2001:db8:100::7"), port)
    }

    /// A client behind the outside router.
    pub fn far_client(self, port: u16) -> String {
        self.at(self.pick("203.0.113.9", "2001:db8:ffff::9"), port)
    }

    /// The VIP's address.
    pub const fn vip_address(self) -> &'static str {
        self.pick("192.0.2.1", "2001:db8::1")
    }

    /// An endpoint on the VIP.
    pub fn vip(self, port: u16) -> String {
        self.at(self.vip_address(), port)
    }

    /// The load balancer's own outside address.
    pub const fn node_address(self) -> &'static str {
        self.pick("198.51.100.1", "2001:db8:100::1")
    }

    /// A backend behind [`INSIDE`]; hosts 5 to 8 have neighbours.
    pub fn backend(self, host: u8, port: u16) -> String {
        self.at(&self.host(INSIDE, host), port)
    }

    /// A pod of this node.
    pub fn pod(self, host: u8, port: u16) -> String {
        self.at(&self.host(PODS, host), port)
    }

    /// A backend behind [`SLIM`].
    pub fn slim(self, host: u8, port: u16) -> String {
        self.at(&self.host(SLIM, host), port)
    }

    /// The address of a host behind a port.
    pub fn host(self, port: Port, host: u8) -> String {
        let (v4, v6) = port.networks();
        if self.v6 {
            format!("{v6}::{host:x}")
        } else {
            format!("{v4}.{host}")
        }
    }

    /// The SNAT address towards [`INSIDE`].
    pub fn snat(self, port: u16) -> String {
        self.snat_at(INSIDE, port)
    }

    /// The SNAT address towards a port.
    pub fn snat_at(self, device: Port, port: u16) -> String {
        let (v4, v6) = device.snat();
        self.at(self.pick(v4, v6), port)
    }

    /// `192.0.2.1:443/tcp`.
    pub fn frontend(self, port: u16) -> String {
        self.frontend_at(&self.vip(port))
    }

    /// An endpoint with the book's protocol.
    pub fn frontend_at(self, endpoint: &str) -> String {
        format!("{endpoint}/{}", if self.udp { "udp" } else { "tcp" })
    }

    /// One service on the VIP, port 443, with the SNAT addresses declared.
    pub fn service(self) -> Tables {
        self.bare().frontend(&self.frontend(443))
    }

    /// No service, but the SNAT addresses.
    pub fn bare(self) -> Tables {
        [INSIDE, SLIM, PODS]
            .into_iter()
            .fold(tables(), |tables, port| {
                let (v4, v6) = port.snat();
                tables.snat(self.pick(v4, v6))
            })
    }

    /// A packet of the book's protocol; TCP carries ACK and sequence number 1000.
    pub fn packet(self, source: &str, destination: &str) -> Packet {
        if self.udp {
            packet().udp(source, destination).payload(b"question")
        } else {
            packet()
                .tcp(source, destination)
                .ack_only()
                .seq(1_000)
                .ack(1)
        }
    }

    /// The first packet of a flow: a SYN, or a datagram.
    pub fn first(self, source: &str, destination: &str) -> Packet {
        if self.udp {
            self.packet(source, destination)
        } else {
            packet().tcp(source, destination).syn().seq(999)
        }
    }

    /// What the backend says to [`Self::first`]: SYN-ACK with sequence number 4999, or a datagram.
    pub fn second(self, source: &str, destination: &str) -> Packet {
        if self.udp {
            packet().udp(source, destination).payload(b"answer")
        } else {
            packet()
                .tcp(source, destination)
                .syn_ack()
                .seq(4_999)
                .ack(1_000)
        }
    }

    /// What proves the client: the ACK of that SYN-ACK, or another datagram.
    pub fn third(self, source: &str, destination: &str) -> Packet {
        if self.udp {
            packet().udp(source, destination).payload(b"thanks")
        } else {
            packet()
                .tcp(source, destination)
                .ack_only()
                .seq(1_000)
                .ack(5_000)
        }
    }
}

/// The frame as it leaves towards a host behind `port`: one hop further.
pub fn towards(port: Port, host: u8, packet: &Packet) -> Packet {
    packet
        .clone()
        .hop()
        .next_hop(port.mac, neighbour(port, host))
}

/// The frame as it leaves towards the client on the outside network.
pub fn to_client(packet: &Packet) -> Packet {
    packet.clone().hop().next_hop(OUTSIDE.mac, CLIENT)
}

/// The frame as it leaves towards the outside router.
pub fn to_router(packet: &Packet) -> Packet {
    packet.clone().hop().next_hop(OUTSIDE.mac, ROUTER)
}
