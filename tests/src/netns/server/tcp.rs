//! TCP servers and clients that talk line by line.

use std::{
    io::{self, BufRead as _, BufReader, Write as _},
    net::{SocketAddr, TcpStream},
    sync::atomic::Ordering,
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};

use super::Server;
use crate::netns::{Namespace, any};

/// TCP on both families: answers each line with `name`, a space, and the line, for as long as the client
/// likes.
pub fn tcp_echo(namespace: &Namespace, name: &str, port: u16) -> Server {
    let name = name.to_string();
    Server::tcp(namespace, port, move |stream, _, _, lines| {
        // It has the listener's.
        stream.set_read_timeout(None)?;
        let mut answers = stream.try_clone()?;
        for line in BufReader::new(stream).lines() {
            answers.write_all(format!("{name} {}\n", line?).as_bytes())?;
            lines.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    })
}

/// Connects from this port, which connections of this program to other servers may have too.
///
/// # Errors
///
/// If the port is taken, or nobody answers within `limit`.
pub fn connect_from(port: u16, server: SocketAddr, limit: Duration) -> io::Result<TcpStream> {
    let domain = Domain::for_address(server);
    let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddr::new(any(server.ip()).ip(), port).into())?;
    socket.connect_timeout(&server.into(), limit)?;
    Ok(socket.into())
}

/// A connection to a [`tcp_echo`].
#[derive(Debug)]
pub struct TcpClient {
    stream: BufReader<TcpStream>,
}

impl TcpClient {
    /// Connects inside a namespace.
    pub fn new(namespace: &Namespace, server: &str) -> Self {
        let server: SocketAddr = server.parse().unwrap_or_else(|e| panic!("{server}: {e}"));
        let stream = namespace.inside(|| {
            TcpStream::connect_timeout(&server, Duration::from_secs(5))
                .unwrap_or_else(|e| panic!("connect to {server}: {e}"))
        });
        Self::over(stream)
    }

    /// Connects inside a namespace from this port, see [`connect_from`].
    ///
    /// # Errors
    ///
    /// If nobody answers within `limit`.
    pub fn from_port(
        port: u16,
        namespace: &Namespace,
        server: &str,
        limit: Duration,
    ) -> io::Result<Self> {
        let server: SocketAddr = server.parse().unwrap_or_else(|e| panic!("{server}: {e}"));
        let stream = namespace.inside(|| connect_from(port, server, limit))?;
        Ok(Self::over(stream))
    }

    fn over(stream: TcpStream) -> Self {
        let timeout = Some(Duration::from_secs(10));
        stream.set_read_timeout(timeout).expect("a timeout");
        stream.set_nodelay(true).expect("an option");
        let stream = BufReader::new(stream);
        Self { stream }
    }

    /// Sends a line and waits at most 10 s for the answer.
    ///
    /// # Errors
    ///
    /// If the connection was reset, ended, or is silent.
    pub fn ask(&mut self, line: &str) -> io::Result<String> {
        self.stream
            .get_mut()
            .write_all(format!("{line}\n").as_bytes())?;
        let mut answer = String::new();
        if self.stream.read_line(&mut answer)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(answer.trim_end().into())
    }
}
