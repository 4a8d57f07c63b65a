//! One line of text per frame, for the reader of a failed test.

use std::fmt::Write as _;

use etherparse::{LaxNetSlice, LaxSlicedPacket, LinkSlice, TransportSlice};

use super::{internet_checksum, transport_checksum};

/// Describes a frame in one line; broken frames as far as they can be read.
pub fn describe(frame: &[u8]) -> String {
    let mut out = format!("{} B ", frame.len());
    match LaxSlicedPacket::from_ethernet(frame) {
        Ok(sliced) => {
            if let Some(LinkSlice::Ethernet2(eth)) = &sliced.link {
                let (source, destination) = (mac(&eth.source()), mac(&eth.destination()));
                write(&mut out, format_args!("{source} > {destination} "));
            }
            for tag in &sliced.link_exts {
                if let etherparse::LaxLinkExtSlice::Vlan(vlan) = tag {
                    write(
                        &mut out,
                        format_args!("vlan {} ", vlan.vlan_identifier().value()),
                    );
                }
            }
            describe_net(&mut out, &sliced);
            if let Some((error, layer)) = sliced.stop_err {
                write(&mut out, format_args!(" (stopped at {layer}: {error})"));
            }
        }
        Err(error) => write(&mut out, format_args!("unreadable: {error}")),
    }
    out
}

fn write(out: &mut String, arguments: std::fmt::Arguments<'_>) {
    out.write_fmt(arguments).expect("a string takes everything");
}

fn describe_net(out: &mut String, sliced: &LaxSlicedPacket<'_>) {
    let (source, destination) = match &sliced.net {
        Some(LaxNetSlice::Ipv4(v4)) => {
            let header = v4.header();
            let ends = (
                header.source_addr().into(),
                header.destination_addr().into(),
            );
            write(
                out,
                format_args!("{} > {} ttl {}", ends.0, ends.1, header.ttl()),
            );
            let sum = internet_checksum(&[header.slice()]);
            if sum != 0 {
                write(out, format_args!(" IP CHECKSUM OFF BY {sum:#06x}"));
            }
            if header.is_fragmenting_payload() {
                let offset = header.fragments_offset().value();
                write(
                    out,
                    format_args!(" fragment {offset} more {}", header.more_fragments()),
                );
            }
            ends
        }
        Some(LaxNetSlice::Ipv6(v6)) => {
            let header = v6.header();
            let ends = (
                header.source_addr().into(),
                header.destination_addr().into(),
            );
            write(
                out,
                format_args!("{} > {} hops {}", ends.0, ends.1, header.hop_limit()),
            );
            ends
        }
        _ => return,
    };
    let (name, number, segment) = match &sliced.transport {
        Some(TransportSlice::Tcp(tcp)) => {
            write(
                out,
                format_args!(
                    " tcp {} > {} flags {:#04x} seq {} ack {} win {} payload {}",
                    tcp.source_port(),
                    tcp.destination_port(),
                    tcp.slice().get(13).copied().unwrap_or(0),
                    tcp.sequence_number(),
                    tcp.acknowledgment_number(),
                    tcp.window_size(),
                    tcp.payload().len(),
                ),
            );
            ("tcp", 6, tcp.slice())
        }
        Some(TransportSlice::Udp(udp)) => {
            let (source, destination) = (udp.source_port(), udp.destination_port());
            let length = udp.payload().len();
            write(
                out,
                format_args!(" udp {source} > {destination} payload {length}"),
            );
            if udp.checksum() == 0 {
                write(out, format_args!(" no checksum"));
                return;
            }
            ("udp", 17, udp.slice())
        }
        Some(TransportSlice::Icmpv4(icmp)) => {
            write(
                out,
                format_args!(" icmp {} {}", icmp.type_u8(), icmp.code_u8()),
            );
            describe_quote(out, icmp.payload());
            if internet_checksum(&[icmp.slice()]) != 0 {
                write(out, format_args!(" ICMP CHECKSUM WRONG"));
            }
            return;
        }
        Some(TransportSlice::Icmpv6(icmp)) => {
            write(
                out,
                format_args!(" icmp6 {} {}", icmp.type_u8(), icmp.code_u8()),
            );
            describe_quote(out, icmp.payload());
            ("icmp6", 58, icmp.slice())
        }
        Some(TransportSlice::Igmp(_)) | None => return,
    };
    let sum = transport_checksum(source, destination, number, segment);
    if sum != 0 {
        write(
            out,
            format_args!(" {} CHECKSUM OFF BY {sum:#06x}", name.to_uppercase()),
        );
    }
}

fn describe_quote(out: &mut String, quote: &[u8]) {
    let Ok(quoted) = LaxSlicedPacket::from_ip(quote) else {
        return;
    };
    write(out, format_args!(" [quotes "));
    match &quoted.net {
        Some(LaxNetSlice::Ipv4(v4)) => {
            let header = v4.header();
            let (source, destination) = (header.source_addr(), header.destination_addr());
            write(
                out,
                format_args!("{source} > {destination} ttl {}", header.ttl()),
            );
            if internet_checksum(&[header.slice()]) != 0 {
                write(out, format_args!(" IP CHECKSUM WRONG"));
            }
            describe_quoted_ports(out, v4.payload().payload);
        }
        Some(LaxNetSlice::Ipv6(v6)) => {
            let header = v6.header();
            let (source, destination) = (header.source_addr(), header.destination_addr());
            write(
                out,
                format_args!("{source} > {destination} hops {}", header.hop_limit()),
            );
            describe_quoted_ports(out, v6.payload().payload);
        }
        _ => {}
    }
    write(out, format_args!(" {} B]", quote.len()));
}

fn describe_quoted_ports(out: &mut String, transport: &[u8]) {
    if let Some(&[a, b, c, d]) = transport.get(..4) {
        let (source, destination) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
        write(out, format_args!(" ports {source} > {destination}"));
    }
}

fn mac(bytes: &[u8]) -> String {
    bytes
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect::<Vec<_>>()
        .join(":")
}
