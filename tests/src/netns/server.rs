//! Servers that run on threads inside a namespace: enough HTTP for curl, and UDP echo. They stop
//! when their owner is dropped.

use std::{
    io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _},
    net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use super::Namespace;

const PATIENCE: Duration = Duration::from_millis(20);

/// A running server.
#[derive(Debug)]
pub struct Server {
    stop: Arc<AtomicBool>,
    served: Arc<AtomicU64>,
    port: u16,
}

impl Server {
    /// Requests or datagrams answered so far.
    pub fn served(&self) -> u64 {
        self.served.load(Ordering::Relaxed)
    }

    /// The port it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    fn new(port: u16) -> Self {
        Self {
            stop: Arc::default(),
            served: Arc::default(),
            port,
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// HTTP on both families:
/// `/` answers `name` and the client's address, `/bytes/N` answers N bytes,
/// `/stream/N` sends 10 kB every 5 ms, N times, and a POST is read to its end.
pub fn http(namespace: &Namespace, name: &str, port: u16) -> Server {
    let server = Server::new(port);
    let (stop, served) = (Arc::clone(&server.stop), Arc::clone(&server.served));
    let name = name.to_string();
    let listener = namespace.inside(move || {
        TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
            .unwrap_or_else(|e| panic!("listen on port {port}: {e}"))
    });
    listener.set_nonblocking(true).expect("a listener");
    // The socket keeps the namespace it was made in, whichever thread uses it.
    std::thread::spawn(move || {
        while !stop.load(Ordering::Relaxed) {
            match listener.accept() {
                Ok((stream, peer)) => {
                    let (name, stop) = (name.clone(), Arc::clone(&stop));
                    served.fetch_add(1, Ordering::Relaxed);
                    std::thread::spawn(move || {
                        // A client that goes away is no matter of the server.
                        drop(answer(stream, peer, &name, &stop));
                    });
                }
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    });
    server
}

fn answer(
    stream: TcpStream,
    peer: SocketAddr,
    name: &str,
    stop: &AtomicBool,
) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    stream.set_write_timeout(Some(Duration::from_secs(30)))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut stream = stream;
    let mut first = String::new();
    reader.read_line(&mut first)?;
    let mut body = 0_u64;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let line = line.trim().to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(length) = line.strip_prefix("content-length:") {
            body = length.trim().parse().unwrap_or(0);
        }
        if line == "expect: 100-continue" {
            stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
    }
    let read = std::io::copy(&mut reader.take(body), &mut std::io::sink())?;
    let path = first.split(' ').nth(1).unwrap_or("/");
    let number = |text: &str| text.parse::<u64>().unwrap_or(0);
    if let Some(length) = path.strip_prefix("/bytes/").map(number) {
        head(&mut stream, length)?;
        std::io::copy(&mut std::io::repeat(b'x').take(length), &mut stream)?;
    } else if let Some(pieces) = path.strip_prefix("/stream/").map(number) {
        let piece = [b'x'; 10_000];
        head(&mut stream, pieces * piece.len() as u64)?;
        for _ in 0..pieces {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            stream.write_all(&piece)?;
            std::thread::sleep(Duration::from_millis(5));
        }
    } else {
        let text = format!("{name} {} {read}\n", peer.ip().to_canonical());
        head(&mut stream, text.len() as u64)?;
        stream.write_all(text.as_bytes())?;
    }
    Ok(())
}

fn head(stream: &mut TcpStream, length: u64) -> std::io::Result<()> {
    let text = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
    stream.write_all(text.as_bytes())
}

/// UDP on both families: answers each datagram with `name`, a space, and the datagram.
pub fn udp_echo(namespace: &Namespace, name: &str, port: u16) -> Server {
    let name = name.to_string();
    udp_server(namespace, port, move |_, _, question| {
        Some([name.as_bytes(), b" ", question].concat())
    })
}

fn udp_server(
    namespace: &Namespace,
    port: u16,
    answer: impl Fn(&UdpSocket, SocketAddr, &[u8]) -> Option<Vec<u8>> + Send + 'static,
) -> Server {
    let server = Server::new(port);
    let (stop, served) = (Arc::clone(&server.stop), Arc::clone(&server.served));
    let socket = namespace.inside(move || {
        UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port))
            .unwrap_or_else(|e| panic!("UDP port {port}: {e}"))
    });
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    std::thread::spawn(move || {
        let mut buffer = [0; 65_535];
        while !stop.load(Ordering::Relaxed) {
            let Ok((length, peer)) = socket.recv_from(&mut buffer) else {
                continue;
            };
            let question = buffer.get(..length).unwrap_or_default();
            if let Some(reply) = answer(&socket, peer, question)
                && socket.send_to(&reply, peer).is_ok()
            {
                served.fetch_add(1, Ordering::Relaxed);
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
        let ticks: u64 = super::text(question).trim().parse().ok()?;
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
        let answer = client.ask_once(&milliseconds.to_string());
        assert!(answer.is_some(), "no tick from {server}");
        std::thread::spawn(move || {
            let mut last = super::now();
            let mut buffer = [0; 64];
            while !stop.load(Ordering::Relaxed) {
                if client.socket.recv(&mut buffer).is_ok() {
                    let silence = u64::try_from(last.elapsed().as_micros()).unwrap_or(u64::MAX);
                    gap.fetch_max(silence, Ordering::Relaxed);
                    received.fetch_add(1, Ordering::Relaxed);
                    last = super::now();
                    // The client's answers keep the flow alive and proven.
                    if received.load(Ordering::Relaxed) % 100 == 1 {
                        drop(client.socket.send(b"go on"));
                    }
                }
            }
        });
        let received = Arc::clone(&this.received);
        super::poll_until(
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
            let any = if server.is_ipv4() {
                "0.0.0.0:0"
            } else {
                "[::]:0"
            };
            let socket = UdpSocket::bind(any).expect("a UDP socket");
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
        // An ICMP error of an earlier datagram is reported by either call.
        drop(self.socket.send(question.as_bytes()));
        let mut buffer = [0; 65_535];
        let length = self.socket.recv(&mut buffer).ok()?;
        Some(super::text(buffer.get(..length)?))
    }
}

/// A TCP download in progress, read as it comes, with the longest silence noted.
#[derive(Debug)]
pub struct Download {
    thread: Option<std::thread::JoinHandle<Result<u64, String>>>,
    gap: Arc<AtomicU64>,
    bytes: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Download {
    /// Starts `GET path` inside a namespace.
    pub fn start(namespace: &Namespace, server: &str, path: &str) -> Self {
        let server: SocketAddr = server.parse().unwrap_or_else(|e| panic!("{server}: {e}"));
        let stream = namespace.inside(|| {
            TcpStream::connect_timeout(&server, Duration::from_secs(5))
                .unwrap_or_else(|e| panic!("connect to {server}: {e}"))
        });
        let (gap, bytes, stop) = (
            Arc::new(AtomicU64::new(0)),
            Arc::new(AtomicU64::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        let notes = (Arc::clone(&gap), Arc::clone(&bytes), Arc::clone(&stop));
        let request = format!("GET {path} HTTP/1.1\r\nHost: vip\r\n\r\n");
        let thread = std::thread::spawn(move || read_all(stream, &request, &notes));
        Self {
            thread: Some(thread),
            gap,
            bytes,
            stop,
        }
    }

    /// Body and head bytes so far.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// The longest silence since the last call (or the start), and forgets it.
    pub fn longest_gap(&self) -> Duration {
        Duration::from_micros(self.gap.swap(0, Ordering::Relaxed))
    }

    /// Waits for the end; the number of body bytes, or what broke.
    ///
    /// # Errors
    ///
    /// If the connection broke or ended early.
    pub fn finish(mut self) -> Result<u64, String> {
        self.thread
            .take()
            .expect("finished once")
            .join()
            .expect("the reader does not panic")
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn read_all(
    mut stream: TcpStream,
    request: &str,
    (gap, bytes, stop): &(Arc<AtomicU64>, Arc<AtomicU64>, Arc<AtomicBool>),
) -> Result<u64, String> {
    let failed = |e: std::io::Error| e.to_string();
    stream.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
    stream.write_all(request.as_bytes()).map_err(failed)?;
    let (mut head, mut expected, mut body) = (Vec::new(), None, 0_u64);
    let mut buffer = vec![0; 1 << 16];
    let mut last = super::now();
    while expected.is_none_or(|expected| body < expected) {
        if stop.load(Ordering::Relaxed) {
            return Err("given up".into());
        }
        let length = match stream.read(&mut buffer) {
            Ok(0) => return Err(format!("ended after {body} bytes of {expected:?}")),
            Ok(length) => length,
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                let silence = u64::try_from(last.elapsed().as_micros()).unwrap_or(u64::MAX);
                gap.fetch_max(silence, Ordering::Relaxed);
                if last.elapsed() > Duration::from_secs(20) {
                    return Err(format!("silent for 20 s after {body} bytes"));
                }
                continue;
            }
            Err(e) => return Err(format!("{e} after {body} bytes")),
        };
        let silence = u64::try_from(last.elapsed().as_micros()).unwrap_or(u64::MAX);
        gap.fetch_max(silence, Ordering::Relaxed);
        last = super::now();
        bytes.fetch_add(length as u64, Ordering::Relaxed);
        if expected.is_some() {
            body += length as u64;
            continue;
        }
        head.extend(buffer.get(..length).unwrap_or_default());
        if let Some(end) = head.windows(4).position(|four| four == b"\r\n\r\n") {
            let text = String::from_utf8_lossy(head.get(..end).unwrap_or_default()).to_lowercase();
            let length = text
                .lines()
                .find_map(|line| line.strip_prefix("content-length: "));
            expected = length.and_then(|length| length.trim().parse().ok());
            if expected.is_none() {
                return Err(format!("no length in {text:?}"));
            }
            body = (head.len() - end - 4) as u64;
        }
    }
    Ok(body)
}
