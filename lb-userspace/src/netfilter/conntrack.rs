//! UDP connections the node's stack translates: those of a kube-proxy, above all.
//!
//! Asked for by ctnetlink, without any tool. TCP is no concern of ours here: a segment without SYN that no
//! flow knows tells by itself that it belongs to somebody else.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use lb_common::flow::protocol;
use rtnetlink::sys::protocols::NETLINK_NETFILTER;

use crate::netlink::{self, attributes, put_attribute};

/// `NFNL_SUBSYS_CTNETLINK`, `IPCTNL_MSG_CT_GET`.
const GET: u16 = (1 << 8) | 1;
/// Bit of an attribute's type: its value is attributes.
const NESTED: u16 = 1 << 15;
/// `struct nfgenmsg`: family, version, resource id.
const GENERIC_HEADER: usize = 4;

/// `enum ctattr_type` and those below it, `linux/netfilter/nfnetlink_conntrack.h`.
mod attribute {
    pub(super) const TUPLE_ORIGINAL: u16 = 1;
    pub(super) const TUPLE_REPLY: u16 = 2;
    pub(super) const STATUS: u16 = 3;
    pub(super) const ZONE: u16 = 18;
    pub(super) const FILTER: u16 = 25;
    pub(super) const FILTER_ORIGINAL_FLAGS: u16 = 1;

    pub(super) const TUPLE_IP: u16 = 1;
    pub(super) const TUPLE_PROTOCOL: u16 = 2;

    pub(super) const V4_SOURCE: u16 = 1;
    pub(super) const V4_DESTINATION: u16 = 2;
    pub(super) const V6_SOURCE: u16 = 3;
    pub(super) const V6_DESTINATION: u16 = 4;

    pub(super) const PROTOCOL_NUMBER: u16 = 1;
    pub(super) const SOURCE_PORT: u16 = 2;
    pub(super) const DESTINATION_PORT: u16 = 3;
}

/// `CTA_FILTER_F_CTA_PROTO_NUM`, `net/netfilter/nf_internals.h`.
const FILTER_BY_PROTOCOL: u32 = 1 << 3;

/// `enum ip_conntrack_status`, `linux/netfilter/nf_conntrack_common.h`.
mod status {
    pub(super) const SEEN_REPLY: u32 = 1 << 1;
    pub(super) const DESTINATION_NAT: u32 = 1 << 5;
    pub(super) const DYING: u32 = 1 << 9;
}

/// Source and destination of a packet.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Ends {
    /// Source address and port.
    pub source: SocketAddr,
    /// Destination address and port.
    pub destination: SocketAddr,
}

/// A UDP connection whose destination the stack translates.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Tracked {
    /// A packet of the one who began, as it arrives.
    pub original: Ends,
    /// A packet of the other, as it arrives.
    pub reply: Ends,
    /// The other answered.
    pub replied: bool,
}

/// Lists the UDP connections of this network namespace whose destination is translated, those with an
/// answer first.
///
/// # Errors
///
/// If they cannot be read. A kernel that tracks no connections has none.
pub fn translated() -> io::Result<Vec<Tracked>> {
    let mut all = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let request = request(u8::try_from(family).map_err(io::Error::other)?);
        match netlink::request(NETLINK_NETFILTER, GET, netlink::DUMP, &request) {
            Ok(answers) => all.extend(answers.iter().filter_map(|answer| parse(&answer.payload))),
            Err(error) if super::is_absent(&error) => {}
            Err(error) => return Err(error),
        }
    }
    all.sort_by_key(|tracked| !tracked.replied);
    Ok(all)
}

/// Asks for one family, UDP alone: the kernel then copies nothing else.
fn request(family: u8) -> Vec<u8> {
    let mut tuple = Vec::new();
    put_attribute(&mut tuple, attribute::PROTOCOL_NUMBER, &[protocol::UDP]);
    let mut original = Vec::new();
    put_attribute(&mut original, attribute::TUPLE_PROTOCOL | NESTED, &tuple);
    let mut filter = Vec::new();
    put_attribute(
        &mut filter,
        attribute::FILTER_ORIGINAL_FLAGS,
        &FILTER_BY_PROTOCOL.to_ne_bytes(),
    );
    let mut bytes = vec![family, 0, 0, 0];
    put_attribute(&mut bytes, attribute::TUPLE_ORIGINAL | NESTED, &original);
    put_attribute(&mut bytes, attribute::FILTER | NESTED, &filter);
    bytes
}

/// Reads one connection. `None`: not UDP, not translated, ending, in a zone of its own, or not
/// understood.
fn parse(message: &[u8]) -> Option<Tracked> {
    let (mut original, mut reply, mut bits) = (None, None, 0);
    for (kind, value) in attributes(message.get(GENERIC_HEADER..)?) {
        match kind {
            attribute::TUPLE_ORIGINAL => original = ends(value),
            attribute::TUPLE_REPLY => reply = ends(value),
            attribute::STATUS => bits = u32::from_be_bytes(value.try_into().ok()?),
            // Another zone's packets may carry the same addresses and be others.
            attribute::ZONE if value != [0; 2] => return None,
            _ => {}
        }
    }
    let ours = bits & (status::DESTINATION_NAT | status::DYING) == status::DESTINATION_NAT;
    Some(Tracked {
        original: original?,
        reply: reply?,
        replied: bits & status::SEEN_REPLY != 0,
    })
    .filter(|_| ours)
}

fn ends(tuple: &[u8]) -> Option<Ends> {
    let (mut source, mut destination) = (None, None);
    let (mut source_port, mut destination_port, mut number) = (None, None, None);
    for (kind, value) in attributes(tuple) {
        match kind {
            attribute::TUPLE_IP => {
                for (kind, value) in attributes(value) {
                    match kind {
                        attribute::V4_SOURCE | attribute::V6_SOURCE => source = address(value),
                        attribute::V4_DESTINATION | attribute::V6_DESTINATION => {
                            destination = address(value);
                        }
                        _ => {}
                    }
                }
            }
            attribute::TUPLE_PROTOCOL => {
                for (kind, value) in attributes(value) {
                    match kind {
                        attribute::PROTOCOL_NUMBER => number = value.first().copied(),
                        attribute::SOURCE_PORT => source_port = port(value),
                        attribute::DESTINATION_PORT => destination_port = port(value),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    if number? != protocol::UDP {
        return None;
    }
    Some(Ends {
        source: SocketAddr::new(source?, source_port?),
        destination: SocketAddr::new(destination?, destination_port?),
    })
}

fn address(value: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(value) {
        return Some(Ipv4Addr::from(v4).into());
    }
    let v6 = <[u8; 16]>::try_from(value).ok()?;
    Some(Ipv6Addr::from(v6).into())
}

fn port(value: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(value.try_into().ok()?))
}

#[cfg(test)]
mod tests;
