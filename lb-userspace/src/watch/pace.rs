//! A stream of events that waits after a failure, longer after each.

use std::{
    collections::hash_map::RandomState,
    hash::{BuildHasher as _, Hasher as _},
    time::Duration,
};

use futures::{
    Stream, StreamExt as _,
    stream::{self, BoxStream},
};
use kube::runtime::watcher::{self, Event};
use tokio::time::{Instant, sleep, timeout};

use super::outage::Failure;

/// Wait after a failure: the first, and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));
/// Wait after the server refused something we can do without.
const REFUSED: Duration = Duration::from_mins(5);
/// A stream that went well for so long starts with the first wait again.
const WELL: Duration = Duration::from_mins(1);
/// Longest time the server may take to go on with a list.
const LIST: Duration = Duration::from_mins(1);

/// The events of the watches `start` makes, one after the other. `optional`: the server may refuse it
/// for good.
pub(super) fn paced<K: Send + 'static>(
    start: impl Fn() -> BoxStream<'static, watcher::Result<Event<K>>> + Send + 'static,
    optional: bool,
) -> impl Stream<Item = Result<Event<K>, Failure>> + Send {
    let paced = Paced {
        events: start(),
        start,
        listing: true,
        backoff: Backoff::default(),
        wait: Duration::ZERO,
        optional,
    };
    stream::unfold(paced, |mut paced| async move {
        let item = paced.next().await?;
        Some((item, paced))
    })
}

struct Paced<K, S> {
    start: S,
    events: BoxStream<'static, watcher::Result<Event<K>>>,
    /// A list began and is not complete.
    listing: bool,
    backoff: Backoff,
    wait: Duration,
    optional: bool,
}

impl<K, S: Fn() -> BoxStream<'static, watcher::Result<Event<K>>>> Paced<K, S> {
    async fn next(&mut self) -> Option<Result<Event<K>, Failure>> {
        let wait = std::mem::take(&mut self.wait);
        // No wait at all is shorter than the shortest a timer can measure, which is a millisecond.
        if !wait.is_zero() {
            sleep(wait).await;
        }
        let item = if self.listing {
            if let Ok(item) = timeout(LIST, self.events.next()).await {
                item?.map_err(Failure::Watcher)
            } else {
                self.events = (self.start)();
                Err(Failure::Slow)
            }
        } else {
            self.events.next().await?.map_err(Failure::Watcher)
        };
        match &item {
            Ok(Event::Init) => self.listing = true,
            Ok(Event::InitDone) => self.listing = false,
            Ok(_) => {}
            Err(failure) if self.optional && failure.is_refusal() => self.wait = REFUSED,
            Err(_) => self.wait = self.backoff.next(Instant::now(), random()),
        }
        Some(item)
    }
}

/// How long to wait after so many failures.
#[derive(Debug, Default)]
struct Backoff {
    failures: u32,
    last: Option<Instant>,
}

impl Backoff {
    /// `chance` is from 0 to 1: not every agent shall come back at the same moment.
    fn next(&mut self, now: Instant, chance: f64) -> Duration {
        if self.last.is_some_and(|last| now - last > WELL) {
            self.failures = 0;
        }
        self.last = Some(now);
        let (first, longest) = BACKOFF;
        let wait = first.saturating_mul(1 << self.failures.min(8)).min(longest);
        self.failures = self.failures.saturating_add(1);
        wait.mul_f64(0.5 + chance / 2.0)
    }
}

/// From 0 to 1, another one each time: new hashers have new keys.
fn random() -> f64 {
    let bits = RandomState::new().build_hasher().finish() >> 32;
    f64::from(u32::try_from(bits).unwrap_or(0)) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    };

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn waits_grow_to_a_limit_and_start_again() {
        let mut backoff = Backoff::default();
        let start = Instant::now();
        let mut waits = |after: u64, chance| {
            let wait = backoff.next(start + Duration::from_secs(after), chance);
            wait.as_millis()
        };
        let longest: Vec<_> = (0..7).map(|i| waits(i * 10, 1.0)).collect();
        assert_eq!(longest, [500, 1_000, 2_000, 4_000, 8_000, 10_000, 10_000]);
        assert_eq!(waits(70, 0.0), 5_000, "jitter");
        assert_eq!(waits(200, 1.0), 500, "it went well for a while");
        assert!((0..100).map(|_| random()).all(|r| (0.0..=1.0).contains(&r)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_long_list_takes_no_time() {
        let items = || stream::iter((0..10_000).map(|i| Ok(Event::InitApply(i)))).boxed();
        let begun = Instant::now();
        let count = paced(items, false).count().await;
        assert_eq!((count, begun.elapsed()), (10_000, Duration::ZERO));
    }

    #[tokio::test(start_paused = true)]
    async fn a_list_that_stops_is_begun_again() {
        let started = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&started);
        let start = move || {
            count.fetch_add(1, Ordering::Relaxed);
            stream::iter([Ok(Event::<()>::Init)])
                .chain(stream::pending())
                .boxed()
        };
        let mut events = Box::pin(paced(start, false));
        assert!(matches!(events.next().await, Some(Ok(Event::Init))));
        assert!(matches!(events.next().await, Some(Err(Failure::Slow))));
        assert!(matches!(events.next().await, Some(Ok(Event::Init))));
        assert_eq!(started.load(Ordering::Relaxed), 2);
    }
}
