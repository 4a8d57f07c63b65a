//! Flows that nobody uses any more: found here, deleted by the data path.
//!
//! ```text
//! pass n:   read a half, idle, and its peer idle too ─▶ condemn (compare-and-exchange of the head)
//!           a packet meets a condemned half          ─▶ it lives again
//! pass n+1: read a half that is still condemned      ─▶ delete (if the head is still the one read)
//! ```
//! The agent never writes a flow: `lb_expire` does, so that a packet and the agent cannot both win.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
};

use lb_common::{
    addr::{Addr4, Addr6},
    conntrack::{Entry, Entry4, Entry6, Head, Idle4, Idle6, flag, state, ticks_since},
    flow::{Flow, Flow4, Flow6, protocol},
    names,
    wire::Wire,
};

use crate::{
    config::Timeouts,
    kernel::{self, Map, TestRun},
    pins::PinDirectory,
};

mod next_hops;

/// Idle times in ticks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct IdleTicks {
    /// Established TCP.
    pub tcp: u32,
    /// Established UDP.
    pub udp: u32,
    /// Closed, and halves without a peer.
    pub closed: u32,
}

impl IdleTicks {
    /// Converts times, rounding up. `tick_seconds` is the length of a tick.
    pub fn new(timeouts: &Timeouts, tick_seconds: f64) -> Self {
        let ticks = |time| to_ticks(time, tick_seconds);
        // Closed flows leave without us; we come long after, for those which could not.
        let closed = ticks(timeouts.closed).saturating_mul(2);
        Self {
            tcp: ticks(timeouts.tcp),
            udp: ticks(timeouts.udp),
            closed,
        }
    }

    /// Idle time after which a half of this state may be given up.
    const fn of(&self, number: u8, half_state: u8) -> u32 {
        if state::is_closed(half_state) {
            self.closed
        } else if number == protocol::UDP {
            self.udp
        } else {
            self.tcp
        }
    }
}

/// A time in ticks, rounded up, at least one.
pub fn to_ticks(time: std::time::Duration, tick_seconds: f64) -> u32 {
    let ticks = (time.as_secs_f64() / tick_seconds).ceil();
    // A float's conversion saturates; 24 bits are all a stamp has, half of them before its wrap.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "saturates"
    )]
    let ticks = ticks as u32;
    ticks.clamp(1, lb_common::conntrack::TICK_MASK / 2)
}

/// What to do with a half.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Fate {
    Keep,
    Condemn,
    Delete,
}

/// Decides about a half from its head and its peer's, if the peer is in the table.
fn decide(now: u32, number: u8, half: Head, peer: Option<Head>, idle: &IdleTicks) -> Fate {
    // Another flow's identity: the peer is gone, and its tuple used again.
    let peer = peer.filter(|peer| peer.identity() == half.identity());
    if half.state() & state::CONDEMNED != 0 {
        // Its peer was met by a packet meanwhile: the flow lives, and the next packet of this half
        // lifts the sentence.
        let spared = peer.is_some_and(|peer| peer.state() & state::CONDEMNED == 0);
        return if spared { Fate::Keep } else { Fate::Delete };
    }
    let is_idle = |head: Head, limit: u32| ticks_since(now, head.stamp()) > limit;
    let idle_together = match peer {
        Some(peer) => {
            let limit = idle
                .of(number, half.state())
                .max(idle.of(number, peer.state()));
            is_idle(half, limit) && is_idle(peer, limit)
        }
        // Both halves are written one after the other: not at once.
        None => is_idle(half, idle.closed.min(idle.of(number, half.state()))),
    };
    if idle_together {
        Fate::Condemn
    } else {
        Fate::Keep
    }
}

/// What a pass found and did.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Pass {
    /// Halves in the established tables.
    pub halves: u64,
    /// Halves condemned.
    pub condemned: u64,
    /// Halves deleted.
    pub deleted: u64,
    /// What flows name.
    pub in_use: InUse,
}

/// Ids that flows name.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct InUse {
    /// Service-port ids.
    pub services: BTreeSet<u32>,
    /// Backend ids.
    pub backends: BTreeSet<u32>,
    /// Next-hop indices.
    pub next_hops: BTreeSet<u32>,
    /// What packets of flows are known by: VIPs, backends' addresses, SNAT addresses.
    pub addresses: BTreeSet<IpAddr>,
}

impl InUse {
    fn note_all<F: Flow<Address: Into<Address>>>(
        &mut self,
        flows: &[F],
        entries: &[impl Entry<Flow = F>],
    ) {
        for (flow, entry) in flows.iter().zip(entries) {
            self.note(flow, entry);
        }
    }

