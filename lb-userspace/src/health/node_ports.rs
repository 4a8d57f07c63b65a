//! A listener for each Service that has a health-check node port.
//!
//! Whether the port answers at all tells as much as the answer: a Service that has no health check
//! any more has no listener, and its clients see a connection fail.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep_until},
};
use tracing::{info, warn};

use super::{
    Health,
    check::{self, Check},
};
use crate::{http::Server, plan::HealthCheck, snapshot::ObjectName};

/// Reason of the Event that tells of a port which cannot be listened on.
pub const EVENT_REASON: &str = "FailedToStartServiceHealthcheck";

/// How long after a failure to listen the next attempt comes.
const RETRY: Duration = Duration::from_secs(5);

/// What shall be listened on.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Wanted {
    /// By Service.
    pub checks: Arc<BTreeMap<ObjectName, HealthCheck>>,
    /// On which addresses.
    pub bind: Bind,
}

/// Addresses to listen on: those that serve node ports.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum Bind {
    /// Every address of the node, by one listener for both families.
    #[default]
    All,
    /// These, by a listener each.
    Addresses(BTreeSet<IpAddr>),
}

/// How to deal with ports somebody else listens on.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Policy {
    /// Leave them until they are free; else they are a problem to be told.
    pub leave_taken: bool,
    /// How long another proxy on the node has to listen first.
    pub wait: Duration,
}

/// What became of a health-check node port.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum PortState {
    /// We listen on it.
    Serving,
    /// Somebody else listens on it, and may.
    Elsewhere,
    /// It cannot be listened on.
    Failed,
}

/// The listeners. They close when this is dropped.
#[derive(Debug)]
pub struct Servers {
    wanted: watch::Sender<Wanted>,
    states: watch::Receiver<BTreeMap<ObjectName, PortState>>,
    task: JoinHandle<()>,
}

impl Servers {
    /// Starts without any. `tell` learns once of each Service whose port cannot be listened on, and
    /// why. To be called within a runtime.
    pub fn start(
        policy: Policy,
        health: Health,
        tell: impl Fn(&ObjectName, &str) + Send + 'static,
    ) -> Self {
        let (wanted, receiver) = watch::channel(Wanted::default());
        let (sender, states) = watch::channel(BTreeMap::new());
        let listeners = Listeners {
            policy,
            health,
            tell: Box::new(tell),
            checks: BTreeMap::new(),
            open: BTreeMap::new(),
            missing: BTreeMap::new(),
            told: BTreeMap::new(),
        };
        Self {
            wanted,
            states,
            task: tokio::spawn(listeners.follow(receiver, sender)),
        }
    }

    /// Says what shall be listened on from now on. Returns at once.
    pub fn update(&self, wanted: Wanted) {
        self.wanted.send_if_modified(|last| {
            let differs = *last != wanted;
            *last = wanted;
            differs
        });
    }

