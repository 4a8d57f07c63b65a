//! The packet's bytes. The only place that turns addresses into loads and stores.
//!
//! A [`View`] is the proof of a bounds check: it exists only for a length that was compared with the
//! end of the packet, and its accessors take offsets that are checked against that length when the
//! program is compiled. The accesses are single instructions: an IP header lies 14 bytes into the
//! frame, so a Rust reference to its words would be misaligned, and byte-wise loads cost four times
//! as many instructions.

use core::arch::asm;

/// The linear part of a packet.
#[derive(Clone, Copy)]
pub(crate) struct Packet {
    start: usize,
    end: usize,
}

impl Packet {
    /// The bytes from `start` up to `end`, both taken from the context of the running program.
    #[inline(always)]
    pub(crate) const fn new(start: usize, end: usize) -> Self {
        Self { start, end }
    }

    /// Linear bytes.
    #[inline(always)]
    pub(crate) const fn length(&self) -> usize {
        self.end - self.start
    }

    /// The first `LENGTH` bytes, if the packet has them.
    #[inline(always)]
    pub(crate) fn view<const LENGTH: usize>(&self) -> Option<View<LENGTH>> {
        if self.start + LENGTH > self.end {
            return None;
        }
        Some(View { start: self.start })
    }
}

impl Packet {
    /// `LENGTH` bytes from `offset`, if the packet has them. Offsets above 255 find nothing: no
    /// transport header of ours lies that far in.
    #[inline(always)]
    pub(crate) fn view_at<const LENGTH: usize>(&self, offset: u32) -> Option<View<LENGTH>> {
        if offset > 255 {
            return None;
        }
        let start = self.start + (opaque(offset) & 255);
        if start + LENGTH > self.end {
            return None;
        }
        Some(View { start })
    }
}

impl Packet {
    /// `LENGTH` bytes from `offset`, for packets that are lists of records.
    #[inline(always)]
    pub(crate) fn record<const LENGTH: usize>(&self, offset: u32) -> Option<View<LENGTH>> {
        if offset > 4095 {
            return None;
        }
        let start = self.start + (opaque(offset) & 4095);
        if start + LENGTH > self.end {
            return None;
        }
        Some(View { start })
    }
}

/// `LENGTH` bytes that are known to be there.
#[derive(Clone, Copy)]
pub(crate) struct View<const LENGTH: usize> {
    start: usize,
}

/// The value, of which the compiler knows nothing any more: the mask that follows must stay in the
/// program, where the verifier looks for the bound.
#[inline(always)]
fn opaque(value: u32) -> usize {
    let mut value = value as u64;
    // SAFETY: copies a register to itself. (Without an instruction, line info would be ambiguous.)
    unsafe { asm!("{0} = {0}", inout(reg) value, options(nomem, nostack, preserves_flags)) };
    value as usize
}

macro_rules! access {
    ($load:ident, $store:ident, $ty:ty, $size:literal, $insn:literal) => {
        /// The value at `OFFSET`, as it lies in the packet.
        #[inline(always)]
        pub(crate) fn $load<const OFFSET: usize>(self) -> $ty {
            const { assert!(OFFSET + $size <= LENGTH) };
            let value: u64;
            // SAFETY: `OFFSET + size <= LENGTH`, and `LENGTH` bytes from `start` lie before the
            // packet's end (checked by `Packet::view`). The verifier repeats this proof.
            unsafe {
                asm!(
                    concat!("{value} = *(", $insn, " *)({start} + {offset})"),
                    start = in(reg) self.start,
                    offset = const OFFSET,
                    value = lateout(reg) value,
                    options(readonly, nostack, preserves_flags),
                );
            }
            value as $ty
        }

        /// Writes the value at `OFFSET`, as it shall lie in the packet.
        #[inline(always)]
        pub(crate) fn $store<const OFFSET: usize>(self, value: $ty) {
            const { assert!(OFFSET + $size <= LENGTH) };
            // SAFETY: as for the load; the packet is writable in XDP and TC programs.
            unsafe {
                asm!(
                    concat!("*(", $insn, " *)({start} + {offset}) = {value}"),
                    start = in(reg) self.start,
                    offset = const OFFSET,
                    value = in(reg) value as u64,
                    options(nostack, preserves_flags),
                );
            }
        }
    };
}

impl<const LENGTH: usize> View<LENGTH> {
    access!(u8, set_u8, u8, 1, "u8");
    access!(u16, set_u16, u16, 2, "u16");
    access!(u32, set_u32, u32, 4, "u32");

    /// Four consecutive words at `A`, `B`, `C`, `D`: an IPv6 address.
    #[inline(always)]
    pub(crate) fn words<const A: usize, const B: usize, const C: usize, const D: usize>(
        self,
    ) -> [u32; 4] {
        [
            self.u32::<A>(),
            self.u32::<B>(),
            self.u32::<C>(),
            self.u32::<D>(),
        ]
    }
}
