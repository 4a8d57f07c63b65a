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

    /// Changes addresses and, where there are ports, the source port.
    pub fn from(mut self, source: &str) -> Self {
        let (ip, port) = split(source);
        self.ip.source = ip;
        match (&mut self.transport, port) {
            (Transport::Tcp(tcp), Some(port)) => tcp.source = port,
            (Transport::Udp { source, .. }, Some(port)) => *source = port,
            (_, None) => {}
            (other, Some(_)) => panic!("no ports in {other:?}"),
        }
        self
    }

    /// Changes the destination address and, where there are ports, the destination port.
    pub fn to(mut self, destination: &str) -> Self {
        let (ip, port) = split(destination);
        self.ip.destination = ip;
        match (&mut self.transport, port) {
            (Transport::Tcp(tcp), Some(port)) => tcp.destination = port,
            (Transport::Udp { destination, .. }, Some(port)) => *destination = port,
            (_, None) => {}
            (other, Some(_)) => panic!("no ports in {other:?}"),
        }
        self
    }

    /// Source and destination MAC.
    pub fn next_hop(mut self, source: Mac, destination: Mac) -> Self {
        self.source_mac = source;
        self.destination_mac = destination;
        self
    }

    /// Adds a VLAN tag outside those already there: 0x8100 for 802.1Q, 0x88a8 for 802.1ad.
    pub fn tag(mut self, protocol: u16, id: u16) -> Self {
        self.tags.insert(0, (protocol, id));
        self
    }

    /// TTL or hop limit.
    pub fn ttl(mut self, ttl: u8) -> Self {
        self.ip.ttl = ttl;
        self
    }

    /// One hop further.
    pub fn hop(mut self) -> Self {
        self.ip.ttl -= 1;
        self
    }

    /// TOS or traffic class.
    pub fn traffic_class(mut self, class: u8) -> Self {
        self.ip.traffic_class = class;
        self
    }

    /// IPv4 identification, or that of an IPv6 fragment header.
    pub fn id(mut self, id: u32) -> Self {
        self.ip.id = id;
        self
    }

    /// Clears IPv4's DF bit.
    pub fn may_fragment(mut self) -> Self {
        self.ip.dont_fragment = false;
        self
    }

    /// IPv4 options, a multiple of four bytes.
    pub fn options(mut self, options: &[u8]) -> Self {
        assert!(
            options.len() % 4 == 0 && options.len() <= 40,
            "IPv4 options come in words"
        );
        self.ip.options = options.to_vec();
        self
    }

    /// Adds an IPv6 extension header: its number and its bytes but for the next-header field.
    pub fn extension(mut self, number: u8, rest: &[u8]) -> Self {
        assert_eq!(
            (rest.len() + 1) % 8,
            0,
            "extension headers come in eight bytes"
        );
        self.ip.extensions.push((number, rest.to_vec()));
        self
    }

    /// A piece of the datagram: `length` bytes of the transport segment from `offset`.
    pub fn fragment(mut self, offset: usize, length: usize, more: bool) -> Self {
        assert_eq!(offset % 8, 0, "fragments start at multiples of eight");
        self.ip.fragment = Some(Fragment {
            offset,
            length,
            more,
        });
        self.ip.dont_fragment = false;
        self
    }

    fn tcp_mut(&mut self) -> &mut Tcp {
        match &mut self.transport {
            Transport::Tcp(tcp) => tcp,
            other => panic!("not TCP: {other:?}"),
        }
    }

    /// Sets the TCP flags byte.
    pub fn flags(mut self, flags: u8) -> Self {
        self.tcp_mut().flags = flags;
        self
    }

    /// SYN.
    pub fn syn(self) -> Self {
        self.flags(0x02)
    }

    /// SYN and ACK.
    pub fn syn_ack(self) -> Self {
        self.flags(0x12)
    }

    /// ACK.
    pub fn ack_only(self) -> Self {
        self.flags(0x10)
    }

    /// FIN and ACK.
    pub fn fin(self) -> Self {
        self.flags(0x11)
    }

    /// RST.
    pub fn rst(self) -> Self {
        self.flags(0x04)
    }

    /// TCP sequence number.
    pub fn seq(mut self, seq: u32) -> Self {
        self.tcp_mut().seq = seq;
        self
    }

    /// TCP acknowledgement number. Sets no flag.
    pub fn ack(mut self, ack: u32) -> Self {
        self.tcp_mut().ack = ack;
        self
    }

    /// TCP window.
    pub fn window(mut self, window: u16) -> Self {
        self.tcp_mut().window = window;
        self
    }

    /// TCP options, a multiple of four bytes.
    pub fn tcp_options(mut self, options: &[u8]) -> Self {
        assert_eq!(options.len() % 4, 0, "TCP options come in words");
        self.tcp_mut().options = options.to_vec();
        self
    }

    /// The word after an ICMP checksum.
    pub fn rest(mut self, word: [u8; 4]) -> Self {
        match &mut self.transport {
            Transport::Icmp { rest, .. } => *rest = word,
            other => panic!("not ICMP: {other:?}"),
        }
        self
    }

    /// Bytes after the transport header.
    pub fn payload(mut self, payload: &[u8]) -> Self {
        self.payload = payload.to_vec();
        self
    }

    /// `length` bytes after the transport header.
    pub fn payload_length(mut self, length: usize) -> Self {
        self.payload = (0..=255).cycle().take(length).collect();
        self
    }

    /// Zero bytes after the IP packet, as a device pads short frames.
    pub fn trailer(mut self, length: usize) -> Self {
        self.trailer = length;
        self
    }

    /// `length` bytes more after what is there.
    pub fn payload_extended(mut self, length: usize) -> Self {
        self.payload.extend((0..=255).cycle().take(length));
        self
    }

    fn check(mut self, value: Check) -> Self {
        match &mut self.transport {
            Transport::Tcp(tcp) => tcp.check = value,
            Transport::Udp { check, .. } | Transport::Icmp { check, .. } => *check = value,
            Transport::Raw { .. } => panic!("a raw packet has no checksum"),
        }
        self
    }

    /// No UDP checksum.
    pub fn no_checksum(self) -> Self {
        self.check(Check::Zero)
    }

    /// The checksum a sender leaves for its device to complete (`CHECKSUM_PARTIAL`).
    pub fn partial_checksum(self) -> Self {
        self.check(Check::Partial)
    }

    /// A wrong transport checksum.
    pub fn wrong_checksum(self) -> Self {
        self.check(Check::Wrong)
    }

    /// True for UDP.
    pub fn is_udp(&self) -> bool {
        matches!(self.transport, Transport::Udp { .. })
    }

    /// True for IPv4.
    pub fn is_v4(&self) -> bool {
        self.ip.source.is_ipv4()
    }
}

fn echo_word(id: u16, seq: u16) -> [u8; 4] {
    let ([a, b], [c, d]) = (id.to_be_bytes(), seq.to_be_bytes());
    [a, b, c, d]
}

fn split(text: &str) -> (IpAddr, Option<u16>) {
    match text.parse::<SocketAddr>() {
        Ok(endpoint) => (endpoint.ip(), Some(endpoint.port())),
        Err(_) => (address(text), None),
    }
}
