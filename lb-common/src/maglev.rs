//! What both sides must agree on about Maglev tables (Eisenbud et al., NSDI 2016): the lengths and
//! which slot a flow falls into. Building the tables is user space's work.

/// The lengths a table may have: primes, in steps of about four.
pub const LENGTHS: [u32; 7] = [251, 1_021, 4_093, 16_381, 65_521, 262_139, 1_048_573];

/// Slots per backend below which a table grows: the spread of shares then stays within about 1 %.
pub const SLOTS_PER_BACKEND: u32 = 100;

/// Slots in one element of the `SLOTS` map. Sixteen 32-bit slots are one cache line.
pub const SLOTS_PER_ELEMENT: u32 = 16;

/// The slot of a table of `length` slots into which a flow falls.
///
/// A multiplication instead of a remainder: it is several times cheaper and as even, since the hash
/// has 32 bits and the lengths at most 20.
#[inline(always)]
pub const fn slot(hash: u32, length: u32) -> u32 {
    ((hash as u64 * length as u64) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_primes() {
        for length in LENGTHS {
            assert!((2..=length.isqrt()).all(|d| length % d != 0), "{length}");
        }
    }

    #[test]
    fn a_slot_lies_inside_its_table() {
        for length in LENGTHS {
            assert_eq!(slot(0, length), 0);
            assert_eq!(slot(u32::MAX, length), length - 1);
        }
    }
}
