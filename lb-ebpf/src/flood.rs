//! `lb_flood`: makes SYNs of random clients out of a frame, for tests.
//!
//! Run with `BPF_F_TEST_XDP_LIVE_FRAMES`: each frame it redirects really leaves by a device. The kernel uses the
//! pages again and again, whatever became of their contents, so each frame is written whole.

use core::mem::offset_of;

use aya_ebpf::{
    bindings::{
        xdp_action::{XDP_ABORTED, XDP_DROP, XDP_PASS},
        xdp_md,
    },
    btf_maps::Array,
    helpers::{bpf_get_prandom_u32, bpf_redirect},
    macros::btf_map,
    programs::XdpContext,
};
use lb_common::flood::{FRAME_WORDS, FRAME_WORDS_V4, Flood, fold};
use network_types::{
    eth::{EthHdr, EtherType},
    ip::{Ipv4Hdr, Ipv6Hdr},
    tcp::TcpHdr,
};

use crate::packet::Packet;

#[btf_map]
static FLOOD: Array<Flood, 1> = Array::new();

const IP: usize = size_of::<EthHdr>();
const V4: usize = FRAME_WORDS_V4 * 4;
const V6: usize = FRAME_WORDS * 4;

macro_rules! copy {
    ($view:ident, $flood:ident; $($i:literal)+) => {
        $($view.set_u32::<{ $i * 4 }>($flood.frame[$i]);)+
    };
}

/// Writes what varies: `$ip` is the length of the IP header, `$source` the offset of the source's last word.
macro_rules! vary {
    ($view:ident, $flood:ident, $ip:expr, $source:expr) => {{
        const TCP: usize = IP + $ip;
        let client = Client::random($flood);
        $view.set_u32::<{ $source }>(client.address.to_be());
        $view.set_u16::<TCP>(client.port.to_be());
        $view.set_u32::<{ TCP + offset_of!(TcpHdr, seq) }>(client.sequence.to_be());
        let check = fold($flood.tcp_sum + client.sum());
        $view.set_u16::<{ TCP + offset_of!(TcpHdr, check) }>(check.to_be());
        client
    }};
}

/// Of so many of the flood's SYNs one passes the guard.
const PASSES: u32 = 128;
/// SYN alone, with a header of 20 bytes, as the word of offset, flags and window has it.
const SYN: u32 = 0x5002_0000;

/// The word of offset, flags and window of a TCP header after an IP header of `$ip` bytes.
macro_rules! window {
    ($packet:ident, $length:ident, $ip:expr) => {{
        const AT: usize = IP + $ip + 12;
        let view = $packet.view::<$length>()?;
        Some(u32::from_be(view.u32::<AT>()))
    }};
}

/// `lb_flood_guard`: what the protection of a network in front of the backends would do. Drops nearly all
/// SYNs with the flood's window.
#[inline(always)]
pub(crate) fn guard(ctx: &XdpContext) -> u32 {
    let Some(flood) = FLOOD.get_ptr(0) else {
        return XDP_ABORTED;
    };
    // SAFETY: an array element that nobody writes while the program is attached.
    let window = unsafe { (*flood).window };
    // SAFETY: the helper has no requirements.
    let random = unsafe { bpf_get_prandom_u32() };
    match offset_flags_window(ctx.ctx) {
        Some(word) if word == SYN | window && random % PASSES != 0 => XDP_DROP,
        _ => XDP_PASS,
    }
}

#[inline(always)]
fn offset_flags_window(ctx: *mut xdp_md) -> Option<u32> {
    // SAFETY: as in `write`.
    let packet = unsafe {
        Packet::new(
            (&raw const (*ctx).data).read_volatile() as usize,
            (&raw const (*ctx).data_end).read_volatile() as usize,
        )
    };
    let kind = packet.view::<IP>()?.u16::<12>();
    if kind == EtherType::Ipv4 as u16 {
        window!(packet, V4, size_of::<Ipv4Hdr>())
    } else if kind == EtherType::Ipv6 as u16 {
        window!(packet, V6, size_of::<Ipv6Hdr>())
    } else {
        None
    }
}

/// A client nobody ever heard of.
struct Client {
    address: u32,
    port: u16,
    sequence: u32,
}

impl Client {
    #[inline(always)]
    fn random(flood: &Flood) -> Self {
        // SAFETY: the helper has no requirements.
        let [address, port, sequence] = [(); 3].map(|()| unsafe { bpf_get_prandom_u32() });
        Self {
            address: flood.source | (address & flood.vary),
            // No port below 1024.
            port: port as u16 | 0x400,
            sequence,
        }
    }

    /// What it adds to the sum of the TCP checksum.
    #[inline(always)]
    fn sum(&self) -> u32 {
        sum(self.address) + self.port as u32 + sum(self.sequence)
    }
}

/// The sum of a word's halves.
#[inline(always)]
const fn sum(word: u32) -> u32 {
    (word >> 16) + (word & 0xffff)
}

/// One frame.
#[inline(always)]
pub(crate) fn run(ctx: &XdpContext) -> u32 {
    let Some(flood) = FLOOD.get_ptr_mut(0) else {
        return XDP_ABORTED;
    };
    // SAFETY: an array element that the runner does not touch meanwhile; the counter may lose a count.
    let flood = unsafe { &mut *flood };
    if !write(ctx.ctx, flood) {
        return XDP_DROP;
    }
    flood.frames += 1;
    // SAFETY: the helper has no requirements.
    unsafe { bpf_redirect(flood.ifindex, 0) as u32 }
}

#[inline(never)]
fn write(ctx: *mut xdp_md, flood: &Flood) -> bool {
    // SAFETY: the context of the running program. Volatile, so that the pointers are read here and
    // not passed in as numbers.
    let packet = unsafe {
        Packet::new(
            (&raw const (*ctx).data).read_volatile() as usize,
            (&raw const (*ctx).data_end).read_volatile() as usize,
        )
    };
    if flood.is_v6 != 0 {
        const SOURCE: usize = IP + offset_of!(Ipv6Hdr, src_addr) + 12;
        let Some(view) = packet.view::<V6>() else {
            return false;
        };
        copy!(view, flood; 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18);
        vary!(view, flood, size_of::<Ipv6Hdr>(), SOURCE);
    } else {
        const SOURCE: usize = IP + offset_of!(Ipv4Hdr, src_addr);
        const CHECK: usize = IP + offset_of!(Ipv4Hdr, check);
        let Some(view) = packet.view::<V4>() else {
            return false;
        };
        copy!(view, flood; 0 1 2 3 4 5 6 7 8 9 10 11 12 13);
        let client = vary!(view, flood, size_of::<Ipv4Hdr>(), SOURCE);
        let check = fold(flood.ip_sum + sum(client.address));
        view.set_u16::<CHECK>(check.to_be());
    }
    true
}
