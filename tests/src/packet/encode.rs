//! Packets to bytes, with RFC 1071 checksums over everything they cover.

use std::net::IpAddr;

use super::{Check, Packet, Tcp, Transport};

/// The checksum of RFC 1071 over some bytes.
pub fn internet_checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0_u64;
    for part in parts {
        for pair in part.chunks(2) {
            let high = pair.first().copied().unwrap_or(0);
            let low = pair.get(1).copied().unwrap_or(0);
            sum += u64::from(u16::from_be_bytes([high, low]));
        }
    }
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("folded")
}

/// The checksum of a segment with its pseudo header (RFC 9293 §3.1, RFC 8200 §8.1).
pub fn transport_checksum(
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    segment: &[u8],
) -> u16 {
    internet_checksum(&[
        &pseudo_header(source, destination, protocol, segment.len()),
        segment,
    ])
}

fn pseudo_header(source: IpAddr, destination: IpAddr, protocol: u8, length: usize) -> Vec<u8> {
    let mut bytes = octets(source);
    bytes.extend(octets(destination));
    bytes.extend(
        u32::try_from(length)
            .expect("a short segment")
            .to_be_bytes(),
    );
    bytes.extend([0, 0, 0, protocol]);
    bytes
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn set(bytes: &mut [u8], at: usize, value: u16) {
    bytes
        .get_mut(at..at + 2)
        .expect("a header holds its checksum")
        .copy_from_slice(&value.to_be_bytes());
}

impl Packet {
    /// The frame.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::from(self.destination_mac);
        bytes.extend(self.source_mac);
        for (protocol, id) in &self.tags {
            bytes.extend(protocol.to_be_bytes());
            bytes.extend(id.to_be_bytes());
        }
        let ether_type: u16 = if self.is_v4() { 0x0800 } else { 0x86dd };
        bytes.extend(ether_type.to_be_bytes());
        bytes.extend(self.ip_bytes());
        bytes.extend(std::iter::repeat_n(0, self.trailer));
        bytes
    }

    /// The IP packet.
    pub fn ip_bytes(&self) -> Vec<u8> {
        let mut segment = self.segment();
        if let Some(fragment) = self.ip.fragment {
            let end = segment.len().min(fragment.offset + fragment.length);
            segment = segment
                .get(fragment.offset..end)
                .expect("a fragment inside")
                .to_vec();
        }
        if self.is_v4() {
            self.ipv4(&segment)
        } else {
            self.ipv6(&segment)
        }
    }

    /// Length of the IP packet.
    pub fn ip_length(&self) -> u64 {
        self.ip_bytes().len() as u64
    }

    fn protocol(&self) -> u8 {
        match &self.transport {
            Transport::Tcp(_) => 6,
            Transport::Udp { .. } => 17,
            Transport::Icmp { .. } if self.is_v4() => 1,
            Transport::Icmp { .. } => 58,
            Transport::Raw { protocol } => *protocol,
        }
    }

    /// Transport header and payload.
    fn segment(&self) -> Vec<u8> {
        let (mut bytes, check_at, check) = match &self.transport {
            Transport::Tcp(tcp) => (tcp_header(tcp), 16, tcp.check),
            Transport::Udp {
                source,
                destination,
                check,
            } => {
                let length = u16::try_from(8 + self.payload.len()).expect("a short datagram");
                let fields = [*source, *destination, length, 0];
                (
                    fields.into_iter().flat_map(u16::to_be_bytes).collect(),
                    6,
                    *check,
                )
            }
            Transport::Icmp {
                kind,
                code,
                rest,
                check,
            } => {
                let mut bytes = vec![*kind, *code, 0, 0];
                bytes.extend(rest);
                (bytes, 2, *check)
            }
            Transport::Raw { .. } => return self.payload.clone(),
        };
        bytes.extend(&self.payload);
        let value = self.checksum(&bytes, check);
        set(&mut bytes, check_at, value);
        bytes
    }

    fn checksum(&self, segment: &[u8], check: Check) -> u16 {
        let (source, destination) = (self.ip.source, self.ip.destination);
        let protocol = self.protocol();
        let full = match &self.transport {
            Transport::Icmp { .. } if self.is_v4() => internet_checksum(&[segment]),
            _ => transport_checksum(source, destination, protocol, segment),
        };
        let full = match (&self.transport, full) {
            (Transport::Udp { .. }, 0) => 0xffff,
            (_, full) => full,
        };
        match check {
            Check::Full => full,
            Check::Zero => 0,
            Check::Partial => {
                let header = pseudo_header(source, destination, protocol, segment.len());
                !internet_checksum(&[&header])
            }
            Check::Wrong => full.wrapping_add(1).max(1),
        }
    }

    fn ipv4(&self, segment: &[u8]) -> Vec<u8> {
        let header_length = 20 + self.ip.options.len();
        let total = u16::try_from(header_length + segment.len()).expect("a short packet");
        let words = u8::try_from(header_length / 4).expect("at most sixty bytes");
        let mut fragment = u16::from(self.ip.dont_fragment) << 14;
        if let Some(piece) = self.ip.fragment {
            fragment |= u16::try_from(piece.offset / 8).expect("an offset of 13 bits");
            fragment |= u16::from(piece.more) << 13;
        }
        let [_, _, id_high, id_low] = self.ip.id.to_be_bytes();
        let mut header = vec![0x40 | words, self.ip.traffic_class];
        header.extend(total.to_be_bytes());
        header.extend([id_high, id_low]);
        header.extend(fragment.to_be_bytes());
        header.extend([self.ip.ttl, self.protocol(), 0, 0]);
        header.extend(octets(self.ip.source));
        header.extend(octets(self.ip.destination));
        header.extend(&self.ip.options);
        let sum = internet_checksum(&[&header]);
        set(&mut header, 10, sum);
        header.extend(segment);
        header
    }

    fn ipv6(&self, segment: &[u8]) -> Vec<u8> {
        let mut extensions = self.ip.extensions.clone();
        if let Some(piece) = self.ip.fragment {
            let offset = u16::try_from(piece.offset).expect("an offset of 13 bits");
            let mut rest = vec![0];
            rest.extend((offset | u16::from(piece.more)).to_be_bytes());
            rest.extend(self.ip.id.to_be_bytes());
            extensions.push((44, rest));
        }
        let mut next = self.protocol();
        let mut body = segment.to_vec();
        for (number, rest) in extensions.iter().rev() {
            let mut header = vec![next];
            header.extend(rest);
            header.extend(body);
            (next, body) = (*number, header);
        }
        let [class_high, class_low] = [self.ip.traffic_class >> 4, self.ip.traffic_class << 4];
        let mut bytes = vec![0x60 | class_high, class_low, 0, 0];
        bytes.extend(
            u16::try_from(body.len())
                .expect("a short packet")
                .to_be_bytes(),
        );
        bytes.extend([next, self.ip.ttl]);
        bytes.extend(octets(self.ip.source));
        bytes.extend(octets(self.ip.destination));
        bytes.extend(body);
        bytes
    }
}

