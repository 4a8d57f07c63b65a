//! The conntrack entry: everything a packet of a known flow needs, and the state machine it follows.
//!
//! Hash elements of the kernel are recycled without a grace period, so the value a packet found may
//! become another flow's while it is read or written. Hence three words which name their flow:
//! [`Head`] is read again after the copy, and every change in place is a compare-and-exchange of
//! [`Head`], [`Route`] or [`Note`], each of which fails if the element meanwhile serves another flow.
//!
//! ```text
//!            SYN                    SYN-ACK               client's ACK of it
//!   (none) ───────▶ EMBRYONIC ───────────────▶ REPLIED ─────────────────────▶ ESTABLISHED
//!                   in EMBRYONIC_*, LRU         (reverse half)                in FLOWS_*, never evicted
//!                                                                               │ FIN          │ RST
//!                                                                               ▼              ▼
//!                                                                              FIN ─peer's──▶ CLOSED / RESET
//!                                                                                  FIN         rest, then leave
//! ```
//! Whoever ends a half makes it DEAD first, by compare-and-exchange, and then takes it out of its table: so one
//! does, and what came in its place meanwhile is not taken for it.
//!
//! Each half (forward, reverse) keeps a state of its own; FIN in both makes both CLOSED. A RESET flow
//! that carries data again was not reset by its peer: it returns to ESTABLISHED.

use crate::{
    flow::{Flow4, Flow6},
    wire,
};

mod entry;
mod pending;

pub use entry::{Entry, Entry4, Entry6, flag};
pub use pending::Pending;

/// States of a half. Plain numbers: they come from memory which another flow may have reused.
pub mod state {
    /// The client's first packet was seen.
    pub const EMBRYONIC: u8 = 1;
    /// The backend answered (kept in the reverse half).
    pub const REPLIED: u8 = 2;
    /// The client proved itself.
    pub const ESTABLISHED: u8 = 3;
    /// A FIN was seen in this direction.
    pub const FIN: u8 = 4;
    /// A FIN was seen in both directions.
    pub const CLOSED: u8 = 5;
    /// A plausible RST was seen.
    pub const RESET: u8 = 6;
    /// The half leaves the table: whoever set this takes it out, nobody else does, and to packets it is gone.
    pub const DEAD: u8 = 7;
    /// Bit: the agent found the half idle. The next packet clears it; else a later pass deletes.
    pub const CONDEMNED: u8 = 0x80;

    /// Bit, forward half only: a record of the flow waits in `CLOSING_*`, so that a flow which closes
    /// and opens again and again is queued once.
    pub const QUEUED: u8 = 0x40;

    /// The state without its bits.
    #[inline(always)]
    pub const fn base(state: u8) -> u8 {
        state & !(CONDEMNED | QUEUED)
    }

    /// True for a half whose connection is over.
    #[inline(always)]
    pub const fn is_closed(state: u8) -> bool {
        matches!(base(state), CLOSED | RESET)
    }

    /// The state's name, as `lbctl` prints it.
    pub const fn name(state: u8) -> &'static str {
        match base(state) {
            EMBRYONIC => "embryonic",
            REPLIED => "replied",
            ESTABLISHED => "established",
            FIN => "fin",
            CLOSED => "closed",
            RESET => "reset",
            DEAD => "dead",
            _ => "unknown",
        }
    }
}

/// Ticks are kept in 24 bits: 194 days of about a second.
pub const TICK_MASK: u32 = 0x00ff_ffff;

/// Ticks from `then` to `now`, over the wrap. A stamp from the future counts as now: CPUs cross a tick's
/// boundary one after the other, and who scans a table read the clock before it.
#[inline(always)]
pub const fn ticks_since(now: u32, then: u32) -> u32 {
    let ticks = now.wrapping_sub(then) & TICK_MASK;
    if ticks > TICK_MASK / 2 { 0 } else { ticks }
}

/// First word of an entry: identity (32 bits), state (8), stamp in ticks (24).
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Head(pub u64);

#[expect(clippy::cast_possible_truncation, reason = "fields of a word")]
impl Head {
    /// Packs a head.
    #[inline(always)]
    pub const fn new(identity: u32, state: u8, stamp: u32) -> Self {
        Self(((identity as u64) << 32) | ((state as u64) << 24) | (stamp & TICK_MASK) as u64)
    }

