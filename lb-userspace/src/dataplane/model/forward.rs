//! The reference forwarder: what must become of a packet, told in the plainest way.
//!
//! It knows nothing of tables' layouts, next hops or checksums. Which SNAT address and port a new
//! `full-nat` flow gets is the data path's to choose: [`Forwarder::forward`] says that it gets one,
//! [`Forwarder::commit`] takes note of it.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use lb_common::{
    config::UnknownFlows,
    conntrack::{Segment, state, step},
    reason::Reason,
    service::member_flag,
};

pub use self::tuple::Tuple;
use crate::tables::{Protocol, TableSet};

mod select;
mod tuple;

/// A packet: what of it decides.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ModelPacket {
    /// Addresses and ports.
    pub tuple: Tuple,
    /// Flags byte of the TCP header; 0 for UDP.
    pub tcp_flags: u8,
}

/// How a flow's packets are changed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ForwardingMode {
    /// The client keeps its address; the reply comes back through this node.
    Dnat,
    /// As [`Self::Dnat`], to a pod of this node.
    Local,
    /// As [`Self::Dnat`], to the node's own stack.
    Host,
    /// The client's address is replaced too.
    FullNat,
}

/// What must become of a packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// A packet of a known flow leaves with this tuple.
    Known(Tuple),
    /// A packet starts a flow.
    New(NewFlow),
    /// Not balanced; [`Reason::verdict`] says whether it passes or is dropped.
    Refused(Reason),
}

/// A flow to be made.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct NewFlow {
    /// Service-port id.
    pub service: u32,
    /// Backend id.
    pub backend: u32,
    /// The backend's endpoint: the new destination.
    pub endpoint: SocketAddr,
    /// Whether the source stays.
    pub mode: ForwardingMode,
}

/// What of the configuration decides.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ForwarderConfig {
    /// SYN-less TCP to a frontend which no flow knows.
    pub unknown_flows: UnknownFlows,
    /// SYN-less TCP of gateway backends without a flow passes.
    pub direct_backend_access: bool,
    /// Packets to addresses of service networks that no Service has are dropped.
    pub drop_unallocated: bool,
}

/// The flows and the rules.
#[derive(Clone, Debug)]
pub struct Forwarder {
    config: ForwarderConfig,
    /// Both halves of each flow, by the tuple seen on the wire.
    halves: BTreeMap<Tuple, Half>,
    /// The backend of a client's last flow to a service port, and the seconds since.
    affinity: BTreeMap<(IpAddr, u32), (u32, u32)>,
}

#[derive(Clone, Copy, Debug)]
struct Half {
    /// The tuple to write.
    written: Tuple,
    service: u32,
    backend: u32,
    /// Client to backend.
    forward: bool,
    /// One of [`state`].
    state: u8,
    /// UDP: the set epoch at which the backend was last seen to serve.
    epoch: u32,
}

impl Forwarder {
    /// A forwarder without flows.
    pub const fn new(config: ForwarderConfig) -> Self {
        Self {
            config,
            halves: BTreeMap::new(),
            affinity: BTreeMap::new(),
        }
    }

    /// Lets time go by for session affinity. Flows do not notice.
    pub fn wait(&mut self, seconds: u32) {
        for (_, silent) in self.affinity.values_mut() {
            *silent = silent.saturating_add(seconds);
        }
    }

    /// What must become of `packet`. Nothing changes: [`Self::commit`] does that.
    pub fn forward(&self, tables: &TableSet, packet: &ModelPacket) -> Outcome {
        if let Some(half) = self.halves.get(&packet.tuple)
            && !self.starts_anew(tables, packet, half)
        {
            return Outcome::Known(half.written);
        }
        self.select(tables, packet)
            .map_or_else(Outcome::Refused, Outcome::New)
    }

