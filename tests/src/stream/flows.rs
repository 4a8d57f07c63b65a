//! Established flows of the [`super::line`], put into a running agent's tables as the data path would have left
//! them, and the frames of each.

use std::{
    net::{IpAddr, SocketAddr},
    os::fd::AsFd as _,
};

use anyhow::{Context as _, Result};
use lb_common::{
    addr::Be16,
    bench::client,
    conntrack::{Entry, Entry4, Entry6, Head, Note, flag, state},
    flow::Flow as _,
    names::{self, flow_use},
    service::{Backend4, Backend6, Frontend, FrontendKey4, FrontendKey6, Service, backend_flag},
    wire::Wire,
};
use lb_userspace::{
    expire,
    kernel::{Map, open_pinned},
    pins::PinDirectory,
    tables::Protocol,
};

use super::{
    Frames,
    line::{MACS, SNAT},
};
use crate::{
    flow_key::FromEndpoints,
    netns::{
        agent::Node,
        manifest::{ServiceManifest, service},
        world::World,
    },
};

/// What a reply would acknowledge.
const NOTED: u32 = 5_000;
/// Clients: the first of each family.
const CLIENTS: [&str; 2] = ["203.0.113.8", "2001:db8:203::8"];
const BACKENDS: [&str; 2] = ["10.0.0.11", "2001:db8:a::11"];

/// What becomes of the client's address.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Mode {
    /// The backend sees it.
    Dnat,
    /// The backend sees an SNAT address.
    FullNat,
}

/// Flows of one kind, all to one frontend with one backend.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Kind {
    /// IPv6, else IPv4.
    pub v6: bool,
    /// Transport.
    pub protocol: Protocol,
    /// Mode.
    pub mode: Mode,
}

/// The manifests of the frontends, with a name for each.
fn manifests() -> [(&'static str, ServiceManifest); 2] {
    let [v4, v6] = BACKENDS;
    [Mode::Dnat, Mode::FullNat].map(|mode| {
        let (name, policy) = match mode {
            Mode::Dnat => ("kept", "externalTrafficPolicy: Local"),
            Mode::FullNat => ("replaced", "externalTrafficPolicy: Cluster"),
        };
        let [vip4, vip6] = mode.vips();
        let manifest = service(name).vip(vip4).vip(vip6).spec(policy);
        let manifest = manifest.tcp(80, mode.target()).udp(80, mode.target());
        (name, manifest.endpoint(v4).endpoint(v6))
    })
}

/// Frontends in [`manifests`]: both families and transports of each.
pub const FRONTENDS: usize = 8;

/// An agent of the line with the frontends' manifests, not yet started.
pub fn node(line: &World) -> Node<'_> {
    let mut node = Node::new(line).gateway();
    for address in SNAT.into_iter().flatten() {
        node = node.with(&format!("--snat-address={address}"));
    }
    for (name, manifest) in manifests() {
        node.apply(name, &manifest);
    }
    node
}

impl Mode {
    const fn vips(self) -> [&'static str; 2] {
        match self {
            Self::Dnat => ["192.0.2.1", "2001:db8::1"],
            Self::FullNat => ["192.0.2.2", "2001:db8::2"],
        }
    }

    /// The endpoint's port.
    const fn target(self) -> u16 {
        match self {
            Self::Dnat => 8080,
            Self::FullNat => 8081,
        }
    }
}

impl Kind {
    /// Source and destination of a client's packet.
    pub fn request(self, number: u32) -> [SocketAddr; 2] {
        let (port, offset) = client(number);
        let from = plus(self.pick(CLIENTS), offset);
        [
            SocketAddr::new(from, port),
            SocketAddr::new(self.pick(self.mode.vips()), 80),
        ]
    }

