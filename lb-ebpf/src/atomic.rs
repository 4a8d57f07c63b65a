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
