//! What a half has forwarded, kept in its own entry until it is counted for its service port and backend.
//! See [`Pending`].
//!
//! An element may be taken out between the lookup and the count, and become another flow's: the packet is then
//! lost to these counters, or that flow's. One at most for each CPU.

use lb_common::conntrack::{Entry, Entry4, Entry6, Pending};

use crate::{
    atomic,
    family::{AF_INET, Family},
    stats,
};

/// Counts a packet of `bytes` IP bytes that was sent on.
///
/// # Safety
///
/// `entry` is a value the running program looked up.
#[inline(always)]
pub(crate) unsafe fn forwarded<F: Family>(entry: *mut F::Entry, bytes: u32) {
    if bytes > Pending::LONGEST {
        // SAFETY: by the caller's word; plain numbers.
        stats::forwarded(unsafe { &*entry }, 1, bytes);
        return;
    }
    // SAFETY: an aligned word of the entry.
    let before = unsafe { atomic::fetch_add(word(entry), Pending::packet(bytes)) };
    if Pending(before).is_due() {
        // SAFETY: by the caller's word.
        unsafe { hand_over::<F>(entry) };
    }
}

/// Counts what is pending where it is looked for. Verified once, see [`crate::subprogram`].
///
/// # Safety
///
/// As for [`forwarded`].
#[inline(always)]
pub(crate) unsafe fn hand_over<F: Family>(entry: *mut F::Entry) {
    if F::AF == AF_INET {
        hand_over_v4(entry.cast());
    } else {
        hand_over_v6(entry.cast());
    }
}

// SAFETY: nothing else in the object has this name.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn hand_over_v4(entry: *mut Entry4) -> u32 {
    count(entry)
}

// SAFETY: as above.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn hand_over_v6(entry: *mut Entry6) -> u32 {
    count(entry)
}

/// Takes and counts. Returns the packets, since these functions must return something.
#[inline(always)]
fn count<E: Entry>(entry: *mut E) -> u32 {
    if entry.is_null() {
        return 0;
    }
    // SAFETY: an aligned word of the entry, which the callers looked up.
    let taken = Pending(unsafe { atomic::fetch_and(word(entry), Pending::FLAGS) });
    if taken.packets() != 0 {
        // SAFETY: as above; plain numbers.
        stats::forwarded(unsafe { &*entry }, taken.packets(), taken.bytes());
    }
    taken.packets()
}

#[inline(always)]
fn word<E: Entry>(entry: *mut E) -> *mut u32 {
    entry.cast::<u32>().wrapping_add(E::PENDING_WORD)
}
