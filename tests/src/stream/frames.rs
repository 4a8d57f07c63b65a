//! What the frames look like, as the programs are told.

use std::{
    net::{IpAddr, SocketAddr},
    ops::Range,
};

use etherparse::PacketBuilder;
use lb_common::{
    addr::{Addr4, Addr6},
    stream::{Expected, FRAME_WORDS, FRAME_WORDS_V4, Stream, stream_flag},
};
use lb_userspace::tables::Protocol;

/// TTL and hop limit of a frame as it is sent.
const TTL: u8 = 64;
/// The Ethernet header.
const IP: usize = 14;

/// The frames of some flows in one direction.
#[derive(Clone, Copy, Debug)]
pub struct Frames {
    /// Source and destination of flow 0 as they are sent. One of them varies with the flow, its port too.
    pub sent: [SocketAddr; 2],
    /// Source and destination of flow 0 as they arrive.
    pub arriving: [SocketAddr; 2],
    /// The destination varies, else the source.
    pub is_reply: bool,
    /// UDP, or TCP segments without data that acknowledge something.
    pub protocol: Protocol,
    /// Flows: a power of two, at most 65,536.
    pub flows: u32,
    /// Routers that take one from the TTL each.
    pub hops: u8,
    /// MACs: of the device they leave by, and of the next hop.
    pub macs: [[u8; 6]; 2],
}

impl Frames {
    /// Bytes to begin with, of a frame's length.
    pub(super) fn blank(&self) -> &'static [u8] {
        if self.is_v6() {
            &[0; FRAME_WORDS * 4]
        } else {
            &[0; FRAME_WORDS_V4 * 4]
        }
    }

    const fn is_v6(&self) -> bool {
        let [source, _] = self.sent;
        source.is_ipv6()
    }

    fn flags(&self) -> u32 {
        let mut flags = 0;
        for (is_set, flag) in [
            (self.is_v6(), stream_flag::IPV6),
            (self.protocol == Protocol::Udp, stream_flag::UDP),
            (self.is_reply, stream_flag::REPLY),
        ] {
            flags |= if is_set { flag } else { 0 };
        }
        flags
    }

    /// What the receivers are told.
    pub(super) fn expected(&self) -> Expected {
        let [source, destination] = self.arriving;
        let (fixed, varying) = if self.is_reply {
            (source, destination)
        } else {
            (destination, source)
        };
        let [first, second, third, last] = words(varying.ip());
        Expected {
            fixed: words(fixed.ip()),
            varying: [first, second, third, u32::from_be(last)],
            port: u32::from(fixed.port().to_be()),
            flags: self.flags(),
            ttl: u32::from(TTL - self.hops),
            ifindex: 0,
        }
    }

    /// The frame without what varies, and the sums over the rest. Each processor's flows are still to be set.
    pub(super) fn stream(&self, ifindex: u32) -> Stream {
        let mut bytes = self.bytes();
        let (ip_length, addresses, size) = if self.is_v6() {
            (40, 8, 16)
        } else {
            (20, 12, 4)
        };
        let transport = IP + ip_length;
        let source = IP + addresses;
        let (end, port) = if self.is_reply {
            (source + 2 * size, transport + 2)
        } else {
            (source + size, transport)
        };
        let (protocol, check) = match self.protocol {
            Protocol::Tcp => (6, transport + 16),
            Protocol::Udp => (17, transport + 6),
        };
        let address = word(&bytes, end - 4);
        let mut blank = vec![end - 4..end, port..port + 2, check..check + 2];
        if !self.is_v6() {
            blank.push(IP + 10..IP + 12);
        }
        for range in blank {
            bytes.get_mut(range).expect("inside the frame").fill(0);
        }
        let length = u32::try_from(bytes.len() - transport).expect("a short frame");
        let ip_sum = sum(&bytes, IP..transport);
        let transport_sum = sum(&bytes, source..bytes.len()) + protocol + length;
        bytes.resize(FRAME_WORDS * 4, 0);
        let (words, _) = bytes.as_chunks::<4>();
        let mut frame = [0; FRAME_WORDS];
        for (to, from) in frame.iter_mut().zip(words) {
            *to = u32::from_ne_bytes(*from);
        }
        Stream {
            frame,
            flags: self.flags(),
            address,
            transport_sum,
            ip_sum,
            ifindex,
            ..Stream::default()
        }
    }

    /// Flow 0's frame, without Ethernet's padding.
    fn bytes(&self) -> Vec<u8> {
        let ([from, to], [source, destination]) = (self.macs, self.sent);
        let builder = PacketBuilder::ethernet2(from, to);
        let builder = match (source.ip(), destination.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => builder.ipv4(from.octets(), to.octets(), TTL),
            (IpAddr::V6(from), IpAddr::V6(to)) => builder.ipv6(from.octets(), to.octets(), TTL),
            (from, to) => panic!("{from} and {to} are of different families"),
        };
        let mut bytes = Vec::new();
        let written = match self.protocol {
            Protocol::Tcp => builder
                .tcp(source.port(), destination.port(), 1_000, 0x2000)
                .ack(5_000)
                .write(&mut bytes, &[]),
            Protocol::Udp => {
                let payload: &[u8] = if self.is_v6() { &[0; 14] } else { &[0; 18] };
                let builder = builder.udp(source.port(), destination.port());
                builder.write(&mut bytes, payload)
            }
        };
        written.expect("a vector takes it");
        bytes
    }
}

