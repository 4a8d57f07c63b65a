//! The contract between the generator of packets of established flows (`lb_stream`, feature `bench` of
//! `lb-ebpf`), the programs that receive them, and their runner. Not part of the data path's layout.

use crate::wire;

/// Words of a frame: Ethernet, IPv6 and TCP, rounded up.
pub const FRAME_WORDS: usize = 19;
/// Words of an IPv4 frame: 60 bytes, the shortest Ethernet has without its checksum.
pub const FRAME_WORDS_V4: usize = 15;
/// The clients' addresses are this many, one after the other, at most.
pub const ADDRESSES: u32 = 4;

wire! {
    /// The element of the per-CPU map `STREAM`: what this processor sends.
    pub struct Stream {
        /// The frame as it lies on the wire, with what varies and the checksums zero. IPv4 uses the
        /// first 15 words.
        pub frame: [u32; FRAME_WORDS],
        /// Bits of [`stream_flag`].
        pub flags: u32,
        /// The varying address of flow 0, or its last word (IPv6), in host order.
        pub address: u32,
        /// Sum of the transport checksum's 16-bit words that do not vary, in host order.
        pub transport_sum: u32,
        /// The same of the IPv4 header's.
        pub ip_sum: u32,
        /// The device by which the frames leave.
        pub ifindex: u32,
        /// This processor sends the flows `first + step * n` ...
        pub first: u32,
        /// ... where every processor has the same step ...
        pub step: u32,
        /// ... and `n` goes up to this power of two less one.
        pub mask: u32,
        /// Frames redirected so far.
        pub frames: u32,
    }
}

wire! {
    /// The one element of the map `EXPECTED`: what arrives, and where the programs that only pass frames on
    /// send them.
    pub struct Expected {
        /// The address that is the same in every frame, as it lies there. IPv4 has it in the last word.
        pub fixed: [u32; 4],
        /// The address of flow 0 at the other end, as it lies there; the last word in host order.
        pub varying: [u32; 4],
        /// The fixed end's port, as it lies in the frame.
        pub port: u32,
        /// Bits of [`stream_flag`].
        pub flags: u32,
        /// TTL or hop limit.
        pub ttl: u32,
        /// The device `lb_stream_redirect` sends by.
        pub ifindex: u32,
    }
}

wire! {
    /// The element of the per-CPU map `ARRIVED`.
    pub struct Arrived {
        /// Frames as expected.
        pub frames: u64,
        /// Other frames of the stream's protocol.
        pub wrong: u64,
    }
}

/// Bits of [`Stream::flags`] and [`Expected::flags`].
pub mod stream_flag {
    /// The frames are IPv6.
    pub const IPV6: u32 = 1;
    /// The frames are UDP, else TCP.
    pub const UDP: u32 = 1 << 1;
    /// The destination varies with the flow (a reply); else the source does.
    pub const REPLY: u32 = 1 << 2;
    /// Who receives adds the checksums up, too.
    pub const VERIFY: u32 = 1 << 3;
}
