//! Flow keys of either family out of socket addresses.

use std::net::SocketAddr;

use anyhow::{Result, bail};
use lb_common::{
    addr::Be16,
    flow::{Flow, Flow4, Flow6},
    wire::Wire,
};

/// A flow key of one family.
pub(crate) trait FromEndpoints: Flow + Wire {
    /// The key of packets from `source` to `destination`. Fails if they are of the other family.
    fn from_endpoints(source: SocketAddr, destination: SocketAddr, protocol: u8) -> Result<Self>;
}

macro_rules! from_endpoints {
    ($flow:ty, $family:ident, $name:literal) => {
        impl FromEndpoints for $flow {
            fn from_endpoints(
                source: SocketAddr,
                destination: SocketAddr,
                protocol: u8,
            ) -> Result<Self> {
                let (SocketAddr::$family(from), SocketAddr::$family(to)) = (source, destination)
                else {
                    bail!("{source} to {destination} is not {}", $name);
                };
                Ok(Self::new(
                    (*from.ip()).into(),
                    Be16::new(from.port()),
                    (*to.ip()).into(),
                    Be16::new(to.port()),
                    protocol,
                ))
            }
        }
    };
}

from_endpoints!(Flow4, V4, "IPv4");
from_endpoints!(Flow6, V6, "IPv6");
