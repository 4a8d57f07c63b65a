//! The messages of the watched flows: numbered, named by the server, every byte known beforehand.

use std::net::{IpAddr, Ipv6Addr};

/// Bytes of a message, in either direction.
pub const LENGTH: usize = 64;

/// Which way a message goes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Direction {
    /// From the client.
    Up,
    /// From the server.
    Down,
}

/// A message, complete.
pub type Bytes = [u8; LENGTH];

/// Name of a server: the address it was reached at. Clients have none.
pub type Name = [u8; 16];

/// No name: what clients send.
pub const NOBODY: Name = [0; 16];

/// The name of a server at an address.
pub fn name(address: IpAddr) -> Name {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// The address that is a name.
pub fn address(name: Name) -> IpAddr {
    IpAddr::V6(Ipv6Addr::from(name)).to_canonical()
}

/// The message with this number of a flow.
pub fn message(direction: Direction, flow: u32, number: u64, name: Name) -> Bytes {
    let mut bytes = [0; LENGTH];
    let mut seed = number ^ (u64::from(flow) << 32) ^ (direction as u64) << 63;
    let head = [&flow.to_be_bytes()[..], &number.to_be_bytes(), &name].concat();
    let (front, body) = bytes.split_at_mut(head.len());
    front.copy_from_slice(&head);
    for chunk in body.chunks_mut(8) {
        // The mixer of SplitMix64 (Steele et al., OOPSLA 2014).
        seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let word = (word ^ (word >> 31)).to_be_bytes();
        chunk.copy_from_slice(word.get(..chunk.len()).unwrap_or_default());
    }
    bytes
}

/// The flow a message claims to be of.
pub fn flow(bytes: &Bytes) -> u32 {
    let (head, _) = bytes.split_at(4);
    u32::from_be_bytes(head.try_into().unwrap_or_default())
}

/// The name a message bears.
pub fn sender(bytes: &Bytes) -> Name {
    let name = bytes.get(12..28).unwrap_or_default();
    name.try_into().unwrap_or(NOBODY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_differ_in_whatever_they_are_made_of() {
        let server = name("10.9.0.1".parse().expect("an address"));
        let one = message(Direction::Down, 7, 1, server);
        let other = name("2001:db8::1".parse().expect("an address"));
        for (what, different) in [
            ("flow", message(Direction::Down, 8, 1, server)),
            ("number", message(Direction::Down, 7, 2, server)),
            ("direction", message(Direction::Up, 7, 1, server)),
            ("name", message(Direction::Down, 7, 1, other)),
        ] {
            assert_ne!(one, different, "{what}");
        }
        assert_eq!((flow(&one), sender(&one)), (7, server));
        assert_eq!(address(server).to_string(), "10.9.0.1");
        assert_eq!(address(other).to_string(), "2001:db8::1");
    }
}
