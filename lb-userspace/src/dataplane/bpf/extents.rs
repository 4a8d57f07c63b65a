//! The arena of Maglev tables: writing an extent only when no program reads it any more.

use std::{
    io,
    sync::{
        Arc,
        atomic::{Ordering, fence},
    },
    time::Duration,
};

use lb_common::{maglev::SLOTS_PER_ELEMENT, names};
use tracing::warn;

use super::{BpfDataplane, full, kernel_error};
use crate::{dataplane::DataplaneError, kernel};

/// Extents given back in which a program may still be reading.
#[derive(Debug)]
pub(super) enum Freed {
    /// An earlier process may have freed any.
    Unknown,
    /// These: first element and number of elements.
    Known(Vec<(u32, u32)>),
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

    /// Waits until nobody reads what was freed, if the extent about to be written overlaps it. One
    /// wait serves everything freed before it.
    fn await_readers(&mut self, first: u32, count: u32) -> io::Result<()> {
        let overlaps = match &self.freed {
            Freed::Unknown => true,
            Freed::Known(freed) => freed
                .iter()
                .any(|(start, length)| first < start + length && *start < first + count),
        };
        if !overlaps {
            return Ok(());
        }
        match kernel::membarrier() {
            // A kernel started with nohz_full has no barrier for all CPUs. A program's run takes
            // microseconds; this is as much longer as a stolen virtual CPU may need.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                std::thread::sleep(Duration::from_millis(200));
            }
            result => result?,
        }
        self.freed = Freed::Known(Vec::new());
        Ok(())
    }

    pub(super) fn free_extent(&mut self, first: u32) {
        let Some(count) = self.extents.remove(&first) else {
            warn!(first, "an extent of unknown length is freed");
            self.freed = Freed::Unknown;
            return;
        };
        if let Freed::Known(freed) = &mut self.freed {
            freed.push((first, count));
        }
    }
}

/// Elements of `SLOTS` an extent of so many slots takes.
pub(super) fn elements(slots: usize) -> u32 {
    u32::try_from(slots)
        .unwrap_or(u32::MAX)
        .div_ceil(SLOTS_PER_ELEMENT)
}
