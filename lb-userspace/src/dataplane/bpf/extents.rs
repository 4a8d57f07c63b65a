//! The arena of Maglev tables: writing an extent only when no program reads it any more.

use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc,
        atomic::{Ordering, fence},
    },
    thread::JoinHandle,
    time::Duration,
};

use lb_common::{maglev::SLOTS_PER_ELEMENT, names};
use tracing::warn;

use super::{BpfDataplane, full, kernel_error};
use crate::{dataplane::DataplaneError, kernel};

/// Extents given back in which a program may still be reading.
#[derive(Debug)]
pub(super) struct Freed {
    /// An earlier process may have freed any.
    unknown: bool,
    /// First element and number of elements of each.
    extents: BTreeMap<u32, u32>,
    settling: Option<Settling>,
}

/// Waiting aside until nobody reads these any more.
#[derive(Debug)]
struct Settling {
    unknown: bool,
    extents: BTreeMap<u32, u32>,
    readers_gone: JoinHandle<io::Result<()>>,
}

impl Freed {
    /// As an earlier process left it.
    pub(super) fn unknown() -> Self {
        let mut freed = Self {
            unknown: true,
            extents: BTreeMap::new(),
            settling: None,
        };
        freed.settle();
        freed
    }

    /// Those of which it is not known yet that nobody reads them.
    fn unsettled(&mut self) -> &BTreeMap<u32, u32> {
        if let Some(settling) = self.settling.take_if(|s| s.readers_gone.is_finished()) {
            match settling.readers_gone.join() {
                Ok(Ok(())) => {
                    self.unknown &= !settling.unknown;
                    self.extents
                        .retain(|first, count| settling.extents.get(first) != Some(count));
                }
                Ok(Err(error)) => warn!(%error, "wait for readers of the Maglev tables"),
                Err(_panic) => warn!("wait for readers of the Maglev tables: it panicked"),
            }
        }
        self.settle();
        &self.extents
    }

    /// Begins to wait aside for the readers of what is free now.
    pub(super) fn settle(&mut self) {
        let nothing = !self.unknown && self.extents.is_empty();
        if nothing || self.settling.is_some() {
            return;
        }
        let wait = std::thread::Builder::new().name("sluice-settle".to_owned());
        match wait.spawn(wait_for_readers) {
            Ok(readers_gone) => {
                self.settling = Some(Settling {
                    unknown: self.unknown,
                    extents: self.extents.clone(),
                    readers_gone,
                });
            }
            Err(error) => warn!(%error, "no thread waits for readers of the Maglev tables"),
        }
    }

    fn free(&mut self, first: u32, count: u32) {
        // Freed again while its last readers are waited for: those are not the last.
        if let Some(settling) = &mut self.settling {
            settling.extents.remove(&first);
        }
        self.extents.insert(first, count);
    }

    fn overlaps(&self, first: u32, count: u32) -> bool {
        // They never overlap one another: the last one before the end reaches furthest.
        let last = self.extents.range(..first + count).next_back();
        self.unknown || last.is_some_and(|(start, length)| first < start + length)
    }

    /// Nobody reads any of it.
    fn clear(&mut self) {
        self.unknown = false;
        self.extents.clear();
        if let Some(settling) = &mut self.settling {
            settling.extents.clear();
        }
    }
}

impl BpfDataplane {
    pub(super) fn write_extent(
        &mut self,
        first: u32,
        slots: &Arc<[u32]>,
    ) -> Result<(), DataplaneError> {
        let count = elements(slots.len());
        let what = || format!("write extent {first} of {} slots", slots.len());
        self.await_readers(first, count)
            .map_err(|error| kernel_error(what(), error))?;
        let padded = count as usize * SLOTS_PER_ELEMENT as usize;
        let offset = self.maps.slots.offset(first);
        if offset + padded * size_of::<u32>() > self.maps.slots.len() {
            return Err(full(what(), names::SLOTS, self.maps.slots_capacity));
        }
        let written = self.maps.slots.write_u32s(offset, slots, padded);
        written.map_err(|error| kernel_error(what(), error))?;
        fence(Ordering::SeqCst);
        self.extents.insert(first, count);
        Ok(())
    }

    /// Extents given back which a program may still be reading: first element and elements. Writing
    /// there waits for it; in a moment it need not.
    pub fn unsettled(&mut self) -> &BTreeMap<u32, u32> {
        self.freed.unsettled()
    }

    /// Waits until nobody reads what was freed, if the extent about to be written overlaps it. One
    /// wait serves everything freed before it.
    fn await_readers(&mut self, first: u32, count: u32) -> io::Result<()> {
        if self.freed.overlaps(first, count) {
            wait_for_readers()?;
            self.freed.clear();
        }
        Ok(())
    }

    pub(super) fn free_extent(&mut self, first: u32) {
        if let Some(count) = self.extents.remove(&first) {
            self.freed.free(first, count);
        } else {
            warn!(first, "an extent of unknown length is freed");
            self.freed = Freed::unknown();
        }
    }
}

/// Waits until every program that runs now has ended.
///
/// # Errors
///
/// If the kernel cannot tell.
pub(crate) fn wait_for_readers() -> io::Result<()> {
    match kernel::membarrier() {
        // A kernel started with nohz_full has no barrier for all CPUs. A program's run takes
        // microseconds; this is as much longer as a stolen virtual CPU may need.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            std::thread::sleep(Duration::from_millis(200));
            Ok(())
        }
        result => result,
    }
}

/// Elements of `SLOTS` an extent of so many slots takes.
pub(super) fn elements(slots: usize) -> u32 {
    u32::try_from(slots)
        .unwrap_or(u32::MAX)
        .div_ceil(SLOTS_PER_ELEMENT)
}