fn tcp_header(tcp: &Tcp) -> Vec<u8> {
    let words = u8::try_from(5 + tcp.options.len() / 4).expect("at most sixty bytes");
    let mut bytes = Vec::from(tcp.source.to_be_bytes());
    bytes.extend(tcp.destination.to_be_bytes());
    bytes.extend(tcp.seq.to_be_bytes());
    bytes.extend(tcp.ack.to_be_bytes());
    bytes.extend([words << 4, tcp.flags]);
    bytes.extend(tcp.window.to_be_bytes());
    bytes.extend([0, 0, 0, 0]);
    bytes.extend(&tcp.options);
    bytes
}

#[cfg(test)]
mod tests {
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};

    use crate::packet::packet;

    /// An independent parser reads what was meant and finds every checksum right.
    #[test]
    fn etherparse_agrees() {
        for (source, destination) in [
            ("198.51.100.7:40000", "192.0.2.1:443"),
            ("[2001:db8::7]:40000", "[2001:db8::1]:443"),
        ] {
            for built in [
                packet()
                    .tcp(source, destination)
                    .syn()
                    .seq(7)
                    .payload(b"odd"),
                packet().udp(source, destination).payload_length(301),
            ] {
                let bytes = built.bytes();
                let sliced = SlicedPacket::from_ethernet(&bytes).expect("a well-formed frame");
                let net = sliced.net.expect("IP");
                if let NetSlice::Ipv4(v4) = &net {
                    let header = v4.header().to_header();
                    assert_eq!(header.calc_header_checksum(), header.header_checksum);
                }
                match (sliced.transport.expect("transport"), net) {
                    (TransportSlice::Tcp(tcp), NetSlice::Ipv4(v4)) => {
                        let v4 = v4.header();
                        let sum = tcp.calc_checksum_ipv4(v4.source(), v4.destination());
                        assert_eq!(sum.ok(), Some(tcp.checksum()));
                        assert!(tcp.syn() && tcp.sequence_number() == 7);
                    }
                    (TransportSlice::Tcp(tcp), NetSlice::Ipv6(v6)) => {
                        let v6 = v6.header();
                        let sum = tcp.calc_checksum_ipv6(v6.source(), v6.destination());
                        assert_eq!(sum.ok(), Some(tcp.checksum()));
                    }
                    (TransportSlice::Udp(udp), NetSlice::Ipv4(v4)) => {
                        let v4 = v4.header();
                        let sum = udp.to_header().calc_checksum_ipv4_raw(
                            v4.source(),
                            v4.destination(),
                            udp.payload(),
                        );
                        assert_eq!(sum.ok(), Some(udp.checksum()));
                    }
                    (TransportSlice::Udp(udp), NetSlice::Ipv6(v6)) => {
                        let v6 = v6.header();
                        let sum = udp.to_header().calc_checksum_ipv6_raw(
                            v6.source(),
                            v6.destination(),
                            udp.payload(),
                        );
                        assert_eq!(sum.ok(), Some(udp.checksum()));
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
    }

    #[test]
    fn fragments_and_extensions_are_laid_out_right() {
        let whole = packet()
            .udp("198.51.100.7:1", "192.0.2.1:2")
            .payload_length(64);
        let first = whole.clone().fragment(0, 40, true).ip_bytes();
        let last = whole.clone().fragment(40, 100, false).ip_bytes();
        assert_eq!((first.len(), last.len()), (60, 20 + 32));
        assert_eq!(first.get(6..8), Some([0x20, 0].as_slice()));
        assert_eq!(last.get(6..8), Some([0, 5].as_slice()));

        let v6 = packet()
            .udp("[2001:db8::7]:1", "[2001:db8::1]:2")
            .extension(60, &[0; 7]);
        let bytes = v6.ip_bytes();
        assert_eq!((bytes.get(6), bytes.get(40)), (Some(&60), Some(&17)));
        let piece = v6.fragment(8, 8, true).ip_bytes();
        assert_eq!((piece.get(40), piece.get(48)), (Some(&44), Some(&17)));
        assert_eq!(piece.get(50..52), Some([0, 9].as_slice()));
    }
}
