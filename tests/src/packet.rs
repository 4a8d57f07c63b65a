//! Packets as the tests write them: a chain of plain words, turned into bytes with every checksum
//! computed in full, never by the incremental arithmetic under test.
//!
//! ```
//! use lb_tests::packet::packet;
//! let syn = packet().tcp("198.51.100.7:40000", "192.0.2.1:443").syn().seq(1);
//! let expected = syn.clone().to("10.0.0.5:8443").ttl(63);
//! assert_ne!(syn.bytes(), expected.bytes());
//! ```

use std::net::{IpAddr, SocketAddr};

mod change;
mod decode;
mod encode;

pub use decode::describe;
pub use encode::{internet_checksum, transport_checksum};

/// An Ethernet address.
pub type Mac = [u8; 6];

/// A frame under construction.
#[derive(Clone, Debug)]
#[must_use]
pub struct Packet {
    pub(crate) destination_mac: Mac,
    pub(crate) source_mac: Mac,
    pub(crate) tags: Vec<(u16, u16)>,
    pub(crate) ip: Ip,
    pub(crate) transport: Transport,
    pub(crate) payload: Vec<u8>,
    pub(crate) trailer: usize,
}

#[derive(Clone, Debug)]
pub(crate) struct Ip {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) ttl: u8,
    pub(crate) traffic_class: u8,
    pub(crate) id: u32,
    pub(crate) dont_fragment: bool,
    pub(crate) options: Vec<u8>,
    pub(crate) extensions: Vec<(u8, Vec<u8>)>,
    pub(crate) fragment: Option<Fragment>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Fragment {
    pub(crate) offset: usize,
    pub(crate) length: usize,
    pub(crate) more: bool,
}

#[derive(Clone, Debug)]
pub(crate) enum Transport {
    Tcp(Tcp),
    Udp {
        source: u16,
        destination: u16,
        check: Check,
    },
    Icmp {
        kind: u8,
        code: u8,
        rest: [u8; 4],
        check: Check,
    },
    Raw {
        protocol: u8,
    },
}

#[derive(Clone, Debug)]
pub(crate) struct Tcp {
    pub(crate) source: u16,
    pub(crate) destination: u16,
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) flags: u8,
    pub(crate) window: u16,
    pub(crate) options: Vec<u8>,
    pub(crate) check: Check,
}

/// What stands in the transport checksum field.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Check {
    /// The right sum.
    Full,
    /// Zero: no checksum.
    Zero,
    /// The folded sum of the pseudo header, as a sender leaves it for its device to complete.
    Partial,
    /// Off by one.
    Wrong,
}

/// Starts a frame: from nowhere to nowhere until a transport is chosen.
pub fn packet() -> Packet {
    Packet {
        destination_mac: [2, 0, 0, 0, 0, 1],
        source_mac: [2, 0, 0, 0, 0, 0xc],
        tags: Vec::new(),
        ip: Ip {
            source: IpAddr::V4([0, 0, 0, 0].into()),
            destination: IpAddr::V4([0, 0, 0, 0].into()),
            ttl: 64,
            traffic_class: 0,
            id: 0x1234,
            dont_fragment: true,
            options: Vec::new(),
            extensions: Vec::new(),
            fragment: None,
        },
        transport: Transport::Raw { protocol: 59 },
        payload: Vec::new(),
        trailer: 0,
    }
}

/// Parses `192.0.2.1:443` or `[2001:db8::1]:443`.
pub(crate) fn endpoint(text: &str) -> SocketAddr {
    text.parse()
        .unwrap_or_else(|e| panic!("endpoint {text:?}: {e}"))
}

/// Parses an address.
pub(crate) fn address(text: &str) -> IpAddr {
    text.parse()
        .unwrap_or_else(|e| panic!("address {text:?}: {e}"))
}

impl Packet {
    fn addressed(mut self, source: IpAddr, destination: IpAddr) -> Self {
        assert_eq!(source.is_ipv4(), destination.is_ipv4(), "one family");
        self.ip.source = source;
        self.ip.destination = destination;
        self
    }

    /// A TCP segment (no flags, sequence number 0) between two endpoints.
    pub fn tcp(self, source: &str, destination: &str) -> Self {
        let (source, destination) = (endpoint(source), endpoint(destination));
        let mut this = self.addressed(source.ip(), destination.ip());
        this.transport = Transport::Tcp(Tcp {
            source: source.port(),
            destination: destination.port(),
            seq: 0,
            ack: 0,
            flags: 0,
            window: 64_240,
            options: Vec::new(),
            check: Check::Full,
        });
        this
    }

    /// A UDP datagram between two endpoints.
    pub fn udp(self, source: &str, destination: &str) -> Self {
        let (source, destination) = (endpoint(source), endpoint(destination));
        let mut this = self.addressed(source.ip(), destination.ip());
        this.transport = Transport::Udp {
            source: source.port(),
            destination: destination.port(),
            check: Check::Full,
        };
        this
    }

    /// An ICMP or `ICMPv6` message, after the family of the addresses.
    pub fn icmp(self, source: &str, destination: &str, kind: u8, code: u8) -> Self {
        let mut this = self.addressed(address(source), address(destination));
        this.transport = Transport::Icmp {
            kind,
            code,
            rest: [0; 4],
            check: Check::Full,
        };
        this
    }

    /// An echo request.
    pub fn ping(self, source: &str, destination: &str, id: u16, seq: u16) -> Self {
        let kind = if address(source).is_ipv4() { 8 } else { 128 };
        self.icmp(source, destination, kind, 0)
            .rest(echo_word(id, seq))
    }

    /// An echo reply.
    pub fn pong(self, source: &str, destination: &str, id: u16, seq: u16) -> Self {
        let kind = if address(source).is_ipv4() { 0 } else { 129 };
        self.icmp(source, destination, kind, 0)
            .rest(echo_word(id, seq))
    }

    /// "Fragmentation needed" or "packet too big".
    pub fn too_big(self, source: &str, destination: &str, mtu: u16) -> Self {
        let [high, low] = mtu.to_be_bytes();
        let (kind, code) = if address(source).is_ipv4() {
            (3, 4)
        } else {
            (2, 0)
        };
        self.icmp(source, destination, kind, code)
            .rest([0, 0, high, low])
    }

    /// "Port unreachable".
    pub fn port_unreachable(self, source: &str, destination: &str) -> Self {
        let (kind, code) = if address(source).is_ipv4() {
            (3, 3)
        } else {
            (1, 4)
        };
        self.icmp(source, destination, kind, code)
    }

    /// "Time exceeded in transit".
    pub fn time_exceeded(self, source: &str, destination: &str) -> Self {
        let (kind, code) = if address(source).is_ipv4() {
            (11, 0)
        } else {
            (3, 0)
        };
        self.icmp(source, destination, kind, code)
    }

    /// Any other protocol: the payload follows the IP header.
    pub fn raw(self, source: &str, destination: &str, protocol: u8) -> Self {
        let mut this = self.addressed(address(source), address(destination));
        this.transport = Transport::Raw { protocol };
        this
    }

    /// Quotes another packet, its IP header included, up to `length` bytes.
    pub fn quoting(mut self, quoted: &Self, length: usize) -> Self {
        self.payload = quoted.ip_bytes();
        self.payload.truncate(length);
        self
    }
}

fn echo_word(id: u16, seq: u16) -> [u8; 4] {
    let ([a, b], [c, d]) = (id.to_be_bytes(), seq.to_be_bytes());
    [a, b, c, d]
}
