//! How many disturbances of each kind there were, counted when they are over.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::stall::Interval;

/// A kind of disturbance.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Kind {
    /// The agent was killed and started again.
    Kill,
    /// It was asked to end, ended well, and was started again.
    Restart,
    /// Another program runs behind every link.
    Upgrade,
    /// The tables got another layout.
    LayoutUp,
    /// They got the former one back.
    LayoutDown,
    /// Another Service was added, changed or removed.
    Others,
    /// The watched Services' own endpoints were replaced.
    Churn,
    /// And the tables had them before the next change.
    Churned,
    /// The API server was away.
    Outage,
    /// A route led elsewhere.
    Route,
    /// A neighbour got another MAC.
    Mac,
}

/// Counts of them, from several threads, and when the rarer ones were.
#[derive(Debug)]
pub struct Counts {
    start: Instant,
    numbers: Mutex<BTreeMap<Kind, u64>>,
    log: Mutex<Vec<(Duration, Kind)>>,
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill -9",
            Self::Restart => "graceful restarts",
            Self::Upgrade => "program upgrades",
            Self::LayoutUp => "layout changes up",
            Self::LayoutDown => "layout changes down",
            Self::Others => "changes of other services",
            Self::Churn => "changes of their own services' endpoints",
            Self::Churned => "of these in the tables at once",
            Self::Outage => "outages of the API",
            Self::Route => "route changes",
            Self::Mac => "changed MACs",
        }
    }
}

impl Counts {
    /// None yet; times are counted from `start`.
    pub fn new(start: Instant) -> Self {
        Self {
            start,
            numbers: Mutex::default(),
            log: Mutex::default(),
        }
    }

    /// One more.
    pub fn add(&self, kind: Kind) {
        *self.lock().entry(kind).or_default() += 1;
        if kind != Kind::Others {
            let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
            log.push((self.start.elapsed(), kind));
        }
    }

    /// What happened within `margin` of an interval, for the reader of a failure.
    pub fn around(&self, interval: Interval, margin: Duration) -> String {
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        let near = log
            .iter()
            .filter(|(at, _)| *at + margin >= interval.from && *at <= interval.to + margin);
        let words = near.map(|(at, kind)| format!("{} at {:.3}", kind.name(), at.as_secs_f64()));
        words.collect::<Vec<_>>().join(", ")
    }

    /// How many there were.
    pub fn of(&self, kind: Kind) -> u64 {
        self.lock().get(&kind).copied().unwrap_or(0)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Kind, u64>> {
        self.numbers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (kind, number)) in self.lock().iter().enumerate() {
            let comma = if at == 0 { "" } else { ", " };
            write!(f, "{comma}{number} {}", kind.name())?;
        }
        Ok(())
    }
}
