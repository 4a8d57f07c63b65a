//! What user space tells the running data path, in the one element of `CONTROL`.

use crate::{
    conntrack::{TICK_MASK, ticks_since},
    wire,
};

wire! {
    /// The element of `CONTROL`. The agent writes each word by one store; zeroes are an ordinary start.
    pub struct Control {
        /// The agent's hint that routes or neighbours moved.
        pub route_generation: u32,
        /// [`Gate`].
        pub gate: u32,
    }
}

/// Modes of a [`Gate`].
pub mod gate_mode {
    /// Ordinary.
    pub const OPEN: u8 = 0;
    /// Another layout serves: every packet is left to the next program, and nothing is written.
    pub const STANDBY: u8 = 1;
    /// Established flows are forwarded, no flow is made, promoted or changes its state.
    pub const FROZEN: u8 = 2;
}

/// How far the programs of a layout serve: mode (top 8 bits) and deadline tick (24), in one word so that
/// a layout is put to use, or out of use, by one store.
///
/// ```text
///            agent made the maps                 all flows are copied
///   OPEN ────────────────────────▶ STANDBY ──────────────────────────▶ OPEN       the new layout
///
///   OPEN ◀────── deadline ──────── FROZEN ───────────────────────────▶ STANDBY    the old layout
///     └──────────────────────────────▲                 the new one is OPEN
/// ```
/// What is frozen opens at its deadline by itself: an agent that died must not become an outage.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Gate(pub u32);

impl Gate {
    /// Ordinary.
    pub const OPEN: Self = Self(0);
    /// Another layout serves.
    pub const STANDBY: Self = Self((gate_mode::STANDBY as u32) << 24);

    /// Frozen until `deadline`, a tick.
    #[inline(always)]
    pub const fn frozen(deadline: u32) -> Self {
        Self(((gate_mode::FROZEN as u32) << 24) | (deadline & TICK_MASK))
    }

    /// One of [`gate_mode`], whatever the deadline says.
    #[inline(always)]
    pub const fn mode(self) -> u8 {
        (self.0 >> 24) as u8
    }

    /// The tick at which a frozen layout opens again.
    #[inline(always)]
    pub const fn deadline(self) -> u32 {
        self.0 & TICK_MASK
    }

    /// True if every packet is left to the next program.
    #[inline(always)]
    pub const fn is_standby(self) -> bool {
        self.mode() == gate_mode::STANDBY
    }

    /// True if at tick `now` no flow may begin or change.
    #[inline(always)]
    pub const fn is_frozen(self, now: u32) -> bool {
        self.mode() == gate_mode::FROZEN && ticks_since(self.deadline(), now) != 0
    }

    /// The mode's name at tick `now`, as `lbctl` prints it.
    pub const fn name(self, now: u32) -> &'static str {
        match self.mode() {
            gate_mode::STANDBY => "standby",
            gate_mode::FROZEN if self.is_frozen(now) => "frozen",
            _ => "open",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gate_opens_at_its_deadline() {
        for (name, gate, now, expected) in [
            ("zeroes", Gate::default(), 77, "open"),
            ("open", Gate::OPEN, 0, "open"),
            ("standby", Gate::STANDBY, 77, "standby"),
            (
                "standby has no deadline",
                Gate::STANDBY,
                TICK_MASK,
                "standby",
            ),
            ("before the deadline", Gate::frozen(80), 79, "frozen"),
            ("at the deadline", Gate::frozen(80), 80, "open"),
            ("after the deadline", Gate::frozen(80), 81, "open"),
            ("over the wrap", Gate::frozen(3), TICK_MASK, "frozen"),
            ("past the wrap", Gate::frozen(TICK_MASK), 0, "open"),
            ("an unknown mode serves", Gate(0xff00_0000), 0, "open"),
        ] {
            assert_eq!(gate.name(now), expected, "{name}");
            assert_eq!(gate.is_standby(), expected == "standby", "{name}");
            assert_eq!(gate.is_frozen(now), expected == "frozen", "{name}");
        }
    }
}
