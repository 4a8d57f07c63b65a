//! New connections beside the watched flows: each exchanges one message and ends.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use super::message::{Direction, LENGTH, NOBODY, message, sender};
use crate::netns::{Namespace, now};

/// What became of them.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Those that were answered as they should.
    pub served: u64,
    /// Why the others were not.
    pub failed: Vec<String>,
}

/// Connections at a steady pace, until [`finish`](Self::finish) or drop.
#[derive(Debug)]
pub struct Newcomers {
    stop: Arc<AtomicBool>,
    tally: Arc<Mutex<Tally>>,
    threads: Vec<JoinHandle<()>>,
}

impl Newcomers {
    /// One connection after every `pause`, to one server after the other. Up to `threads` wait at a time, each
    /// for `patience` at most.
    pub fn start(
        client: &Namespace,
        servers: &[SocketAddr],
        threads: u32,
        pause: Duration,
        patience: Duration,
    ) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let tally = Arc::new(Mutex::new(Tally::default()));
        let spawn = |thread: u32| {
            let (stop, tally) = (Arc::clone(&stop), Arc::clone(&tally));
            let servers = servers.to_vec();
            let namespace = client.name().to_owned();
            std::thread::spawn(move || {
                crate::netns::enter(&namespace);
                // The threads take turns.
                let mut due = now() + pause * thread;
                for (number, server) in (0..).zip(servers.iter().cycle().skip(thread as usize)) {
                    std::thread::sleep(due.saturating_duration_since(now()));
                    due += pause * threads;
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let begin = now();
                    let result = ask(*server, number, patience);
                    let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
                    match result {
                        Ok(()) => tally.served += 1,
                        Err(why) => {
                            let after = begin.elapsed().as_millis();
                            tally
                                .failed
                                .push(format!("{server} after {after} ms: {why}"));
                        }
                    }
                }
            })
        };
        Self {
            threads: (0..threads).map(spawn).collect(),
            stop,
            tally,
        }
    }

    /// Lets the last ones end, and tells of all.
    pub fn finish(mut self) -> Tally {
        self.join();
        let tally = self.tally.lock();
        tally.unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn join(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            assert!(
                thread.join().is_ok() || std::thread::panicking(),
                "a client panicked"
            );
        }
    }
}

impl Drop for Newcomers {
    fn drop(&mut self) {
        self.join();
    }
}

fn ask(server: SocketAddr, number: u32, patience: Duration) -> Result<(), String> {
    let told = |e: std::io::Error| e.to_string();
    let mut stream = TcpStream::connect_timeout(&server, patience).map_err(told)?;
    stream.set_read_timeout(Some(patience)).map_err(told)?;
    let question = message(Direction::Up, number, 0, NOBODY);
    stream.write_all(&question).map_err(told)?;
    let mut answer = [0; LENGTH];
    stream.read_exact(&mut answer).map_err(told)?;
    if answer == message(Direction::Down, number, 0, sender(&answer)) {
        Ok(())
    } else {
        Err("a wrong answer".into())
    }
}
