//! Flow keys, their hash, and the filter which tells most foreign packets apart for two loads.

use crate::{
    addr::{Addr4, Addr6, Be16},
    wire,
};

wire! {
    /// An IPv4 5-tuple as seen on the wire. 16 bytes: a multiple of four hashes faster than 13.
    pub struct Flow4 {
        /// Source address.
        pub source: Addr4,
        /// Destination address.
        pub destination: Addr4,
        /// Source port.
        pub source_port: Be16,
        /// Destination port.
        pub destination_port: Be16,
        /// IP protocol number: 6 or 17.
        pub protocol: u32,
    }
}

wire! {
    /// An IPv6 5-tuple as seen on the wire.
    pub struct Flow6 {
        /// Source address.
        pub source: Addr6,
        /// Destination address.
        pub destination: Addr6,
        /// Source port.
        pub source_port: Be16,
        /// Destination port.
        pub destination_port: Be16,
        /// IP protocol number: 6 or 17.
        pub protocol: u32,
    }
}

/// IP protocol numbers the data path knows.
pub mod protocol {
    /// ICMP, RFC 792.
    pub const ICMP: u8 = 1;
    /// TCP, RFC 9293.
    pub const TCP: u8 = 6;
    /// UDP, RFC 768.
    pub const UDP: u8 = 17;
    /// ICMPv6, RFC 4443.
    pub const ICMP6: u8 = 58;
}

/// One round of a 32-bit mixer (the multiply-xorshift of `MurmurHash3`'s finaliser).
#[inline(always)]
const fn mix(hash: u32, word: u32) -> u32 {
    let h = (hash ^ word).wrapping_mul(0x85eb_ca6b);
    (h ^ (h >> 13)).wrapping_mul(0xc2b2_ae35)
}

/// Ends a hash: spreads the low bits upwards, where [`crate::maglev::slot`] looks.
#[inline(always)]
const fn finish(hash: u32) -> u32 {
    let h = (hash ^ (hash >> 16)).wrapping_mul(0x85eb_ca6b);
    h ^ (h >> 13)
}

/// What the two key types have in common.
pub trait Flow: Copy + Eq {
    /// The address type of the family.
    type Address: Copy + Eq + Default;

    /// Puts a key together.
    fn new(
        source: Self::Address,
        source_port: Be16,
        destination: Self::Address,
        destination_port: Be16,
        protocol: u8,
    ) -> Self;
    /// The reply direction.
    #[must_use]
    fn reversed(&self) -> Self;
    /// The hash which selects a backend: the same on every node for the same packet.
    fn hash(&self) -> u32;
    /// The hash which selects a backend under session affinity: the same for every flow of a client.
    #[inline(always)]
    fn client_hash(&self) -> u32 {
        let nowhere = Self::Address::default();
        Self::new(self.source(), Be16(0), nowhere, Be16(0), 0).hash()
    }
    /// Source address.
    fn source(&self) -> Self::Address;
    /// Destination address.
    fn destination(&self) -> Self::Address;
    /// Source port.
    fn source_port(&self) -> Be16;
    /// Destination port.
    fn destination_port(&self) -> Be16;
    /// IP protocol number.
    fn protocol(&self) -> u8;
}

macro_rules! flow {
    ($name:ident, $address:ty, |$self:ident| $hash:expr) => {
        impl Flow for $name {
            type Address = $address;

            #[inline(always)]
            fn new(
                source: $address,
                source_port: Be16,
                destination: $address,
                destination_port: Be16,
                protocol: u8,
            ) -> Self {
                Self {
                    source,
                    destination,
                    source_port,
                    destination_port,
                    protocol: protocol as u32,
                }
            }

            #[inline(always)]
            fn reversed(&self) -> Self {
                Self {
                    source: self.destination,
                    destination: self.source,
                    source_port: self.destination_port,
                    destination_port: self.source_port,
                    protocol: self.protocol,
                }
            }

            #[inline(always)]
            fn hash(&self) -> u32 {
                let $self = self;
                let ports = (($self.source_port.0 as u32) << 16) | $self.destination_port.0 as u32;
                finish(mix(mix($hash, ports), $self.protocol))
            }

            #[inline(always)]
            fn source(&self) -> $address {
                self.source
            }

            #[inline(always)]
            fn destination(&self) -> $address {
                self.destination
            }

            #[inline(always)]
            fn source_port(&self) -> Be16 {
                self.source_port
            }

            #[inline(always)]
            fn destination_port(&self) -> Be16 {
                self.destination_port
            }

            #[inline(always)]
            #[expect(clippy::cast_possible_truncation, reason = "built from a u8")]
            fn protocol(&self) -> u8 {
                self.protocol as u8
            }
        }
    };
}

