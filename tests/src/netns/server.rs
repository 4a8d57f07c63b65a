//! Servers that run on threads inside a namespace: enough HTTP for curl, and UDP echo. They stop
//! when their owner is dropped.

use std::{
    io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _},
    net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

pub use tcp::{TcpClient, connect_from, tcp_echo};
pub use udp::{Ticks, UdpClient, dns, udp_echo, udp_ticker, udp_whoami};

use super::Namespace;

mod tcp;
mod udp;

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

    /// Listens on both families and gives each connection a thread, which gets its client's address, what
    /// tells it to stop, and where to count what it serves.
    fn tcp(
        namespace: &Namespace,
        port: u16,
        serve: impl Fn(TcpStream, SocketAddr, &AtomicBool, &AtomicU64) -> std::io::Result<()>
        + Clone
        + Send
        + 'static,
    ) -> Self {
        let server = Self::new(port);
        let (stop, count) = (Arc::clone(&server.stop), Arc::clone(&server.served));
        let listener = namespace.inside(move || {
            TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
                .unwrap_or_else(|e| panic!("listen on port {port}: {e}"))
        });
        // A look now and then whether to stop; many servers share the machine.
        let socket = socket2::SockRef::from(&listener);
        socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        // The socket keeps the namespace it was made in, whichever thread uses it.
        std::thread::spawn(move || {
            loop {
                // Whoever waits is served when it stops, and nobody who comes then.
                let stops = stop.load(Ordering::Relaxed);
                if stops {
                    listener.set_nonblocking(true).expect("an option");
                }
                let (stream, peer) = match listener.accept() {
                    Ok(accepted) => accepted,
                    Err(_) if stops => break,
                    Err(_) => continue,
                };
                let (serve, stop, count) = (serve.clone(), Arc::clone(&stop), Arc::clone(&count));
                // A client that goes away is no matter of the server.
                std::thread::spawn(move || drop(serve(stream, peer, &stop, &count)));
            }
        });
        server
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
    let name = name.to_string();
    Server::tcp(namespace, port, move |stream, peer, stop, requests| {
        requests.fetch_add(1, Ordering::Relaxed);
        answer(stream, peer, &name, stop)
    })
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
