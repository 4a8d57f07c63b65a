//! What user space tells the running programs, see [`lb_common::control`].

use lb_common::control::{Control, Gate};

use crate::tables::CONTROL;

/// The element of `CONTROL`, read by one load: a packet pays for the gate with a shift and a jump.
#[derive(Clone, Copy)]
pub(crate) struct Word(u64);

/// Reads it.
#[inline(always)]
pub(crate) fn read() -> Word {
    const { assert!(size_of::<Control>() == size_of::<u64>()) };
    Word(CONTROL.get_ptr(0).map_or(0, |control| {
        // SAFETY: an array element, which the kernel aligns to eight bytes. The agent writes its words
        // one by one, and nothing depends on having both from one moment.
        unsafe { control.cast::<u64>().read_volatile() }
    }))
}

impl Word {
    /// The agent's hint that routes or neighbours moved; flows keep sixteen bits of it.
    #[inline(always)]
    pub(crate) const fn route_generation(self) -> u16 {
        self.0 as u16
    }

    /// Whether another layout serves.
    #[inline(always)]
    pub(crate) const fn is_standby(self) -> bool {
        self.gate().is_standby()
    }

    #[inline(always)]
    const fn gate(self) -> Gate {
        Gate((self.0 >> 32) as u32)
    }
}

/// Whether no flow may begin or change its state. Asked where one would: not for every packet.
#[inline(always)]
pub(crate) fn is_frozen(now: u32) -> bool {
    read().gate().is_frozen(now)
}
