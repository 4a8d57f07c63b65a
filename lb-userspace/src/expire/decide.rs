//! Which halves go. Pure.

use std::time::Duration;

use lb_common::{
    conntrack::{Head, state, ticks_since},
    flow::protocol,
};

use crate::config::Timeouts;

/// The longest time stamps can tell: 24 bits are all they have, half of them before their wrap.
const NEVER: u32 = lb_common::conntrack::TICK_MASK / 2;

/// Idle times in ticks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct IdleTicks {
    /// Established TCP.
    pub tcp: u32,
    /// Established UDP.
    pub udp: u32,
    /// Closed, and halves without a peer.
    pub closed: u32,
}

impl IdleTicks {
    /// Converts times, rounding up. `tick_seconds` is the length of a tick.
    pub fn new(timeouts: &Timeouts, tick_seconds: f64) -> Self {
        let ticks = |time| to_ticks(time, tick_seconds);
        // Closed flows leave without us; we come long after, for those which could not.
        let closed = ticks(timeouts.closed).saturating_mul(2);
        Self {
            tcp: ticks(timeouts.tcp),
            udp: ticks(timeouts.udp),
            closed,
        }
    }

    /// Of UDP alone: TCP has an end of its own, which whoever has no configuration waits for.
    pub fn udp_alone(udp: Duration, tick_seconds: f64) -> Self {
        Self {
            tcp: NEVER,
            udp: to_ticks(udp, tick_seconds),
            closed: NEVER,
        }
    }

    /// Idle time after which a half of this state may be given up.
    pub(super) const fn of(&self, number: u8, half_state: u8) -> u32 {
        if state::is_closed(half_state) {
            self.closed
        } else if number == protocol::UDP {
            self.udp
        } else {
            self.tcp
        }
    }
}

/// A time in ticks, rounded up, at least one.
pub fn to_ticks(time: Duration, tick_seconds: f64) -> u32 {
    let ticks = (time.as_secs_f64() / tick_seconds).ceil();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "saturates"
    )]
    let ticks = ticks as u32;
    ticks.clamp(1, NEVER)
}

/// What to do with a half.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Fate {
    Keep,
    Condemn,
    Delete,
}

/// Decides about a half from its head and its peer's, if the peer is in the table.
pub(super) fn decide(
    now: u32,
    number: u8,
    half: Head,
    peer: Option<Head>,
    idle: &IdleTicks,
) -> Fate {
    // Another flow's identity: the peer is gone, and its tuple used again.
    let peer = peer.filter(|peer| peer.identity() == half.identity());
    if half.state() & state::CONDEMNED != 0 {
        // Its peer was met by a packet meanwhile: the flow lives, and the next packet of this half
        // lifts the sentence.
        let spared = peer.is_some_and(|peer| peer.state() & state::CONDEMNED == 0);
        return if spared { Fate::Keep } else { Fate::Delete };
    }
    let is_idle = |head: Head, limit: u32| ticks_since(now, head.stamp()) > limit;
    let idle_together = match peer {
        Some(peer) => {
            let limit = idle
                .of(number, half.state())
                .max(idle.of(number, peer.state()));
            is_idle(half, limit) && is_idle(peer, limit)
        }
        // Both halves are written one after the other: not at once.
        None => is_idle(half, idle.closed.min(idle.of(number, half.state()))),
    };
    if idle_together {
        Fate::Condemn
    } else {
        Fate::Keep
    }
}

#[cfg(test)]
mod tests {
    use lb_common::conntrack::state::{CLOSED, CONDEMNED, ESTABLISHED, FIN};

    use super::*;

    const IDLE: IdleTicks = IdleTicks {
        tcp: 8_100,
        udp: 180,
        closed: 120,
    };
    const NOW: u32 = 10_000;

    fn head(state: u8, age: u32) -> Head {
        Head::new(7, state, NOW.wrapping_sub(age))
    }

    #[test]
    fn a_half_goes_when_the_whole_flow_is_idle() {
        let stranger = Head::new(8, ESTABLISHED, NOW);
        let (tcp, udp) = (protocol::TCP, protocol::UDP);
        for (name, number, half, peer, expected) in [
            (
                "fresh",
                tcp,
                head(ESTABLISHED, 0),
                Some(head(ESTABLISHED, 0)),
                Fate::Keep,
            ),
            (
                "orphan, UDP",
                udp,
                head(ESTABLISHED, 180),
                None,
                Fate::Condemn,
            ),
            (
                "idle",
                udp,
                head(ESTABLISHED, 181),
                Some(head(ESTABLISHED, 181)),
                Fate::Condemn,
            ),
            (
                "at the limit",
                udp,
                head(ESTABLISHED, 180),
                Some(head(ESTABLISHED, 180)),
                Fate::Keep,
            ),
            (
                "one-way",
                udp,
                head(ESTABLISHED, 999),
                Some(head(ESTABLISHED, 5)),
                Fate::Keep,
            ),
            (
                "TCP lives longer",
                tcp,
                head(ESTABLISHED, 999),
                Some(head(ESTABLISHED, 999)),
                Fate::Keep,
            ),
            (
                "one FIN is not the end",
                tcp,
                head(FIN, 999),
                Some(head(ESTABLISHED, 999)),
                Fate::Keep,
            ),
            (
                "closed",
                tcp,
                head(CLOSED, 121),
                Some(head(CLOSED, 121)),
                Fate::Condemn,
            ),
            (
                "closed, peer not",
                tcp,
                head(CLOSED, 121),
                Some(head(FIN, 121)),
                Fate::Keep,
            ),
            ("orphan", tcp, head(ESTABLISHED, 121), None, Fate::Condemn),
            ("fresh orphan", tcp, head(ESTABLISHED, 3), None, Fate::Keep),
            (
                "peer is a stranger",
                tcp,
                head(ESTABLISHED, 121),
                Some(stranger),
                Fate::Condemn,
            ),
            (
                "both condemned",
                tcp,
                head(ESTABLISHED | CONDEMNED, 9_000),
                Some(head(ESTABLISHED | CONDEMNED, 9_000)),
                Fate::Delete,
            ),
            (
                "condemned orphan",
                tcp,
                head(ESTABLISHED | CONDEMNED, 9_000),
                None,
                Fate::Delete,
            ),
            (
                "peer was met by a packet",
                tcp,
                head(ESTABLISHED | CONDEMNED, 9_000),
                Some(head(ESTABLISHED, 0)),
                Fate::Keep,
            ),
        ] {
            assert_eq!(decide(NOW, number, half, peer, &IDLE), expected, "{name}");
        }
    }

    #[test]
    fn stamps_wrap() {
        let half = Head::new(7, ESTABLISHED, 0x00ff_fff0);
        let peer = Some(half);
        assert_eq!(decide(0x10, protocol::UDP, half, peer, &IDLE), Fate::Keep);
        assert_eq!(
            decide(0x100, protocol::UDP, half, peer, &IDLE),
            Fate::Condemn
        );
    }

    #[test]
    fn times_become_ticks_and_never_none() {
        for (seconds, expected) in [(0, 1), (1, 1), (2, 2), (180, 176), (u64::MAX, 0x7f_ffff)] {
            assert_eq!(
                to_ticks(Duration::from_secs(seconds), 1.024),
                expected,
                "{seconds}"
            );
        }
    }
}
