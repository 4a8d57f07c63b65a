//! Long-lived connections, watched line by line: none may miss one, repeat one or end.

use std::{
    collections::BTreeSet,
    io::{BufRead as _, BufReader},
    net::{IpAddr, Shutdown, SocketAddr, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use super::client::{Answer, Place, open};
use crate::netns::poll_until;

/// How long nothing may come. Lines come every 50 ms; a busy machine or a lost packet adds to it.
const SILENCE: Duration = Duration::from_secs(15);

/// Streams from one or more servers.
#[derive(Debug)]
pub struct Streams {
    streams: Vec<Stream>,
}

#[derive(Debug)]
struct Stream {
    server: SocketAddr,
    answer: Answer,
    socket: TcpStream,
    shared: Arc<State>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct State {
    /// We ended it.
    ended: AtomicBool,
    lines: AtomicU64,
    broken: Mutex<Option<String>>,
}

impl Streams {
    /// Opens `each` streams from every server; all must begin.
    pub fn start(place: &Place, servers: &[SocketAddr], each: usize) -> Self {
        let all = servers.iter().flat_map(|server| (0..each).map(|_| *server));
        Self {
            streams: all.map(|server| Stream::start(place, server)).collect(),
        }
    }

    /// The pods that serve them.
    pub fn pods(&self) -> Vec<String> {
        let mut pods: Vec<_> = self
            .streams
            .iter()
            .map(|it| it.answer.pod.clone())
            .collect();
        pods.sort();
        pods.dedup();
        pods
    }

    /// Whom the pods see.
    pub fn peers(&self) -> BTreeSet<IpAddr> {
        self.streams.iter().map(|it| it.answer.peer.ip()).collect()
    }

    /// Closes those which one of `pods` serves, before it is killed.
    pub fn close_of(&mut self, pods: &[String]) {
        self.streams.retain(|it| !pods.contains(&it.answer.pod));
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.streams.len()
    }

    /// What happened to those that broke.
    pub fn broken(&self) -> Vec<String> {
        self.streams.iter().filter_map(Stream::broken).collect()
    }

    /// Waits until every stream that is not broken has got another line; then none may be broken.
    pub fn assert_alive(&self) {
        let lines = |stream: &Stream| stream.shared.lines.load(Ordering::Relaxed);
        let before: Vec<_> = self.streams.iter().map(lines).collect();
        poll_until("a line of each stream", SILENCE * 2, || {
            let mut each = self.streams.iter().zip(&before);
            let done = each.all(|(it, before)| lines(it) > *before || it.broken().is_some());
            done.then_some(())
        });
        let broken = self.broken();
        assert!(broken.is_empty(), "broken streams: {broken:#?}");
    }
}

impl Stream {
    fn start(place: &Place, server: SocketAddr) -> Self {
        let opened = place.inside(|| open("GET", server, "/stream?every=50ms"));
        let socket = opened.unwrap_or_else(|e| panic!("a stream from {server}: {e}"));
        let handle = || socket.try_clone().expect("a second handle");
        socket.set_read_timeout(Some(SILENCE)).expect("a socket");
        let mut reader = BufReader::new(handle());
        let mut line = String::new();
        while !line.starts_with("pod=") {
            line.clear();
            let length = reader.read_line(&mut line);
            let length = length.unwrap_or_else(|e| panic!("a stream from {server}: {e}"));
            assert!(length > 0, "a stream from {server} ended at once");
        }
        let shared = Arc::new(State::default());
        let state = Arc::clone(&shared);
        Self {
            server,
            answer: Answer::parse(&line).expect("the first line of a stream"),
            thread: Some(std::thread::spawn(move || state.watch(reader))),
            socket,
            shared,
        }
    }

    fn broken(&self) -> Option<String> {
        let broken = self.shared.broken.lock();
        let why = broken.unwrap_or_else(PoisonError::into_inner).clone()?;
        Some(format!("{} of {}: {why}", self.server, self.answer.pod))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        // It may be broken already.
        drop(self.socket.shutdown(Shutdown::Both));
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

impl State {
    fn watch(&self, reader: BufReader<TcpStream>) {
        let mut expected = 0_u64;
        let mut why = "it ended".to_owned();
        for line in reader.lines() {
            expected += 1;
            match line {
                Ok(line) if line == expected.to_string() => {
                    self.lines.store(expected, Ordering::Relaxed);
                }
                Ok(line) => {
                    why = format!("line {expected} was {line:?}");
                    break;
                }
                Err(error) => {
                    why = error.to_string();
                    break;
                }
            }
        }
        if !self.ended.load(Ordering::Relaxed) {
            let mut broken = self.broken.lock().unwrap_or_else(PoisonError::into_inner);
            *broken = Some(format!("{why} at line {expected}"));
        }
    }
}
