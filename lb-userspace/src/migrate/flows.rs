//! Flows, carried over half by half.

use std::{collections::HashSet, hash::Hash};

use lb_common::{
    addr::{Addr4, Addr6},
    conntrack::{Closing4, Closing6, Entry, Entry4, Entry6, Route, flag, state, ticks_since},
    control::Control,
    flow::{Flow, Flow4, Flow6, filter_position4, filter_position6, protocol},
    names::{self, flow_use},
    wire::Wire,
};
use tracing::warn;

use super::{
    MigrateError, io_error,
    tables::{Pair, is_lru},
};
use crate::{
    kernel::{Map, Mapping, from_bytes},
    pins::PinDirectory,
};

/// Fields without which a half is no half.
const REQUIRED: [&str; 9] = [
    "head",
    "note",
    "source",
    "destination",
    "source_port",
    "destination_port",
    "flags",
    "backend",
    "service",
];

/// A half as the new layout shall have it: the same flow, whose route is looked up at its next packet,
/// since next hops and route generations are each layout's own, as is what was forwarded. It is condemned no
/// longer: the packet that takes the mark away may have met the old layout after the copy.
fn carried<E: Entry>(mut half: E, generation: u16) -> E {
    let head = half.head();
    half.set_head(head.touched(head.state() & !state::CONDEMNED, head.stamp()));
    half.set_route(Route::new(head.identity(), 0, 0, generation));
    half.set_flags(half.flags());
    half
}

/// What packets of a half are known by: the addresses whose bits the filter must have.
fn known_by<F: Flow>(flow: &F, half: &impl Entry<Flow = F>) -> [Option<F::Address>; 2] {
    let reverse = half.flags() & flag::REVERSE != 0;
    let translated = half.flags() & flag::FULL_NAT != 0;
    // The client's address in a reply needs no bit; an SNAT address does.
    [
        reverse.then(|| flow.source()),
        (!reverse || translated).then(|| flow.destination()),
    ]
}

/// Whether a half that only the new layout has must go: the old one ended it meanwhile. Flows of the
/// node's stack are the agent's own entries.
fn is_gone(half: &impl Entry, seen: bool) -> bool {
    !seen && half.flags() & flag::PASS == 0
}

/// An element of `CLOSING_V4` or `CLOSING_V6`.
pub(super) trait Closing<F>: Wire {
    fn new(flow: F, identity: u32, since: u32) -> Self;
}

impl Closing<Flow4> for Closing4 {
    fn new(flow: Flow4, identity: u32, since: u32) -> Self {
        Self {
            flow,
            identity,
            since,
        }
    }
}

impl Closing<Flow6> for Closing6 {
    fn new(flow: Flow6, identity: u32, since: u32) -> Self {
        Self {
            flow,
            identity,
            since,
        }
    }
}

/// An address of either family, and where it stands in the filter.
pub(super) trait Filtered: Copy {
    fn position(self) -> (u32, u32);
}

impl Filtered for Addr4 {
    fn position(self) -> (u32, u32) {
        filter_position4(self)
    }
}

impl Filtered for Addr6 {
    fn position(self) -> (u32, u32) {
        filter_position6(self)
    }
}

/// The flow tables of both layouts.
#[derive(Debug)]
pub(super) struct Flows {
    v4: Family,
    v6: Family,
    uses: Map,
    control: Map,
    filter: Mapping,
}

#[derive(Debug)]
struct Family {
    embryonic: Pair,
    established: Pair,
    closing: Map,
    /// Elements of `FLOW_USE`: all, UDP.
    uses: [u32; 2],
}

