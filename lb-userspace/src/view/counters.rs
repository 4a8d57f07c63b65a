//! Counters by name, and their rates between two readings.

use std::time::Duration;

use lb_common::{
    reason::{Counter, Verdict},
    traffic::Tally,
};
use serde::Serialize;

/// One counter.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Count {
    /// Its name.
    pub name: &'static str,
    /// `event`: something we did; `reason`: why we did not balance.
    pub kind: &'static str,
    /// What became of the packet: `pass` or `drop`; none for events.
    pub verdict: Option<&'static str>,
    /// Packets since the maps were made.
    pub packets: u64,
    /// Bytes of IP packet.
    pub bytes: u64,
}

/// One counter and how fast it moves.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Rate {
    /// The counter.
    #[serde(flatten)]
    pub count: Count,
    /// Packets per second since the last reading.
    pub packets_per_second: f64,
    /// Bytes per second since the last reading.
    pub bytes_per_second: f64,
}

/// Every counter, in the order of its number.
pub fn counters(tallies: &[Tally]) -> Vec<Count> {
    Counter::all()
        .map(|counter| {
            let tally = tallies
                .get(counter.index() as usize)
                .copied()
                .unwrap_or_default();
            Count {
                name: counter.name(),
                kind: match counter {
                    Counter::Event(_) => "event",
                    Counter::Reason(_) => "reason",
                },
                verdict: match counter {
                    Counter::Event(_) => None,
                    Counter::Reason(reason) => Some(match reason.verdict() {
                        Verdict::Pass => "pass",
                        Verdict::Drop => "drop",
                    }),
                },
                packets: tally.packets,
                bytes: tally.bytes,
            }
        })
        .collect()
}

/// The counters that moved or are not zero, with their rates over `elapsed`.
///
/// A counter below its earlier reading counts from zero: the maps were made anew.
pub fn rates(earlier: &[Count], later: &[Count], elapsed: Duration) -> Vec<Rate> {
    let seconds = elapsed.as_secs_f64().max(f64::MIN_POSITIVE);
    let rate = |then: u64, now: u64| as_f64(now.checked_sub(then).unwrap_or(now)) / seconds;
    let before = |name| earlier.iter().find(|count| count.name == name);
    later
        .iter()
        .map(|&count| {
            let (packets, bytes) = before(count.name).map_or((0, 0), |c| (c.packets, c.bytes));
            Rate {
                count,
                packets_per_second: rate(packets, count.packets),
                bytes_per_second: rate(bytes, count.bytes),
            }
        })
        .collect()
}

/// Counts below 2^53 are exact, others good enough for a rate.
#[expect(
    clippy::cast_precision_loss,
    reason = "a rate has no use for the last bits"
)]
const fn as_f64(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use lb_common::reason::{Event, Reason};

    use super::*;
    use crate::view::render::{Output, text_of};

    fn tallies(values: &[(Counter, u64)]) -> Vec<Tally> {
        let mut tallies = vec![Tally::default(); Counter::CAPACITY as usize];
        for &(counter, packets) in values {
            tallies[counter.index() as usize] = Tally {
                packets,
                bytes: packets * 100,
            };
        }
        tallies
    }

    #[test]
    fn every_counter_has_a_row() {
        let counts = counters(&[]);
        assert_eq!(counts.len(), Counter::all().count());
        assert!(counts.iter().all(|count| count.packets == 0));
    }

    #[test]
    fn counters_as_a_table() {
        let tallies = tallies(&[
            (Counter::Event(Event::XdpForwarded), 1_000_000),
            (Counter::Reason(Reason::NotOurs), 5),
            (Counter::Reason(Reason::SnatMiss), 1),
        ]);
        let counts: Vec<_> = counters(&tallies)
            .into_iter()
            .filter(|c| c.packets != 0)
            .collect();
        insta::assert_snapshot!(text_of(&counts, Output::Table), @r#"
        NAME           KIND    VERDICT  PACKETS      BYTES
        xdp_forwarded  event   -        1000000  100000000
        not_ours       reason  pass           5        500
        snat_miss      reason  drop           1        100
        "#);
    }

    #[test]
    fn rates_over_time() {
        let at = |packets| counters(&tallies(&[(Counter::Reason(Reason::NoRoute), packets)]));
        let cases = [
            ("still", 7, 7, 1_000, 0.0),
            ("moving", 0, 10, 2_000, 5.0),
            ("maps made anew", 100, 6, 1_000, 6.0),
        ];
        for (name, then, now, millis, expected) in cases {
            let rates = rates(&at(then), &at(now), Duration::from_millis(millis));
            let rate = rates
                .iter()
                .find(|rate| rate.count.name == "no_route")
                .expect("a row");
            assert!(
                (rate.packets_per_second - expected).abs() < 1e-9,
                "{name}: {rate:?}"
            );
        }
    }
}
