//! One flow: its socket, what it sends, and what came back.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use super::{
    super::{
        message::{Direction, LENGTH, NOBODY, address, message},
        observe::{Loss, Observed},
        stall::{self, Interval, LIMIT},
    },
    PATIENCE, Seen, Tuple,
};
use crate::netns::server::connect_from;

/// Control flow number 0 comes from here, below the ports the kernel chooses from. One that comes straight to a
/// backend from the port of a flow that came there by a frontend meets that one's socket.
const FIRST_CONTROL_PORT: u16 = 20_000;

#[derive(Debug)]
pub(super) struct Flow {
    pub(super) tuple: Tuple,
    pub(super) control: bool,
    pub(super) stream: TcpStream,
    pub(super) observed: Observed,
    sent: u64,
    unsent: Vec<u8>,
    pub(super) loss: Option<Loss>,
}

fn connect(number: u32, server: SocketAddr, control: bool) -> std::io::Result<TcpStream> {
    if !control {
        return TcpStream::connect_timeout(&server, PATIENCE);
    }
    let number = u16::try_from(number).expect("flows have a port each");
    connect_from(FIRST_CONTROL_PORT + number, server, PATIENCE)
}

impl Flow {
    pub(super) fn open(number: u32, server: SocketAddr, control: bool, start: Instant) -> Self {
        let stream = connect(number, server, control)
            .unwrap_or_else(|e| panic!("flow {number} to {server}: {e}"));
        stream.set_nodelay(true).expect("a socket");
        stream.set_nonblocking(true).expect("a socket");
        let client = stream.local_addr().expect("a connected socket");
        Self {
            tuple: Tuple { client, server },
            control,
            stream,
            observed: Observed::new(number, start.elapsed()),
            sent: 0,
            unsent: Vec::new(),
            loss: None,
        }
    }

    pub(super) fn send(&mut self, number: u32) {
        if self.loss.is_some() {
            return;
        }
        // What does not go now goes with the next; a flow that takes nothing is silent soon.
        if self.unsent.len() < 64 * LENGTH {
            let message = message(Direction::Up, number, self.sent, NOBODY);
            self.unsent.extend_from_slice(&message);
            self.sent += 1;
        }
        match self.stream.write(&self.unsent) {
            Ok(sent) => drop(self.unsent.drain(..sent)),
            Err(e) if e.kind() == ErrorKind::WouldBlock => {}
            Err(e) => self.loss = Some(Loss::Broken(e.to_string())),
        }
    }

    /// Reads what came.
    pub(super) fn receive(&mut self, now: Duration) {
        let mut buffer = [0; 64 * LENGTH];
        match self.stream.read(&mut buffer) {
            Ok(0) => self.loss = Some(Loss::Broken("the server ended it".into())),
            Ok(length) => {
                let bytes = buffer.get(..length).unwrap_or_default();
                if let Err(loss) = self.observed.receive(bytes, now) {
                    // One that cannot be sent on may have received something before.
                    self.loss.get_or_insert(loss);
                }
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => {}
            Err(e) => self.loss = Some(Loss::Broken(e.to_string())),
        }
    }

    pub(super) fn judge(&self, machine: &[Interval]) -> Seen {
        let silences = self.observed.silences.iter();
        let silences = silences.map(|silence| (stall::own(*silence, machine), *silence));
        let (longest, stall) = match silences.max_by_key(|(own, _)| *own) {
            Some((own, silence)) => (own, (own > LIMIT).then_some(silence)),
            None => (self.observed.longest, None),
        };
        let stalled = stall.map(|_| Loss::Stalled(longest));
        Seen {
            tuple: self.tuple,
            backend: self.observed.server.map(address),
            messages: self.observed.answers,
            longest,
            silence: self.observed.longest,
            loss: self.loss.clone().or(stalled),
            stall,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::netns::now;

    #[test]
    fn no_watched_flow_gets_the_port_of_a_control_flow() {
        let range =
            std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").expect("Linux");
        let first: u16 = range
            .split_whitespace()
            .next()
            .and_then(|port| port.parse().ok())
            .expect("two ports");
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let server = TcpListener::bind(address).expect("a socket");
            let server = server.local_addr().expect("a bound socket");
            for number in [0, 1_015] {
                let flow = Flow::open(number, server, true, now());
                assert!(flow.tuple.client.port() < first, "{:?}", flow.tuple);
            }
        }
    }
}
