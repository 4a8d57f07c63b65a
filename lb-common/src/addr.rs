//! Network-order values. They are kept apart from host integers by their types, so that a port of
//! a packet cannot be compared with a number of ours by accident.

use core::fmt;

use crate::wire;

/// A 16-bit value as it lies in the packet.
#[repr(transparent)]
#[derive(Clone, Copy, Default, Eq, Hash, PartialEq, Ord, PartialOrd)]
pub struct Be16(pub u16);

impl Be16 {
    /// The value on the wire of a host integer.
    #[inline(always)]
    pub const fn new(host: u16) -> Self {
        Self(host.to_be())
    }

    /// The host integer.
    #[inline(always)]
    pub const fn get(self) -> u16 {
        u16::from_be(self.0)
    }
}

impl fmt::Debug for Be16 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.get().fmt(f)
    }
}

/// An IPv4 address as it lies in the packet.
#[repr(transparent)]
#[derive(Clone, Copy, Default, Eq, Hash, PartialEq, Ord, PartialOrd)]
pub struct Addr4(pub u32);

/// An IPv6 address as it lies in the packet: four words, each in network order.
#[repr(transparent)]
#[derive(Clone, Copy, Default, Eq, Hash, PartialEq, Ord, PartialOrd)]
pub struct Addr6(pub [u32; 4]);

#[allow(unsafe_code, reason = "marker traits of transparent wrappers")]
const _: () = {
    // SAFETY: transparent wrappers around `Wire` types.
    unsafe impl wire::Wire for Be16 {}
    // SAFETY: as above.
    unsafe impl wire::Wire for Addr4 {}
    // SAFETY: as above.
    unsafe impl wire::Wire for Addr6 {}
};

impl From<core::net::Ipv4Addr> for Addr4 {
    fn from(address: core::net::Ipv4Addr) -> Self {
        Self(u32::from_ne_bytes(address.octets()))
    }
}

impl From<Addr4> for core::net::Ipv4Addr {
    fn from(address: Addr4) -> Self {
        Self::from(address.0.to_ne_bytes())
    }
}

impl From<core::net::Ipv6Addr> for Addr6 {
    fn from(address: core::net::Ipv6Addr) -> Self {
        let mut words = [0; 4];
        for (word, pair) in words.iter_mut().zip(address.segments().chunks_exact(2)) {
            if let &[high, low] = pair {
                *word = (((high as u32) << 16) | low as u32).to_be();
            }
        }
        Self(words)
    }
}

impl From<Addr6> for core::net::Ipv6Addr {
    fn from(address: Addr6) -> Self {
        let mut octets = [0; 16];
        for (chunk, word) in octets.chunks_exact_mut(4).zip(address.0) {
            chunk.copy_from_slice(&word.to_ne_bytes());
        }
        Self::from(octets)
    }
}

impl Addr4 {
    /// The IPv4-mapped IPv6 address, the form in which one table holds both families.
    #[inline(always)]
    pub const fn mapped(self) -> Addr6 {
        Addr6([0, 0, 0xffff_u32.to_be(), self.0])
    }
}

impl fmt::Debug for Addr4 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        core::net::Ipv4Addr::from(*self).fmt(f)
    }
}

impl fmt::Debug for Addr6 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        core::net::Ipv6Addr::from(*self).fmt(f)
    }
}
