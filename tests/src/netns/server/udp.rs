//! UDP servers and clients.

use std::{
    io::{Error, ErrorKind},
    net::{Ipv6Addr, SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use super::{PATIENCE, Server};
use crate::netns::{Namespace, any, now, poll_until, text};

/// UDP on both families: answers each datagram with `name`, a space, and the datagram.
pub fn udp_echo(namespace: &Namespace, name: &str, port: u16) -> Server {
    let name = name.to_string();
    udp_server(namespace, port, move |_, _, question| {
        Some([name.as_bytes(), b" ", question].concat())
    })
}

/// UDP on both families: answers with `name`, the client's address, and the datagram.
pub fn udp_whoami(namespace: &Namespace, name: &str, port: u16) -> Server {
    let name = name.to_string();
    udp_server(namespace, port, move |_, peer, question| {
        let head = format!("{name} {} ", peer.ip().to_canonical());
        Some([head.as_bytes(), question].concat())
    })
}

fn udp_server(
    namespace: &Namespace,
    port: u16,
    answer: impl Fn(&UdpSocket, SocketAddr, &[u8]) -> Option<Vec<u8>> + Send + 'static,
) -> Server {
    let server = Server::new(port);
    let (stop, answers) = (Arc::clone(&server.stop), Arc::clone(&server.served));
    let socket = namespace.inside(move || {
        UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port))
            .unwrap_or_else(|e| panic!("UDP port {port}: {e}"))
    });
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    std::thread::spawn(move || {
        let mut buffer = vec![0; 65_535];
        while !stop.load(Ordering::Relaxed) {
            let Ok((length, peer)) = socket.recv_from(&mut buffer) else {
                continue;
            };
            let question = buffer.get(..length).unwrap_or_default();
            if let Some(reply) = answer(&socket, peer, question)
                && socket.send_to(&reply, peer).is_ok()
            {
                answers.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    server
}

/// UDP that answers a DNS query with "no error" and nothing else.
pub fn dns(namespace: &Namespace, port: u16) -> Server {
    udp_server(namespace, port, |_, _, query| {
        let mut answer = query.to_vec();
        // QR, RFC 1035 section 4.1.1.
        *answer.get_mut(2)? |= 0x80;
        Some(answer)
    })
}

/// UDP that sends a datagram every millisecond, as many as it is asked for.
pub fn udp_ticker(namespace: &Namespace, port: u16) -> Server {
    udp_server(namespace, port, |socket, peer, question| {
        let ticks: u64 = text(question).trim().parse().ok()?;
        let socket = socket.try_clone().ok()?;
        std::thread::spawn(move || {
            for tick in 0..ticks {
                // A gap is what the receiver measures.
                drop(socket.send_to(tick.to_string().as_bytes(), peer));
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        None
    })
}

/// A stream of datagrams from [`udp_ticker`], with the longest silence noted.
#[derive(Debug)]
pub struct Ticks {
    gap: Arc<AtomicU64>,
    received: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Ticks {
    /// Asks for `milliseconds` datagrams; returns when the first ones came.
    pub fn start(namespace: &Namespace, server: &str, milliseconds: u64) -> Self {
        let client = UdpClient::new(namespace, server);
        let this = Self {
            gap: Arc::default(),
            received: Arc::default(),
            stop: Arc::default(),
        };
        let (gap, received, stop) = (
            Arc::clone(&this.gap),
            Arc::clone(&this.received),
            Arc::clone(&this.stop),
        );
        let begins = || client.socket.recv(&mut [0; 64]).ok();
        drop(client.socket.send(milliseconds.to_string().as_bytes()));
        let first = poll_until("the first tick", Duration::from_secs(5), begins);
        assert_ne!(first, 0, "an empty tick from {server}");
        std::thread::spawn(move || {
            let mut last = now();
            let mut buffer = [0; 64];
            while !stop.load(Ordering::Relaxed) {
                if client.socket.recv(&mut buffer).is_ok() {
                    let silence = u64::try_from(last.elapsed().as_micros()).unwrap_or(u64::MAX);
                    gap.fetch_max(silence, Ordering::Relaxed);
                    received.fetch_add(1, Ordering::Relaxed);
                    last = now();
                    // The client's answers keep the flow alive and proven.
                    if received.load(Ordering::Relaxed) % 100 == 1 {
                        drop(client.socket.send(b"go on"));
                    }
                }
            }
        });
        let received = Arc::clone(&this.received);
        poll_until(
            "a steady stream of datagrams",
            Duration::from_secs(5),
            || (received.load(Ordering::Relaxed) > 50).then_some(()),
        );
        this.longest_gap();
        this
    }

    /// Datagrams received.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// The longest silence since the last call (or the start) that has ended, and forgets it.
    pub fn longest_gap(&self) -> Duration {
        Duration::from_micros(self.gap.swap(0, Ordering::Relaxed))
    }
}

impl Drop for Ticks {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// A UDP client on one socket, so on one flow.
#[derive(Debug)]
pub struct UdpClient {
    socket: UdpSocket,
}

impl UdpClient {
    /// Connects inside a namespace.
    pub fn new(namespace: &Namespace, server: &str) -> Self {
        let server: SocketAddr = server.parse().unwrap_or_else(|e| panic!("{server}: {e}"));
        let socket = namespace.inside(|| {
            let socket = UdpSocket::bind(any(server.ip())).expect("a UDP socket");
            socket
                .connect(server)
                .unwrap_or_else(|e| panic!("connect to {server}: {e}"));
            socket
        });
        socket
            .set_read_timeout(Some(Duration::from_millis(200)))
            .expect("a timeout");
        Self { socket }
    }

    /// Sends and waits for the answer; sends again every 200 ms, up to 5 s.
    pub fn ask(&self, question: &str) -> String {
        for _ in 0..25 {
            if let Some(answer) = self.ask_once(question) {
                return answer;
            }
        }
        panic!("no answer to {question:?} on {:?}", self.socket)
    }

    /// Sends once and waits at most 200 ms.
    pub fn ask_once(&self, question: &str) -> Option<String> {
        let mut buffer = vec![0; 65_535];
        // What comes late answers an earlier question.
        self.socket.set_nonblocking(true).expect("a socket");
        let waits = |e: &Error| e.kind() == ErrorKind::WouldBlock;
        while !self.socket.recv(&mut buffer).is_err_and(|e| waits(&e)) {}
        self.socket.set_nonblocking(false).expect("a socket");
        // An ICMP error of an earlier datagram is reported by either call.
        drop(self.socket.send(question.as_bytes()));
        loop {
            let length = self.socket.recv(&mut buffer).ok()?;
            let answer = text(buffer.get(..length)?);
            if answer.ends_with(question) {
                return Some(answer);
            }
        }
    }
}