impl Flows {
    pub(super) fn open(old: &PinDirectory, new: &PinDirectory) -> Result<Self, MigrateError> {
        let map = |name: &str| {
            Map::open_pinned(&new.map(name)).map_err(io_error(format!("open map {name}")))
        };
        let pair = |name: &'static str| {
            Pair::open(name, (old, new), &REQUIRED)?.ok_or_else(|| MigrateError::NoTable {
                layout: old.hash().to_owned(),
                table: name,
            })
        };
        let filter = Mapping::new(&map(names::ADDRESS_FILTER)?);
        Ok(Self {
            v4: Family {
                embryonic: pair(names::EMBRYONIC_V4)?,
                established: pair(names::FLOWS_V4)?,
                closing: map(names::CLOSING_V4)?,
                uses: [flow_use::V4, flow_use::UDP_V4],
            },
            v6: Family {
                embryonic: pair(names::EMBRYONIC_V6)?,
                established: pair(names::FLOWS_V6)?,
                closing: map(names::CLOSING_V6)?,
                uses: [flow_use::V6, flow_use::UDP_V6],
            },
            uses: map(names::FLOW_USE)?,
            control: map(names::CONTROL)?,
            filter: filter.map_err(io_error("map ADDRESS_FILTER into memory"))?,
        })
    }

    /// Carries over what is there, while the old layout goes on. Returns the number of halves.
    pub(super) fn copy(&self) -> Result<usize, MigrateError> {
        let v4 = self.copy_family::<Flow4, Entry4>(&self.v4)?;
        Ok(v4 + self.copy_family::<Flow6, Entry6>(&self.v6)?)
    }

    fn copy_family<F, E>(&self, family: &Family) -> Result<usize, MigrateError>
    where
        F: Flow<Address: Filtered> + Hash + Wire,
        E: Entry<Flow = F> + Wire,
    {
        let [embryonic, established] = self.read_family::<F, E>(family)?;
        embryonic.write(&family.embryonic)?;
        established.write(&family.established)?;
        Ok(embryonic.flows.len() + established.flows.len())
    }

    /// Makes the new tables what the old ones are, which nobody changes now. Returns the number of halves.
    pub(super) fn finish(&self, now: u32) -> Result<usize, MigrateError> {
        let v4 = self.finish_family::<Flow4, Entry4, Closing4>(&self.v4, now)?;
        let v6 = self.finish_family::<Flow6, Entry6, Closing6>(&self.v6, now)?;
        Ok(v4 + v6)
    }

    /// Embryonic before established: a flow that is promoted between the two is in one of them.
    fn read_family<F, E>(&self, family: &Family) -> Result<[Halves<F, E>; 2], MigrateError>
    where
        F: Flow<Address: Filtered> + Hash + Wire,
        E: Entry<Flow = F> + Wire,
    {
        Ok([
            self.read::<F, E>(&family.embryonic)?,
            self.read::<F, E>(&family.established)?,
        ])
    }

    fn finish_family<F, E, C>(&self, family: &Family, now: u32) -> Result<usize, MigrateError>
    where
        F: Flow<Address: Filtered> + Hash + Wire,
        E: Entry<Flow = F> + Wire,
        C: Closing<F>,
    {
        let [embryonic, established] = self.read_family::<F, E>(family)?;
        // What ended makes room before what began comes in.
        sweep::<F, E>(&family.embryonic, &embryonic.flows)?;
        let of_the_stack = sweep::<F, E>(&family.established, &established.flows)?;
        embryonic.write(&family.embryonic)?;
        established.write(&family.established)?;
        let there = established.flows.iter().zip(&established.halves);
        let closed = there.filter(|(_, half)| half.head().state() & state::QUEUED != 0);
        let mut closed: Vec<_> = closed.map(|(flow, half)| (*flow, half.head())).collect();
        let udp = established.flows.iter();
        let udp = udp.filter(|flow| flow.protocol() == protocol::UDP).count();
        // Also what an earlier attempt put there.
        let emptied = std::iter::from_fn(|| family.closing.pop::<C>().transpose());
        emptied
            .take(family.closing.info().max_entries as usize)
            .try_for_each(|popped| popped.map(drop))
            .map_err(io_error("empty the queue of closed flows"))?;
        // The longest closed first, as they would stand in the queue.
        closed.sort_by_key(|(_, head)| std::cmp::Reverse(ticks_since(now, head.stamp())));
        for (flow, head) in closed {
            let closing = C::new(flow, head.identity(), head.stamp());
            if let Err(error) = family.closing.push(&closing) {
                warn!(%error, "a closed flow leaves when it is idle");
                break;
            }
        }
        for (index, count) in family.uses.iter().zip([established.flows.len(), udp]) {
            let count = (count + of_the_stack) as u64;
            let written = self.uses.update(index, &count);
            written.map_err(io_error(format!("write {}", names::FLOW_USE)))?;
        }
        Ok(embryonic.flows.len() + established.flows.len())
    }

    /// Reads an old table, and marks in our filter what its flows are known by.
    fn read<F, E>(&self, pair: &Pair) -> Result<Halves<F, E>, MigrateError>
    where
        F: Flow<Address: Filtered> + Wire,
        E: Entry<Flow = F> + Wire,
    {
        let generation = self.stale_generation()?;
        let (mut flows, mut halves, mut failure) = (Vec::new(), Vec::new(), None);
        pair.for_each(|elements| {
            for (flow, half) in elements {
                let (Some(flow), Some(half)) = (from_bytes::<F>(flow), from_bytes::<E>(half))
                else {
                    continue;
                };
                // On its way out.
                if half.head().state() == state::DEAD {
                    continue;
                }
                let half = carried(half, generation);
                for address in known_by(&flow, &half).into_iter().flatten() {
                    let (word, bit) = address.position();
                    let marked = self.filter.or_u64(word as usize * 8, 1 << bit);
                    failure = failure.take().or(marked.err());
                }
                flows.push(flow);
                halves.push(half);
            }
        })?;
        failure.map_or(Ok(Halves { flows, halves }), |error| {
            Err(io_error("mark ADDRESS_FILTER")(error))
        })
    }

    /// A route generation no flow was looked up at.
    fn stale_generation(&self) -> Result<u16, MigrateError> {
        let control = self.control.lookup::<u32, Control>(&0);
        let control = control.map_err(io_error("read CONTROL"))?;
        let now = control.unwrap_or_default().route_generation;
        let [low, high, ..] = now.wrapping_sub(1).to_le_bytes();
        Ok(u16::from_le_bytes([low, high]))
    }
}

