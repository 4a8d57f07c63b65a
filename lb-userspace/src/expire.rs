//! Flows that nobody uses any more: found here, deleted by the data path.
//!
//! ```text
//! pass n:   read a half, idle, and its peer idle too ─▶ condemn (compare-and-exchange of the head)
//!           a packet meets a condemned half          ─▶ it lives again
//! pass n+1: read a half that is still condemned      ─▶ delete (if the head is still the one read)
//! any pass: read a half whose flow's time is over     ─▶ end it, whatever its state (see `drain.rs`)
//!           read a silent half with traffic pending   ─▶ count it
//! ```
//! The agent never writes a flow: `lb_expire` does, so that a packet and the agent cannot both win.

use std::{
    collections::BTreeSet,
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
};

use lb_common::{
    conntrack::{Entry, Entry4, Entry6, Idle4, Idle6, flag, state, ticks_since},
    flow::{Flow, Flow4, Flow6},
    names,
    service::{Member, MemberKey, member_flag},
    wire::Wire,
};

pub use self::{
    counts::{FlowCounts, PerId, SnatUse},
    decide::{IdleTicks, to_ticks},
    in_use::{Hanging, InUse},
};
use self::{
    decide::{Fate, decide},
    in_use::{Address, member},
    record::Record,
};
use crate::{
    kernel::{self, Map, TestRun},
    pins::PinDirectory,
    tables::Family,
};

mod counts;
mod decide;
mod in_use;
mod next_hops;
mod record;

/// What a pass found and did.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Pass {
    /// Halves in the established tables.
    pub halves: u64,
    /// Halves condemned.
    pub condemned: u64,
    /// Halves deleted.
    pub deleted: u64,
    /// Halves ended, since the time of their flows with a backend that left was over.
    pub ended: u64,
    /// What flows name.
    pub in_use: InUse,
    /// How many flows there are.
    pub flows: FlowCounts,
}

/// Goes over the flow tables.
#[derive(Debug)]
pub struct Expiry {
    flows_v4: Map,
    flows_v6: Map,
    embryonic_v4: Map,
    embryonic_v6: Map,
    members: Map,
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
            members: open(names::MEMBERS)?,
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
        self.note_embryonic(&mut in_use, &mut FlowCounts::default())?;
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

    /// One pass: deletes what an earlier pass condemned and nobody met since, condemns what is idle, ends
    /// the flows of `overdue`.
    ///
    /// # Errors
    ///
    /// If a table cannot be read or the program cannot be run. What was done stays done.
    pub fn pass(&mut self, overdue: &BTreeSet<MemberKey>) -> io::Result<Pass> {
        let pass = self.pass_over_flows(overdue)?;
        self.next_hops.retire(&pass.in_use.next_hops)?;
        Ok(pass)
    }

    /// As [`Self::pass`], but leaves next hops alone: two processes must not give one back. What it does to
    /// flows is compared before it is done, so that an agent may start meanwhile.
    ///
    /// # Errors
    ///
    /// As [`Self::pass`].
    pub fn pass_over_flows(&self, overdue: &BTreeSet<MemberKey>) -> io::Result<Pass> {
        let mut pass = Pass::default();
        // A flow moves from embryonic to established: read in this order, it is seen once at least.
        self.note_embryonic(&mut pass.in_use, &mut pass.flows)?;
        self.pass_over::<Flow4, Entry4, Idle4>(&self.flows_v4, overdue, &mut pass)?;
        self.pass_over::<Flow6, Entry6, Idle6>(&self.flows_v6, overdue, &mut pass)?;
        Ok(pass)
    }

    fn note_embryonic(&self, in_use: &mut InUse, counts: &mut FlowCounts) -> io::Result<()> {
        self.embryonic_v4
            .for_each_batch::<Flow4, Entry4>(|flows, entries| {
                in_use.note_all(flows, entries);
                counts.note_embryonic(Family::V4, flows, entries);
            })?;
        self.embryonic_v6
            .for_each_batch::<Flow6, Entry6>(|flows, entries| {
                in_use.note_all(flows, entries);
                counts.note_embryonic(Family::V6, flows, entries);
            })
    }

    fn pass_over<F, E, R>(
        &self,
        table: &Map,
        overdue: &BTreeSet<MemberKey>,
        pass: &mut Pass,
    ) -> io::Result<()>
    where
        F: Flow<Address: Into<Address>> + Wire,
        E: Entry<Flow = F> + Wire,
        R: Record<F>,
    {
        let now = self.tick()?;
        let (mut condemned, mut deleted, mut ended) = (Vec::new(), Vec::new(), Vec::new());
        let mut counted = Vec::new();
        let mut failure = None;
        table.for_each_batch::<F, E>(|flows, entries| {
            pass.halves += flows.len() as u64;
            for (flow, entry) in flows.iter().zip(entries) {
                pass.in_use.note(flow, entry);
                pass.flows.note_established(flow, entry);
                let half = entry.head();
                let is_open = !state::is_closed(half.state());
                if is_open && !overdue.is_empty() && overdue.contains(&member(entry)) {
                    // The other half goes with it.
                    if entry.flags() & flag::REVERSE == 0 {
                        ended.push((member(entry), R::new(*flow, half)));
                    }
                    continue;
                }
                // A flow with packets in this tick counts its traffic itself.
                if entry.pending().packets() != 0 && ticks_since(now, half.stamp()) != 0 {
                    counted.push(R::new(*flow, half));
                }
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
        let ended = self.still_overdue(overdue, ended)?;
        pass.ended += self.run(operation::END, &ended)?;
        pass.deleted += self.run(operation::DELETE, &deleted)?;
        pass.condemned += self.run(operation::CONDEMN, &condemned)?;
        self.run(operation::COUNT, &counted)?;
        failure.map_or(Ok(()), Err)
    }

    /// Leaves out what is at a backend that came back since the pass began: its new flows are welcome.
    fn still_overdue<R>(
        &self,
        overdue: &BTreeSet<MemberKey>,
        ended: Vec<(MemberKey, R)>,
    ) -> io::Result<Vec<R>> {
        let mut back = BTreeSet::new();
        for key in overdue {
            let member = self.members.lookup::<MemberKey, Member>(key)?;
            if member.is_some_and(|member| member.flags & member_flag::SELECTED != 0) {
                back.insert(*key);
            }
        }
        let ended = ended.into_iter().filter(|(key, _)| !back.contains(key));
        Ok(ended.map(|(_, record)| record).collect())
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
    pub(super) const END: u8 = 3;
    pub(super) const COUNT: u8 = 4;
}
