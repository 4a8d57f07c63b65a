//! How flows leave: whoever takes a half out of a table marks it dead first, so that nobody else does, and
//! closed flows retire when new ones come, sooner where one needs their tuple.

use lb_common::{
    conntrack::{
        self, Entry, Head, TICK_MASK,
        state::{self, QUEUED},
    },
    flow::{Flow as _, Flow4, Flow6},
    names::flow_use,
    reason::Event,
};

use crate::{
    atomic,
    established::{exchange_head, head_of, is_gone, snapshot},
    family::{AF_INET, Family, V4, V6, entries_in_use},
    flow_packet::FlowPacket,
    pending, stats,
    tables::{self, FLOW_USE, config},
};

/// Takes both halves of the packet's flow out of the table.
#[inline(always)]
pub(crate) fn remove<F: Family>(packet: &FlowPacket<F::Flow>, out: &F::Entry) {
    let peer = out.written(packet.protocol()).reversed();
    remove_halves::<F>(&packet.flow, &peer, out.head().identity(), packet.is_tcp());
}

/// Takes the two halves of one flow out of the table and keeps `FLOW_USE` true. Returns how many were there.
#[inline(always)]
pub(crate) fn remove_halves<F: Family>(
    one: &F::Flow,
    other: &F::Flow,
    identity: u32,
    tcp: bool,
) -> u64 {
    let mut removed = 0_u64;
    for key in [one, other] {
        removed += remove_half::<F>(key, identity) as u64;
    }
    change_use::<F>(tcp, removed.wrapping_neg());
    removed
}

/// Takes a half out of the table if it is this flow's and nobody else does. `FLOW_USE` is the caller's.
#[inline(always)]
fn remove_half<F: Family>(key: &F::Flow, identity: u32) -> bool {
    take_out::<F>(key, identity, |entry| {
        // SAFETY: looked up by the caller.
        unsafe { pending::hand_over::<F>(entry) };
    })
}

/// The same for a half that was put there just now: it has nothing pending, or a packet of another CPU, which
/// is not worth a frame of the stack.
#[inline(always)]
pub(crate) fn withdraw_half<F: Family>(key: &F::Flow, identity: u32) -> bool {
    take_out::<F>(key, identity, |_| {})
}

#[inline(always)]
fn take_out<F: Family>(key: &F::Flow, identity: u32, count: impl FnOnce(*mut F::Entry)) -> bool {
    let Some(entry) = F::established(key) else {
        return false;
    };
    // SAFETY: looked up just now.
    unsafe {
        end_half(entry, identity, || {
            count(entry);
            F::remove_established(key)
        })
    }
}

/// Marks a half dead if it is this flow's, and takes it out by `remove`: of all who try, one does.
///
/// # Safety
///
/// The caller looked `entry` up just now.
#[inline(always)]
pub(crate) unsafe fn end_half<E>(
    entry: *mut E,
    identity: u32,
    remove: impl FnOnce() -> bool,
) -> bool {
    for _ in 0..4 {
        let head = head_of(entry);
        if head.identity() != identity || head.state() == state::DEAD {
            return false;
        }
        let dead = head.touched(state::DEAD, head.stamp());
        // SAFETY: by the caller's word.
        if unsafe { exchange_head(entry, head, dead) } {
            // SAFETY: as above.
            return unsafe { remove_dead(entry, dead, head, remove) };
        }
    }
    false
}

/// Takes a half out by `remove` that the caller marked `dead` just now; its head was `alive` before.
///
/// A delete fails if the lock of its bucket is not to be had (since Linux 6.15 the kernel gives up after a
/// while). Then the half lives on, and who comes next tries again: a dead one would hold its key for ever.
///
/// # Safety
///
/// The caller looked `entry` up in this run.
#[inline(always)]
pub(crate) unsafe fn remove_dead<E>(
    entry: *mut E,
    dead: Head,
    alive: Head,
    remove: impl FnOnce() -> bool,
) -> bool {
    let removed = remove();
    if !removed {
        // SAFETY: by the caller's word; it fails if the element serves another flow by now.
        unsafe { exchange_head(entry, dead, alive) };
    }
    removed
}

/// Whether the established table holds this flow under this key.
#[inline(always)]
pub(crate) fn holds<F: Family>(key: &F::Flow, identity: u32) -> bool {
    F::established(key).is_some_and(|entry| !is_gone(entry, identity))
}

/// Adds to the number of established entries.
#[inline(always)]
pub(crate) fn change_use<F: Family>(tcp: bool, amount: u64) {
    if let Some(count) = FLOW_USE.get_ptr_mut(F::USE) {
        // SAFETY: an aligned word of an array element.
        unsafe { atomic::add(count, amount) };
    }
    if !tcp && let Some(count) = FLOW_USE.get_ptr_mut(F::USE_UDP) {
        // SAFETY: as above.
        unsafe { atomic::add(count, amount) };
    }
}

/// Takes up to two closed flows out of the table whose rest is over, or that rest while it is full.
/// Every new flow pays for the last ones' leaving: without the agent, closed flows leave all the same.
///
/// Verified once, see [`crate::subprogram`].
#[inline(always)]
pub(crate) fn retire<F: Family>(now: u32) -> u32 {
    if F::AF == AF_INET {
        retire_v4(now)
    } else {
        retire_v6(now)
    }
}

// SAFETY: nothing else in the object has this name.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn retire_v4(now: u32) -> u32 {
    retire_closed::<V4>(now)
}

// SAFETY: as above.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn retire_v6(now: u32) -> u32 {
    retire_closed::<V6>(now)
}