/// An address as the programs have it: IPv4 in the last word.
fn words(address: IpAddr) -> [u32; 4] {
    match address {
        IpAddr::V4(v4) => [0, 0, 0, Addr4::from(v4).0],
        IpAddr::V6(v6) => Addr6::from(v6).0,
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    let bytes = bytes.get(at..at + 4).expect("inside the frame");
    u32::from_be_bytes(bytes.try_into().expect("four bytes"))
}

/// The sum of 16-bit words.
fn sum(bytes: &[u8], range: Range<usize>) -> u32 {
    let (words, _) = bytes.get(range).expect("inside").as_chunks::<2>();
    let words = words.iter().map(|word| u16::from_be_bytes(*word));
    words.map(u32::from).sum()
}

#[cfg(test)]
mod tests {
    use lb_common::{bench::client, flood::fold};

    use super::*;

    /// With the address and port the program would write, both checksums are those of a packet built at once.
    #[test]
    fn sums_lead_to_right_checksums() {
        for (from, to) in [
            ("203.0.113.8:1024", "192.0.2.1:80"),
            ("[2001:db8:203::8]:1024", "[2001:db8::1]:80"),
        ] {
            let [from, to] = [from, to].map(|end| end.parse::<SocketAddr>().expect("an end"));
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                for is_reply in [false, true] {
                    let frames = Frames {
                        sent: if is_reply { [to, from] } else { [from, to] },
                        arriving: [from, to],
                        is_reply,
                        protocol,
                        flows: 1,
                        hops: 0,
                        macs: [[2; 6], [4; 6]],
                    };
                    let stream = frames.stream(7);
                    let (port, _) = client(0);
                    let halves = (stream.address >> 16) + (stream.address & 0xffff);
                    let whole = frames.bytes();
                    let ip = if frames.is_v6() { 40 } else { 20 };
                    let at = match protocol {
                        Protocol::Tcp => IP + ip + 16,
                        Protocol::Udp => IP + ip + 6,
                    };
                    let what = format!("{frames:?}");
                    let check = fold(stream.transport_sum + halves + u32::from(port));
                    assert_eq!(u32::from(check), word(&whole, at) >> 16, "{what}");
                    if !frames.is_v6() {
                        let check = fold(stream.ip_sum + halves);
                        assert_eq!(u32::from(check), word(&whole, IP + 10) >> 16, "{what}");
                    }
                }
            }
        }
    }
}
