//! Tables that are carried over element by element: what the plan decides, and what the data path keeps
//! beside the flows.

use std::{collections::BTreeMap, io, path::Path};

use lb_common::{maglev::SLOTS_PER_ELEMENT, names, service::Selection};

use super::{MigrateError, io_error};
use crate::{
    kernel::{Map, MapInfo, Mapping, from_bytes},
    pins::{
        PinDirectory,
        format::{Conversion, Shape},
    },
    tables::ServiceRecord,
};

/// How a table of a new layout gets its contents.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Fate {
    /// Carried over once: only agents write it.
    Once,
    /// Carried over at the end: the data path writes it.
    AtLast,
    /// Maglev tables: the extents that services name.
    Extents,
    /// Flows: see [`super::flows`].
    Flow,
    /// Follows from the others, from the node's network, or begins empty.
    Made,
}

/// What becomes of each table.
pub(super) const FATES: [(&str, Fate); 38] = [
    (names::FRONTENDS_V4, Fate::Once),
    (names::FRONTENDS_V6, Fate::Once),
    (names::GATEWAY_ENDPOINTS_V4, Fate::Once),
    (names::GATEWAY_ENDPOINTS_V6, Fate::Once),
    (names::SERVICES, Fate::Once),
    (names::SERVICE_NAMES, Fate::Once),
    (names::BACKENDS_V4, Fate::Once),
    (names::BACKENDS_V6, Fate::Once),
    (names::MEMBERS, Fate::Once),
    (names::SLOTS, Fate::Extents),
    (names::FLOWS_V4, Fate::Flow),
    (names::FLOWS_V6, Fate::Flow),
    (names::EMBRYONIC_V4, Fate::Flow),
    (names::EMBRYONIC_V6, Fate::Flow),
    (names::CLOSING_V4, Fate::Flow),
    (names::CLOSING_V6, Fate::Flow),
    (names::FLOW_USE, Fate::Flow),
    (names::AFFINITY, Fate::AtLast),
    (names::SOURCE_RANGES, Fate::Once),
    (names::SOURCE_CLASS, Fate::Once),
    (names::ADDRESSES, Fate::Once),
    (names::ADDRESS_FILTER, Fate::Made),
    (names::NEXT_HOPS, Fate::Made),
    (names::NEXT_HOP_INDEX, Fate::Made),
    (names::NEXT_HOP_FREE, Fate::Made),
    (names::DEVICES, Fate::Made),
    (names::DEVICE_INDEX, Fate::Made),
    (names::SNAT_V4, Fate::Made),
    (names::SNAT_V6, Fate::Made),
    (names::DRAINS, Fate::Once),
    (names::FRAGMENTS, Fate::AtLast),
    (names::CONTROL, Fate::Made),
    (names::COUNTERS, Fate::Made),
    (names::SERVICE_TRAFFIC, Fate::Made),
    (names::BACKEND_TRAFFIC, Fate::Made),
    (names::EVENTS, Fate::Made),
    (names::SCRATCH, Fate::Made),
    (names::REPLY_BUDGET, Fate::Made),
];

/// One table of both layouts.
#[derive(Debug)]
pub(super) struct Pair {
    pub(super) name: &'static str,
    pub(super) old: Map,
    pub(super) new: Map,
    pub(super) keys: Conversion,
    pub(super) values: Conversion,
}

impl Pair {
    /// Opens a table of both; values must have the fields `required`. `None` if the old layout has no
    /// such table.
    pub(super) fn open(
        name: &'static str,
        (old, new): (&PinDirectory, &PinDirectory),
        required: &[&str],
    ) -> Result<Option<Self>, MigrateError> {
        let theirs = old.map(name);
        if !theirs.exists() {
            return Ok(None);
        }
        let (theirs, ours) = (open(&theirs)?, open(&new.map(name))?);
        let format = |source| MigrateError::Format {
            table: name,
            layout: old.hash().to_owned(),
            source,
        };
        let shapes = |map: &Map, path: &Path| {
            let types = map.types().map_err(|source| match source.kind() {
                io::ErrorKind::PermissionDenied => MigrateError::NotPermitted {
                    layout: old.hash().to_owned(),
                },
                _ => io_error(format!("read the types of {}", path.display()))(source),
            })?;
            let types = types.ok_or_else(|| MigrateError::NoTypes(path.to_owned()))?;
            let shape = |id| Shape::read(&types.btf, id).map_err(format);
            Ok::<_, MigrateError>((shape(types.key)?, shape(types.value)?))
        };
        let (old_key, old_value) = shapes(&theirs, &old.map(name))?;
        let (key, value) = shapes(&ours, &new.map(name))?;
        Ok(Some(Self {
            name,
            old: theirs,
            new: ours,
            keys: Conversion::of_keys(&old_key, &key).map_err(format)?,
            values: Conversion::with(&old_value, &value, required).map_err(format)?,
        }))
    }

