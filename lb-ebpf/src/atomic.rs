//! Atomic instructions. `core::sync::atomic` does not offer them for this target, so they are
//! written out; compare-and-exchange needs Linux 5.12.

use core::arch::asm;

/// Stores `new` at `word` if it still holds `old`; tells whether it did.
///
/// # Safety
///
/// `word` points to eight aligned bytes of a map value that the running program looked up.
#[inline(always)]
pub(crate) unsafe fn compare_exchange(word: *mut u64, old: u64, new: u64) -> bool {
    let found: u64;
    // SAFETY: the caller vouches for `word`; r0 holds the expected value and receives the found.
    unsafe {
        asm!(
            "r0 = cmpxchg_64({word} + 0, r0, {new})",
            word = in(reg) word,
            new = in(reg) new,
            inout("r0") old => found,
            options(nostack),
        );
    }
    found == old
}

/// Adds `amount` (two's complement) to the word.
///
/// # Safety
///
/// As for [`compare_exchange`].
#[inline(always)]
pub(crate) unsafe fn add(word: *mut u64, amount: u64) {
    // SAFETY: the caller vouches for `word`.
    unsafe {
        asm!(
            "lock *(u64 *)({word} + 0) += {amount}",
            word = in(reg) word,
            amount = in(reg) amount,
            options(nostack),
        );
    }
}

/// Adds `amount` to the word. Returns what it was. Linux 5.12.
///
/// # Safety
///
/// `word` points to four aligned bytes of a map value that the running program looked up.
#[inline(always)]
pub(crate) unsafe fn fetch_add(word: *mut u32, amount: u32) -> u32 {
    let mut value = amount as u64;
    // SAFETY: the caller vouches for `word`; w1 holds the amount and receives what was there.
    unsafe {
        asm!(
            "w1 = atomic_fetch_add((u32 *)({word} + 0), w1)",
            word = in(reg) word,
            inout("r1") value,
            options(nostack),
        );
    }
    value as u32
}

/// Keeps the bits of `mask` of the word. Returns what it was. Linux 5.12.
///
/// # Safety
///
/// As for [`fetch_add`].
#[inline(always)]
pub(crate) unsafe fn fetch_and(word: *mut u32, mask: u32) -> u32 {
    let mut value = mask as u64;
    // SAFETY: as in [`fetch_add`].
    unsafe {
        asm!(
            "w1 = atomic_fetch_and((u32 *)({word} + 0), w1)",
            word = in(reg) word,
            inout("r1") value,
            options(nostack),
        );
    }
    value as u32
}