    /// Random number both halves of a flow share; never 0.
    #[inline(always)]
    pub const fn identity(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// One of [`state`].
    #[inline(always)]
    pub const fn state(self) -> u8 {
        (self.0 >> 24) as u8
    }

    /// Tick of the last packet, exact to a tick.
    #[inline(always)]
    pub const fn stamp(self) -> u32 {
        self.0 as u32 & TICK_MASK
    }

    /// The head with another state and stamp.
    #[inline(always)]
    #[must_use]
    pub const fn touched(self, state: u8, stamp: u32) -> Self {
        Self::new(self.identity(), state, stamp)
    }
}

/// Second word: identity (low 16 bits), next-hop index (16), path MTU (16), route generation (16).
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Route(pub u64);

#[expect(clippy::cast_possible_truncation, reason = "fields of a word")]
impl Route {
    /// Packs a route. An MTU above 65,535 is kept as 65,535: no IP packet is longer.
    #[inline(always)]
    pub const fn new(identity: u32, next_hop: u16, mtu: u32, generation: u16) -> Self {
        let mtu = if mtu > 0xffff { 0xffff } else { mtu };
        Self(
            ((identity as u16 as u64) << 48)
                | ((next_hop as u64) << 32)
                | ((mtu as u64) << 16)
                | generation as u64,
        )
    }

    /// Index into `NEXT_HOPS`; 0 means "go by TCX".
    #[inline(always)]
    pub const fn next_hop(self) -> u16 {
        (self.0 >> 32) as u16
    }

    /// Largest IP packet the route takes, in bytes; 0 means unknown.
    #[inline(always)]
    pub const fn mtu(self) -> u16 {
        (self.0 >> 16) as u16
    }

    /// The route generation at which the route was looked up.
    #[inline(always)]
    pub const fn generation(self) -> u16 {
        self.0 as u16
    }
}

/// Third word: identity (32 bits) and a number whose meaning depends on protocol and direction.
///
/// TCP reverse half: the sequence number the client must acknowledge to be promoted. TCP,
/// established: the last acknowledgement number of this direction. UDP: the set epoch at which the
/// backend was last seen to serve.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Note(pub u64);

#[expect(clippy::cast_possible_truncation, reason = "fields of a word")]
impl Note {
    /// Packs a note.
    #[inline(always)]
    pub const fn new(identity: u32, value: u32) -> Self {
        Self(((identity as u64) << 32) | value as u64)
    }

    /// The number.
    #[inline(always)]
    pub const fn value(self) -> u32 {
        self.0 as u32
    }
}

wire! {
    /// A closed IPv4 flow waiting to leave the table, element of `CLOSING_V4`.
    pub struct Closing4 {
        /// Key of the forward half.
        pub flow: Flow4,
        /// Identity of the flow.
        pub identity: u32,
        /// Tick of the close.
        pub since: u32,
    }
}

wire! {
    /// A closed IPv6 flow waiting to leave the table, element of `CLOSING_V6`.
    pub struct Closing6 {
        /// Key of the forward half.
        pub flow: Flow6,
        /// Identity of the flow.
        pub identity: u32,
        /// Tick of the close.
        pub since: u32,
    }
}

wire! {
    /// One record of the input of `lb_expire`, IPv4: a half and the head the agent saw.
    pub struct Idle4 {
        /// Key of the half.
        pub flow: Flow4,
        /// The head the agent read: the half is left alone if it changed since.
        pub head: u64,
    }
}

wire! {
    /// One record of the input of `lb_expire`, IPv6.
    pub struct Idle6 {
        /// Key of the half.
        pub flow: Flow6,
        /// The head the agent read: the half is left alone if it changed since.
        pub head: u64,
    }
}

/// Bits of the TCP flags byte.
pub mod tcp_flag {
    /// FIN.
    pub const FIN: u8 = 0x01;
    /// SYN.
    pub const SYN: u8 = 0x02;
    /// RST.
    pub const RST: u8 = 0x04;
    /// ACK.
    pub const ACK: u8 = 0x10;
}

/// What a TCP segment means to a flow, in the order in which the flags win.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Segment {
    /// RST, with or without anything else.
    Reset,
    /// SYN without ACK: asks for a connection.
    Syn,
    /// SYN and ACK: answers one.
    SynAck,
    /// FIN: this direction ends.
    Fin,
    /// Anything else.
    Data,
}