flow!(Flow4, Addr4, |f| mix(mix(0, f.source.0), f.destination.0));
flow!(Flow6, Addr6, |f| {
    let words = f.source.0.into_iter().chain(f.destination.0);
    words.fold(0, mix)
});

/// Words in an [`AddressFilter`]; a power of two, so that an index can be masked.
pub const FILTER_WORDS: usize = 1024;

/// A bitmap over hashed addresses: a clear bit proves that no rule and no flow of ours uses the
/// address. It is consulted before any hash table, for a packet's source and destination both.
///
/// A set bit proves nothing. Bits are set before the tables name an address and cleared only when
/// neither a table nor a flow names it any more.
pub type AddressFilter = [u64; FILTER_WORDS];

/// Where an address stands in the [`AddressFilter`]: word and bit.
#[inline(always)]
pub const fn filter_position4(address: Addr4) -> (u32, u32) {
    filter_position(address.0)
}

/// Where an address stands in the [`AddressFilter`]: word and bit.
#[inline(always)]
pub const fn filter_position6(address: Addr6) -> (u32, u32) {
    let [a, b, c, d] = address.0;
    filter_position(a ^ b.rotate_left(7) ^ c.rotate_left(13) ^ d.wrapping_mul(0x9e37_79b1))
}

#[inline(always)]
const fn filter_position(word: u32) -> (u32, u32) {
    let h = word.wrapping_mul(0x9e37_79b1) >> 16;
    (h >> 6, h & 63)
}

#[cfg(test)]
mod tests {
    use core::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    fn flow4(port: u16) -> Flow4 {
        Flow4::new(
            Ipv4Addr::new(198, 51, 100, 7).into(),
            Be16::new(port),
            Ipv4Addr::new(192, 0, 2, 1).into(),
            Be16::new(443),
            protocol::TCP,
        )
    }

    #[test]
    fn reversing_twice_is_the_same_flow() {
        let flow = flow4(40_000);
        assert_ne!(flow.reversed(), flow);
        assert_eq!(flow.reversed().reversed(), flow);
    }

    #[test]
    fn consecutive_ports_spread_over_the_hash() {
        let mut quarters = [0_u32; 4];
        for port in 1024..1024 + 4000 {
            let [.., top] = flow4(port).hash().to_le_bytes();
            quarters[usize::from(top >> 6)] += 1;
        }
        assert!(
            quarters.iter().all(|&n| (900..1100).contains(&n)),
            "{quarters:?}"
        );
    }

    #[test]
    fn a_clients_hash_is_that_of_its_address_alone() {
        let others = flow4(40_001);
        assert_ne!(flow4(40_000).hash(), others.hash());
        assert_eq!(flow4(40_000).client_hash(), others.client_hash());
        assert_ne!(others.client_hash(), others.reversed().client_hash());
    }

    #[test]
    fn addresses_survive_the_way_through_wire_types() {
        let v4 = Ipv4Addr::new(10, 1, 2, 3);
        assert_eq!(Ipv4Addr::from(Addr4::from(v4)), v4);
        let v6: Ipv6Addr = "2001:db8::1:2".parse().expect("a valid address");
        assert_eq!(Ipv6Addr::from(Addr6::from(v6)), v6);
        assert_eq!(
            Ipv6Addr::from(Addr4::from(v4).mapped()),
            v4.to_ipv6_mapped()
        );
    }

    #[test]
    fn filter_positions_stay_inside_the_bitmap() {
        for i in 0..=255_u8 {
            let (word, bit) = filter_position4(Ipv4Addr::new(10, i, 255 - i, i).into());
            assert!((word as usize) < FILTER_WORDS && bit < 64);
        }
    }
}
