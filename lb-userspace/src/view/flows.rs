//! Flows as an operator thinks of them: both halves joined, client → VIP → backend.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, SocketAddr},
};

use lb_common::{
    addr::Be16,
    conntrack::{Entry as _, Entry4, Entry6, Head, Route, flag, state},
    flow::{Flow4, Flow6, protocol},
    traffic::{Tally, Traffic},
};
use serde::Serialize;

pub use self::draining::Draining;
use crate::view::contents::Contents;

mod draining;

/// Which table holds a half.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Table {
    /// `FLOWS_*`.
    Established,
    /// `EMBRYONIC_*`.
    Embryonic,
}

/// A packet's addresses, ports and protocol.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Tuple {
    /// Source address and port.
    pub source: SocketAddr,
    /// Destination address and port.
    pub destination: SocketAddr,
    /// IP protocol number.
    pub protocol: u32,
}

impl Tuple {
    const fn reversed(self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            protocol: self.protocol,
        }
    }
}

/// One direction of a flow, of either family.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Half {
    /// The table.
    pub table: Table,
    /// The packet as seen on the wire: the key.
    pub seen: Tuple,
    /// The packet as it leaves.
    pub written: Tuple,
    /// Identity, state and stamp.
    pub head: Head,
    /// Next hop, MTU and route generation.
    pub route: Route,
    /// Bits of [`flag`].
    pub flags: u32,
    /// Backend id.
    pub backend: u32,
    /// Service-port id.
    pub service: u32,
    /// Traffic that `SERVICE_TRAFFIC` and `BACKEND_TRAFFIC` do not have yet.
    pub pending: Tally,
}

macro_rules! half {
    ($name:ident, $flow:ty, $entry:ty, $ip:ident) => {
        /// A half from key and value.
        pub fn $name(table: Table, key: $flow, entry: $entry) -> Self {
            let socket = |address, port: Be16| SocketAddr::new(IpAddr::$ip(address), port.get());
            let protocol = key.protocol;
            Self {
                table,
                seen: Tuple {
                    source: socket(key.source.into(), key.source_port),
                    destination: socket(key.destination.into(), key.destination_port),
                    protocol,
                },
                written: Tuple {
                    source: socket(entry.source.into(), entry.source_port),
                    destination: socket(entry.destination.into(), entry.destination_port),
                    protocol,
                },
                head: Head(entry.head),
                route: Route(entry.route),
                flags: entry.flags(),
                backend: entry.backend,
                service: entry.service,
                pending: Tally {
                    packets: entry.pending().packets().into(),
                    bytes: entry.pending().bytes().into(),
                },
            }
        }
    };
}

impl Half {
    half!(v4, Flow4, Entry4, V4);
    half!(v6, Flow6, Entry6, V6);

    /// True for backend → client.
    pub const fn is_reverse(&self) -> bool {
        self.flags & flag::REVERSE != 0
    }

    /// Adds what is pending to the traffic of the half's service port or backend.
    pub(super) const fn add_pending(&self, traffic: &mut Traffic) {
        let tally = if self.is_reverse() {
            &mut traffic.reply
        } else {
            &mut traffic.forward
        };
        tally.packets += self.pending.packets;
        tally.bytes += self.pending.bytes;
    }
}

/// A direction of a flow, as JSON shows it.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Direction {
    /// Source of the packets as they arrive.
    pub source: SocketAddr,
    /// Destination of the packets as they arrive.
    pub destination: SocketAddr,
    /// Source of the packets as they leave.
    pub new_source: SocketAddr,
    /// Destination of the packets as they leave.
    pub new_destination: SocketAddr,
    /// State of this half.
    pub state: &'static str,
    /// The agent found the half idle; its next packet saves it.
    pub condemned: bool,
    /// Seconds since the last packet; none if the clock is unknown.
    pub idle_seconds: Option<u64>,
    /// `gateway@interface`; `tcx` while the complete path forwards it.
    pub next_hop: String,
    /// Largest IP packet the route takes; none while unknown.
    pub mtu: Option<u16>,
    /// `established` or `embryonic`.
    pub table: Table,
}

