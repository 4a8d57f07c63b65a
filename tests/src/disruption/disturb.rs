//! Disturbances that go on beside each other, each on a thread of its own, until told to stop.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use super::{
    api::{Api, Outage},
    counts::{Counts, Kind},
    others::Others,
    own::Endpoints,
    scene::{REMOTE, Scene},
    tables::Tables,
};
use crate::netns::now;

/// Between two changes of the watched Services' endpoints.
const CHURN: Duration = Duration::from_millis(1_500);
/// Between two changes of a route.
const ROUTE: Duration = Duration::from_millis(700);
/// How long the API server is there, and away.
const API: (Duration, Duration) = (Duration::from_secs(4), Duration::from_secs(2));
/// How often a thread looks whether to stop.
const LOOK: Duration = Duration::from_millis(20);

/// What all of them share.
#[derive(Debug)]
pub struct Stage<'s> {
    /// The network.
    pub scene: &'s Scene,
    /// Where the agent reads manifests.
    pub manifests: PathBuf,
    /// The kernel's tables.
    pub tables: Tables,
    /// What was done.
    pub counts: Counts,
    /// Over which of its devices the way to each neighbour leads, and how many MACs were given away.
    network: Mutex<Network>,
    stop: AtomicBool,
}

#[derive(Debug, Default)]
struct Network {
    client: usize,
    backends: [usize; REMOTE],
    macs: u16,
}

/// Ends every disturbance of a [`Stage`] on drop.
#[derive(Debug)]
pub struct Stopper<'s>(&'s AtomicBool);

impl Drop for Stopper<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl<'s> Stage<'s> {
    /// Nothing happens yet. Times are counted from `start`.
    pub fn new(scene: &'s Scene, manifests: &Path, tables: Tables, start: Instant) -> Self {
        Self {
            scene,
            manifests: manifests.to_owned(),
            tables,
            counts: Counts::new(start),
            network: Mutex::default(),
            stop: AtomicBool::new(false),
        }
    }

    /// Ends every disturbance when it is dropped.
    pub fn stopper(&self) -> Stopper<'_> {
        Stopper(&self.stop)
    }

    /// Waits, and tells whether to go on.
    fn pause(&self, length: Duration) -> bool {
        let end = now() + length;
        while now() < end && !self.stop.load(Ordering::Relaxed) {
            std::thread::sleep(LOOK.min(end.saturating_duration_since(now())));
        }
        !self.stop.load(Ordering::Relaxed)
    }

    /// Replaces the endpoints of the watched Services again and again; `frontends` are theirs.
    pub fn churn(&self, frontends: &[SocketAddr]) {
        for set in Endpoints::CHURN.into_iter().cycle() {
            set.publish(&self.manifests);
            let more = self.pause(CHURN);
            self.counts.add(Kind::Churn);
            if self.tables.lengths(frontends) == Some(vec![set.length(); frontends.len()]) {
                self.counts.add(Kind::Churned);
            }
            if !more {
                return;
            }
        }
    }

    /// Changes other Services, `total` times within `time`, then goes on at this pace.
    pub fn change_others(
        &self,
        others: &mut Others,
        api: &Mutex<Api<'_>>,
        total: u64,
        time: Duration,
    ) {
        let start = now();
        let mut done = 0_u128;
        while self.pause(LOOK) {
            let due = start.elapsed().as_micros() * u128::from(total) / time.as_micros();
            let api = api.lock().unwrap_or_else(PoisonError::into_inner);
            while done < due {
                others.change(&api);
                self.counts.add(Kind::Others);
                done += 1;
            }
        }
    }

    /// Takes the API server away at times; at the end it is there.
    pub fn fail_api(&self, api: &Mutex<Api<'_>>) {
        let lock = || api.lock().unwrap_or_else(PoisonError::into_inner);
        let ways = [Outage::Gone, Outage::Failing];
        for (number, way) in ways.into_iter().cycle().enumerate() {
            if !self.pause(API.0) {
                return;
            }
            lock().fail(way);
            let more = self.pause(API.1);
            lock().recover(number % 3 == 0);
            self.counts.add(Kind::Outage);
            if !more {
                return;
            }
        }
    }

    /// Leads the ways to client and backends over their other device, in turn.
    pub fn reroute(&self) {
        for turn in (0..=REMOTE).cycle() {
            if !self.pause(ROUTE) {
                return;
            }
            let mut network = self.network.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(device) = network.backends.get_mut(turn) {
                *device ^= 1;
                self.scene.route_backend(turn, *device);
            } else {
                network.client ^= 1;
                self.scene.route_client(network.client);
            }
            self.counts.add(Kind::Route);
        }
    }

    /// Gives the device in use of the client and of each backend another MAC. Only an agent follows this
    /// within a second, so it must be there; see the promise in ARCHITECTURE.md.
    pub fn change_macs(&self) {
        for turn in 0..=REMOTE {
            let mut network = self.network.lock().unwrap_or_else(PoisonError::into_inner);
            network.macs += 1;
            let (namespace, device) = match network.backends.get(turn) {
                Some(device) => (self.scene.backends.get(turn), device),
                None => (Some(&self.scene.client), &network.client),
            };
            let [high, low] = network.macs.to_be_bytes();
            let namespace = namespace.expect("a backend");
            namespace.ip(&format!(
                "link set eth{device} address 02:00:00:00:{high:02x}:{low:02x}"
            ));
            drop(network);
            self.counts.add(Kind::Mac);
            // One after the other is followed before the next.
            std::thread::sleep(Duration::from_millis(300));
        }
    }
}
