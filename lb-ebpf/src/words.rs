//! Clearing and copying by words. The compiler turns a cleared or copied struct of more than a few words
//! into a call of `memset` or `memcpy`, which on this target are loops over bytes.

use core::mem::MaybeUninit;

/// Clears `slot` word by word.
///
/// # Safety
///
/// All zeroes is a valid `T`, and its size is a multiple of four.
#[inline(always)]
pub(crate) unsafe fn zeroed<T>(slot: &mut MaybeUninit<T>) -> &mut T {
    const { assert!(size_of::<T>().is_multiple_of(4) && align_of::<T>() >= 4) };
    if align_of::<T>() >= 8 {
        let words = slot.as_mut_ptr().cast::<u64>();
        for i in 0..size_of::<T>() / 8 {
            // SAFETY: inside `slot`, aligned.
            unsafe { words.add(i).write_volatile(0) };
        }
    } else {
        let words = slot.as_mut_ptr().cast::<u32>();
        for i in 0..size_of::<T>() / 4 {
            // SAFETY: inside `slot`, aligned.
            unsafe { words.add(i).write_volatile(0) };
        }
    }
    // SAFETY: every word is written, and zero is valid by the caller's word.
    unsafe { slot.assume_init_mut() }
}

/// Copies a value of 8-byte words, each read once.
///
/// # Safety
///
/// `from` is valid for reads; any mixture of words is a valid `T`.
#[inline(always)]
pub(crate) unsafe fn copy<T>(from: *const T, to: &mut T) {
    const { assert!(size_of::<T>().is_multiple_of(8) && align_of::<T>() == 8) };
    let (from, to) = (from.cast::<u64>(), core::ptr::from_mut(to).cast::<u64>());
    for i in 0..size_of::<T>() / 8 {
        // SAFETY: inside both values, aligned.
        unsafe { to.add(i).write(from.add(i).read_volatile()) };
    }
}