/// A flow: both halves.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Flow {
    /// `TCP` or `UDP`.
    pub protocol: String,
    /// The client's address and port.
    pub client: SocketAddr,
    /// The frontend the client talks to.
    pub frontend: SocketAddr,
    /// What the backend sees as its client, if that is not the client itself.
    pub snat: Option<SocketAddr>,
    /// The backend's address and port.
    pub backend: SocketAddr,
    /// Name of the service port.
    pub service: String,
    /// State of the flow.
    pub state: String,
    /// Seconds since the last packet in either direction; none if the clock is unknown.
    pub idle_seconds: Option<u64>,
    /// Its backend takes no new flows of the service port; none while it does.
    pub draining: Option<Draining>,
    /// `dnat`, `full-nat`, or `stack`: the node's stack served it before us, and goes on.
    pub mode: &'static str,
    /// Where the backend is: `remote`, `local` (a pod of this node) or `host` (the node itself).
    pub place: &'static str,
    /// The number both halves share, in hexadecimal.
    pub identity: String,
    /// Backend id.
    pub backend_id: u32,
    /// Service-port id.
    pub service_id: u32,
    /// Client to backend; none if only the other half is left.
    pub forward: Option<Direction>,
    /// Backend to client; none if only the other half is left.
    pub reverse: Option<Direction>,
}

/// A flow as a table shows it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowLine<'a> {
    protocol: &'a str,
    client: SocketAddr,
    frontend: SocketAddr,
    snat: Option<SocketAddr>,
    backend: SocketAddr,
    state: &'a str,
    idle: Option<String>,
    draining: Option<String>,
    mode: String,
    next_hop: String,
    identity: &'a str,
    service: &'a str,
}

impl<'a> From<&'a Flow> for FlowLine<'a> {
    fn from(flow: &'a Flow) -> Self {
        let hop = |d: &Option<Direction>| d.as_ref().map_or("-".into(), |d| d.next_hop.clone());
        Self {
            protocol: &flow.protocol,
            client: flow.client,
            frontend: flow.frontend,
            snat: flow.snat,
            backend: flow.backend,
            state: &flow.state,
            idle: flow.idle_seconds.map(|seconds| format!("{seconds}s")),
            draining: flow.draining.as_ref().map(Draining::word),
            mode: match flow.place {
                "remote" => flow.mode.into(),
                place => format!("{} {place}", flow.mode),
            },
            next_hop: format!("{} / {}", hop(&flow.forward), hop(&flow.reverse)),
            identity: &flow.identity,
            service: &flow.service,
        }
    }
}

/// Which flows to show. Empty: all.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Part of the service port's name.
    pub service: Option<String>,
    /// The backend's address, with or without port.
    pub backend: Option<Endpoint>,
    /// The client's address, with or without port.
    pub client: Option<Endpoint>,
    /// Only those whose backend takes no new flows.
    pub draining: bool,
}

/// An address, with or without port.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Endpoint {
    address: IpAddr,
    port: Option<u16>,
}

impl std::str::FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Ok(socket) = text.parse::<SocketAddr>() {
            return Ok(Self {
                address: socket.ip(),
                port: Some(socket.port()),
            });
        }
        match text.parse() {
            Ok(address) => Ok(Self {
                address,
                port: None,
            }),
            Err(_) => Err(format!("`{text}` is neither an address nor address:port")),
        }
    }
}

impl Endpoint {
    fn matches(self, socket: SocketAddr) -> bool {
        self.address == socket.ip() && self.port.is_none_or(|port| port == socket.port())
    }
}

impl Filter {
    fn accepts(&self, flow: &Flow) -> bool {
        self.service
            .as_ref()
            .is_none_or(|part| flow.service.contains(part.as_str()))
            && self
                .backend
                .is_none_or(|backend| backend.matches(flow.backend))
            && self.client.is_none_or(|client| client.matches(flow.client))
            && (!self.draining || flow.draining.is_some())
    }
}

/// Joins the halves of each flow, filters, and sorts by service, client and frontend.
pub fn flows(contents: &Contents, filter: &Filter) -> Vec<Flow> {
    // A flow under promotion has each half in both tables: the established ones win.
    let mut by_tuple: HashMap<Tuple, &Half> = HashMap::with_capacity(contents.halves.len());
    for half in &contents.halves {
        let kept = by_tuple.entry(half.seen).or_insert(half);
        if half.table < kept.table {
            *kept = half;
        }
    }
    let other = |half: &Half| {
        let other = by_tuple.get(&half.written.reversed()).copied();
        other.filter(|other| {
            other.head.identity() == half.head.identity() && other.is_reverse() != half.is_reverse()
        })
    };
    let mut flows: Vec<Flow> = contents
        .halves
        .iter()
        .filter(|half| {
            by_tuple
                .get(&half.seen)
                .is_some_and(|kept| std::ptr::eq(*kept, *half))
        })
        .filter_map(|half| match (half.is_reverse(), other(half)) {
            (false, reverse) => Some(join(contents, Some(half), reverse)?),
            (true, None) => join(contents, None, Some(half)),
            (true, Some(_)) => None,
        })
        .filter(|flow| filter.accepts(flow))
        .collect();
    flows.sort_by(|a, b| {
        (&a.service, a.client, a.frontend, &a.identity).cmp(&(
            &b.service,
            b.client,
            b.frontend,
            &b.identity,
        ))
    });
    flows
}

