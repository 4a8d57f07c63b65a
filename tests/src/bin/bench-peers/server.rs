//! The backends' server, and what its answer says.

use std::{
    net::{IpAddr, SocketAddr, TcpListener, UdpSocket},
    thread::JoinHandle,
};

use anyhow::{Context as _, Result};
use lb_tests::netns::Namespace;
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::oneshot,
};

use crate::services::{BACKENDS, TARGET_PORT};

/// Bytes of a request and of its answer.
pub(crate) const LENGTH: usize = 64;
/// The processors the two ends stay on, the same for every peer.
pub(crate) const CLIENT_CPU: usize = 0;
const SERVER_CPU: usize = 1;

/// Answers every connection's request, and every datagram, until dropped.
#[derive(Debug)]
pub(crate) struct Server {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// What a backend saw.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Seen {
    /// Which backend it was.
    pub(crate) backend: IpAddr,
    /// From where it was asked.
    pub(crate) source: IpAddr,
}

impl Server {
    /// Starts it in a namespace, on all its addresses.
    pub(crate) fn start(namespace: &Namespace) -> Result<Self> {
        let sockets = namespace.inside(|| -> Result<_> {
            let any = ("0.0.0.0", TARGET_PORT);
            let listener = socket2::Socket::from(TcpListener::bind(any)?);
            // More than the usual 128 may wait: the measure opens no more, but the machine may stall.
            listener.listen(1_024)?;
            listener.set_nonblocking(true)?;
            // One for each address, so that an answer leaves from the address that was asked.
            let [first, second] = BACKENDS.map(|address| -> std::io::Result<UdpSocket> {
                let datagrams = UdpSocket::bind((address, TARGET_PORT))?;
                datagrams.set_nonblocking(true)?;
                Ok(datagrams)
            });
            Ok((TcpListener::from(listener), first?, second?))
        });
        let (listener, first, second) = sockets.context("open the backends' sockets")?;
        let (stop, stopped) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("start the backends' runtime")?;
        let thread = std::thread::spawn(move || {
            stay_on(SERVER_CPU);
            runtime.block_on(async {
                tokio::select! {
                    () = accept(listener) => {}
                    () = echo(first) => {}
                    () = echo(second) => {}
                    _ = stopped => {}
                }
            });
        });
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic of it was printed; clients noticed.
            drop(thread.join());
        }
    }
}

/// Keeps the calling thread on one processor, or the last there is.
pub(crate) fn stay_on(processor: usize) {
    let all = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mut set = CpuSet::new();
    let outcome = set
        .set(processor.min(all - 1))
        .and_then(|()| sched_setaffinity(Pid::from_raw(0), &set));
    if let Err(error) = outcome {
        eprintln!("peers: stay on processor {processor}: {error}");
    }
}

async fn accept(listener: TcpListener) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return eprintln!("peers: the backends' listener: {error}"),
    };
    loop {
        if let Ok((stream, peer)) = listener.accept().await {
            tokio::spawn(async move {
                // A client that goes away is no matter of the server.
                drop(answer(stream, peer).await);
            });
        }
    }
}

async fn answer(mut stream: tokio::net::TcpStream, peer: SocketAddr) -> std::io::Result<()> {
    let seen = Seen {
        backend: stream.local_addr()?.ip(),
        source: peer.ip(),
    };
    let mut request = [0; LENGTH];
    stream.read_exact(&mut request).await?;
    stream.write_all(&seen.encode()).await?;
    // Until the client closes.
    stream.read(&mut request).await.map(drop)
}

async fn echo(socket: UdpSocket) {
    let socket = match tokio::net::UdpSocket::from_std(socket) {
        Ok(socket) => socket,
        Err(error) => return eprintln!("peers: the backends' socket: {error}"),
    };
    let mut datagram = [0; 2_048];
    loop {
        if let Ok((length, peer)) = socket.recv_from(&mut datagram).await {
            let datagram = datagram.get(..length).unwrap_or_default();
            // One that cannot be sent is missed by its client.
            drop(socket.send_to(datagram, peer).await);
        }
    }
}

impl Seen {
    fn encode(self) -> [u8; LENGTH] {
        let mut bytes = [b' '; LENGTH];
        let text = format!("{} {}", self.backend, self.source);
        for (to, from) in bytes.iter_mut().zip(text.bytes()) {
            *to = from;
        }
        bytes
    }

    /// What an answer says.
    pub(crate) fn decode(answer: &[u8; LENGTH]) -> Option<Self> {
        let mut words = std::str::from_utf8(answer).ok()?.split_whitespace();
        Some(Self {
            backend: words.next()?.parse().ok()?,
            source: words.next()?.parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_understood() {
        let seen = Seen {
            backend: "10.0.0.11".parse().expect("an address"),
            source: "198.51.100.7".parse().expect("an address"),
        };
        assert_eq!(Seen::decode(&seen.encode()), Some(seen));
        assert_eq!(Seen::decode(&[b' '; LENGTH]), None);
    }
}