/// The tick in which this CPU looks at the queue again: as it last saw it, nothing is due there before. All CPUs
/// share the queue and its lock.
#[inline(always)]
fn due<F: Family>() -> Option<&'static mut u32> {
    // SAFETY: plain numbers; nothing else borrows the element.
    let [v4, v6] = unsafe { tables::scratch::<[u32; 2]>(tables::DUE) }?;
    Some(if F::AF == AF_INET { v4 } else { v6 })
}

#[inline(always)]
fn retire_closed<F: Family>(now: u32) -> u32 {
    let limit = if F::USE == flow_use::V4 {
        config!(flows4_limit)
    } else {
        config!(flows6_limit)
    };
    let pressed = || entries_in_use(F::USE) >= limit as u64;
    let Some(due) = due::<F>() else {
        return 0;
    };
    let wait = due.wrapping_sub(now) & TICK_MASK;
    if wait != 0 && wait <= config!(closed_ticks) && !pressed() {
        return 0;
    }
    let mut retired = 0;
    // Some records' flows may be gone already.
    for _ in 0..8 {
        let Some(oldest) = F::peek_closing() else {
            *due = now.wrapping_add(config!(closed_ticks));
            break;
        };
        let pressed = pressed();
        let rests = |since| !pressed && conntrack::ticks_since(now, since) < config!(closed_ticks);
        if retired == 2 {
            break;
        }
        if rests(oldest.since) {
            *due = oldest.since.wrapping_add(config!(closed_ticks));
            break;
        }
        let Some(closing) = F::pop_closing() else {
            break;
        };
        // Another CPU may have taken the one that was due: this one waits on, at the queue's end.
        if rests(closing.since) && F::push_closing(&closing).is_ok() {
            break;
        }
        let Some(entry) = F::established(&closing.flow) else {
            continue;
        };
        // SAFETY: plain numbers; nothing else borrows the element.
        let Some(copy) = (unsafe { tables::scratch::<F::Entry>(tables::STEP) }) else {
            break;
        };
        // SAFETY: looked up just now.
        if !unsafe { snapshot::<F>(entry, copy) } || copy.head().identity() != closing.identity {
            continue;
        }
        if reopened(entry, closing.identity) {
            continue;
        }
        let protocol = closing.flow.protocol();
        let peer = copy.written(protocol).reversed();
        let tcp = protocol == lb_common::flow::protocol::TCP;
        remove_halves::<F>(&closing.flow, &peer, closing.identity, tcp);
        stats::event(Event::FlowRetired, 0);
        retired += 1;
    }
    retired
}

/// Takes a closed flow out of the table before its rest is over, for another needs its tuple: the flow whose
/// half under `key` still has the head that was seen, and whose other half gives way too.
///
/// Verified once, see [`crate::subprogram`].
#[inline(always)]
pub(crate) fn give_way<F: Family>(key: &F::Flow, seen: Head, now: u32) -> bool {
    let key = core::ptr::from_ref(key);
    let gone = if F::AF == AF_INET {
        give_way_v4(key.cast(), seen.0, now)
    } else {
        give_way_v6(key.cast(), seen.0, now)
    };
    gone != 0
}

// SAFETY: nothing else in the object has this name.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn give_way_v4(key: *const Flow4, seen: u64, now: u32) -> u32 {
    // SAFETY: null or what the one caller borrowed; plain numbers. The verifier wants it looked at.
    unsafe { key.as_ref() }.is_some_and(|key| leave::<V4>(key, Head(seen), now)) as u32
}

// SAFETY: as above.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn give_way_v6(key: *const Flow6, seen: u64, now: u32) -> u32 {
    // SAFETY: as above.
    unsafe { key.as_ref() }.is_some_and(|key| leave::<V6>(key, Head(seen), now)) as u32
}

#[inline(always)]
fn leave<F: Family>(key: &F::Flow, seen: Head, now: u32) -> bool {
    let Some(entry) = F::established(key) else {
        return true;
    };
    // SAFETY: looked up just now. If the element serves another flow by now the exchange fails.
    let peer = unsafe { &*entry }.written(key.protocol()).reversed();
    if let Some(other) = F::established(&peer) {
        let other = head_of(other);
        if other.identity() == seen.identity() && !conntrack::gives_way(other, now) {
            return false;
        }
    }
    let dead = seen.touched(state::DEAD, seen.stamp());
    // SAFETY: as above.
    let gone = unsafe {
        exchange_head(entry, seen, dead)
            && remove_dead(entry, dead, seen, || {
                pending::hand_over::<F>(entry);
                F::remove_established(key)
            })
    };
    if !gone {
        return false;
    }
    let other = remove_half::<F>(&peer, seen.identity()) as u64;
    let tcp = key.protocol() == lb_common::flow::protocol::TCP;
    change_use::<F>(tcp, (1 + other).wrapping_neg());
    stats::event(Event::FlowRetired, 0);
    true
}

/// Whether a queued flow is open again, as a half looked up just now says: its next close queues it again,
/// for its mark is gone. One whose head moves under each look is open too.
#[inline(always)]
fn reopened<E>(entry: *mut E, identity: u32) -> bool {
    for _ in 0..3 {
        let head = head_of(entry);
        if head.identity() != identity || state::is_closed(head.state()) {
            return false;
        }
        // SAFETY: by the caller's word.
        if unsafe {
            exchange_head(
                entry,
                head,
                head.touched(head.state() & !QUEUED, head.stamp()),
            )
        } {
            return true;
        }
    }
    true
}