/// Established flows of each service port: the number of forward halves in `FLOWS_*`.
pub fn active(halves: &[Half]) -> BTreeMap<u32, u64> {
    let mut active = BTreeMap::new();
    for half in halves.iter().filter(|half| is_active(half)) {
        *active.entry(half.service).or_default() += 1;
    }
    active
}

/// True for the forward half of a flow that is established and not closed, and ours.
pub fn is_active(half: &Half) -> bool {
    half.table == Table::Established
        && half.flags & (flag::REVERSE | flag::PASS) == 0
        && !state::is_closed(half.head.state())
}

/// A protocol's name.
pub fn protocol_name(number: u32) -> String {
    match u8::try_from(number) {
        Ok(protocol::TCP) => "TCP".into(),
        Ok(protocol::UDP) => "UDP".into(),
        Ok(protocol::ICMP) => "ICMP".into(),
        Ok(protocol::ICMP6) => "ICMPv6".into(),
        _ => number.to_string(),
    }
}

/// A direction as JSON shows it.
pub fn direction(contents: &Contents, half: &Half) -> Direction {
    Direction {
        source: half.seen.source,
        destination: half.seen.destination,
        new_source: half.written.source,
        new_destination: half.written.destination,
        state: state::name(half.head.state()),
        condemned: half.head.state() & state::CONDEMNED != 0,
        idle_seconds: contents.idle(half.head.stamp()),
        next_hop: contents.next_hop(half.route.next_hop().into()),
        mtu: Some(half.route.mtu()).filter(|&mtu| mtu != 0),
        table: half.table,
    }
}

fn join(contents: &Contents, forward: Option<&Half>, reverse: Option<&Half>) -> Option<Flow> {
    let half = forward.or(reverse)?;
    let (client, frontend, snat, backend) = if half.is_reverse() {
        let (seen, written) = (half.seen, half.written);
        (
            written.destination,
            written.source,
            seen.destination,
            seen.source,
        )
    } else {
        let (seen, written) = (half.seen, half.written);
        (
            seen.source,
            seen.destination,
            written.source,
            written.destination,
        )
    };
    let halves = [forward, reverse];
    let idle = |half: &Half| contents.idle(half.head.stamp());
    Some(Flow {
        protocol: protocol_name(half.seen.protocol),
        client,
        frontend,
        snat: (snat != client).then_some(snat),
        backend,
        service: contents.service(half.service),
        state: joined_state(forward, reverse),
        idle_seconds: halves.into_iter().flatten().filter_map(idle).min(),
        draining: Draining::of(contents, half),
        mode: match half.flags {
            flags if flags & flag::PASS != 0 => "stack",
            flags if flags & flag::FULL_NAT != 0 => "full-nat",
            _ => "dnat",
        },
        place: match half.flags {
            flags if flags & flag::HOST != 0 => "host",
            flags if flags & flag::LOCAL != 0 => "local",
            _ => "remote",
        },
        identity: format!("{:08x}", half.head.identity()),
        backend_id: half.backend,
        service_id: half.service,
        forward: forward.map(|half| direction(contents, half)),
        reverse: reverse.map(|half| direction(contents, half)),
    })
}

/// One word if the halves agree or one of them tells more; else `forward/reverse`.
fn joined_state(forward: Option<&Half>, reverse: Option<&Half>) -> String {
    let name = |half: &Half| state::name(half.head.state());
    match (forward.map(name), reverse.map(name)) {
        (Some(forward), Some(reverse)) if forward == reverse => forward.into(),
        // The backend's answer is kept in the reverse half alone.
        (Some("embryonic"), Some("replied")) => "replied".into(),
        (Some(forward), Some(reverse)) => format!("{forward}/{reverse}"),
        (Some(forward), None) => format!("{forward}/-"),
        (None, reverse) => format!("-/{}", reverse.unwrap_or("-")),
    }
}

#[cfg(test)]
mod tests;
