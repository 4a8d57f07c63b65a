//! TCP servers and clients that talk line by line.

use std::{
    io::{self, BufRead as _, BufReader, Write as _},
    net::{SocketAddr, TcpStream},
    sync::atomic::Ordering,
    time::Duration,
};

use super::Server;
use crate::netns::Namespace;

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
