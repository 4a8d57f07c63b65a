//! UDP connections the node's stack already serves: they stay with it when their frontend becomes ours.
//!
//! A datagram says nothing about whether it is the first of its kind. Where a kube-proxy balances on the same
//! node, a frontend that goes live would therefore take its clients away from their backends. So what
//! conntrack knows of a new frontend becomes flows that pass ([`flag::PASS`]), in both directions: a reply
//! may come to a port which is a node port, too.
//!
//! ```text
//! read conntrack, insert ─▶ frontends go live ─▶ read conntrack again, insert what came meanwhile
//! ```
//! A client that begins between the two readings may see one datagram answered by another backend, if
//! it sends its second within these few milliseconds.

use std::{
    collections::BTreeSet,
    hash::{BuildHasher as _, RandomState},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd as _, OwnedFd},
};

use lb_common::{
    addr::Be16,
    conntrack::{Entry, Entry4, Entry6, Head, flag, state},
    flow::{Flow, Flow4, Flow6, protocol},
    names::{self, flow_use},
    service::address_role,
    wire::Wire,
};

use crate::{
    dataplane::TableOp,
    expire,
    kernel::{self, Map, Mapping},
    netfilter::conntrack::{self, Ends, Tracked},
    pins::PinDirectory,
    tables::{Family, FrontendId, Protocol, TableSet},
};

/// UDP frontends for which the stack's connections are to be looked up.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Frontends {
    /// (address, port) as a client sees it.
    exact: BTreeSet<SocketAddr>,
    /// Ports on every node-port address.
    node_ports: BTreeSet<(Family, u16)>,
    /// Addresses that serve node ports: their ports count, and those of `node_ports` on any of them.
    node_addresses: BTreeSet<IpAddr>,
}

impl Frontends {
    /// Every UDP frontend of the tables.
    pub fn all(tables: &TableSet) -> Self {
        let mut all = Self {
            node_addresses: node_addresses(tables),
            ..Self::default()
        };
        for id in tables.frontends.keys() {
            all.add(*id);
        }
        all
    }

    /// Those that go live with `ops`: of Services that are new, and of addresses that now serve node ports.
    pub fn added(ops: &[TableOp], tables: &TableSet) -> Self {
        let mut added = Self::default();
        for op in ops {
            match op {
                TableOp::SetFrontend(id, _) if !tables.frontends.contains_key(id) => added.add(*id),
                TableOp::SetAddress(address, role) if role & address_role::NODE_PORT != 0 => {
                    let old = tables.addresses.get(address).copied().unwrap_or_default();
                    if old & address_role::NODE_PORT == 0 {
                        added.node_addresses.insert(*address);
                    }
                }
                _ => {}
            }
        }
        if !added.node_addresses.is_empty() {
            for id in tables.frontends.keys() {
                added.add_node_port(*id);
            }
        }
        if !added.node_ports.is_empty() {
            added.node_addresses.extend(node_addresses(tables));
        }
        added
    }

    /// True if nothing of the stack's can be meant.
    pub fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.node_ports.is_empty()
    }

    fn add(&mut self, id: FrontendId) {
        if id.protocol == Protocol::Udp && !id.address.is_unspecified() {
            self.exact.insert(SocketAddr::new(id.address, id.port));
        }
        self.add_node_port(id);
    }

    fn add_node_port(&mut self, id: FrontendId) {
        if id.protocol == Protocol::Udp && id.address.is_unspecified() {
            self.node_ports.insert((Family::of(id.address), id.port));
        }
    }

    fn contain(&self, destination: SocketAddr) -> bool {
        let (address, port) = (destination.ip(), destination.port());
        self.exact.contains(&destination)
            || self.node_addresses.contains(&address)
                && self.node_ports.contains(&(Family::of(address), port))
    }
}

fn node_addresses(tables: &TableSet) -> BTreeSet<IpAddr> {
    let roles = tables.addresses.iter();
    let serving = roles.filter(|(_, role)| *role & address_role::NODE_PORT != 0);
    serving.map(|(address, _)| *address).collect()
}

/// What became of the stack's connections.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Respected {
    /// Connections that pass from now on.
    pub added: u64,
    /// Connections that had no room.
    pub refused: u64,
}

/// The flow tables, for flows that pass.
#[derive(Debug)]
pub struct StackFlows {
    v4: Table,
    v6: Table,
    uses: Mapping,
    clock: OwnedFd,
    /// A source of identities.
    random: RandomState,
    drawn: u64,
}

#[derive(Debug)]
struct Table {
    flows: Map,
    /// Elements of `FLOW_USE`: all entries, and the UDP entries among them.
    uses: [u32; 2],
}

