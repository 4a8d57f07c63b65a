//! Changes to an skb, by the kernel's checksum helpers: they know partial checksums, which a direct
//! write would break. Every helper here may move the packet, so no view outlives a call.

use core::{ffi::c_void, mem::offset_of};

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM},
    helpers::generated::{
        bpf_csum_diff, bpf_l3_csum_replace, bpf_l4_csum_replace, bpf_redirect, bpf_skb_adjust_room,
        bpf_skb_change_head, bpf_skb_change_tail, bpf_skb_pull_data, bpf_skb_store_bytes,
    },
};
use lb_common::{
    conntrack::{Entry4, Entry6},
    flow::{Flow4, Flow6, protocol},
};
use network_types::{
    eth::EthHdr,
    ip::{Ipv4Hdr, Ipv6Hdr},
    tcp::TcpHdr,
    udp::UdpHdr,
};

use crate::packet::Packet;

/// Offset of the IP header: an skb at TC starts with its Ethernet header.
pub(crate) const IP: u32 = size_of::<EthHdr>() as u32;

/// `BPF_F_IPV6` (Linux 6.16): the pseudo-header change is IPv6's, whose header has no checksum of its
/// own. Older kernels refuse the flag.
const BPF_F_IPV6: u64 = 1 << 7;

/// The program's skb.
#[derive(Clone, Copy)]
pub(crate) struct Skb(pub(crate) *mut __sk_buff);

impl Skb {
    /// Packet bytes, the non-linear ones included.
    #[inline(always)]
    pub(crate) fn length(self) -> u32 {
        // SAFETY: the context of the running program.
        unsafe { (*self.0).len }
    }

    /// EtherType in network order, as the kernel took it from the frame.
    #[inline(always)]
    pub(crate) fn protocol(self) -> u16 {
        // SAFETY: as above.
        unsafe { (*self.0).protocol as u16 }
    }

    /// Whether the tag of a VLAN was taken off the frame. A tag of VLAN 0 is only a priority (IEEE
    /// 802.1Q, table 9-2): the frame belongs to the device itself.
    #[inline(always)]
    pub(crate) fn is_tagged(self) -> bool {
        // SAFETY: as above.
        unsafe { (*self.0).vlan_present != 0 && (*self.0).vlan_tci & 0xfff != 0 }
    }

    /// Whether the frame carries the device's own MAC address as destination.
    #[inline(always)]
    pub(crate) fn is_for_this_host(self) -> bool {
        // SAFETY: as above; 0 is `PACKET_HOST`.
        unsafe { (*self.0).pkt_type == 0 }
    }

    /// Interface index of the device the program runs on.
    #[inline(always)]
    pub(crate) fn ifindex(self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.0).ifindex }
    }

    /// Payload bytes per segment of a GSO packet; 0 for others.
    #[inline(always)]
    pub(crate) fn gso_size(self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.0).gso_size }
    }

    /// The linear bytes. Read anew each time: the compiler must not carry a bounds check over from
    /// another reading, for the verifier would not.
    #[inline(always)]
    pub(crate) fn packet(self) -> Packet {
        // SAFETY: as above.
        unsafe {
            Packet::new(
                (&raw const (*self.0).data).read_volatile() as usize,
                (&raw const (*self.0).data_end).read_volatile() as usize,
            )
        }
    }

    /// Makes the first `bytes` linear, or all there are.
    #[inline(always)]
    pub(crate) fn pull(self, bytes: u32) {
        let length = self.length();
        let wanted = if bytes < length { bytes } else { length };
        if self.packet().length() < wanted as usize {
            // SAFETY: plain helper call. If it fails the parser finds the packet too short.
            unsafe { bpf_skb_pull_data(self.0, wanted) };
        }
    }

    /// Cuts the packet to `bytes`.
    #[inline(always)]
    pub(crate) fn cut(self, bytes: u32) -> bool {
        // SAFETY: plain helper call.
        unsafe { bpf_skb_change_tail(self.0, bytes, 0) == 0 }
    }

    /// Puts an empty Ethernet header in front.
    #[inline(always)]
    pub(crate) fn push_link(self) -> bool {
        // SAFETY: plain helper call.
        unsafe { bpf_skb_change_head(self.0, IP, 0) == 0 }
    }

    /// Makes room for `bytes` between the Ethernet and the IP header.
    #[inline(always)]
    pub(crate) fn insert_after_link(self, bytes: i32) -> bool {
        const BPF_ADJ_ROOM_MAC: u32 = 1;
        // SAFETY: plain helper call.
        unsafe { bpf_skb_adjust_room(self.0, bytes, BPF_ADJ_ROOM_MAC, 0) == 0 }
    }

    /// Writes a value whose change the caller balances in a checksum.
    #[inline(always)]
    pub(crate) fn store<T: Copy>(self, offset: u32, value: &T) -> bool {
        self.store_with(offset, value, 0)
    }

    #[inline(always)]
    fn store_with<T: Copy>(self, offset: u32, value: &T, flags: u64) -> bool {
        let from: *const c_void = core::ptr::from_ref(value).cast();
        // SAFETY: `from` has `size_of::<T>()` readable bytes.
        unsafe { bpf_skb_store_bytes(self.0, offset, from, size_of::<T>() as u32, flags) == 0 }
    }

    #[inline(always)]
    fn l3_replace(self, offset: u32, old: u64, new: u64, size: u64) -> bool {
        // SAFETY: plain helper call; the helper checks the offset.
        unsafe { bpf_l3_csum_replace(self.0, offset, old, new, size) == 0 }
    }

    #[inline(always)]
    fn l4_replace(self, offset: u32, old: u64, new: u64, flags: u64) -> bool {
        // SAFETY: plain helper call; the helper checks the offset.
        unsafe { bpf_l4_csum_replace(self.0, offset, old, new, flags) == 0 }
    }
}

