//! Addresses and ports of a packet, and the hashes the data path takes of them.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use lb_common::{
    addr::Be16,
    flow::{Flow as _, Flow4, Flow6},
};

use crate::tables::Protocol;

/// Addresses and ports of a packet, as on the wire.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Tuple {
    /// Source.
    pub source: SocketAddr,
    /// Destination, of the same family.
    pub destination: SocketAddr,
    /// Protocol.
    pub protocol: Protocol,
}

impl Tuple {
    /// The reply direction.
    #[must_use]
    pub const fn reversed(self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            protocol: self.protocol,
        }
    }

    /// The hash that selects a backend. `None` if the families differ.
    pub fn hash(self) -> Option<u32> {
        self.of_family(Flow4::hash, Flow6::hash)
    }

    /// The hash that selects a backend under session affinity. `None` if the families differ.
    pub fn client_hash(self) -> Option<u32> {
        self.of_family(Flow4::client_hash, Flow6::client_hash)
    }

    fn of_family(self, v4: fn(&Flow4) -> u32, v6: fn(&Flow6) -> u32) -> Option<u32> {
        let (source_port, port) = (
            Be16::new(self.source.port()),
            Be16::new(self.destination.port()),
        );
        let protocol = self.protocol.number();
        match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => Some(v4(&Flow4::new(
                source.into(),
                source_port,
                destination.into(),
                port,
                protocol,
            ))),
            (IpAddr::V6(source), IpAddr::V6(destination)) => Some(v6(&Flow6::new(
                source.into(),
                source_port,
                destination.into(),
                port,
                protocol,
            ))),
            _ => None,
        }
    }
}

impl fmt::Display for Tuple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} -> {} {}",
            self.source, self.destination, self.protocol
        )
    }
}
