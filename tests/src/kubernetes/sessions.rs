//! Long-lived UDP conversations: each datagram must be answered by the pod that answered the first, which must
//! see the same client.

use std::{
    collections::BTreeSet,
    io::{self, ErrorKind},
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU16, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use super::client::{Answer, Place};
use crate::netns::{any, now, poll_until};

/// Between two datagrams of a conversation.
const PAUSE: Duration = Duration::from_millis(100);
/// How long an answer may take. A datagram that is lost is sent again, with the next number.
const PATIENCE: Duration = Duration::from_secs(1);
/// Datagrams in a row without an answer that end a conversation.
const MOST_LOST: u32 = 5;

/// The next conversation's own port. It is below those that the kernel gives out: a port that a short request had
/// is for a while still a connection of whoever balanced that request.
static NEXT_PORT: AtomicU16 = AtomicU16::new(10_000);

/// Conversations, until it is dropped.
#[derive(Debug)]
pub struct Sessions {
    sessions: Vec<Session>,
}

#[derive(Debug)]
struct Session {
    server: SocketAddr,
    first: Answer,
    shared: Arc<State>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct State {
    stop: AtomicBool,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    answers: u64,
    /// Datagrams without an answer.
    lost: u64,
    longest: Duration,
    broken: Option<String>,
}

impl Sessions {
    /// Begins `each` conversations with every server; all must be answered.
    pub fn start(place: &Place, servers: &[SocketAddr], each: usize) -> Self {
        let all = servers.iter().flat_map(|server| (0..each).map(|_| *server));
        Self {
            sessions: all.map(|server| Session::start(place, server)).collect(),
        }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.sessions.len()
    }

    /// Whom the pods see.
    pub fn peers(&self) -> BTreeSet<IpAddr> {
        self.sessions.iter().map(|it| it.first.peer.ip()).collect()
    }

    /// The pods that answer.
    pub fn pods(&self) -> BTreeSet<&str> {
        self.sessions
            .iter()
            .map(|it| it.first.pod.as_str())
            .collect()
    }

    /// Datagrams that had no answer in time, and the longest wait for one.
    pub fn lost(&self) -> (u64, Duration) {
        let seen = self.sessions.iter().map(|it| it.shared.seen());
        seen.fold((0, Duration::ZERO), |(lost, longest), seen| {
            (lost + seen.lost, longest.max(seen.longest))
        })
    }

    /// Waits until each has got some more answers; then none may be broken.
    pub fn assert_alive(&self, when: &str) {
        let answers = |session: &Session| session.shared.seen().answers;
        let before: Vec<_> = self.sessions.iter().map(answers).collect();
        let limit = PATIENCE * (MOST_LOST + 5);
        poll_until(&format!("answers to all, {when}"), limit, || {
            let mut each = self.sessions.iter().zip(&before);
            let done = each.all(|(it, before)| {
                let seen = it.shared.seen();
                seen.answers > before + 3 || seen.broken.is_some()
            });
            done.then_some(())
        });
        let broken: Vec<_> = self
            .sessions
            .iter()
            .filter_map(|it| {
                let why = it.shared.seen().broken.clone()?;
                Some(format!("{} of {}: {why}", it.server, it.first.pod))
            })
            .collect();
        assert!(
            broken.is_empty(),
            "{when}: broken conversations: {broken:#?}"
        );
    }
}

impl Session {
    fn start(place: &Place, server: SocketAddr) -> Self {
        let opened = place.inside(|| {
            let port = NEXT_PORT.fetch_add(1, Ordering::Relaxed);
            let socket = UdpSocket::bind((any(server.ip()).ip(), port))?;
            socket.connect(server)?;
            socket.set_read_timeout(Some(PATIENCE))?;
            let first = poll_until("the first answer", PATIENCE * 5, || ask(&socket, 0).ok());
            io::Result::Ok((socket, first))
        });
        let (socket, first) = opened.unwrap_or_else(|e| panic!("UDP to {server}: {e}"));
        let shared = Arc::new(State::default());
        let (state, expected) = (Arc::clone(&shared), first.clone());
        Self {
            server,
            first,
            shared,
            thread: Some(std::thread::spawn(move || state.run(&socket, &expected))),
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

impl State {
    fn run(&self, socket: &UdpSocket, expected: &Answer) {
        let (mut number, mut lost) = (0, 0);
        while !self.stop.load(Ordering::Relaxed) {
            number += 1;
            let sent = now();
            let answer = ask(socket, number);
            let mut seen = self.seen();
            seen.longest = seen.longest.max(sent.elapsed());
            match answer {
                Ok(answer) if answer == *expected => {
                    seen.answers += 1;
                    lost = 0;
                }
                Ok(answer) => {
                    seen.broken = Some(format!(
                        "datagram {number} was answered by {} to {}, not to {}",
                        answer.pod, answer.peer, expected.peer
                    ));
                    return;
                }
                Err(error) => {
                    seen.lost += 1;
                    lost += 1;
                    if lost == MOST_LOST {
                        seen.broken = Some(format!("datagrams to {number}: {error}"));
                        return;
                    }
                }
            }
            drop(seen);
            std::thread::sleep(PAUSE);
        }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sends a numbered datagram and waits for its answer; late answers to others are passed over.
fn ask(socket: &UdpSocket, number: u64) -> io::Result<Answer> {
    let question = format!("number={number}");
    socket.send(question.as_bytes())?;
    let mut buffer = [0; 2048];
    loop {
        let length = socket.recv(&mut buffer)?;
        let text = buffer.get(..length).unwrap_or_default();
        let text = String::from_utf8_lossy(text);
        if text.ends_with(&format!(" {question}")) {
            return Answer::parse(&text);
        }
        if !text.contains(" number=") {
            return Err(io::Error::new(ErrorKind::InvalidData, text.into_owned()));
        }
    }
}
