//! The contract between the benchmark's wrapper program (`lb_bench`, feature `bench` of `lb-ebpf`) and
//! its runner. Not part of the data path's layout.

use crate::wire;

/// Words of header a wrapper restores: Ethernet, IPv6 and TCP, rounded up.
pub const HEADER_WORDS: usize = 20;

wire! {
    /// The one element of the map `BENCH`.
    pub struct BenchCase {
        /// The packet's first bytes, restored before each iteration. IPv4 uses the first 14 words.
        pub header: [u32; HEADER_WORDS],
        /// Iterations so far: which flow is next.
        pub counter: u64,
        /// XDP verdicts seen, by number: ABORTED, DROP, PASS, TX, REDIRECT.
        pub verdicts: [u64; 8],
        /// Number of flows minus one; the number is a power of two.
        pub flow_mask: u32,
        /// Bits of [`bench_flag`].
        pub flags: u32,
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
    /// The destination address varies with the flow's number, modulo 65,536: one VIP per service.
    pub const SPREAD: u32 = 1 << 4;
}

/// The port and the amount added to the address of flow `number`.
#[inline(always)]
pub const fn client(number: u32) -> (u16, u32) {
    (1_024 + (number & 0x3fff) as u16, number >> 14)
}
