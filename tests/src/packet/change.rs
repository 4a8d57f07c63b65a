//! A packet's fields, one method each: what a chain goes on with.

use std::net::{IpAddr, SocketAddr};

use super::{Check, Fragment, Mac, Packet, Tcp, Transport, address};

impl Packet {
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
            options.len().is_multiple_of(4) && options.len() <= 40,
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

fn split(text: &str) -> (IpAddr, Option<u16>) {
    match text.parse::<SocketAddr>() {
        Ok(endpoint) => (endpoint.ip(), Some(endpoint.port())),
        Err(_) => (address(text), None),
    }
}
