//! A client that asks once, or until it is answered as it wants.

use std::{
    io::{Error, ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::mpsc::{Receiver, Sender, channel},
    thread::{Scope, ScopedJoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use lb_tests::netns::{Namespace, now};

use crate::server::{CLIENT_CPU, LENGTH, Seen, stay_on};

/// How long an answer may take; the way is a few cables long, so that silence means nobody serves.
const LIMIT: Duration = Duration::from_millis(20);
/// Between two questions: what times are known to.
const PAUSE: Duration = Duration::from_micros(200);

/// Asks one question on a connection of its own, from the namespace of the calling thread.
fn ask(target: SocketAddr) -> std::io::Result<Seen> {
    let mut stream = TcpStream::connect_timeout(&target, LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    // Closed by a reset: nothing of it stays behind at either end.
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    stream.write_all(&[b'?'; LENGTH])?;
    let mut answer = [0; LENGTH];
    stream.read_exact(&mut answer)?;
    Seen::decode(&answer).ok_or_else(|| Error::from(ErrorKind::InvalidData))
}

/// Asks once, from a namespace.
pub(crate) fn once(client: &Namespace, target: SocketAddr) -> std::io::Result<Seen> {
    client.inside(|| ask(target))
}

/// A client that asks one frontend after the other, each until it is answered as wanted.
pub(crate) struct Watch<'scope> {
    thread: ScopedJoinHandle<'scope, Result<Instant>>,
    asked: Receiver<()>,
}

/// Starts one. It gives up after `patience`.
pub(crate) fn watch<'scope, 'env: 'scope>(
    scope: &'scope Scope<'scope, 'env>,
    client: &'env Namespace,
    targets: Vec<SocketAddr>,
    patience: Duration,
    wanted: impl Fn(Seen) -> bool + Send + 'scope,
) -> Result<Watch<'scope>> {
    let (first, asked) = channel();
    let thread = scope.spawn(move || {
        client.inside(|| {
            stay_on(CLIENT_CPU);
            until(&targets, patience, first, wanted)
        })
    });
    let watch = Watch { thread, asked };
    // From here on it asks all the time.
    if watch.asked.recv().is_err() {
        bail!("the client did not begin");
    }
    Ok(watch)
}

fn until(
    targets: &[SocketAddr],
    patience: Duration,
    first: Sender<()>,
    wanted: impl Fn(Seen) -> bool,
) -> Result<Instant> {
    let mut first = Some(first);
    let start = now();
    for &target in targets {
        loop {
            let outcome = ask(target);
            if let Some(first) = first.take() {
                first.send(()).context("nobody waits for the client")?;
            }
            match outcome {
                Ok(seen) if wanted(seen) => break,
                outcome if start.elapsed() > patience => {
                    bail!("{target} was not served as it should after {patience:?}: {outcome:?}")
                }
                _ => std::thread::sleep(PAUSE),
            }
        }
    }
    Ok(now())
}

impl Watch<'_> {
    /// When the last was answered as wanted.
    pub(crate) fn reached(self) -> Result<Instant> {
        let outcome = self.thread.join();
        outcome
            .ok()
            .context("the client panicked")
            .and_then(|reached| reached)
    }
}
