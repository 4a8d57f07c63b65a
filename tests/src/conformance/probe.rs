//! Clients that say what became of each attempt, and the expectations the checks state with them.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use self::socket::{answer, ask, ask_udp, connect, echo, post, udp_socket};
use super::{
    cluster::Side,
    targets::{Target, Targets, Transport},
};
use crate::netns::{Namespace, now, text};

mod socket;

/// How long an answer may take before it counts as none. A refusal must come sooner.
const SILENCE: Duration = Duration::from_secs(1);
/// How long an answer may take where there must be one, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(5);
/// Attempts that must all go well.
const ATTEMPTS: u32 = 12;
/// Attempts within which every endpoint must have been met.
const MOST_ATTEMPTS: u32 = 200;

/// What became of an attempt.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Answer {
    /// A server answered.
    Served {
        /// Its name.
        by: String,
        /// The client's address as it saw it.
        peer: IpAddr,
    },
    /// Refused: a reset, or an ICMP "port unreachable".
    Refused,
    /// Nothing came.
    Silent,
    /// Something else.
    Failed(String),
}

/// Whose address the servers must see.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Peer {
    /// The client's.
    Kept,
    /// The node's SNAT address, as far as the endpoint is on another node than the one that
    /// balances. An endpoint on the same node sees the client: the documented deviation.
    Masqueraded,
    /// The node's SNAT address, always: an endpoint that reaches itself.
    Hairpin,
    /// Anyone's.
    Any,
}

/// A client: a namespace and the addresses it sends from.
#[derive(Clone, Debug)]
pub struct Client<'w> {
    name: String,
    namespace: &'w Namespace,
    addresses: [IpAddr; 2],
    side: Side,
}

impl<'w> Client<'w> {
    pub(super) fn new(
        name: &str,
        namespace: &'w Namespace,
        addresses: [IpAddr; 2],
        side: Side,
    ) -> Self {
        Self {
            name: name.to_owned(),
            namespace,
            addresses,
            side,
        }
    }

    /// Its address of a family.
    pub fn address(&self, v4: bool) -> IpAddr {
        let [first, second] = self.addresses;
        if v4 { first } else { second }
    }