/// A table's halves as the new layout shall have them.
struct Halves<F, E> {
    flows: Vec<F>,
    halves: Vec<E>,
}

impl<F: Wire, E: Wire> Halves<F, E> {
    fn write(&self, pair: &Pair) -> Result<(), MigrateError> {
        let info = pair.new.info();
        if !is_lru(info.kind) && self.flows.len() > info.max_entries as usize {
            return Err(MigrateError::TooSmall {
                table: pair.name,
                capacity: info.max_entries,
                needed: self.flows.len() as u64,
            });
        }
        let written = pair.new.update_batch(&self.flows, &self.halves);
        written.map_err(io_error(format!("write {}", pair.name)))
    }
}

/// Takes out of a new table what the old one does not have. Returns how many halves of the node's stack stay
/// although it does not have them.
fn sweep<F, E>(pair: &Pair, old: &[F]) -> Result<usize, MigrateError>
where
    F: Flow + Hash + Wire,
    E: Entry<Flow = F> + Wire,
{
    let old: HashSet<&F> = old.iter().collect();
    let (mut gone, mut ours) = (Vec::new(), 0);
    let swept = pair.new.for_each_batch::<F, E>(|flows, halves| {
        for (flow, half) in flows.iter().zip(halves) {
            let there = old.contains(flow);
            if is_gone(half, there) {
                gone.push(*flow);
            } else if !there {
                ours += 1;
            }
        }
    });
    swept
        .and_then(|()| pair.new.delete_batch(&gone))
        .map_err(io_error(format!("sweep {}", pair.name)))?;
    Ok(ours)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use lb_common::{
        addr::Be16,
        conntrack::{Head, Note, Pending},
    };

    use super::*;

    fn half(flags: u32) -> Entry4 {
        let written = flow();
        let mut half = Entry4::new(
            Head::new(7, state::FIN | state::QUEUED, 99),
            &written,
            flags,
            3,
            4,
        );
        half.set_route(Route::new(7, 12, 1_500, 8));
        half.set_note(Note::new(7, 1_234));
        half
    }

    fn flow() -> Flow4 {
        Flow4 {
            source: Ipv4Addr::new(198, 51, 100, 7).into(),
            destination: Ipv4Addr::new(192, 0, 2, 1).into(),
            source_port: Be16::new(40_000),
            destination_port: Be16::new(443),
            protocol: u32::from(protocol::TCP),
        }
    }

    #[test]
    fn everything_of_a_half_is_carried_but_its_route_and_what_is_pending() {
        let before = half(flag::FULL_NAT | flag::REVERSE);
        let after = carried(before, 41);
        assert_eq!(after.route(), Route::new(7, 0, 0, 41));
        let mut same = after;
        same.set_route(before.route());
        assert_eq!(same, before);
        let mut condemned = before;
        let head = before.head();
        condemned.set_head(head.touched(head.state() | state::CONDEMNED, head.stamp()));
        assert_eq!(carried(condemned, 41), after);
        let mut busy = before;
        busy.flags += Pending::packet(60);
        assert_eq!(carried(busy, 41), after);
    }

    #[test]
    fn the_filter_gets_what_packets_of_a_half_are_known_by() {
        let (source, destination) = (Some(flow().source()), Some(flow().destination()));
        for (name, flags, expected) in [
            ("forward", 0, [None, destination]),
            ("forward, full-nat", flag::FULL_NAT, [None, destination]),
            ("reverse", flag::REVERSE, [source, None]),
            (
                "reverse, full-nat",
                flag::REVERSE | flag::FULL_NAT,
                [source, destination],
            ),
        ] {
            assert_eq!(known_by(&flow(), &half(flags)), expected, "{name}");
        }
    }

    #[test]
    fn what_the_old_layout_ended_goes() {
        for (name, flags, seen, gone) in [
            ("there", 0, true, false),
            ("ended", 0, false, true),
            ("imported from the stack since", flag::PASS, false, false),
            ("of the stack, there", flag::PASS, true, false),
        ] {
            assert_eq!(is_gone(&half(flags), seen), gone, "{name}");
        }
    }
}
