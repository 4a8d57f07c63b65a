//! The reference forwarder: what must become of a packet, told in the plainest way.
//!
//! It knows nothing of tables' layouts, next hops or checksums. Which SNAT address and port a new
//! `full-nat` flow gets is the data path's to choose: [`Forwarder::forward`] says that it gets one,
//! [`Forwarder::commit`] takes note of it.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
};

use lb_common::{
    addr::Be16,
    config::UnknownFlows,
    conntrack::{Segment, state, step},
    flow::{Flow as _, Flow4, Flow6},
    maglev,
    reason::Reason,
    service::{Selection, address_role, backend_flag, frontend_flag, member_flag, service_flag},
};

use crate::tables::{Family, FrontendId, Protocol, ServiceRecord, TableSet};

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
        let (source_port, port) = (
            Be16::new(self.source.port()),
            Be16::new(self.destination.port()),
        );
        let protocol = self.protocol.number();
        match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => Some(
                Flow4::new(
                    source.into(),
                    source_port,
                    destination.into(),
                    port,
                    protocol,
                )
                .hash(),
            ),
            (IpAddr::V6(source), IpAddr::V6(destination)) => Some(
                Flow6::new(
                    source.into(),
                    source_port,
                    destination.into(),
                    port,
                    protocol,
                )
                .hash(),
            ),
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
}

/// The flows and the rules.
#[derive(Clone, Debug)]
pub struct Forwarder {
    config: ForwarderConfig,
    /// Both halves of each flow, by the tuple seen on the wire.
    halves: BTreeMap<Tuple, Half>,
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
        let epoch = |service: u32| {
            tables
                .services
                .get(&service)
                .map_or(0, |record| record.epoch)
        };
        match outcome {
            Outcome::Refused(_) => {}
            Outcome::New(new) => {
                if let Some(old) = self.halves.remove(&tuple) {
                    self.halves.remove(&old.written.reversed());
                }
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
                    epoch: epoch(new.service),
                };
                let reverse = Half {
                    written: tuple.reversed(),
                    forward: false,
                    ..half
                };
                self.halves.insert(tuple, half);
                self.halves.insert(written.reversed(), reverse);
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
                let epoch = epoch(half.service);
                for (tuple, state) in [(tuple, own), (peer, other)] {
                    if let Some(half) = self.halves.get_mut(&tuple) {
                        half.state = state;
                        half.epoch = epoch;
                    }
                }
            }
        }
    }

    /// Whether a packet of a known flow begins another one in its place: a SYN after the end, if the
    /// backend takes no new flows, or UDP whose backend stopped serving.
    fn starts_anew(&self, tables: &TableSet, packet: &ModelPacket, half: &Half) -> bool {
        let member = tables
            .members
            .get(&(half.service, half.backend))
            .copied()
            .unwrap_or(0);
        match packet.tuple.protocol {
            _ if !half.forward => false,
            Protocol::Tcp => {
                let takes_new = member & (member_flag::CLUSTER | member_flag::LOCAL) != 0;
                Segment::of(packet.tcp_flags) == Segment::Syn
                    && state::is_closed(half.state)
                    && !takes_new
            }
            Protocol::Udp => {
                let moved = tables.services.get(&half.service).is_some_and(|record| {
                    record.epoch != half.epoch && record.cluster.length + record.local.length > 0
                });
                moved && member & member_flag::SERVING == 0 && self.select(tables, packet).is_ok()
            }
        }
    }

    fn select(&self, tables: &TableSet, packet: &ModelPacket) -> Result<NewFlow, Reason> {
        let (service, frontend_flags) = self.find_frontend(tables, packet)?;
        if packet.tuple.protocol == Protocol::Tcp {
            match (Segment::of(packet.tcp_flags), self.config.unknown_flows) {
                (Segment::Syn, _) | (Segment::Data | Segment::Fin, UnknownFlows::Select) => {}
                (_, UnknownFlows::Stack) => return Err(Reason::UnknownFlowToStack),
                _ => return Err(Reason::UnknownFlow),
            }
        }
        let record = tables.services.get(&service).ok_or(Reason::BrokenTable)?;
        let selection = choose_set(record, frontend_flags)?;
        let hash = packet.tuple.hash().ok_or(Reason::Malformed)?;
        let slot = usize::try_from(maglev::slot(hash, selection.length)).unwrap_or(usize::MAX);
        let table = tables
            .extents
            .get(&selection.element)
            .ok_or(Reason::BrokenTable)?;
        let backend = *table.get(slot).ok_or(Reason::BrokenTable)?;
        let found = tables.backends.get(&backend).ok_or(Reason::BrokenTable)?;
        let mode = if found.flags & backend_flag::HOST != 0 {
            ForwardingMode::Host
        } else if found.flags & backend_flag::LOCAL != 0 {
            ForwardingMode::Local
        } else if record.flags & service_flag::KEEP_SOURCE != 0 {
            ForwardingMode::Dnat
        } else {
            ForwardingMode::FullNat
        };
        Ok(NewFlow {
            service,
            backend,
            endpoint: found.endpoint,
            mode,
        })
    }

    /// The service port a packet is for, with the frontend's flags.
    fn find_frontend(&self, tables: &TableSet, packet: &ModelPacket) -> Result<(u32, u32), Reason> {
        let Tuple {
            source,
            destination,
            protocol,
        } = packet.tuple;
        let frontend = |address: IpAddr| {
            let id = FrontendId {
                address,
                port: destination.port(),
                protocol,
            };
            tables
                .frontends
                .get(&id)
                .map(|record| (record.service, record.flags))
        };
        if let Some(found) = frontend(destination.ip()) {
            return Ok(found);
        }
        let role = tables
            .addresses
            .get(&destination.ip())
            .copied()
            .unwrap_or(0);
        if role & address_role::NODE_PORT != 0
            && let Some(found) = frontend(Family::of(destination.ip()).unspecified())
        {
            return Ok(found);
        }
        if role & address_role::VIP != 0 {
            return Err(Reason::NoFrontend);
        }
        if role & address_role::SNAT != 0 {
            return Err(Reason::SnatMiss);
        }
        let endpoint = FrontendId {
            address: source.ip(),
            port: source.port(),
            protocol,
        };
        let stray = protocol == Protocol::Tcp && Segment::of(packet.tcp_flags) != Segment::Syn;
        if stray
            && !self.config.direct_backend_access
            && tables.gateway_endpoints.contains(&endpoint)
        {
            return Err(Reason::GatewayMiss);
        }
        Err(Reason::NotOurs)
    }
}

fn choose_set(record: &ServiceRecord, frontend_flags: u32) -> Result<Selection, Reason> {
    let policy = if frontend_flags & frontend_flag::INTERNAL != 0 {
        service_flag::INTERNAL_LOCAL
    } else {
        service_flag::EXTERNAL_LOCAL
    };
    let local = record.flags & policy != 0;
    let selection = if local { record.local } else { record.cluster };
    if selection.length > 0 {
        Ok(selection)
    } else if local && record.flags & service_flag::HAS_ENDPOINTS != 0 {
        Err(Reason::NoLocalEndpoint)
    } else {
        Err(Reason::NoEndpoint)
    }
}

#[cfg(test)]
mod tests;
