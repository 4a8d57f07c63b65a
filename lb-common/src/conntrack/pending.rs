//! A half's traffic until it is counted for its service port and backend.

use super::flag;

/// Packets a half has forwarded that `SERVICE_TRAFFIC` and `BACKEND_TRAFFIC` do not count yet: one word with
/// the flags, since the packet has the entry's cache line anyway. Of the two tables it would need a line
/// each, so that its cost would grow with the number of services.
///
/// Flags (6 bits), IP bytes (20), packets (6). What adds to the word is atomic, and so is what takes from it.
/// It is handed over once it is [due](Self::is_due), by the first packet of a tick, by the agent's pass over
/// the flows and when the half leaves the table.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Pending(pub u32);

impl Pending {
    /// The bits of the flags.
    pub const FLAGS: u32 = (1 << FLAG_BITS) - 1;
    /// Longest packet, in IP bytes, that is kept pending. A longer one is many segments and pays for itself.
    pub const LONGEST: u32 = (1 << LENGTH_BITS) - 1;

    /// What a packet of so many IP bytes, at most [`Self::LONGEST`], adds to the word.
    #[inline(always)]
    pub const fn packet(bytes: u32) -> u32 {
        (1 << PACKETS_AT) | (bytes << FLAG_BITS)
    }

    /// Packets.
    #[inline(always)]
    pub const fn packets(self) -> u32 {
        self.0 >> PACKETS_AT
    }

    /// IP bytes.
    #[inline(always)]
    pub const fn bytes(self) -> u32 {
        (self.0 >> FLAG_BITS) & ((1 << BYTE_BITS) - 1)
    }

    /// Whether half of the room is used: the other half is for CPUs that add before this one takes.
    #[inline(always)]
    pub const fn is_due(self) -> bool {
        self.packets() >= 1 << (PACKET_BITS - 1)
    }
}

const _: () = assert!(flag::ALL & !Pending::FLAGS == 0);

const FLAG_BITS: u32 = 6;
const PACKET_BITS: u32 = 6;
const BYTE_BITS: u32 = u32::BITS - FLAG_BITS - PACKET_BITS;
const LENGTH_BITS: u32 = BYTE_BITS - PACKET_BITS;
const PACKETS_AT: u32 = FLAG_BITS + BYTE_BITS;

#[cfg(test)]
mod tests {
    use super::Pending;
    use crate::conntrack::flag;

    #[test]
    fn as_many_packets_as_there_is_room_for_keep_to_their_fields() {
        let flags = flag::ALL;
        for (name, length) in [("short", 60), ("longest", Pending::LONGEST), ("empty", 0)] {
            let mut word = flags;
            for number in 1..64 {
                word += Pending::packet(length);
                let pending = Pending(word);
                assert_eq!(pending.packets(), number, "{name}");
                assert_eq!(pending.bytes(), number * length, "{name}");
                assert_eq!(pending.is_due(), number >= 32, "{name}");
                assert_eq!(word & Pending::FLAGS, flags, "{name}");
            }
        }
    }
}