    /// Its namespace.
    pub fn namespace(&self) -> &'w Namespace {
        self.namespace
    }

    /// One attempt.
    pub fn attempt(&self, target: Target) -> Answer {
        self.namespace
            .inside(|| self.attempt_here(target, PATIENCE))
    }

    /// One request over a connection or flow from a port of the caller's choice.
    pub fn attempt_from(&self, port: u16, target: Target) -> Answer {
        let source = SocketAddr::new(self.address(target.address.is_ipv4()), port);
        self.namespace.inside(|| ask(source, target, PATIENCE))
    }

    fn attempt_here(&self, target: Target, limit: Duration) -> Answer {
        let source = SocketAddr::new(self.address(target.address.is_ipv4()), 0);
        ask(source, target, limit)
    }

    /// Every target is served by exactly these, each of them, and they see `peer`.
    pub fn served(&self, targets: &Targets, by: &[&str], peer: Peer) {
        self.everywhere(targets, |target| {
            let expected: BTreeSet<&str> = by.iter().copied().collect();
            let mut seen = BTreeSet::new();
            for number in 0..MOST_ATTEMPTS {
                if number >= ATTEMPTS && seen.len() == expected.len() {
                    return Ok(());
                }
                match self.attempt_here(target, PATIENCE) {
                    Answer::Served { by, peer: address } => {
                        let Some(&name) = expected.get(by.as_str()) else {
                            return Err(format!("served by {by}, not by one of {expected:?}"));
                        };
                        self.check_peer(target, name, address, peer)?;
                        seen.insert(name);
                    }
                    other => {
                        return Err(format!(
                            "attempt {number}: {other:?}; served by {seen:?} so far"
                        ));
                    }
                }
            }
            Err(format!(
                "only {seen:?} of {expected:?} in {MOST_ATTEMPTS} attempts"
            ))
        });
    }

    fn check_peer(&self, target: Target, by: &str, seen: IpAddr, peer: Peer) -> Result<(), String> {
        let v4 = target.address.is_ipv4();
        let balancer = target.node.unwrap_or(self.side);
        let client = self.address(v4);
        let expected = match peer {
            Peer::Any => return Ok(()),
            Peer::Kept => client,
            Peer::Masqueraded if Side::of(by) == balancer => client,
            Peer::Masqueraded | Peer::Hairpin => balancer.snat_address(v4),
        };
        if seen == expected {
            Ok(())
        } else {
            Err(format!("{by} saw {seen}, not {expected}"))
        }
    }

    /// Every attempt at a target ends at one and the same endpoint. Families and transports are apart:
    /// the endpoint of each is returned.
    pub fn sticks(&self, targets: &Targets) -> BTreeMap<(bool, Transport), String> {
        let found = Mutex::new(BTreeMap::new());
        self.everywhere(targets, |target| {
            let mut first = None;
            for _ in 0..ATTEMPTS {
                match self.attempt_here(target, PATIENCE) {
                    Answer::Served { by, .. } => {
                        let first = first.get_or_insert_with(|| by.clone());
                        if *first != by {
                            return Err(format!("served by {first}, then by {by}"));
                        }
                    }
                    other => return Err(format!("{other:?}")),
                }
            }
            let key = (target.address.is_ipv4(), target.transport);
            let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
            found.extend(first.map(|name| (key, name)));
            Ok(())
        });
        found.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every target refuses, within a second.
    pub fn refused(&self, targets: &Targets) {
        self.everywhere(targets, |target| {
            for number in 0..3 {
                let answer = self.attempt_here(target, SILENCE);
                if answer != Answer::Refused {
                    return Err(format!("attempt {number}: {answer:?}, not refused"));
                }
            }
            Ok(())
        });
    }

    /// HTTP `GET` from a port of a node or VIP: status and the whole answer; `None` if there is no
    /// connection.
    pub fn get(&self, address: SocketAddr, path: &str) -> Option<(u16, String)> {
        let source = SocketAddr::new(self.address(address.is_ipv4()), 0);
        let stream = self.namespace.inside(|| connect(source, address, PATIENCE));
        let mut stream = stream.ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).ok()?;
        let answer = text(&answer);
        let status = answer.split(' ').nth(1)?.parse().ok()?;
        Some((status, answer))
    }

    /// Nothing comes back from any target, not even an error.
    pub fn dropped(&self, targets: &Targets) {
        self.everywhere(targets, |target| match self.attempt_here(target, SILENCE) {
            Answer::Silent => Ok(()),
            other => Err(format!("{other:?}, not silence")),
        });
    }

    /// No server answers at any target; how that shows is not said.
    pub fn unserved(&self, targets: &Targets) {
        self.everywhere(targets, |target| match self.attempt_here(target, SILENCE) {
            Answer::Served { by, .. } => Err(format!("served by {by}")),
            _ => Ok(()),
        });
    }

    /// Posts 2,000 bytes or sends a datagram of 2,000; all of them come back or are counted.
    pub fn exchanges(&self, targets: &Targets, length: usize) {
        self.everywhere(targets, |target| {
            let source = SocketAddr::new(self.address(target.address.is_ipv4()), 0);
            for _ in 0..5 {
                let done = match target.transport {
                    Transport::Tcp => connect(source, target.address, PATIENCE)
                        .and_then(|stream| post(stream, length)),
                    Transport::Udp => {
                        udp_socket(source, target.address).and_then(|socket| echo(&socket, length))
                    }
                };
                done.map_err(|error| error.to_string())?;
            }
            Ok(())
        });
    }

    /// A UDP client that keeps its port.
    pub fn flow(&self, target: Target) -> Flow {
        let source = SocketAddr::new(self.address(target.address.is_ipv4()), 0);
        let socket = self.namespace.inside(|| udp_socket(source, target.address));
        Flow {
            socket: socket.unwrap_or_else(|e| panic!("{} to {target:?}: {e}", self.name)),
        }
    }

    /// A TCP connection that stays open.
    pub fn connection(&self, target: Target) -> TcpStream {
        let source = SocketAddr::new(self.address(target.address.is_ipv4()), 0);
        let stream = self
            .namespace
            .inside(|| connect(source, target.address, PATIENCE));
        stream.unwrap_or_else(|e| panic!("{} to {target:?}: {e}", self.name))
    }

    /// Runs a check on every target at the same time, and panics with all that failed.
    fn everywhere(&self, targets: &Targets, check: impl Fn(Target) -> Result<(), String> + Sync) {
        assert!(!targets.0.is_empty(), "nothing to send to");
        let check = &check;
        let failures: Vec<String> = std::thread::scope(|scope| {
            let threads: Vec<_> = targets
                .0
                .iter()
                .map(|&target| {
                    (
                        target,
                        scope.spawn(move || self.namespace.inside(|| check(target))),
                    )
                })
                .collect();
            let failures = threads.into_iter().filter_map(|(target, thread)| {
                let result = thread.join().unwrap_or_else(|_| Err("panicked".into()));
                let Target {
                    address, transport, ..
                } = target;
                let describe = |why| format!("{} to {address} {transport:?}: {why}", self.name);
                result.err().map(describe)
            });
            failures.collect()
        });
        assert!(failures.is_empty(), "{}", failures.join("\n"));
    }
}

/// A UDP client on one socket.
#[derive(Debug)]
pub struct Flow {
    socket: UdpSocket,
}

impl Flow {
    /// One datagram; who answered within 200 ms.
    pub fn ask(&self) -> Option<String> {
        match answer(ask_udp(&self.socket, Duration::from_millis(200))) {
            Answer::Served { by, .. } => Some(by),
            _ => None,
        }
    }

    /// Asks every 100 ms until `name` answers.
    pub fn reaches(&self, name: &str) {
        let deadline = now() + Duration::from_secs(10);
        let mut last = None;
        while last.as_deref() != Some(name) {
            assert!(
                now() < deadline,
                "{name} not reached in 10 s; the last answer: {last:?}"
            );
            last = self.ask();
            std::thread::sleep(Duration::from_millis(if last.is_some() { 50 } else { 0 }));
        }
    }
}
