//! Silences, and how much of one is the machine's.
//!
//! All of this runs on few processors, which others may take away: then every flow falls silent, also
//! those which never meet the load balancer. Such *control flows* run beside the watched ones, on the same
//! threads and the same bridge. While **all** of them are silent the machine stands still, and that
//! time is no flow's stall. Whenever a single one of them goes on, the full rule holds.

use std::{fmt, time::Duration};

/// Longest silence that is not a loss.
pub const LIMIT: Duration = Duration::from_secs(1);

/// A time, counted from the start of the watch.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Interval {
    /// Its begin.
    pub from: Duration,
    /// Its end.
    pub to: Duration,
}

impl Interval {
    /// How long it is.
    pub fn length(self) -> Duration {
        self.to.saturating_sub(self.from)
    }

    fn common(self, other: Self) -> Option<Self> {
        let (from, to) = (self.from.max(other.from), self.to.min(other.to));
        (from < to).then_some(Self { from, to })
    }
}

impl fmt::Display for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (from, to) = (self.from.as_secs_f64(), self.to.as_secs_f64());
        write!(f, "{from:.3} s to {to:.3} s")
    }
}

/// The silences of one control flow without the pause that is between any two messages, as far as they
/// are longer than it.
pub fn beyond(silences: &[Interval], pause: Duration) -> Vec<Interval> {
    let late = silences.iter().map(|silence| Interval {
        from: silence.from + pause,
        to: silence.to,
    });
    late.filter(|late| late.from < late.to).collect()
}

/// When the whole machine stood still: all control flows were silent. Each one's silences are in order.
pub fn of_machine(controls: &[Vec<Interval>]) -> Vec<Interval> {
    let Some((first, rest)) = controls.split_first() else {
        return Vec::new();
    };
    rest.iter().fold(first.clone(), |all, one| {
        let pairs = all
            .iter()
            .flat_map(|silence| one.iter().filter_map(|other| silence.common(*other)));
        pairs.collect()
    })
}

/// A silence of a watched flow, less what the machine stood still.
pub fn own(silence: Interval, machine: &[Interval]) -> Duration {
    let still: Duration = machine
        .iter()
        .filter_map(|still| still.common(silence))
        .map(Interval::length)
        .sum();
    silence.length().saturating_sub(still)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(from: u64, to: u64) -> Interval {
        Interval {
            from: Duration::from_millis(from),
            to: Duration::from_millis(to),
        }
    }

    #[test]
    fn only_what_all_control_flows_miss_is_the_machines() {
        for (name, controls, silence, left) in [
            ("no control flow", vec![], at(0, 1_500), 1_500),
            ("all are fine", vec![vec![], vec![]], at(0, 1_500), 1_500),
            (
                "one is silent",
                vec![vec![at(0, 9_000)], vec![]],
                at(0, 1_500),
                1_500,
            ),
            (
                "all are silent",
                vec![vec![at(100, 2_100)], vec![at(200, 2_200)]],
                at(50, 2_250),
                300,
            ),
            (
                "the flow was silent before and after",
                vec![vec![at(1_000, 1_500)]],
                at(0, 3_000),
                2_500,
            ),
            (
                "the machine stood still at another time",
                vec![vec![at(5_000, 9_000)]],
                at(0, 2_000),
                2_000,
            ),
            (
                "several times",
                vec![
                    vec![at(0, 100), at(200, 300), at(400, 500)],
                    vec![at(50, 450)],
                ],
                at(0, 1_000),
                800,
            ),
        ] {
            let machine = of_machine(&controls);
            assert_eq!(
                own(silence, &machine),
                Duration::from_millis(left),
                "{name}"
            );
        }
    }

    #[test]
    fn the_usual_pause_is_not_the_machines() {
        let pause = Duration::from_millis(100);
        let late = beyond(&[at(0, 90), at(90, 1_090)], pause);
        assert_eq!(late, [at(190, 1_090)]);
    }
}
