//! The sockets of the clients, and what is said over them.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream, UdpSocket},
    sync::atomic::{AtomicU16, Ordering},
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};

use super::{
    super::targets::{Target, Transport},
    Answer,
};
use crate::netns::{now, text};

/// Ports clients send from, in turn.
const FIRST_PORT: u16 = 2_048;
const PORT_COUNT: u16 = 60_000;

pub(super) fn ask(source: SocketAddr, target: Target, limit: Duration) -> Answer {
    answer(match target.transport {
        Transport::Tcp => connect(source, target.address, limit).and_then(ask_tcp),
        Transport::Udp => {
            udp_socket(source, target.address).and_then(|socket| ask_udp(&socket, limit))
        }
    })
}

/// A socket bound to the source's address and its port or, without one, a port nobody of this program had before: a flow of an
/// earlier check, or a direct connection of an earlier one, is not met again by chance.
fn socket(source: SocketAddr, kind: Type, protocol: Protocol) -> std::io::Result<Socket> {
    static PORTS: [AtomicU16; 2] = [AtomicU16::new(0), AtomicU16::new(0)];
    let [tcp, udp] = &PORTS;
    let next = if kind == Type::STREAM { tcp } else { udp };
    let socket = Socket::new(Domain::for_address(source), kind, Some(protocol))?;
    if source.port() != 0 {
        socket.set_reuse_address(true)?;
        socket.bind(&source.into())?;
        return Ok(socket);
    }
    for _ in 0..100 {
        let port = FIRST_PORT + next.fetch_add(1, Ordering::Relaxed) % PORT_COUNT;
        match socket.bind(&SocketAddr::new(source.ip(), port).into()) {
            Err(error) if error.kind() == ErrorKind::AddrInUse => {}
            other => return other.map(|()| socket),
        }
    }
    Err(ErrorKind::AddrInUse.into())
}

pub(super) fn connect(
    source: SocketAddr,
    to: SocketAddr,
    limit: Duration,
) -> std::io::Result<TcpStream> {
    let socket = socket(source, Type::STREAM, Protocol::TCP)?;
    socket.connect_timeout(&to.into(), limit)?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    Ok(stream)
}

fn ask_tcp(mut stream: TcpStream) -> std::io::Result<String> {
    stream.write_all(b"GET / HTTP/1.1\r\nHost: service\r\n\r\n")?;
    body(stream)
}

fn body(mut stream: TcpStream) -> std::io::Result<String> {
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = text(&answer);
    let (_, body) = answer
        .split_once("\r\n\r\n")
        .ok_or_else(|| std::io::Error::other(format!("no HTTP: {answer:?}")))?;
    Ok(body.to_owned())
}

pub(super) fn post(mut stream: TcpStream, length: usize) -> std::io::Result<()> {
    let head = format!("POST / HTTP/1.1\r\nHost: service\r\nContent-Length: {length}\r\n\r\n");
    stream.write_all(head.as_bytes())?;
    stream.write_all(&vec![b'x'; length])?;
    let body = body(stream)?;
    if body.trim().ends_with(&format!(" {length}")) {
        Ok(())
    } else {
        Err(std::io::Error::other(format!(
            "{length} bytes sent: {body:?}"
        )))
    }
}

pub(super) fn udp_socket(source: SocketAddr, to: SocketAddr) -> std::io::Result<UdpSocket> {
    let socket = socket(source, Type::DGRAM, Protocol::UDP)?;
    socket.connect(&to.into())?;
    Ok(socket.into())
}

/// Sends every 300 ms until something comes back.
pub(super) fn ask_udp(socket: &UdpSocket, limit: Duration) -> std::io::Result<String> {
    let deadline = now() + limit;
    let mut buffer = vec![0; 65_535];
    loop {
        socket.send(b"who")?;
        let left = deadline.saturating_duration_since(now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        socket.set_read_timeout(Some(left.min(Duration::from_millis(300))))?;
        match socket.recv(&mut buffer) {
            Ok(length) => return Ok(text(buffer.get(..length).unwrap_or_default())),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => return Err(error),
        }
    }
}

pub(super) fn echo(socket: &UdpSocket, length: usize) -> std::io::Result<()> {
    let question = "x".repeat(length);
    let mut buffer = vec![0; 65_535];
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    for _ in 0..5 {
        socket.send(question.as_bytes())?;
        match socket.recv(&mut buffer) {
            Ok(received) => {
                let answer = text(buffer.get(..received).unwrap_or_default());
                if answer.ends_with(&question) {
                    return Ok(());
                }
                return Err(std::io::Error::other(format!("{received} bytes, not ours")));
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => return Err(error),
        }
    }
    Err(ErrorKind::TimedOut.into())
}

pub(super) fn answer(result: std::io::Result<String>) -> Answer {
    match result {
        Ok(words) => {
            let mut words = words.split_whitespace();
            let by = words.next().unwrap_or_default().to_owned();
            match words.next().and_then(|word| word.parse().ok()) {
                Some(peer) => Answer::Served { by, peer },
                None => Answer::Failed(format!("an answer without an address, by {by:?}")),
            }
        }
        Err(error) => match error.kind() {
            ErrorKind::ConnectionRefused => Answer::Refused,
            ErrorKind::WouldBlock | ErrorKind::TimedOut => Answer::Silent,
            _ => Answer::Failed(error.to_string()),
        },
    }
}
