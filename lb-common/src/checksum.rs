//! Incremental update of the Internet checksum, RFC 1624 equation 3: HC' = ~(~HC + ~m + m').
//!
//! Words are taken as they are loaded from the packet: one's complement addition does not care
//! about byte order as long as every operand has the same one (RFC 1071, section 2).

/// The sum of `~old + new` over the changed 16-bit words, unfolded. Room for 65,535 additions.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[must_use]
pub struct Difference(u64);

impl Difference {
    /// No change.
    #[inline(always)]
    pub const fn new() -> Self {
        Self(0)
    }

    /// A changed 16-bit word.
    #[inline(always)]
    pub const fn word16(self, old: u16, new: u16) -> Self {
        Self(self.0 + (!old) as u64 + new as u64)
    }

    /// A changed, 16-bit aligned 32-bit word.
    #[inline(always)]
    pub const fn word32(self, old: u32, new: u32) -> Self {
        Self(self.0 + (!old) as u64 + new as u64)
    }

    /// Four changed words: an IPv6 address.
    #[inline(always)]
    pub fn words(self, old: [u32; 4], new: [u32; 4]) -> Self {
        old.into_iter()
            .zip(new)
            .fold(self, |sum, (old, new)| sum.word32(old, new))
    }

    /// Everything another difference holds as well.
    #[inline(always)]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    /// The checksum field after the change.
    #[inline(always)]
    pub const fn apply(self, checksum: u16) -> u16 {
        !fold(self.0 + (!checksum) as u64)
    }

    /// The checksum field of a UDP header after the change. A computed zero is sent as 0xffff,
    /// since zero means "no checksum" (RFC 768).
    #[inline(always)]
    pub const fn apply_udp(self, checksum: u16) -> u16 {
        match self.apply(checksum) {
            0 => 0xffff,
            other => other,
        }
    }
}

/// Folds a sum of 16-bit words into 16 bits, end-around carry included.
#[inline(always)]
#[expect(
    clippy::cast_possible_truncation,
    reason = "folded below 2^16 before the cast"
)]
pub const fn fold(sum: u64) -> u16 {
    // 64 -> 33 bits, -> 18 bits at most, -> 17, -> 16: each step keeps the value modulo 0xffff.
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + ((sum >> 16) & 0xffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use std::vec::Vec;

    use super::*;

    /// RFC 1071, written for clarity: this is what the incremental form is held against.
    fn full(words: &[u16]) -> u16 {
        let mut sum: u32 = words.iter().map(|&w| u32::from(w)).sum();
        while sum >> 16 != 0 {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !u16::try_from(sum).expect("folded")
    }

    #[test]
    fn the_example_of_rfc_1624() {
        // Section 4: HC = 0xDD2F, m = 0x5555, m' = 0x3285, HC' must be 0x0000.
        assert_eq!(
            Difference::new().word16(0x5555, 0x3285).apply(0xdd2f),
            0x0000
        );
        assert_eq!(
            Difference::new().word16(0x5555, 0x3285).apply_udp(0xdd2f),
            0xffff
        );
    }

    proptest! {
        #[test]
        fn incremental_equals_full(
            mut words in prop::collection::vec(any::<u16>(), 8..64),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u16>()), 0..8),
        ) {
            let before = full(&words);
            let mut difference = Difference::new();
            for (index, new) in &changes {
                let word = index.get_mut(&mut words);
                difference = difference.word16(*word, *new);
                *word = *new;
            }
            // 0x0000 and 0xffff are one value in one's complement.
            let (incremental, expected) = (difference.apply(before), full(&words));
            prop_assert!(
                incremental == expected || (incremental ^ expected) == 0xffff,
                "{incremental:04x} {expected:04x}"
            );
        }

        #[test]
        fn a_32_bit_word_counts_as_its_two_halves(old: u32, new: u32, check: u16) {
            let halves = |w: u32| {
                let b = w.to_ne_bytes();
                Vec::from([u16::from_ne_bytes([b[0], b[1]]), u16::from_ne_bytes([b[2], b[3]])])
            };
            let (o, n) = (halves(old), halves(new));
            let by_halves = Difference::new().word16(o[0], n[0]).word16(o[1], n[1]).apply(check);
            let whole = Difference::new().word32(old, new).apply(check);
            prop_assert!(by_halves == whole || (by_halves ^ whole) == 0xffff);
        }
    }
}
