//! HTTP/1.1 servers of the agent.
//!
//! They are open to whoever reaches the node: a server holds few connections, none of them idle for
//! long, and none outlives its server.

use std::{
    collections::VecDeque,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use axum::{
    Router,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use nix::sys::{
    resource::{Resource, getrlimit, setrlimit},
    socket::{setsockopt, sockopt::Ipv6V6Only},
};
use serde::Serialize;
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    task::{AbortHandle, JoinHandle, JoinSet},
    time::timeout,
};
use tracing::debug;

/// Connections a server holds at a time. The oldest makes room for one more, so that whoever holds many
/// does not keep a probe from being answered.
const CONNECTIONS: usize = 256;
/// Connections that may wait.
const BACKLOG: u32 = 128;
/// How long a client may take to send a request, or to send another one.
const IDLE: Duration = Duration::from_secs(20);
/// How long a connection may last: who reads slowly shall not hold it for ever.
const LONGEST: Duration = Duration::from_mins(10);
/// Wait before accepting again when there is no descriptor left.
const EXHAUSTED: Duration = Duration::from_millis(100);

/// An address of the configuration cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("{key}: listen on {address}")]
pub struct ListenError {
    /// The key that names it.
    pub key: &'static str,
    /// The address.
    pub address: SocketAddr,
    /// The cause.
    #[source]
    pub source: io::Error,
}

/// A server at work. Dropping it closes the listener and every connection.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Server {
    /// Listens on `address` and answers with `router`. The unspecified IPv6 address takes IPv4 too, and
    /// IPv4 alone where the kernel has no IPv6.
    ///
    /// To be called within a runtime.
    ///
    /// # Errors
    ///
    /// If the address is taken, or not this node's.
    pub fn start(address: SocketAddr, router: Router) -> io::Result<Self> {
        let listener = match Self::listen(address) {
            Err(error)
                if address.ip() == IpAddr::from(Ipv6Addr::UNSPECIFIED)
                    && matches!(
                        error.raw_os_error(),
                        Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)
                    ) =>
            {
                let unspecified = Ipv4Addr::UNSPECIFIED.into();
                Self::listen(SocketAddr::new(unspecified, address.port()))
            }
            other => other,
        }?;
        Ok(Self {
            address: listener.local_addr()?,
            task: tokio::spawn(serve(listener, router)),
        })
    }

    fn listen(address: SocketAddr) -> io::Result<TcpListener> {
        let socket = if address.is_ipv6() {
            let socket = TcpSocket::new_v6()?;
            setsockopt(&socket, Ipv6V6Only, &false)?;
            socket
        } else {
            TcpSocket::new_v4()?
        };
        // Lets a server follow one whose connections are not forgotten yet, never join one.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    }

    /// As [`Self::start`], with the key of the configuration that names the address.
    ///
    /// # Errors
    ///
    /// As [`Self::start`].
    pub fn start_configured(
        key: &'static str,
        address: SocketAddr,
        router: Router,
    ) -> Result<Self, ListenError> {
        Self::start(address, router).map_err(|source| ListenError {
            key,
            address,
            source,
        })
    }

    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Closes everything, and returns when the port is free.
    pub async fn close(mut self) {
        self.task.abort();
        // Ends by being aborted: nothing else is to be learned from it.
        drop((&mut self.task).await);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Lets this process have as many descriptors as it may: each listener and each connection is one.
///
/// # Errors
///
/// If the kernel refuses.
pub fn raise_descriptor_limit() -> io::Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(())
}

/// A JSON answer nobody takes for anything else.
pub(crate) fn json(status: StatusCode, body: &impl Serialize) -> Response {
    let Ok(text) = serde_json::to_string_pretty(body) else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    let mut response = (status, text).into_response();
    let headers = response.headers_mut();
    let json = HeaderValue::from_static("application/json");
    headers.insert(header::CONTENT_TYPE, json);
    let nosniff = HeaderValue::from_static("nosniff");
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, nosniff);
    response
}

/// Accepts until aborted; the connections end with it.
async fn serve(listener: TcpListener, router: Router) {
    let mut connections = JoinSet::new();
    let mut oldest_first: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, _)) => {
                oldest_first.retain(|connection| !connection.is_finished());
                if oldest_first.len() >= CONNECTIONS
                    && let Some(oldest) = oldest_first.pop_front()
                {
                    oldest.abort();
                }
                oldest_first.push_back(connections.spawn(connection(stream, router.clone())));
            }
            Err(error) => {
                debug!(%error, "accept");
                tokio::time::sleep(EXHAUSTED).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, router: Router) {
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    match timeout(LONGEST, serving).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(%error, "connection"),
        Err(_elapsed) => debug!("connection closed for its age"),
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn whoever_holds_every_connection_keeps_nobody_out() {
        let router = Router::new().route("/", get(|| async { "well" }));
        let server = Server::start((Ipv4Addr::LOCALHOST, 0).into(), router).expect("a server");
        let mut held = Vec::new();
        for _ in 0..CONNECTIONS + 10 {
            held.push(TcpStream::connect(server.address()).await.expect("connect"));
        }
        let mut probe = TcpStream::connect(server.address()).await.expect("connect");
        let request = b"GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n";
        probe.write_all(request).await.expect("send");
        let mut answer = String::new();
        timeout(IDLE / 2, probe.read_to_string(&mut answer))
            .await
            .expect("in time")
            .expect("an answer");
        assert!(answer.ends_with("well"), "{answer}");
        drop(held);
    }
}
