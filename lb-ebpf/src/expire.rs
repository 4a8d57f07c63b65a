//! `lb_expire`: the agent's way to end idle flows, and to count what silent ones have pending. The agent
//! never writes a live entry; it hands this program keys and the heads it read, and the program compares
//! before it changes.
//!
//! The input is a packet: byte 0 the operation, byte 1 the family, byte 2 the number of records, eleven
//! bytes of padding, then the records ([`lb_common::conntrack::Idle4`] or `Idle6`), packed.

use core::mem::MaybeUninit;

use aya_ebpf::bindings::__sk_buff;
use lb_common::{
    addr::{Addr4, Addr6, Be16},
    conntrack::{Entry as _, Head, state},
    flow::{Flow as _, Flow4, Flow6, protocol},
    reason::Event,
};

use crate::{
    embryonic::forget,
    established::{exchange_head, head_of, snapshot},
    family::{Family, V4, V6},
    packet::View,
    pending,
    removal::{change_use, remove_dead, remove_halves},
    skb::Skb,
    stats, words,
};

/// Marks a half condemned if its head is still as given.
const CONDEMN: u8 = 1;
/// Removes a half if its head is still as given, condemned.
const DELETE: u8 = 2;
/// Removes both halves of a flow, whatever its state, if the half is still that flow's.
const END: u8 = 3;
/// Counts what a half has pending, if it is still that flow's.
const COUNT: u8 = 4;
/// Bytes before the first record.
const HEADER: u32 = 14;
/// Most records of one run.
const RECORDS_V4: u32 = 64;
/// Most records of one run.
const RECORDS_V6: u32 = 48;

/// Runs over the records. Returns how many halves were changed.
#[inline(always)]
pub(crate) fn run(ctx: *mut __sk_buff) -> i32 {
    let skb = Skb(ctx);
    skb.pull(u32::MAX);
    let Some(view) = skb.packet().view::<14>() else {
        return 0;
    };
    let (operation, family, count) = (view.u8::<0>(), view.u8::<1>(), view.u8::<2>() as u32);
    let mut changed = 0;
    if family == 4 {
        for i in 0..RECORDS_V4 {
            if i >= count {
                break;
            }
            let Some(record) = skb.packet().record::<24>(HEADER + i * 24) else {
                break;
            };
            changed += apply::<V4>(operation, &flow4(record), head::<24, 16, 20>(record));
        }
    } else if family == 6 {
        for i in 0..RECORDS_V6 {
            if i >= count {
                break;
            }
            let Some(record) = skb.packet().record::<48>(HEADER + i * 48) else {
                break;
            };
            changed += apply::<V6>(operation, &flow6(record), head::<48, 40, 44>(record));
        }
    }
    changed
}

#[inline(always)]
fn head<const LENGTH: usize, const LOW: usize, const HIGH: usize>(record: View<LENGTH>) -> Head {
    Head(record.u32::<LOW>() as u64 | ((record.u32::<HIGH>() as u64) << 32))
}

#[inline(always)]
fn flow4(record: View<24>) -> Flow4 {
    Flow4 {
        source: Addr4(record.u32::<0>()),
        destination: Addr4(record.u32::<4>()),
        source_port: Be16(record.u16::<8>()),
        destination_port: Be16(record.u16::<10>()),
        protocol: record.u32::<12>(),
    }
}

#[inline(always)]
fn flow6(record: View<48>) -> Flow6 {
    Flow6 {
        source: Addr6(record.words::<0, 4, 8, 12>()),
        destination: Addr6(record.words::<16, 20, 24, 28>()),
        source_port: Be16(record.u16::<32>()),
        destination_port: Be16(record.u16::<34>()),
        protocol: record.u32::<36>(),
    }
}

/// One record. Returns 1 if the half was changed, or its pending traffic counted.
#[inline(never)]
fn apply<F: Family>(operation: u8, flow: &F::Flow, seen: Head) -> i32 {
    if operation == END {
        return end::<F>(flow, seen.identity());
    }
    let Some(entry) = F::established(flow) else {
        return 0;
    };
    if operation == COUNT {
        let ours = head_of(entry).identity() == seen.identity();
        if ours {
            // SAFETY: looked up just now.
            unsafe { pending::hand_over::<F>(entry) };
        }
        return ours as i32;
    }
    let state = seen.state();
    if operation == CONDEMN {
        let condemned = seen.touched(state | state::CONDEMNED, seen.stamp());
        // SAFETY: looked up just now; fails if a packet came by since the agent looked.
        return unsafe { exchange_head(entry, seen, condemned) } as i32;
    }
    if operation != DELETE || state & state::CONDEMNED == 0 {
        return 0;
    }
    let dead = seen.touched(state::DEAD, seen.stamp());
    // A packet which comes by until the exchange saves the half, one that comes later finds it dead.
    // SAFETY: looked up just now.
    let gone = unsafe {
        peer_is_gone::<F>(entry, flow, seen)
            && exchange_head(entry, seen, dead)
            && remove_dead(entry, dead, seen, || {
                pending::hand_over::<F>(entry);
                F::remove_established(flow)
            })
    };
    if !gone {
        return 0;
    }
    change_use::<F>(flow.protocol() == protocol::TCP, 1_u64.wrapping_neg());
    stats::event(Event::FlowExpired, 0);
    1
}

/// Takes a flow out of the tables. Returns how many halves were there.
#[inline(never)]
fn end<F: Family>(flow: &F::Flow, identity: u32) -> i32 {
    let mut copy = MaybeUninit::uninit();
    // SAFETY: an entry of zeroes is valid.
    let copy = unsafe { words::zeroed::<F::Entry>(&mut copy) };
    let protocol = flow.protocol();
    // Embryonic first: a flow is promoted into the one before it leaves the other.
    let mut ended = 0;
    // SAFETY: looked up just now.
    let found = F::embryonic(flow).is_some_and(|entry| unsafe { snapshot::<F>(entry, copy) });
    if found && copy.head().identity() == identity {
        for key in [*flow, copy.written(protocol).reversed()] {
            ended += forget::<F>(&key, identity) as i32;
        }
    }
    // SAFETY: looked up just now.
    let found = F::established(flow).is_some_and(|entry| unsafe { snapshot::<F>(entry, copy) });
    if found && copy.head().identity() == identity {
        let peer = copy.written(protocol).reversed();
        let tcp = protocol == protocol::TCP;
        ended += remove_halves::<F>(flow, &peer, identity, tcp) as i32;
    }
    if ended != 0 {
        stats::event(Event::FlowEnded, 0);
    }
    ended
}

/// Whether the other half is condemned too, or not there, or on its way out: half a flow forwards what is never answered.
#[inline(always)]
fn peer_is_gone<F: Family>(entry: *const F::Entry, flow: &F::Flow, seen: Head) -> bool {
    // SAFETY: looked up by the caller; the copy's head is compared once more by the caller's word.
    let peer = unsafe { &*entry }.written(flow.protocol()).reversed();
    F::established(&peer).is_none_or(|peer| {
        let head = head_of(peer);
        head.identity() != seen.identity()
            || head.state() & state::CONDEMNED != 0
            || head.state() == state::DEAD
    })
}
