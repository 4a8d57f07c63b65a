//! A backend: answers HTTP requests and datagrams with its own name.
//!
//! Runs as a process of its own inside a namespace, started by the demonstration.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv6Addr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Args;

/// The TCP port of every backend.
pub(super) const HTTP: u16 = 8080;
/// The UDP port of every backend.
pub(super) const ECHO: u16 = 5300;

const CHUNK: usize = 64 * 1024;
const PAUSE: Duration = Duration::from_millis(25);

/// Command line of a backend.
#[derive(Args)]
pub(crate) struct Arguments {
    /// What it answers
    #[arg(long)]
    name: String,
    /// Downloads go on until this file exists
    #[arg(long)]
    until: PathBuf,
}

/// Serves until killed.
///
/// # Errors
/// A port is taken.
pub(crate) fn serve(arguments: &Arguments) -> Result<()> {
    let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, ECHO)).context("bind the UDP port")?;
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, HTTP)).context("bind the TCP port")?;
    thread::scope(|scope| {
        scope.spawn(|| echo(&socket, &arguments.name));
        for stream in listener.incoming().flatten() {
            let answer = move || {
                // A client that goes away is its own business.
                if let Err(error) = answer(&stream, arguments) {
                    eprintln!("{}: {error}", arguments.name);
                }
            };
            scope.spawn(answer);
        }
    });
    Ok(())
}

fn echo(socket: &UdpSocket, name: &str) {
    let mut buffer = [0; 1500];
    loop {
        // Errors here are ICMP messages about earlier answers.
        if let Ok((_, client)) = socket.recv_from(&mut buffer)
            && let Err(error) = socket.send_to(name.as_bytes(), client)
        {
            eprintln!("{name}: answer to {client}: {error}");
        }
    }
}

fn answer(mut stream: &TcpStream, arguments: &Arguments) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream).lines();
    let request = lines.next().transpose()?.unwrap_or_default();
    for line in lines {
        if line?.is_empty() {
            break;
        }
    }
    let name = &arguments.name;
    let head = format!("HTTP/1.1 200 OK\r\nX-Backend: {name}\r\nConnection: close\r\n");
    if request.starts_with("GET /download") {
        stream.write_all(format!("{head}Transfer-Encoding: chunked\r\n\r\n").as_bytes())?;
        download(stream, &arguments.until)
    } else {
        let length = name.len() + 1;
        stream.write_all(format!("{head}Content-Length: {length}\r\n\r\n{name}\n").as_bytes())
    }
}

/// Sends chunks; only the last one tells the client that nothing is missing.
fn download(mut stream: &TcpStream, until: &Path) -> std::io::Result<()> {
    let mut chunk = format!("{CHUNK:x}\r\n").into_bytes();
    chunk.resize(chunk.len() + CHUNK, b'.');
    chunk.extend(b"\r\n");
    while !until.exists() {
        stream.write_all(&chunk)?;
        thread::sleep(PAUSE);
    }
    stream.write_all(b"0\r\n\r\n")
}