    fn note<F: Flow<Address: Into<Address>>>(&mut self, flow: &F, entry: &impl Entry<Flow = F>) {
        let reverse = entry.flags() & flag::REVERSE != 0;
        if reverse {
            self.insert(flow.source());
        }
        // The client's address in a reply needs no bit; an SNAT address does.
        if !reverse || entry.flags() & flag::FULL_NAT != 0 {
            self.insert(flow.destination());
        }
        self.services.insert(entry.service());
        self.backends.insert(entry.backend());
        self.next_hops.insert(u32::from(entry.route().next_hop()));
    }

    fn insert(&mut self, address: impl Into<Address>) {
        let Address(address) = address.into();
        self.addresses.insert(address);
    }
}

/// An address of either wire form.
struct Address(IpAddr);

impl From<Addr4> for Address {
    fn from(address: Addr4) -> Self {
        Self(Ipv4Addr::from(address).into())
    }
}

impl From<Addr6> for Address {
    fn from(address: Addr6) -> Self {
        Self(Ipv6Addr::from(address).into())
    }
}

/// Goes over the flow tables.
#[derive(Debug)]
pub struct Expiry {
    flows_v4: Map,
    flows_v6: Map,
    embryonic_v4: Map,
    embryonic_v6: Map,
    clock: OwnedFd,
    expire: OwnedFd,
    idle: IdleTicks,
    next_hops: next_hops::NextHops,
}

impl Expiry {
    /// Opens the tables and the programs by their pins.
    ///
    /// # Errors
    ///
    /// If a pin is missing.
    pub fn open(pins: &PinDirectory, idle: IdleTicks) -> io::Result<Self> {
        let open = |name: &str| Map::open_pinned(&pins.map(name));
        Ok(Self {
            flows_v4: open(names::FLOWS_V4)?,
            flows_v6: open(names::FLOWS_V6)?,
            embryonic_v4: open(names::EMBRYONIC_V4)?,
            embryonic_v6: open(names::EMBRYONIC_V6)?,
            clock: kernel::open_pinned(&pins.program(names::LB_CLOCK))?,
            expire: kernel::open_pinned(&pins.program(names::LB_EXPIRE))?,
            idle,
            next_hops: next_hops::NextHops::open(pins)?,
        })
    }

    /// The current tick.
    ///
    /// # Errors
    ///
    /// If the program cannot be run.
    pub fn tick(&self) -> io::Result<u32> {
        tick(self.clock.as_fd())
    }

    /// Collects what flows name, and changes nothing.
    ///
    /// # Errors
    ///
    /// If a table cannot be read.
    pub fn in_use(&self) -> io::Result<InUse> {
        let mut in_use = InUse::default();
        self.note_embryonic(&mut in_use)?;
        self.flows_v4
            .for_each_batch::<Flow4, Entry4>(|flows, entries| {
                in_use.note_all(flows, entries);
            })?;
        self.flows_v6
            .for_each_batch::<Flow6, Entry6>(|flows, entries| {
                in_use.note_all(flows, entries);
            })?;
        Ok(in_use)
    }

    /// One pass: deletes what an earlier pass condemned and nobody met since, condemns what is idle.
    ///
    /// # Errors
    ///
    /// If a table cannot be read or the program cannot be run. What was done stays done.
    pub fn pass(&mut self) -> io::Result<Pass> {
        let mut pass = Pass::default();
        // A flow moves from embryonic to established: read in this order, it is seen once at least.
        self.note_embryonic(&mut pass.in_use)?;
        self.pass_over::<Flow4, Entry4, Idle4>(&self.flows_v4, &mut pass)?;
        self.pass_over::<Flow6, Entry6, Idle6>(&self.flows_v6, &mut pass)?;
        self.next_hops.retire(&pass.in_use.next_hops)?;
        Ok(pass)
    }

    fn note_embryonic(&self, in_use: &mut InUse) -> io::Result<()> {
        self.embryonic_v4
            .for_each_batch::<Flow4, Entry4>(|flows, entries| {
                in_use.note_all(flows, entries);
            })?;
        self.embryonic_v6
            .for_each_batch::<Flow6, Entry6>(|flows, entries| {
                in_use.note_all(flows, entries);
            })
    }