    /// Takes note that `packet` met `outcome`. `source` is the source a `full-nat` flow got; for
    /// other modes it may differ from the packet's only by its port.
    pub fn commit(
        &mut self,
        tables: &TableSet,
        packet: &ModelPacket,
        outcome: &Outcome,
        source: SocketAddr,
    ) {
        let tuple = packet.tuple;
        match outcome {
            Outcome::Refused(_) => {
                if tuple.protocol == Protocol::Udp {
                    self.forget(&tuple);
                }
            }
            Outcome::New(new) => {
                self.forget(&tuple);
                let written = Tuple {
                    source,
                    destination: new.endpoint,
                    protocol: tuple.protocol,
                };
                let half = Half {
                    written,
                    service: new.service,
                    backend: new.backend,
                    forward: true,
                    state: state::ESTABLISHED,
                    epoch: epoch(tables, new.service),
                };
                let reverse = Half {
                    written: tuple.reversed(),
                    forward: false,
                    ..half
                };
                self.halves.insert(tuple, half);
                self.halves.insert(written.reversed(), reverse);
                let record = tables.services.get(&new.service);
                if record.is_some_and(|record| record.affinity_seconds != 0) {
                    let key = (tuple.source.ip(), new.service);
                    self.affinity.insert(key, (new.backend, 0));
                }
            }
            Outcome::Known(written) => {
                let peer = written.reversed();
                let states = (self.halves.get(&tuple), self.halves.get(&peer));
                let (Some(half), Some(other)) = states else {
                    return;
                };
                let (own, other) = match tuple.protocol {
                    Protocol::Udp => (half.state, other.state),
                    Protocol::Tcp => {
                        step(half.state, other.state, Segment::of(packet.tcp_flags), true)
                    }
                };
                // While its frontend is another's or nobody's, the epoch of its own tells nothing.
                let is_told =
                    half.forward && self.service_now(tables, packet) == Some(half.service);
                let epoch = if is_told {
                    epoch(tables, half.service)
                } else {
                    half.epoch
                };
                for (tuple, state) in [(tuple, own), (peer, other)] {
                    if let Some(half) = self.halves.get_mut(&tuple) {
                        half.state = state;
                        half.epoch = epoch;
                    }
                }
            }
        }
    }

    /// Takes both halves of a flow out, if there is one.
    fn forget(&mut self, tuple: &Tuple) {
        if let Some(old) = self.halves.remove(tuple) {
            self.halves.remove(&old.written.reversed());
        }
    }

    /// Whether a packet of a known flow begins another one in its place: a SYN after the end, if the
    /// backend takes no new flows, or UDP whose backend does not serve there any more.
    fn starts_anew(&self, tables: &TableSet, packet: &ModelPacket, half: &Half) -> bool {
        let member = |service: u32| {
            let flags = tables.members.get(&(service, half.backend));
            flags.copied().unwrap_or(0)
        };
        match packet.tuple.protocol {
            _ if !half.forward => false,
            Protocol::Tcp => {
                let takes_new = member(half.service) & member_flag::SELECTED != 0;
                Segment::of(packet.tcp_flags) == Segment::Syn
                    && state::is_closed(half.state)
                    && !takes_new
            }
            Protocol::Udp => {
                let now = self.service_now(tables, packet).unwrap_or(half.service);
                let record = tables.services.get(&now);
                let others = record.is_some_and(|r| r.cluster.length + r.local.length > 0);
                epoch(tables, half.service) != half.epoch
                    && member(now) & member_flag::SERVING == 0
                    && others
            }
        }
    }

    /// The service port that has the frontend a client's packet is for.
    fn service_now(&self, tables: &TableSet, packet: &ModelPacket) -> Option<u32> {
        let (service, _) = self.find_frontend(tables, packet).ok()?;
        Some(service)
    }
}

/// A service port's set epoch.
fn epoch(tables: &TableSet, service: u32) -> u32 {
    tables
        .services
        .get(&service)
        .map_or(0, |record| record.epoch)
}

#[cfg(test)]
mod tests;
