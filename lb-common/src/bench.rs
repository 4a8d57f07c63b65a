//! The contract between the benchmark's wrapper programs (`lb_bench*`, feature `bench` of `lb-ebpf`) and
//! their runner. Not part of the data path's layout.

use crate::wire;

/// Words of header a wrapper restores: Ethernet, IPv6 and TCP up to the checksum.
pub const HEADER_WORDS: usize = 18;
/// The same for IPv4.
pub const HEADER_WORDS_V4: usize = 13;
/// Keys of [`Reference`]'s table.
pub const REFERENCE_KEYS: usize = 65_536;
/// Knuth's multiplicative step: neighbours in time are no neighbours in memory.
pub const STEP: u32 = 2_654_435_761;

wire! {
    /// The one element of the map `BENCH`.
    pub struct BenchCase {
        /// The packet's first bytes, restored before each iteration. IPv4 uses [`HEADER_WORDS_V4`].
        pub header: [u32; HEADER_WORDS],
        /// Iterations so far: which flow is next.
        pub counter: u64,
        /// Results seen, by their low four bits. XDP: ABORTED, DROP, PASS, TX, REDIRECT; TCX: 2 is DROP,
        /// 7 REDIRECT, 15 NEXT; of a stage, its number.
        pub results: [u64; 16],
        /// Number of flows minus one; the number is a power of two.
        pub flow_mask: u32,
        /// Bits of [`bench_flag`].
        pub flags: u32,
        /// Services the flows are spread over, at most 65,536; 0 counts as one.
        pub services: u32,
        /// Of a new flow, the last step to take; one of [`stage`].
        pub stage: u32,
    }
}

wire! {
    /// Key of the reference program's table: an IPv4 5-tuple.
    pub struct ReferenceKey {
        /// Source, destination, ports, protocol, as they lie in the packet.
        pub words: [u32; 4],
    }
}

wire! {
    /// Value of the reference program's table.
    pub struct Reference {
        /// What is written over source and destination; the rest makes it as long as an entry.
        pub words: [u32; 16],
    }
}

/// Bits of [`BenchCase::flags`].
pub mod bench_flag {
    /// Restore and cycle, but do not call the data path: the null row.
    pub const NULL: u32 = 1;
    /// The packet is IPv6.
    pub const IPV6: u32 = 1 << 1;
    /// The destination varies with the flow (a reply); else the source does.
    pub const REPLY: u32 = 1 << 2;
    /// Flows are numbered in order and never come again: each packet is a new flow.
    pub const FRESH: u32 = 1 << 3;
}

/// Steps of a new flow, each with those before it, and bare map operations to hold them against.
pub mod stage {
    /// Ethernet, IP and transport headers, and the filter of addresses.
    pub const PARSE: u32 = 0;
    /// Both flow tables looked up in vain.
    pub const MISS: u32 = 1;
    /// Frontend, service port, backend.
    pub const CHOOSE: u32 = 2;
    /// The route to the backend.
    pub const ROUTE: u32 = 3;
    /// The route to the client, where the backend keeps its address.
    pub const MODE: u32 = 4;
    /// The reply tuple claimed: the first insert.
    pub const CLAIM: u32 = 5;
    /// The forward half inserted.
    pub const INSERT: u32 = 6;
    /// Everything, as the program itself does it.
    pub const SENT: u32 = 7;
    /// Parsed, then one insert of a new key into an LRU hash like `EMBRYONIC_V4`.
    pub const BARE_LRU: u32 = 8;
    /// Parsed, then one insert of a new key into a hash of the same size.
    pub const BARE_HASH: u32 = 9;
    /// An established flow's packet parsed and its flow found: all it needs is at hand.
    pub const FOUND: u32 = 10;
    /// The same, then counted for its service port and its backend.
    pub const COUNTED: u32 = 11;
    /// The result of a packet that came to another end.
    pub const ASTRAY: u32 = 15;
}

/// The port and the amount added to the address of flow `number`.
#[inline(always)]
pub const fn client(number: u32) -> (u16, u32) {
    (1_024 + (number & 0x3fff) as u16, number >> 14)
}

/// Which of `services` flow `number` goes to: of 65,536 flows each gets as many as any other, or one more.
#[inline(always)]
pub const fn service(number: u32, services: u32) -> u32 {
    ((number.wrapping_mul(STEP) & 0xffff) * services) >> 16
}

#[cfg(test)]
mod tests {
    use std::vec;

    use super::service;

    #[test]
    fn flows_are_spread_evenly_over_services() {
        for services in [1, 1_000, 10_000, 50_000, 65_536] {
            let mut flows = vec![0_u32; services as usize];
            for number in 0..65_536 {
                flows[service(number, services) as usize] += 1;
            }
            let fewest = flows.iter().min().copied().unwrap();
            let most = flows.iter().max().copied().unwrap();
            assert!(
                fewest >= 1 && most - fewest <= 1,
                "{services}: {fewest} to {most}"
            );
        }
    }
}