    /// Calls `visit` with batches of elements in our form, keys and values one after the other.
    pub(super) fn for_each(
        &self,
        mut visit: impl FnMut(&mut dyn Iterator<Item = (&[u8], &[u8])>),
    ) -> Result<(), MigrateError> {
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        let walked = self.old.for_each_raw(|old_keys, old_values| {
            keys.clear();
            values.clear();
            for key in old_keys.chunks_exact(self.keys.from_size().max(1)) {
                self.keys.append(key, &mut keys);
            }
            for value in old_values.chunks_exact(self.values.from_size().max(1)) {
                self.values.append(value, &mut values);
            }
            let keys = keys.chunks_exact(self.keys.to_size().max(1));
            let values = values.chunks_exact(self.values.to_size().max(1));
            visit(&mut keys.zip(values));
        });
        walked.map_err(io_error(format!("read {} of the old layout", self.name)))
    }

    /// Carries every element over. Elements of an array that are zero are those nobody wrote.
    fn copy(&self) -> Result<(), MigrateError> {
        let MapInfo {
            kind, max_entries, ..
        } = *self.new.info();
        let is_array = kind == MapInfo::ARRAY;
        let mut needed = 0_u64;
        let mut failure = None;
        self.for_each(|elements| {
            let (mut keys, mut values) = (Vec::new(), Vec::new());
            for (key, value) in elements {
                if is_array && value.iter().all(|byte| *byte == 0) {
                    continue;
                }
                match from_bytes::<u32>(key).filter(|_| is_array) {
                    Some(index) => needed = needed.max(u64::from(index) + 1),
                    None => needed += 1,
                }
                keys.extend(key);
                values.extend(value);
            }
            // The rest is counted only, to say how much is missing.
            if is_lru(kind) || needed <= u64::from(max_entries) {
                let written = self.new.update_raw(&keys, &values);
                failure = failure.take().or(written.err());
            }
        })?;
        if !is_lru(kind) && needed > u64::from(max_entries) {
            return Err(MigrateError::TooSmall {
                table: self.name,
                capacity: max_entries,
                needed,
            });
        }
        failure.map_or(Ok(()), |error| {
            Err(io_error(format!("write {}", self.name))(error))
        })
    }
}

/// Carries over every table with this fate.
pub(super) fn copy(
    layouts: (&PinDirectory, &PinDirectory),
    wanted: Fate,
) -> Result<(), MigrateError> {
    for (name, _) in FATES.iter().filter(|(_, fate)| *fate == wanted) {
        if let Some(pair) = Pair::open(name, layouts, &[])? {
            pair.copy()?;
        }
    }
    Ok(())
}

/// Carries over the Maglev tables services name. One that cannot be is left out: the plan finds it
/// missing and writes it anew, before any packet looks.
pub(super) fn copy_extents(
    (old, new): (&PinDirectory, &PinDirectory),
    services: &BTreeMap<u32, ServiceRecord>,
) -> Result<(), MigrateError> {
    let (theirs, ours) = (open(&old.map(names::SLOTS))?, open(&new.map(names::SLOTS))?);
    if theirs.info().value_size != ours.info().value_size {
        return Ok(());
    }
    let what = || io_error(format!("map {} into memory", names::SLOTS));
    let theirs = Mapping::read_only(&theirs).map_err(what())?;
    let capacity = ours.info().max_entries;
    let ours = Mapping::new(&ours).map_err(what())?;
    for Selection { element, length } in services
        .values()
        .flat_map(|record| [record.cluster, record.local])
    {
        let last = element.checked_add(length.div_ceil(SLOTS_PER_ELEMENT));
        if length == 0 || last.is_none_or(|last| last > capacity) {
            continue;
        }
        let Some(slots) = theirs.read_u32s(theirs.offset(element), length as usize) else {
            continue;
        };
        let padded = slots.len().next_multiple_of(SLOTS_PER_ELEMENT as usize);
        ours.write_u32s(ours.offset(element), &slots, padded)
            .map_err(io_error(format!("write {}", names::SLOTS)))?;
    }
    Ok(())
}

/// The least recently used make room by themselves.
pub(super) const fn is_lru(kind: u32) -> bool {
    kind == MapInfo::LRU_HASH
}

fn open(path: &Path) -> Result<Map, MigrateError> {
    Map::open_pinned(path).map_err(io_error(format!("open pinned map {}", path.display())))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_table_has_a_fate() {
        let all: BTreeSet<_> = names::MAPS.iter().map(|(name, _)| *name).collect();
        let known: BTreeSet<_> = FATES.iter().map(|(name, _)| *name).collect();
        assert_eq!(known, all);
        assert_eq!(known.len(), FATES.len(), "a table is named twice");
    }
}
