//! The contract between the generator of SYN floods (`lb_flood`, feature `bench` of `lb-ebpf`) and its
//! runner. Not part of the data path's layout.

use crate::wire;

/// Words of a frame: Ethernet, IPv6 and TCP, rounded up.
pub const FRAME_WORDS: usize = 19;
/// Words of an IPv4 frame.
pub const FRAME_WORDS_V4: usize = 14;

wire! {
    /// The one element of the map `FLOOD`.
    pub struct Flood {
        /// The frame as it lies on the wire, with source address, source port, sequence number and
        /// checksums zero where they vary. IPv4 uses the first 14 words.
        pub frame: [u32; FRAME_WORDS],
        /// Not zero: the frame is IPv6.
        pub is_v6: u32,
        /// The source address, or its last word (IPv6), in host order.
        pub source: u32,
        /// Bits of it that vary.
        pub vary: u32,
        /// Sum of the TCP checksum's 16-bit words that do not vary, in host order.
        pub tcp_sum: u32,
        /// The same of the IPv4 header's.
        pub ip_sum: u32,
        /// The device by which the frames leave.
        pub ifindex: u32,
        /// The window of the SYNs, by which the guard knows them.
        pub window: u32,
        /// Frames so far; not exact with several processors.
        pub frames: u64,
    }
}

/// The Internet checksum (RFC 1071) of a sum of 16-bit words.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "two folds leave 16 bits")]
pub const fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    !(sum as u16)
}