    fn pass_over<F, E, R>(&self, table: &Map, pass: &mut Pass) -> io::Result<()>
    where
        F: Flow<Address: Into<Address>> + Wire,
        E: Entry<Flow = F> + Wire,
        R: Record<F>,
    {
        let now = self.tick()?;
        let (mut condemned, mut deleted) = (Vec::new(), Vec::new());
        let mut failure = None;
        table.for_each_batch::<F, E>(|flows, entries| {
            pass.halves += flows.len() as u64;
            for (flow, entry) in flows.iter().zip(entries) {
                pass.in_use.note(flow, entry);
                let half = entry.head();
                // The common case, without a look at the peer.
                let limit = self
                    .idle
                    .of(flow.protocol(), half.state())
                    .min(self.idle.closed);
                let is_condemned = half.state() & state::CONDEMNED != 0;
                if !is_condemned && ticks_since(now, half.stamp()) <= limit {
                    continue;
                }
                let peer = entry.written(flow.protocol()).reversed();
                let peer = match table.lookup::<F, E>(&peer) {
                    Ok(peer) => peer.map(|peer| peer.head()),
                    Err(error) => {
                        failure = Some(error);
                        continue;
                    }
                };
                match decide(now, flow.protocol(), half, peer, &self.idle) {
                    Fate::Keep => {}
                    Fate::Condemn => condemned.push(R::new(*flow, half)),
                    Fate::Delete => deleted.push(R::new(*flow, half)),
                }
            }
        })?;
        pass.deleted += self.run(operation::DELETE, &deleted)?;
        pass.condemned += self.run(operation::CONDEMN, &condemned)?;
        failure.map_or(Ok(()), Err)
    }

    /// Hands records to `lb_expire`, and returns how many it changed.
    fn run<F, R: Record<F>>(&self, operation: u8, records: &[R]) -> io::Result<u64> {
        let mut changed = 0;
        for chunk in records.chunks(R::MOST) {
            // An Ethernet header's length, the least a test run takes.
            let mut data = vec![0_u8; 14];
            let count = u8::try_from(chunk.len()).map_err(io::Error::other)?;
            for (to, from) in data.iter_mut().zip([operation, R::FAMILY, count]) {
                *to = from;
            }
            for record in chunk {
                record.put(&mut data);
            }
            let input = TestRun {
                data: &data,
                ..TestRun::default()
            };
            changed += u64::from(kernel::test_run(self.expire.as_fd(), &input)?.retval);
        }
        Ok(changed)
    }
}

/// The current tick, by `lb_clock`.
///
/// # Errors
///
/// If the program cannot be run.
pub fn tick(clock: BorrowedFd<'_>) -> io::Result<u32> {
    let input = TestRun {
        data: &[0; 64],
        ..TestRun::default()
    };
    Ok(kernel::test_run(clock, &input)?.retval)
}

/// First byte of `lb_expire`'s input.
mod operation {
    pub(super) const CONDEMN: u8 = 1;
    pub(super) const DELETE: u8 = 2;
}

/// A record of `lb_expire`'s input.
trait Record<F>: Sized {
    const FAMILY: u8;
    const MOST: usize;
    fn new(flow: F, head: Head) -> Self;
    fn put(&self, data: &mut Vec<u8>);
}

impl Record<Flow4> for Idle4 {
    const FAMILY: u8 = 4;
    const MOST: usize = 64;

    fn new(flow: Flow4, head: Head) -> Self {
        Self { flow, head: head.0 }
    }

    fn put(&self, data: &mut Vec<u8>) {
        let Flow4 {
            source,
            destination,
            source_port,
            destination_port,
            protocol,
        } = self.flow;
        data.extend(source.0.to_ne_bytes());
        data.extend(destination.0.to_ne_bytes());
        data.extend(source_port.0.to_ne_bytes());
        data.extend(destination_port.0.to_ne_bytes());
        data.extend(protocol.to_ne_bytes());
        data.extend(self.head.to_ne_bytes());
    }
}

impl Record<Flow6> for Idle6 {
    const FAMILY: u8 = 6;
    const MOST: usize = 48;

    fn new(flow: Flow6, head: Head) -> Self {
        Self { flow, head: head.0 }
    }