    /// What became of each port, as it changes.
    pub fn states(&self) -> watch::Receiver<BTreeMap<ObjectName, PortState>> {
        self.states.clone()
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Wanted {
    /// Every listener: of which Service, and where.
    fn listeners(&self) -> BTreeSet<Listener> {
        let addresses: Vec<IpAddr> = match &self.bind {
            Bind::All => vec![Ipv6Addr::UNSPECIFIED.into()],
            Bind::Addresses(addresses) => addresses.iter().copied().collect(),
        };
        let of_check = |(name, check): (&ObjectName, &HealthCheck)| {
            let (name, port) = (name.clone(), check.port);
            let listener = move |address: &IpAddr| (name.clone(), SocketAddr::new(*address, port));
            addresses.iter().map(listener).collect::<Vec<_>>()
        };
        self.checks.iter().flat_map(of_check).collect()
    }
}

/// A Service and one of the addresses its health check is served on.
type Listener = (ObjectName, SocketAddr);

type Tell = Box<dyn Fn(&ObjectName, &str) + Send>;

struct Listeners {
    policy: Policy,
    health: Health,
    tell: Tell,
    checks: BTreeMap<ObjectName, Arc<Check>>,
    open: BTreeMap<Listener, Server>,
    /// Wanted and not open: when to try, and what the last attempt said.
    missing: BTreeMap<Listener, Missing>,
    /// What was said of a Service, so that it is said once.
    told: BTreeMap<ObjectName, String>,
}

struct Missing {
    next: Instant,
    failure: Option<io::Error>,
}

impl Listeners {
    async fn follow(
        mut self,
        mut wanted: watch::Receiver<Wanted>,
        states: watch::Sender<BTreeMap<ObjectName, PortState>>,
    ) {
        loop {
            let now_wanted = wanted.borrow_and_update().clone();
            self.close_others(&now_wanted).await;
            self.count(&now_wanted);
            self.open_missing(Instant::now());
            self.speak();
            states.send_replace(self.states());
            let again = self.missing.values().map(|missing| missing.next).min();
            let retry = async {
                match again {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = wanted.changed() => if changed.is_err() {
                    return;
                },
                () = retry => {}
            }
        }
    }

    /// Closes what is not wanted, before anything is opened: a port may have moved.
    async fn close_others(&mut self, wanted: &Wanted) {
        let listeners = wanted.listeners();
        let open = std::mem::take(&mut self.open);
        for (listener, server) in open {
            if listeners.contains(&listener) {
                self.open.insert(listener, server);
            } else {
                info!(service = %listener.0, address = %listener.1, "health check closed");
                server.close().await;
            }
        }
        self.missing
            .retain(|listener, _| listeners.contains(listener));
        self.told.retain(|name, _| wanted.checks.contains_key(name));
        let now = Instant::now();
        for listener in listeners {
            if !self.open.contains_key(&listener) {
                // What failed is tried again with every change, and by itself after a while.
                let missing = self.missing.entry(listener).or_insert_with(|| Missing {
                    next: now + self.policy.wait,
                    failure: None,
                });
                if missing.failure.is_some() {
                    missing.next = now;
                }
            }
        }
    }

    /// What the listeners answer from now on.
    fn count(&mut self, wanted: &Wanted) {
        self.checks
            .retain(|name, _| wanted.checks.contains_key(name));
        for (name, check) in wanted.checks.iter() {
            let answered = self
                .checks
                .entry(name.clone())
                .or_insert_with(|| Arc::new(Check::new(name.clone(), self.health.clone())));
            answered.count(check.local_ready);
        }
    }

    fn open_missing(&mut self, now: Instant) {
        for (listener, mut missing) in std::mem::take(&mut self.missing) {
            let check = self.checks.get(&listener.0);
            let Some(check) = check.filter(|_| missing.next <= now) else {
                self.missing.insert(listener, missing);
                continue;
            };
            match Server::start(listener.1, check::router(Arc::clone(check))) {
                Ok(server) => {
                    info!(service = %listener.0, address = %listener.1, "health check served");
                    self.open.insert(listener, server);
                }
                Err(error) => {
                    missing.next = now + RETRY;
                    missing.failure = Some(error);
                    self.missing.insert(listener, missing);
                }
            }
        }
    }

    /// Says what changed about ports that cannot be listened on.
    fn speak(&mut self) {
        let mut said: BTreeMap<ObjectName, String> = BTreeMap::new();
        for ((name, address), missing) in &self.missing {
            let Some(failure) = &missing.failure else {
                continue;
            };
            let port = address.port();
            let left = self.policy.leave_taken && is_taken(failure);
            let text = if left {
                format!("healthCheckNodePort {port} is left to who listens on it already")
            } else {
                format!("healthCheckNodePort {port}: listen on {address}: {failure}")
            };
            if self.told.get(name) != Some(&text) && !said.contains_key(name) {
                if left {
                    info!(service = %name, %address, "{text}");
                } else {
                    warn!(service = %name, "{text}");
                    (self.tell)(name, &text);
                }
            }
            said.entry(name.clone()).or_insert(text);
        }
        self.told = said;
    }

    fn states(&self) -> BTreeMap<ObjectName, PortState> {
        let mut states: BTreeMap<ObjectName, PortState> = BTreeMap::new();
        let mut note = |name: &ObjectName, state: PortState| {
            let worst = states.entry(name.clone()).or_insert(state);
            *worst = (*worst).max(state);
        };
        for (name, _) in self.open.keys() {
            note(name, PortState::Serving);
        }
        for ((name, _), missing) in &self.missing {
            let Some(failure) = &missing.failure else {
                continue;
            };
            if self.policy.leave_taken && is_taken(failure) {
                note(name, PortState::Elsewhere);
            } else {
                note(name, PortState::Failed);
            }
        }
        states
    }
}

fn is_taken(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrInUse
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_for_each_address_or_one_for_all() {
        let checks = [("a", 31_000), ("b", 31_001)];
        let checks: BTreeMap<_, _> = checks
            .map(|(name, port)| {
                let check = HealthCheck {
                    port,
                    local_ready: 1,
                };
                (ObjectName::new("default", name), check)
            })
            .into();
        let addresses = ["192.0.2.1", "2001:db8::1"].map(|a| a.parse().expect("an address"));
        for (name, bind, expected) in [
            (
                "all",
                Bind::All,
                vec!["default/a [::]:31000", "default/b [::]:31001"],
            ),
            (
                "two",
                Bind::Addresses(addresses.into()),
                vec![
                    "default/a 192.0.2.1:31000",
                    "default/a [2001:db8::1]:31000",
                    "default/b 192.0.2.1:31001",
                    "default/b [2001:db8::1]:31001",
                ],
            ),
            ("none", Bind::Addresses(BTreeSet::new()), vec![]),
        ] {
            let wanted = Wanted {
                checks: Arc::new(checks.clone()),
                bind,
            };
            let listeners: Vec<_> = wanted
                .listeners()
                .iter()
                .map(|(service, address)| format!("{service} {address}"))
                .collect();
            assert_eq!(listeners, expected, "{name}");
        }
    }
}
