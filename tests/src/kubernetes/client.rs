//! Sockets in another network namespace: HTTP with a connection for each request, and datagrams.

use std::{
    fs::File,
    io::{self, ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream, UdpSocket},
    path::PathBuf,
    time::Duration,
};

use nix::sched::{CloneFlags, setns};

use crate::netns::any;

/// How long a request may take.
pub const TIMEOUT: Duration = Duration::from_secs(3);

/// A network namespace of the cluster.
#[derive(Clone, Debug)]
pub struct Place {
    file: PathBuf,
}

/// What a pod says of itself and of the connection.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Answer {
    /// The pod's name.
    pub pod: String,
    /// Its node.
    pub node: String,
    /// Whom it sees as the client.
    pub peer: SocketAddr,
}

impl Place {
    /// The namespace of a file.
    pub fn new(file: PathBuf) -> Self {
        Self { file }
    }

    /// Runs `act` on a thread inside.
    pub fn inside<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        let outcome = std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                self.enter();
                act()
            });
            thread.join()
        });
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Moves the calling thread there, for good.
    pub fn enter(&self) {
        let path = self.file.display();
        let file = File::open(&self.file).unwrap_or_else(|e| panic!("{path}: {e}"));
        setns(file, CloneFlags::CLONE_NEWNET).unwrap_or_else(|e| panic!("enter {path}: {e}"));
    }

    /// Asks an HTTP server who it is.
    ///
    /// # Errors
    /// No complete answer with status 200 comes in time.
    pub fn ask(&self, server: SocketAddr) -> io::Result<Answer> {
        self.inside(|| ask(server))
    }

    /// Asks so many times, each from another port.
    pub fn ask_times(&self, server: SocketAddr, times: usize) -> Vec<io::Result<Answer>> {
        self.inside(|| (0..times).map(|_| ask(server)).collect())
    }

    /// Asks a UDP server who it is.
    ///
    /// # Errors
    /// No answer comes in time.
    pub fn ask_udp(&self, server: SocketAddr) -> io::Result<Answer> {
        self.inside(|| ask_udp(server, TIMEOUT))
    }

    /// An HTTP request; returns the status and the body.
    ///
    /// # Errors
    /// No complete answer comes in time.
    pub fn http(&self, method: &str, server: SocketAddr, path: &str) -> io::Result<(u16, String)> {
        self.inside(|| http(method, server, path))
    }
}

/// Asks an HTTP server who it is, from the calling thread's namespace.
///
/// # Errors
/// No complete answer with status 200 comes in time.
pub fn ask(server: SocketAddr) -> io::Result<Answer> {
    let (status, body) = http("GET", server, "/")?;
    if status != 200 {
        return Err(invalid(format!("status {status}: {body}")));
    }
    Answer::parse(&body)
}

/// Asks a UDP server who it is, from a new port.
///
/// # Errors
/// No answer comes in time.
pub fn ask_udp(server: SocketAddr, patience: Duration) -> io::Result<Answer> {
    let socket = UdpSocket::bind(any(server.ip()))?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(patience))?;
    socket.send(b"who are you?")?;
    let mut buffer = [0; 2048];
    let length = socket.recv(&mut buffer)?;
    let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
    if !text.ends_with(" who are you?") {
        return Err(invalid(format!("answered {text:?}")));
    }
    Answer::parse(&text)
}

impl Answer {
    /// Reads `pod=NAME node=NODE peer=ADDRESS:PORT …`.
    ///
    /// # Errors
    /// It is something else.
    pub fn parse(text: &str) -> io::Result<Self> {
        let word = |name: &str| {
            let mut words = text.split_whitespace();
            words.find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
        };
        let answer = || {
            Some(Self {
                pod: word("pod")?.to_owned(),
                node: word("node")?.to_owned(),
                peer: word("peer")?.parse().ok()?,
            })
        };
        answer().ok_or_else(|| invalid(format!("answered {text:?}")))
    }
}

fn http(method: &str, server: SocketAddr, path: &str) -> io::Result<(u16, String)> {
    let mut stream = open(method, server, path)?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, body) = text
        .split_once("\r\n\r\n")
        .ok_or_else(|| invalid(format!("cut off: {text:?}")))?;
    let status = head.split(' ').nth(1).and_then(|it| it.parse().ok());
    let status = status.ok_or_else(|| invalid(format!("not HTTP: {head:?}")))?;
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(": ")?;
        let is_length = name.eq_ignore_ascii_case("content-length");
        is_length.then(|| value.trim().parse::<usize>().ok())?
    });
    if length.is_some_and(|length| length != body.len()) {
        return Err(invalid(format!("{} bytes of {length:?}", body.len())));
    }
    Ok((status, body.to_owned()))
}

/// Sends a request of HTTP/1.0 and leaves the answer to the caller.
///
/// # Errors
/// The server cannot be reached in time.
pub fn open(method: &str, server: SocketAddr, path: &str) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&server, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let request = format!("{method} {path} HTTP/1.0\r\nHost: test\r\nContent-Length: 0\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    Ok(stream)
}

fn invalid(what: String) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, what)
}
