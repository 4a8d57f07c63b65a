//! Where clients send to.

use std::net::SocketAddr;

use super::cluster::Side;

/// A transport a client can use.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Transport {
    /// TCP, with a request as HTTP has it.
    Tcp,
    /// UDP, one datagram each way.
    Udp,
}

/// Where a client sends to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Target {
    /// Address and port.
    pub address: SocketAddr,
    /// Transport.
    pub transport: Transport,
    /// The node whose address it is, for node ports.
    pub node: Option<Side>,
}

/// One frontend of a Service, in every family and transport it has.
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct Targets(pub Vec<Target>);

impl Targets {
    pub(super) fn keep(mut self, wanted: impl Fn(&Target) -> bool) -> Self {
        self.0.retain(wanted);
        assert!(!self.0.is_empty(), "nothing to send to");
        self
    }

    /// IPv4 only.
    pub fn v4(self) -> Self {
        self.keep(|target| target.address.is_ipv4())
    }

    /// IPv6 only.
    pub fn v6(self) -> Self {
        self.keep(|target| target.address.is_ipv6())
    }

    /// One address and port.
    pub fn one(address: SocketAddr, transport: Transport) -> Self {
        Self(vec![Target {
            address,
            transport,
            node: None,
        }])
    }

    /// TCP only.
    pub fn tcp(self) -> Self {
        self.keep(|target| target.transport == Transport::Tcp)
    }

    /// UDP only.
    pub fn udp(self) -> Self {
        self.keep(|target| target.transport == Transport::Udp)
    }

    /// Another port of the same addresses.
    pub fn port(mut self, port: u16) -> Self {
        for target in &mut self.0 {
            target.address.set_port(port);
        }
        self
    }

    /// The first one.
    pub fn first(&self) -> Target {
        *self.0.first().expect("a target")
    }
}
