//! Requests that go on while something else happens, every one of them accounted for.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use super::client::{Place, TIMEOUT, ask, ask_udp};
use crate::netns::{now, poll_until};

/// Between two requests of one client.
const PAUSE: Duration = Duration::from_millis(10);

/// The addresses which only the load balancer of edge1 uses towards backends.
pub const SNAT: [&str; 2] = ["10.200.0.111", "2001:db8:200::111"];

/// How a client asks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Protocol {
    /// HTTP, a connection for each request.
    Tcp,
    /// A datagram from a new port for each request.
    Udp,
}

/// What became of requests.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Answered requests by pod.
    pub answered: BTreeMap<String, u64>,
    /// As whom the pods saw the clients.
    pub peers: BTreeSet<IpAddr>,
    /// What went wrong, and when, counted from the start of the load.
    pub failed: Vec<String>,
}

impl Tally {
    /// No request failed, and each went by the load balancer of edge1.
    pub fn assert_unharmed(&self, what: &str) {
        assert!(self.failed.is_empty(), "{what}: {self}");
        let peers: BTreeSet<_> = self.peers.iter().map(ToString::to_string).collect();
        let own = SNAT.map(str::to_owned).into();
        assert_eq!(peers, own, "{what}: addresses the pods saw");
    }

    /// Requests that were answered.
    pub fn answers(&self) -> u64 {
        self.answered.values().sum()
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let failed = self.failed.len();
        let requests = self.answers() + failed as u64;
        write!(
            f,
            "{requests} requests, {failed} failed, {} pods",
            self.answered.len()
        )?;
        for line in self.failed.iter().take(8) {
            write!(f, "\n  {line}")?;
        }
        Ok(())
    }
}

/// Clients, one for each server, until it is dropped or [`ended`](Self::end).
#[derive(Debug)]
pub struct Load {
    shared: Arc<State>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct State {
    start: Instant,
    stop: AtomicBool,
    tally: Mutex<Tally>,
}

impl Load {
    /// Starts a client in `place` for each of `servers`.
    pub fn start(place: &Place, servers: &[(Protocol, SocketAddr)]) -> Self {
        let shared = Arc::new(State {
            start: now(),
            stop: AtomicBool::new(false),
            tally: Mutex::default(),
        });
        let clients = servers.iter().map(|&(protocol, server)| {
            let place = place.clone();
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || {
                place.enter();
                shared.run(protocol, server);
            })
        });
        Self {
            threads: clients.collect(),
            shared,
        }
    }

    /// What became of the requests until now.
    pub fn tally(&self) -> Tally {
        self.shared.tally().clone()
    }

    /// Waits until every pod of `pods` has answered since now.
    pub fn wait_answers(&self, pods: &[String], patience: Duration) {
        let before = self.tally().answered;
        poll_until(&format!("answers of {pods:?}"), patience, || {
            let answered = self.tally().answered;
            let heard = pods.iter().all(|pod| answered.get(pod) > before.get(pod));
            heard.then_some(())
        });
    }

    /// Waits until so many more requests were answered.
    pub fn wait_more(&self, requests: u64, patience: Duration) {
        let goal = self.tally().answers() + requests;
        poll_until(&format!("{requests} answers"), patience, || {
            (self.tally().answers() >= goal).then_some(())
        });
    }

    /// Lets each client finish its request, and returns what became of all.
    pub fn end(mut self) -> Tally {
        self.join();
        self.tally()
    }

    fn join(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            assert!(
                thread.join().is_ok() || std::thread::panicking(),
                "a client panicked"
            );
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.join();
    }
}

impl State {
    fn run(&self, protocol: Protocol, server: SocketAddr) {
        while !self.stop.load(Ordering::Relaxed) {
            let began = self.start.elapsed();
            let result = match protocol {
                Protocol::Tcp => ask(server),
                Protocol::Udp => ask_udp(server, TIMEOUT),
            };
            let mut tally = self.tally();
            match result {
                Ok(answer) => {
                    tally.peers.insert(answer.peer.ip());
                    *tally.answered.entry(answer.pod).or_default() += 1;
                }
                Err(error) => tally.failed.push(format!(
                    "{protocol:?} {server}: {error}; from {:.3} s to {:.3} s",
                    began.as_secs_f64(),
                    self.start.elapsed().as_secs_f64(),
                )),
            }
            drop(tally);
            std::thread::sleep(PAUSE);
        }
    }

    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
