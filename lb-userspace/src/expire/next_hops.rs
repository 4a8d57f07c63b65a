//! Next-hop indices no flow uses: taken out of reach, and given back a pass later.
//!
//! The data path takes indices and never gives one back. An index is unlinked from `NEXT_HOP_INDEX`
//! first, and the route generation raised, so that no new flow finds it there or among the routes of the
//! tick; flows that found it before show in the next pass.

use std::{collections::BTreeSet, io, mem::offset_of};

use lb_common::{
    control::Control,
    device::{NextHop, NextHopKey},
    names,
};

use crate::{
    kernel::{self, Map, Mapping},
    pins::PinDirectory,
};

/// The tables of next hops.
#[derive(Debug)]
pub(super) struct NextHops {
    index: Map,
    hops: Map,
    free: Map,
    control: Mapping,
    /// Unlinked, and not yet free.
    retiring: BTreeSet<u32>,
}

impl NextHops {
    pub(super) fn open(pins: &PinDirectory) -> io::Result<Self> {
        let open = |name: &str| Map::open_pinned(&pins.map(name));
        Ok(Self {
            index: open(names::NEXT_HOP_INDEX)?,
            hops: open(names::NEXT_HOPS)?,
            free: open(names::NEXT_HOP_FREE)?,
            control: Mapping::new(&open(names::CONTROL)?)?,
            retiring: BTreeSet::new(),
        })
    }

    /// `in_use` are the indices flows named in a scan that began after the last call returned.
    pub(super) fn retire(&mut self, in_use: &BTreeSet<u32>) -> io::Result<()> {
        for index in std::mem::take(&mut self.retiring) {
            if in_use.contains(&index) {
                self.retiring.insert(index);
                continue;
            }
            self.hops.update(&index, &NextHop::default())?;
            self.free.push(&index)?;
        }
        let linked = self.index.read_all::<NextHopKey, u32>()?;
        let unlinked = surplus(&linked, in_use, self.hops.info().max_entries);
        if unlinked.is_empty() {
            return Ok(());
        }
        let deleted = unlinked.iter().try_for_each(|(key, index)| {
            self.index.delete(key)?;
            self.retiring.insert(*index);
            Ok(())
        });
        // Also after a failure: what was unlinked before it is given back by the next call.
        self.control
            .add_u32(offset_of!(Control, route_generation), 1)?;
        // Whoever looked the index up before stores it in a flow before this returns.
        kernel::membarrier()?;
        deleted
    }
}

/// What to unlink: nothing while there is plenty of room, since a neighbour comes back.
fn surplus(
    linked: &[(NextHopKey, u32)],
    in_use: &BTreeSet<u32>,
    capacity: u32,
) -> Vec<(NextHopKey, u32)> {
    if linked.len() < capacity as usize / 2 {
        return Vec::new();
    }
    linked
        .iter()
        .filter(|(_, index)| !in_use.contains(index))
        .copied()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_unused_indices_go_and_only_when_room_is_short() {
        let linked: Vec<_> = (1..=8)
            .map(|index| {
                (
                    NextHopKey {
                        ifindex: index,
                        ..NextHopKey::default()
                    },
                    index,
                )
            })
            .collect();
        let in_use = BTreeSet::from([1, 3, 5]);
        assert!(surplus(&linked, &in_use, 18).is_empty());
        let gone: Vec<_> = surplus(&linked, &in_use, 16)
            .iter()
            .map(|(_, index)| *index)
            .collect();
        assert_eq!(gone, [2, 4, 6, 7, 8]);
    }
}