    /// Source and destination of a client's packet as the backend sees it.
    pub fn forwarded(self, number: u32) -> [SocketAddr; 2] {
        let (port, offset) = client(number);
        let from = match self.mode {
            Mode::Dnat => plus(self.pick(CLIENTS), offset),
            Mode::FullNat => {
                let [[v4, ..], [v6, ..]] = SNAT;
                plus(self.pick([v4, v6]), offset)
            }
        };
        let backend = SocketAddr::new(self.pick(BACKENDS), self.mode.target());
        [SocketAddr::new(from, port), backend]
    }

    /// The clients' frames, as the client's device sends them.
    pub fn requests(self, flows: u32) -> Frames {
        let [client, lb, ..] = MACS;
        Frames {
            sent: self.request(0),
            arriving: self.forwarded(0),
            is_reply: false,
            protocol: self.protocol,
            flows,
            hops: 1,
            macs: [client, lb],
        }
    }

    /// The backend's frames, as its device sends them.
    pub fn replies(self, flows: u32) -> Frames {
        let [_, _, lb, backend] = MACS;
        let reversed = |[from, to]: [SocketAddr; 2]| [to, from];
        Frames {
            sent: reversed(self.forwarded(0)),
            arriving: reversed(self.request(0)),
            is_reply: true,
            protocol: self.protocol,
            flows,
            hops: 1,
            macs: [backend, lb],
        }
    }

    /// The clients' frames to the backend itself: for routers, which change nothing but the TTL.
    pub fn direct(self, flows: u32) -> Frames {
        let [from, _] = self.request(0);
        let [_, to] = self.forwarded(0);
        Frames {
            sent: [from, to],
            arriving: [from, to],
            ..self.requests(flows)
        }
    }

    fn pick(self, [v4, v6]: [&str; 2]) -> IpAddr {
        let text = if self.v6 { v6 } else { v4 };
        text.parse().expect("an address of this file")
    }
}

/// The address `amount` further on.
fn plus(address: IpAddr, amount: u32) -> IpAddr {
    match address {
        IpAddr::V4(v4) => IpAddr::V4((v4.to_bits() + amount).into()),
        IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() + u128::from(amount)).into()),
    }
}

/// Puts both halves of the first `flows` flows of a kind into the agent's tables.
///
/// # Errors
///
/// The agent has no such frontend or backend yet, or the tables have no room.
pub fn establish(node: &Node<'_>, kind: Kind, flows: u32) -> Result<()> {
    if kind.v6 {
        insert::<Entry6>(node, kind, flows, names::FLOWS_V6)?;
        note_use(node, [flow_use::V6, flow_use::UDP_V6], kind, flows)
    } else {
        insert::<Entry4>(node, kind, flows, names::FLOWS_V4)?;
        note_use(node, [flow_use::V4, flow_use::UDP_V4], kind, flows)
    }
}

fn map(node: &Node<'_>, name: &str) -> Result<Map> {
    node.map(name)
        .with_context(|| format!("{name} is not pinned"))
}

