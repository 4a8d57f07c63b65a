//! The macro that makes a struct fit for a map: `repr(C)`, free of padding, readable as bytes.
//!
//! This is the one module of the crate that may say `unsafe`.

#![allow(
    unsafe_code,
    reason = "the Wire and Pod contracts are unsafe traits; proved by `wire!`"
)]

/// A type whose every byte is meaningful and for which every bit pattern is valid.
///
/// # Safety
///
/// The type is `repr(C)`, has no padding, and holds no `bool`, enum, reference or `Option`.
pub unsafe trait Wire: Copy + 'static {}

// SAFETY: integers and arrays of `Wire` have no padding and no invalid bit pattern.
unsafe impl Wire for u8 {}
// SAFETY: as above.
unsafe impl Wire for u16 {}
// SAFETY: as above.
unsafe impl Wire for u32 {}
// SAFETY: as above.
unsafe impl Wire for u64 {}
// SAFETY: an array has no padding between elements of a type without padding.
unsafe impl<T: Wire, const N: usize> Wire for [T; N] {}

/// Declares a map key or value: `repr(C)`, and proved free of padding at compile time.
///
/// Padding would make equal keys hash apart in the kernel and leak stack bytes to it.
#[macro_export]
macro_rules! wire {
    ($(#[$doc:meta])* pub struct $name:ident {
        $($(#[$field_doc:meta])* pub $field:ident: $ty:ty),+ $(,)?
    }) => {
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq, Ord, PartialOrd)]
        pub struct $name { $($(#[$field_doc])* pub $field: $ty),+ }

        const _: () = assert!(
            size_of::<$name>() == 0 $(+ size_of::<$ty>())+,
            "padding in a wire type"
        );

        const _: () = {
            const fn every_field_is_wire<T: $crate::wire::Wire>() {}
            $(every_field_is_wire::<$ty>();)+
        };

        // SAFETY: repr(C), no padding (asserted above), and every field is itself `Wire`.
        #[allow(unsafe_code, reason = "implements the unsafe marker traits of map types")]
        unsafe impl $crate::wire::Wire for $name {}

        // SAFETY: `Wire` is `Pod`'s contract.
        #[cfg(feature = "user")]
        #[allow(unsafe_code, reason = "implements the unsafe marker traits of map types")]
        unsafe impl aya::Pod for $name {}
    };
}