impl Segment {
    /// Reads the flags byte of a TCP header.
    #[inline(always)]
    pub const fn of(flags: u8) -> Self {
        if flags & tcp_flag::RST != 0 {
            Self::Reset
        } else if flags & tcp_flag::SYN != 0 {
            if flags & tcp_flag::ACK != 0 {
                Self::SynAck
            } else {
                Self::Syn
            }
        } else if flags & tcp_flag::FIN != 0 {
            Self::Fin
        } else {
            Self::Data
        }
    }
}

/// The states of a flow's two halves after a segment: of the half it belongs to, and of its peer.
///
/// `plausible` says whether an RST's sequence number lies near what the peer last acknowledged; an
/// RST that does not changes nothing (RFC 5961, section 3, in spirit). Only for flows in `FLOWS_*`.
#[inline(always)]
pub const fn step(own: u8, peer: u8, segment: Segment, plausible: bool) -> (u8, u8) {
    use state::{CLOSED, ESTABLISHED, FIN, RESET, base};
    let (own, peer) = (base(own), base(peer));
    match (segment, own) {
        (Segment::Reset, CLOSED) => (CLOSED, peer),
        (Segment::Reset, _) if plausible => (RESET, RESET),
        (Segment::Fin, ESTABLISHED | FIN) => match peer {
            FIN | CLOSED => (CLOSED, CLOSED),
            _ => (FIN, peer),
        },
        // The other half changed when this one had closed: once more.
        (Segment::Fin, CLOSED) if peer == FIN => (CLOSED, CLOSED),
        // Whoever got a true RST sends nothing more.
        (Segment::Data | Segment::Fin, RESET) => (ESTABLISHED, ESTABLISHED),
        _ => (own, peer),
    }
}

/// Ticks a flow closed by two FINs keeps its tuple from others who find no other.
pub const REST_CLOSED: u32 = 3;

/// The same after a reset: if it was no true one, the connection goes on meanwhile and is closed no more.
pub const REST_RESET: u32 = 15;

/// Whether a half may leave for another flow that needs its tuple: it is closed, and was met by nobody for
/// long enough, nor closed since.
#[inline(always)]
pub const fn gives_way(head: Head, now: u32) -> bool {
    let rest = match state::base(head.state()) {
        state::CLOSED => REST_CLOSED,
        state::RESET => REST_RESET,
        _ => return false,
    };
    ticks_since(now, head.stamp()) >= rest
}

/// Furthest distance of an RST's sequence number from the peer's noted acknowledgement, in bytes, while
/// the peer sends: the note is up to a tick old, hence not the receive window but what a tick can carry.
pub const RESET_WINDOW_BUSY: u32 = 1 << 28;

/// The same for a peer silent for more than a tick: its note is nearly exact, and an idle session is what
/// a blind RST could end without anyone noticing.
pub const RESET_WINDOW_IDLE: u32 = 1 << 22;

/// Whether a reset with sequence number `sequence` may close a flow whose peer noted `acknowledged`, and
/// was silent for `ticks`.
#[inline(always)]
pub const fn reset_is_plausible(sequence: u32, acknowledged: u32, ticks: u32) -> bool {
    let window = if ticks <= 1 {
        RESET_WINDOW_BUSY
    } else {
        RESET_WINDOW_IDLE
    };
    let ahead = sequence.wrapping_sub(acknowledged);
    ahead < window || ahead.wrapping_neg() < window
}

#[cfg(test)]
mod tests {
    use super::{
        state::{CLOSED, CONDEMNED, ESTABLISHED, FIN, RESET},
        *,
    };

    #[test]
    fn words_keep_their_fields_apart() {
        let head = Head::new(0xdead_beef, FIN | CONDEMNED, 0x01ff_fffe);
        assert_eq!(head.identity(), 0xdead_beef);
        assert_eq!(head.state(), FIN | CONDEMNED);
        assert_eq!(head.stamp(), 0x00ff_fffe);
        let route = Route::new(0x1_2345, 0xfffe, 9_000, 77);
        assert_eq!(
            (route.next_hop(), route.mtu(), route.generation()),
            (0xfffe, 9_000, 77)
        );
        assert_eq!(Route::new(1, 2, 70_000, 3).mtu(), u16::MAX);
        assert_eq!(Note::new(9, 0x8000_0001).value(), 0x8000_0001);
    }

    #[test]
    fn ticks_wrap() {
        assert_eq!(ticks_since(5, 0x00ff_fffe), 7);
        assert_eq!(ticks_since(7, 7), 0);
        assert_eq!(ticks_since(10, 11), 0);
        assert_eq!(ticks_since(0x00ff_ffff, 0), 0);
    }

