//! Devices and next hops: where a rewritten packet leaves.

use crate::{addr::Addr6, wire};

wire! {
    /// A network device the data path may send through, indexed by a small device index.
    pub struct Device {
        /// Kernel interface index; 0 means that the element is free.
        pub ifindex: u32,
        /// Device MTU in bytes of IP packet.
        pub mtu: u32,
        /// The device's own MAC: the source of every frame sent through it.
        pub mac: [u8; 6],
        /// Bits of [`device_flag`].
        pub flags: u16,
        /// First element of `SNAT_V4` to use for packets leaving here.
        pub snat4_first: u16,
        /// Elements of `SNAT_V4` to use; 0 means that there is none.
        pub snat4_count: u16,
        /// First element of `SNAT_V6`.
        pub snat6_first: u16,
        /// Elements of `SNAT_V6`.
        pub snat6_count: u16,
        /// Interface index of the device below a VLAN device; 0 for others.
        pub vlan_parent: u32,
        /// VLAN id of a VLAN device.
        pub vlan_id: u16,
        /// Device index of itself, so that a copy knows where it came from.
        pub index: u16,
    }
}

/// Bits of [`Device::flags`].
pub mod device_flag {
    /// XDP may redirect frames to this device.
    pub const REDIRECT: u16 = 1;
    /// No link layer (a tunnel): frames carry no Ethernet header, only TCX can send.
    pub const NO_ETHERNET: u16 = 1 << 1;
}

wire! {
    /// Key of `NEXT_HOP_INDEX`: a neighbour.
    pub struct NextHopKey {
        /// Interface index of the device.
        pub ifindex: u32,
        /// 2 (`AF_INET`) or 10 (`AF_INET6`): the family of `gateway`.
        pub family: u32,
        /// The neighbour's address, IPv4 in the first word.
        pub gateway: Addr6,
    }
}

wire! {
    /// An element of `NEXT_HOPS`. Index 0 is never assigned.
    pub struct NextHop {
        /// [`NextHopWord`]: destination MAC and device index. 0 while the neighbour is unresolved.
        pub word: u64,
        /// Tick at which a packet last went by the neighbour table of the kernel.
        pub refreshed: u32,
        /// Interface index of the device; 0 means that the element is free.
        pub ifindex: u32,
        /// The neighbour's address, IPv4 in the first word.
        pub gateway: Addr6,
        /// 2 (`AF_INET`) or 10 (`AF_INET6`).
        pub family: u32,
        /// Always zero.
        pub reserved: u32,
    }
}

/// Destination MAC and device index in one 64-bit word, so that they cannot tear.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct NextHopWord(pub u64);

impl NextHopWord {
    /// Packs a word. Bytes 0-5 in memory are the MAC, bytes 6-7 the device index.
    #[inline(always)]
    pub const fn new(mac: [u8; 6], device: u16) -> Self {
        let [m0, m1, m2, m3, m4, m5] = mac;
        Self(u64::from_le_bytes([m0, m1, m2, m3, m4, m5, 0, 0]) | ((device as u64) << 48))
    }

    /// The neighbour's MAC.
    #[inline(always)]
    pub const fn mac(self) -> [u8; 6] {
        let [m0, m1, m2, m3, m4, m5, ..] = self.0.to_le_bytes();
        [m0, m1, m2, m3, m4, m5]
    }

    /// Index into `DEVICES`.
    #[inline(always)]
    pub const fn device(self) -> u16 {
        (self.0 >> 48) as u16
    }
}

wire! {
    /// An SNAT address and its ports, element of `SNAT_V4` and `SNAT_V6`.
    pub struct SnatAddress {
        /// The address, IPv4 in the first word.
        pub address: Addr6,
        /// First port of ours, host order.
        pub first_port: u32,
        /// Number of ports.
        pub port_count: u32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_next_hop_word_keeps_mac_and_device_apart() {
        let word = NextHopWord::new([2, 0, 0x5e, 0x10, 0xff, 1], 0xa1b2);
        assert_eq!(word.mac(), [2, 0, 0x5e, 0x10, 0xff, 1]);
        assert_eq!(word.device(), 0xa1b2);
    }
}