fn insert<E>(node: &Node<'_>, kind: Kind, flows: u32, table: &str) -> Result<()>
where
    E: Entry + Wire,
    E::Flow: FromEndpoints,
{
    let ids = Ids::of(node, kind)?;
    let pins = PinDirectory::find(node.pin_root())?;
    let pins = pins.first().context("the agent has pinned nothing")?;
    let clock = open_pinned(&pins.program(names::LB_CLOCK))?;
    // Of the last tick: a flow's first packet looks its route up.
    let stamp = expire::tick(clock.as_fd())?.wrapping_sub(1);
    let halves = (0..flows).map(|number| ids.halves::<E>(kind, number, stamp));
    let halves: Vec<[(E::Flow, E); 2]> = halves.collect::<Result<_>>()?;
    let (keys, values): (Vec<_>, Vec<_>) = halves.into_iter().flatten().unzip();
    let inserted = map(node, table)?.update_batch(&keys, &values);
    inserted.with_context(|| format!("fill {table}"))
}

/// The data path counts what is in its tables.
fn note_use(node: &Node<'_>, [all, udp]: [u32; 2], kind: Kind, flows: u32) -> Result<()> {
    let uses = map(node, names::FLOW_USE)?;
    let is_udp = kind.protocol == Protocol::Udp;
    for element in [Some(all), is_udp.then_some(udp)].into_iter().flatten() {
        let before: u64 = uses
            .lookup(&element)?
            .context("an array has its elements")?;
        uses.update(&element, &(before + 2 * u64::from(flows)))?;
    }
    Ok(())
}

/// What the agent calls a kind's service port and backend.
struct Ids {
    service: u32,
    backend: u32,
    /// The service port's set epoch, of which UDP flows take note.
    epoch: u32,
}

impl Ids {
    fn of(node: &Node<'_>, kind: Kind) -> Result<Self> {
        let ([_, vip], [_, endpoint]) = (kind.request(0), kind.forwarded(0));
        let (port, protocol) = (Be16::new(vip.port()), u16::from(kind.protocol.number()));
        let frontend: Option<Frontend> = match vip.ip() {
            IpAddr::V4(address) => map(node, names::FRONTENDS_V4)?.lookup(&FrontendKey4 {
                address: address.into(),
                port,
                protocol,
            })?,
            IpAddr::V6(address) => map(node, names::FRONTENDS_V6)?.lookup(&FrontendKey6 {
                address: address.into(),
                port,
                protocol,
            })?,
        };
        let service = frontend
            .with_context(|| format!("{vip} is no frontend"))?
            .service;
        let port = Be16::new(endpoint.port());
        let backend = match endpoint.ip() {
            IpAddr::V4(address) => find(node, names::BACKENDS_V4, |backend: &Backend4| {
                is_live(backend.flags) && (backend.address, backend.port) == (address.into(), port)
            }),
            IpAddr::V6(address) => find(node, names::BACKENDS_V6, |backend: &Backend6| {
                is_live(backend.flags) && (backend.address, backend.port) == (address.into(), port)
            }),
        };
        let entry: Option<Service> = map(node, names::SERVICES)?.lookup(&service)?;
        Ok(Self {
            service,
            backend: backend?.with_context(|| format!("{endpoint} is no backend"))?,
            epoch: entry.context("an array has its elements")?.epoch,
        })
    }

    /// The client's half and the backend's.
    fn halves<E>(&self, kind: Kind, number: u32, stamp: u32) -> Result<[(E::Flow, E); 2]>
    where
        E: Entry,
        E::Flow: FromEndpoints,
    {
        let protocol = kind.protocol.number();
        let key = |[from, to]: [SocketAddr; 2]| E::Flow::from_endpoints(from, to, protocol);
        let (key, written) = (key(kind.request(number))?, key(kind.forwarded(number))?);
        // Any number but zero will do: no two flows share a key.
        let identity = number.wrapping_mul(0x9e37_79b1) | 1;
        let head = Head::new(identity, state::ESTABLISHED, stamp);
        let note = match kind.protocol {
            Protocol::Tcp => NOTED,
            Protocol::Udp => self.epoch,
        };
        let flags = match kind.mode {
            Mode::Dnat => 0,
            Mode::FullNat => flag::FULL_NAT,
        };
        let half = |written: &E::Flow, flags| {
            let mut half = E::new(head, written, flags, self.backend, self.service);
            half.set_note(Note::new(identity, note));
            half
        };
        Ok([
            (key, half(&written, flags)),
            (
                written.reversed(),
                half(&key.reversed(), flags | flag::REVERSE),
            ),
        ])
    }
}

const fn is_live(flags: u16) -> bool {
    flags & backend_flag::LIVE != 0
}

fn find<V: Wire>(
    node: &Node<'_>,
    name: &str,
    mut is_meant: impl FnMut(&V) -> bool,
) -> Result<Option<u32>> {
    let all: Vec<(u32, V)> = map(node, name)?.read_all()?;
    let found = all.into_iter().find(|(_, value)| is_meant(value));
    Ok(found.map(|(id, _)| id))
}