    #[test]
    fn only_what_is_closed_and_has_rested_gives_way() {
        for (name, state, ticks, expected) in [
            ("open, silent for long", ESTABLISHED, 1_000, false),
            ("half closed", FIN, 1_000, false),
            ("dead", state::DEAD, 1_000, false),
            ("closed just now", CLOSED, REST_CLOSED - 1, false),
            ("closed", CLOSED | state::QUEUED, REST_CLOSED, true),
            ("reset just now", RESET, REST_RESET - 1, false),
            ("reset", RESET | CONDEMNED, REST_RESET, true),
        ] {
            let head = Head::new(1, state, 0x00ff_fff0);
            assert_eq!(gives_way(head, 0x00ff_fff0 + ticks), expected, "{name}");
        }
    }

    #[test]
    fn segments_are_read_from_flags() {
        for (flags, expected) in [
            (0x02, Segment::Syn),
            (0x12, Segment::SynAck),
            (0x10, Segment::Data),
            (0x18, Segment::Data),
            (0x11, Segment::Fin),
            (0x04, Segment::Reset),
            (0x14, Segment::Reset),
            (0x06, Segment::Reset),
            (0x00, Segment::Data),
        ] {
            assert_eq!(Segment::of(flags), expected, "{flags:#04x}");
        }
    }

    #[test]
    fn the_second_fin_closes_the_half_that_does_not_know_of_it_yet() {
        assert_eq!(step(CLOSED, FIN, Segment::Fin, true), (CLOSED, CLOSED));
    }

    #[test]
    fn the_life_of_a_connection() {
        for (name, own, peer, segment, plausible, expected) in [
            (
                "data changes nothing",
                ESTABLISHED,
                ESTABLISHED,
                Segment::Data,
                true,
                (3, 3),
            ),
            (
                "first FIN",
                ESTABLISHED,
                ESTABLISHED,
                Segment::Fin,
                true,
                (FIN, ESTABLISHED),
            ),
            (
                "second FIN",
                ESTABLISHED,
                FIN,
                Segment::Fin,
                true,
                (CLOSED, CLOSED),
            ),
            (
                "FIN repeated",
                FIN,
                ESTABLISHED,
                Segment::Fin,
                true,
                (FIN, ESTABLISHED),
            ),
            (
                "FIN of the closed",
                CLOSED,
                CLOSED,
                Segment::Fin,
                true,
                (CLOSED, CLOSED),
            ),
            (
                "last ACK",
                CLOSED,
                CLOSED,
                Segment::Data,
                true,
                (CLOSED, CLOSED),
            ),
            (
                "reset",
                ESTABLISHED,
                ESTABLISHED,
                Segment::Reset,
                true,
                (RESET, RESET),
            ),
            (
                "blind reset",
                ESTABLISHED,
                ESTABLISHED,
                Segment::Reset,
                false,
                (3, 3),
            ),
            (
                "reset after half close",
                FIN,
                ESTABLISHED,
                Segment::Reset,
                true,
                (RESET, RESET),
            ),
            (
                "data after a reset",
                RESET,
                RESET,
                Segment::Data,
                true,
                (3, 3),
            ),
            (
                "SYN on a live flow",
                ESTABLISHED,
                ESTABLISHED,
                Segment::Syn,
                true,
                (3, 3),
            ),
            (
                "a condemned half revives",
                3 | CONDEMNED,
                3,
                Segment::Data,
                true,
                (3, 3),
            ),
        ] {
            assert_eq!(step(own, peer, segment, plausible), expected, "{name}");
        }
    }

    #[test]
    fn resets_far_from_the_acknowledged_are_implausible() {
        for ticks in [0, 100] {
            assert!(reset_is_plausible(1_000, 1_000, ticks));
            assert!(reset_is_plausible(0xffff_ff00, 10, ticks));
            assert!(reset_is_plausible(10, 0xffff_ff00, ticks));
            assert!(!reset_is_plausible(0x8000_0000, 0, ticks));
            assert!(!reset_is_plausible(RESET_WINDOW_BUSY, 0, ticks));
        }
        assert!(reset_is_plausible(RESET_WINDOW_IDLE, 0, 1));
        assert!(!reset_is_plausible(RESET_WINDOW_IDLE, 0, 2));
    }
}