    fn put(&self, data: &mut Vec<u8>) {
        let Flow6 {
            source,
            destination,
            source_port,
            destination_port,
            protocol,
        } = self.flow;
        for word in source.0.into_iter().chain(destination.0) {
            data.extend(word.to_ne_bytes());
        }
        data.extend(source_port.0.to_ne_bytes());
        data.extend(destination_port.0.to_ne_bytes());
        data.extend(protocol.to_ne_bytes());
        data.extend(self.head.to_ne_bytes());
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use lb_common::conntrack::state::{CLOSED, CONDEMNED, ESTABLISHED, FIN};

    use super::*;

    const IDLE: IdleTicks = IdleTicks {
        tcp: 8_100,
        udp: 180,
        closed: 120,
    };
    const NOW: u32 = 10_000;

    fn head(state: u8, age: u32) -> Head {
        Head::new(7, state, NOW.wrapping_sub(age))
    }

    #[test]
    fn a_half_goes_when_the_whole_flow_is_idle() {
        let stranger = Head::new(8, ESTABLISHED, NOW);
        let (tcp, udp) = (protocol::TCP, protocol::UDP);
        for (name, number, half, peer, expected) in [
            (
                "fresh",
                tcp,
                head(ESTABLISHED, 0),
                Some(head(ESTABLISHED, 0)),
                Fate::Keep,
            ),
            (
                "orphan, UDP",
                udp,
                head(ESTABLISHED, 180),
                None,
                Fate::Condemn,
            ),
            (
                "idle",
                udp,
                head(ESTABLISHED, 181),
                Some(head(ESTABLISHED, 181)),
                Fate::Condemn,
            ),
            (
                "at the limit",
                udp,
                head(ESTABLISHED, 180),
                Some(head(ESTABLISHED, 180)),
                Fate::Keep,
            ),
            (
                "one-way",
                udp,
                head(ESTABLISHED, 999),
                Some(head(ESTABLISHED, 5)),
                Fate::Keep,
            ),
            (
                "TCP lives longer",
                tcp,
                head(ESTABLISHED, 999),
                Some(head(ESTABLISHED, 999)),
                Fate::Keep,
            ),
            (
                "one FIN is not the end",
                tcp,
                head(FIN, 999),
                Some(head(ESTABLISHED, 999)),
                Fate::Keep,
            ),
            (
                "closed",
                tcp,
                head(CLOSED, 121),
                Some(head(CLOSED, 121)),
                Fate::Condemn,
            ),
            (
                "closed, peer not",
                tcp,
                head(CLOSED, 121),
                Some(head(FIN, 121)),
                Fate::Keep,
            ),
            ("orphan", tcp, head(ESTABLISHED, 121), None, Fate::Condemn),
            ("fresh orphan", tcp, head(ESTABLISHED, 3), None, Fate::Keep),
            (
                "peer is a stranger",
                tcp,
                head(ESTABLISHED, 121),
                Some(stranger),
                Fate::Condemn,
            ),
            (
                "both condemned",
                tcp,
                head(ESTABLISHED | CONDEMNED, 9_000),
                Some(head(ESTABLISHED | CONDEMNED, 9_000)),
                Fate::Delete,
            ),
            (
                "condemned orphan",
                tcp,
                head(ESTABLISHED | CONDEMNED, 9_000),
                None,
                Fate::Delete,
            ),
            (
                "peer was met by a packet",
                tcp,
                head(ESTABLISHED | CONDEMNED, 9_000),
                Some(head(ESTABLISHED, 0)),
                Fate::Keep,
            ),
        ] {
            assert_eq!(decide(NOW, number, half, peer, &IDLE), expected, "{name}");
        }
    }

    #[test]
    fn stamps_wrap() {
        let half = Head::new(7, ESTABLISHED, 0x00ff_fff0);
        let peer = Some(half);
        assert_eq!(decide(0x10, protocol::UDP, half, peer, &IDLE), Fate::Keep);
        assert_eq!(
            decide(0x100, protocol::UDP, half, peer, &IDLE),
            Fate::Condemn
        );
    }

    #[test]
    fn times_become_ticks_and_never_none() {
        for (seconds, expected) in [(0, 1), (1, 1), (2, 2), (180, 176), (u64::MAX, 0x7f_ffff)] {
            assert_eq!(
                to_ticks(Duration::from_secs(seconds), 1.024),
                expected,
                "{seconds}"
            );
        }
    }

    #[test]
    fn records_have_the_layout_the_program_reads() {
        let mut data = Vec::new();
        Idle4::new(Flow4::default(), Head::new(1, ESTABLISHED, 2)).put(&mut data);
        assert_eq!(data.len(), size_of::<Idle4>());
        assert!(data.ends_with(&Head::new(1, ESTABLISHED, 2).0.to_ne_bytes()));
        let mut data = Vec::new();
        Idle6::new(Flow6::default(), Head::new(1, ESTABLISHED, 2)).put(&mut data);
        assert_eq!(data.len(), size_of::<Idle6>());
    }
}
