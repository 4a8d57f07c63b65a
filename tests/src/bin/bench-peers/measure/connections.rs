//! Connections a second: connect, ask 64 bytes, read 64 bytes, close; sixteen at a time.

use std::{
    cell::Cell,
    collections::BTreeSet,
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use lb_tests::netns::now;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{
    peers::Peer,
    server::{CLIENT_CPU, LENGTH, Seen, stay_on},
    services::BACKENDS,
};

/// Connections open at a time.
const AT_A_TIME: usize = 16;
/// How long one may take.
const LIMIT: Duration = Duration::from_secs(3);
/// Of so many one may fail, on a machine that stalls.
const MAY_FAIL: u32 = 1_000;

/// From one connection's Service to the next one's, a prime.
const STRIDE: u32 = 7_919;

/// What a client counts.
#[derive(Debug, Default)]
struct Counts {
    answered: Cell<u32>,
    failed: Cell<u32>,
    next: Cell<u32>,
}

/// Connections a second through a peer, spread over all of `services` Services.
///
/// # Errors
/// One of a thousand fails, a backend is asked by somebody else than the peer, or not every backend is asked.
pub(crate) fn measure(peer: &Peer<'_>, services: u32, duration: Duration) -> Result<f64> {
    let targets = peer.balancer.frontends(services);
    let outcome = peer.world.client.inside(|| {
        stay_on(CLIENT_CPU);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("start the client's runtime")?;
        runtime.block_on(all(&targets, now(), duration))
    });
    let (seen, answered, failed, took) = outcome?;
    let name = peer.name();
    ensure!(
        failed <= answered / MAY_FAIL,
        "{name}: {failed} connections failed, {answered} did not"
    );
    let source = peer.balancer.source();
    for seen in &seen {
        ensure!(
            seen.source == source,
            "{name}: a backend was asked by {}, not by {source}",
            seen.source
        );
    }
    let backends: BTreeSet<_> = seen.iter().map(|seen| seen.backend).collect();
    ensure!(
        backends == BACKENDS.map(Into::into).into(),
        "{name}: of the backends only {backends:?} answered"
    );
    Ok(f64::from(answered) / took.as_secs_f64())
}

async fn all(
    targets: &[SocketAddr],
    start: Instant,
    duration: Duration,
) -> Result<(Vec<Seen>, u32, u32, Duration)> {
    let counts = Counts::default();
    let clients = (0..AT_A_TIME).map(|_| client(targets, &counts, start, duration));
    let seen = futures::future::join_all(clients).await;
    let mut kinds: Vec<Seen> = Vec::new();
    for seen in seen.into_iter().flatten() {
        if !kinds.contains(&seen) {
            kinds.push(seen);
        }
    }
    let took = start.elapsed();
    Ok((kinds, counts.answered.get(), counts.failed.get(), took))
}

/// One connection after the other; the different things backends saw.
async fn client(
    targets: &[SocketAddr],
    counts: &Counts,
    start: Instant,
    duration: Duration,
) -> Vec<Seen> {
    let mut kinds = Vec::new();
    while start.elapsed() < duration {
        let next = counts.next.replace(counts.next.get().wrapping_add(1));
        // Neighbours in time are no neighbours in the list.
        let at = usize::try_from(next.wrapping_mul(STRIDE)).unwrap_or_default() % targets.len();
        let Some(&target) = targets.get(at) else {
            break;
        };
        match tokio::time::timeout(LIMIT, ask(target)).await {
            Ok(Ok(Some(seen))) => {
                counts.answered.set(counts.answered.get() + 1);
                if !kinds.contains(&seen) {
                    kinds.push(seen);
                }
            }
            _ => counts.failed.set(counts.failed.get() + 1),
        }
    }
    kinds
}

async fn ask(target: SocketAddr) -> std::io::Result<Option<Seen>> {
    let mut stream = TcpStream::connect(target).await?;
    // Closed by a reset: nothing of it stays behind at either end.
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    stream.write_all(&[b'?'; LENGTH]).await?;
    let mut answer = [0; LENGTH];
    stream.read_exact(&mut answer).await?;
    Ok(Seen::decode(&answer))
}