impl StackFlows {
    /// Opens the tables by their pins.
    ///
    /// # Errors
    ///
    /// If a pin is missing.
    pub fn open(pins: &PinDirectory) -> io::Result<Self> {
        let table = |name, uses| {
            let flows = Map::open_pinned(&pins.map(name))?;
            io::Result::Ok(Table { flows, uses })
        };
        Ok(Self {
            v4: table(names::FLOWS_V4, [flow_use::V4, flow_use::UDP_V4])?,
            v6: table(names::FLOWS_V6, [flow_use::V6, flow_use::UDP_V6])?,
            uses: Mapping::new(&Map::open_pinned(&pins.map(names::FLOW_USE))?)?,
            clock: kernel::open_pinned(&pins.program(names::LB_CLOCK))?,
            random: RandomState::new(),
            drawn: 0,
        })
    }

    /// Lets the stack's connections to `frontends` pass. Flows we know already stay as they are.
    ///
    /// # Errors
    ///
    /// If conntrack cannot be read or a table not be written; what was inserted stays.
    pub fn respect(&mut self, frontends: &Frontends) -> io::Result<Respected> {
        let mut respected = Respected::default();
        if frontends.is_empty() {
            return Ok(respected);
        }
        let connections = conntrack::translated()?;
        let now = expire::tick(self.clock.as_fd())?;
        for tracked in connections
            .iter()
            .filter(|tracked| frontends.contain(tracked.original.destination))
        {
            let head = Head::new(self.identity(), state::ESTABLISHED, now);
            let inserted = if tracked.original.source.is_ipv4() {
                self.insert(
                    &self.v4,
                    halves::<Flow4, Entry4>(tracked, head, |a| v4(a).map(Into::into)),
                )?
            } else {
                self.insert(
                    &self.v6,
                    halves::<Flow6, Entry6>(tracked, head, |a| v6(a).map(Into::into)),
                )?
            };
            match inserted {
                Inserted::Both => respected.added += 1,
                Inserted::None => {}
                Inserted::Full => respected.refused += 1,
            }
        }
        Ok(respected)
    }

    fn insert<F: Wire, E: Wire>(
        &self,
        table: &Table,
        halves: Option<[(F, E); 2]>,
    ) -> io::Result<Inserted> {
        let Some([forward, reverse]) = halves else {
            return Ok(Inserted::None);
        };
        let [all, udp] = table.uses.map(|element| self.uses.offset(element));
        let quota = u64::from(table.flows.info().max_entries / 2);
        if self.uses.load_u64(udp).is_none_or(|used| used + 2 > quota) {
            return Ok(Inserted::Full);
        }
        // Counted first: an agent that dies in between leaves the count too high, never too low.
        let count = |amount: u64| {
            [all, udp]
                .iter()
                .try_for_each(|offset| self.uses.add_u64(*offset, amount).map(drop))
        };
        count(2)?;
        let inserted = insert_both(&table.flows, &forward, &reverse);
        if !matches!(inserted, Ok(true)) {
            count(2_u64.wrapping_neg())?;
        }
        if !inserted? {
            return Ok(Inserted::None);
        }
        Ok(Inserted::Both)
    }

    /// A number both halves of a flow share; never 0.
    fn identity(&mut self) -> u32 {
        self.drawn += 1;
        let [a, b, c, d, ..] = self.random.hash_one(self.drawn).to_ne_bytes();
        u32::from_ne_bytes([a, b, c, d]).max(1)
    }
}

/// Inserts both halves of a flow, or none. As long as there is no forward half no packet of ours can meet
/// the reverse half. False: one of the tuples is a flow's already.
fn insert_both<F: Wire, E: Wire>(
    flows: &Map,
    forward: &(F, E),
    reverse: &(F, E),
) -> io::Result<bool> {
    if !flows.insert(&reverse.0, &reverse.1)? {
        return Ok(false);
    }
    let inserted = flows.insert(&forward.0, &forward.1);
    if !matches!(inserted, Ok(true)) {
        flows.delete(&reverse.0)?;
    }
    inserted
}

/// What became of a flow's halves.
enum Inserted {
    Both,
    /// One of the tuples is a flow's already.
    None,
    /// UDP has its share of the table.
    Full,
}

/// Both halves of a flow that passes. `None`: an end is of another family.
fn halves<F, E>(
    tracked: &Tracked,
    head: Head,
    address: impl Fn(IpAddr) -> Option<F::Address>,
) -> Option<[(F, E); 2]>
where
    F: Flow,
    E: Entry<Flow = F>,
{
    let key = |ends: &Ends| {
        Some(F::new(
            address(ends.source.ip())?,
            Be16::new(ends.source.port()),
            address(ends.destination.ip())?,
            Be16::new(ends.destination.port()),
            protocol::UDP,
        ))
    };
    let (original, reply) = (key(&tracked.original)?, key(&tracked.reply)?);
    let entry = |written: F, flags| E::new(head, &written, flag::PASS | flags, 0, 0);
    Some([
        (original, entry(reply.reversed(), 0)),
        (reply, entry(original.reversed(), flag::REVERSE)),
    ])
}

const fn v4(address: IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    }
}

const fn v6(address: IpAddr) -> Option<Ipv6Addr> {
    match address {
        IpAddr::V6(address) => Some(address),
        IpAddr::V4(_) => None,
    }
}

#[cfg(test)]
mod tests;
