//! The servers of the watched flows: one thread for all of them, whatever namespace they are in.

use std::{
    collections::BTreeMap,
    io::{ErrorKind, Read as _, Write as _},
    net::{Ipv6Addr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::{
    go_first,
    message::{Bytes, Direction, LENGTH, NOBODY, Name, flow, message, name},
};
use crate::netns::Namespace;

/// The port all of them listen on.
pub const PORT: u16 = 8080;

/// Milliseconds between two looks whether to stop.
const LOOK: u16 = 100;

/// Servers that answer each message by one of their own, until dropped.
#[derive(Debug)]
pub struct Servers {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    received: AtomicU64,
    complaints: Mutex<Vec<String>>,
}

impl Servers {
    /// Listens on [`PORT`] of every address in each namespace.
    pub fn start(namespaces: &[&Namespace]) -> Self {
        let listen = |namespace: &&Namespace| {
            let listener = namespace.inside(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT)));
            let listener = listener.unwrap_or_else(|e| panic!("{}: {e}", namespace.name()));
            listener.set_nonblocking(true).expect("a socket");
            listener
        };
        let listeners: Vec<TcpListener> = namespaces.iter().map(listen).collect();
        let shared = Arc::new(Shared::default());
        let mine = Arc::clone(&shared);
        let thread = std::thread::spawn(move || Loop::new(&mine, listeners).run());
        Self {
            shared,
            thread: Some(thread),
        }
    }

    /// Messages received whole and right.
    pub fn received(&self) -> u64 {
        self.shared.received.load(Ordering::Relaxed)
    }

    /// What arrived otherwise than a client sends it.
    pub fn complaints(&self) -> Vec<String> {
        let complaints = self.shared.complaints.lock();
        complaints.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            assert!(
                thread.join().is_ok() || std::thread::panicking(),
                "the servers panicked"
            );
        }
    }
}

struct Loop<'s> {
    shared: &'s Shared,
    epoll: Epoll,
    listeners: Vec<TcpListener>,
    connections: BTreeMap<u64, Connection>,
    next: u64,
}

struct Connection {
    stream: TcpStream,
    name: Name,
    flow: Option<u32>,
    /// Messages received.
    number: u64,
    partial: Vec<u8>,
    unsent: Vec<u8>,
}

impl<'s> Loop<'s> {
    fn new(shared: &'s Shared, listeners: Vec<TcpListener>) -> Self {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).expect("epoll");
        for (number, listener) in (0..).zip(&listeners) {
            let event = EpollEvent::new(EpollFlags::EPOLLIN, number);
            epoll.add(listener, event).expect("epoll");
        }
        Self {
            shared,
            epoll,
            next: listeners.len() as u64,
            listeners,
            connections: BTreeMap::new(),
        }
    }

    fn run(mut self) {
        go_first();
        let mut events = [EpollEvent::empty(); 32];
        while !self.shared.stop.load(Ordering::Relaxed) {
            let ready = match self.epoll.wait(&mut events, EpollTimeout::from(LOOK)) {
                Ok(ready) => ready,
                Err(nix::errno::Errno::EINTR) => continue,
                Err(error) => panic!("epoll: {error}"),
            };
            for event in events.iter().take(ready) {
                self.serve(event.data());
            }
        }
    }

    fn serve(&mut self, number: u64) {
        let listener = usize::try_from(number).ok();
        if let Some(listener) = listener.and_then(|number| self.listeners.get(number)) {
            while let Ok((stream, _)) = listener.accept() {
                if let Ok(connection) = Connection::new(stream) {
                    let event = EpollEvent::new(EpollFlags::EPOLLIN, self.next);
                    self.epoll.add(&connection.stream, event).expect("epoll");
                    self.connections.insert(self.next, connection);
                    self.next += 1;
                }
            }
            return;
        }
        let Some(connection) = self.connections.get_mut(&number) else {
            return;
        };
        match connection.serve() {
            Ok(messages) => {
                self.shared.received.fetch_add(messages, Ordering::Relaxed);
            }
            Err(complaint) => {
                // Closing takes it out of the epoll set.
                self.connections.remove(&number);
                if let Some(complaint) = complaint {
                    let complaints = self.shared.complaints.lock();
                    complaints
                        .unwrap_or_else(PoisonError::into_inner)
                        .push(complaint);
                }
            }
        }
    }
}

impl Connection {
    fn new(stream: TcpStream) -> std::io::Result<Self> {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        Ok(Self {
            name: name(stream.local_addr()?.ip()),
            stream,
            flow: None,
            number: 0,
            partial: Vec::new(),
            unsent: Vec::new(),
        })
    }

    /// Answers what came; the number of messages. `Err` ends the connection, for a reason if it is not
    /// the client's wish.
    fn serve(&mut self) -> Result<u64, Option<String>> {
        let mut buffer = [0; 64 * LENGTH];
        let length = match self.stream.read(&mut buffer) {
            Ok(0) => return Err(None),
            Ok(length) => length,
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(0),
            // The client sees its end of it, and judges.
            Err(_) => return Err(None),
        };
        let arrived = buffer.get(..length).unwrap_or_default();
        self.partial.extend_from_slice(arrived);
        let received = std::mem::take(&mut self.partial);
        let (whole, rest) = received.as_chunks::<LENGTH>();
        for got in whole {
            self.answer(got)?;
        }
        self.partial = rest.to_vec();
        self.flush();
        Ok(whole.len() as u64)
    }

    fn answer(&mut self, got: &Bytes) -> Result<(), Option<String>> {
        let flow = *self.flow.get_or_insert_with(|| flow(got));
        if *got != message(Direction::Up, flow, self.number, NOBODY) {
            let (number, server) = (self.number, super::message::address(self.name));
            return Err(Some(format!(
                "{server}: message {number} of flow {flow} arrived wrong"
            )));
        }
        let answer = message(Direction::Down, flow, self.number, self.name);
        self.unsent.extend_from_slice(&answer);
        self.number += 1;
        Ok(())
    }

    /// Sends what can be sent; the rest goes with the next answer.
    fn flush(&mut self) {
        if let Ok(sent) = self.stream.write(&self.unsent) {
            self.unsent.drain(..sent);
        }
    }
}