/// Sends the skb out of a device, link layer as it is.
#[inline(always)]
pub(crate) fn redirect(ifindex: u32) -> i32 {
    // SAFETY: plain helper call; flags zero means egress.
    unsafe { bpf_redirect(ifindex, 0) as i32 }
}

/// Where the transport checksum lies, and the flag for UDP's "no checksum".
#[inline(always)]
fn transport_check(ip_protocol: u8, l4: u32) -> (u32, u64) {
    if ip_protocol == protocol::UDP {
        (
            l4 + offset_of!(UdpHdr, check) as u32,
            BPF_F_MARK_MANGLED_0 as u64,
        )
    } else {
        (l4 + offset_of!(TcpHdr, check) as u32, 0)
    }
}

#[inline(always)]
fn ports_word(source: u16, destination: u16) -> u32 {
    // Both as they lie in the packet: the first is the lower half of a little-endian word.
    u32::from_ne_bytes([
        source.to_ne_bytes()[0],
        source.to_ne_bytes()[1],
        destination.to_ne_bytes()[0],
        destination.to_ne_bytes()[1],
    ])
}

/// Rewrites an IPv4 packet. `l4` 0 means that it is a later fragment, without a transport header.
/// `ttl_word` is the 16-bit word of TTL and protocol if the TTL is to be decremented, else 0.
#[inline(never)]
pub(crate) fn rewrite4(skb: *mut __sk_buff, old: &Flow4, entry: &Entry4, at: &Placement) -> bool {
    let skb = Skb(skb);
    if at.l4 != 0 {
        let (check, udp) = transport_check(old.protocol as u8, at.l4);
        let ports = (
            ports_word(old.source_port.0, old.destination_port.0),
            ports_word(entry.source_port.0, entry.destination_port.0),
        );
        let pseudo = BPF_F_PSEUDO_HDR as u64 | udp | 4;
        if !skb.l4_replace(check, old.source.0 as u64, entry.source.0 as u64, pseudo)
            || !skb.l4_replace(
                check,
                old.destination.0 as u64,
                entry.destination.0 as u64,
                pseudo,
            )
            || !skb.l4_replace(check, ports.0 as u64, ports.1 as u64, udp | 4)
            || !skb.store(at.l4, &ports.1)
        {
            return false;
        }
    }
    const CHECK: u32 = IP + offset_of!(Ipv4Hdr, check) as u32;
    const TTL: u32 = IP + offset_of!(Ipv4Hdr, ttl) as u32;
    const ADDRESSES: u32 = IP + offset_of!(Ipv4Hdr, src_addr) as u32;
    if at.ttl_word != 0 {
        let old = at.ttl_word as u16;
        let new = u16::from_be(old).wrapping_sub(0x0100).to_be();
        if !skb.l3_replace(CHECK, old as u64, new as u64, 2) || !skb.store(TTL, &new) {
            return false;
        }
    }
    skb.l3_replace(CHECK, old.source.0 as u64, entry.source.0 as u64, 4)
        && skb.l3_replace(
            CHECK,
            old.destination.0 as u64,
            entry.destination.0 as u64,
            4,
        )
        && skb.store(ADDRESSES, &[entry.source.0, entry.destination.0])
}

/// Rewrites an IPv6 packet. `ttl_word` is the hop limit plus one if it is to be decremented, else 0.
#[inline(never)]
pub(crate) fn rewrite6(skb: *mut __sk_buff, old: &Flow6, entry: &Entry6, at: &Placement) -> bool {
    let skb = Skb(skb);
    let new = [entry.source.0, entry.destination.0];
    if at.l4 != 0 {
        let (check, udp) = transport_check(old.protocol as u8, at.l4);
        let ports = (
            ports_word(old.source_port.0, old.destination_port.0),
            ports_word(entry.source_port.0, entry.destination_port.0),
        );
        let before = [old.source.0, old.destination.0];
        // SAFETY: both arrays have 32 readable bytes.
        let difference = unsafe {
            bpf_csum_diff(
                (&raw const before).cast_mut().cast(),
                32,
                (&raw const new).cast_mut().cast(),
                32,
                0,
            )
        };
        let pseudo = BPF_F_PSEUDO_HDR as u64 | udp;
        let difference = difference as u32 as u64;
        if !skb.l4_replace(check, 0, difference, pseudo | BPF_F_IPV6)
            && !skb.l4_replace(check, 0, difference, pseudo)
        {
            return false;
        }
        if !skb.l4_replace(check, ports.0 as u64, ports.1 as u64, udp | 4)
            || !skb.store(at.l4, &ports.1)
        {
            return false;
        }
    }
    const HOP_LIMIT: u32 = IP + offset_of!(Ipv6Hdr, hop_limit) as u32;
    const ADDRESSES: u32 = IP + offset_of!(Ipv6Hdr, src_addr) as u32;
    if at.ttl_word != 0 {
        let limit = (at.ttl_word - 2) as u8;
        // No checksum covers the hop limit, so the kernel's own sum of the packet must follow.
        if !skb.store_with(HOP_LIMIT, &limit, BPF_F_RECOMPUTE_CSUM as u64) {
            return false;
        }
    }
    skb.store(ADDRESSES, &new)
}

/// Where in the packet the rewrite falls.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Placement {
    /// Offset of the transport header; 0 if there is none.
    pub(crate) l4: u32,
    /// IPv4: the word of TTL and protocol. IPv6: the hop limit plus one. 0: leave it.
    pub(crate) ttl_word: u32,
}
