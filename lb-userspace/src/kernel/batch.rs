//! Many elements of a map in one call.

use std::{io, os::fd::AsFd as _};

use lb_common::wire::Wire;

use super::{Map, address, bpf, command, invalid, map::found, raw, seam, slice, slice_mut, zeroed};

/// Elements asked for in one batch call: large enough to make the call cheap, small enough for L2.
const BATCH: usize = 4096;
/// Elements of a per-CPU array written in one batch call: each has a value for every CPU.
const ZEROS: usize = 256;
/// The kernel's `ENOTSUPP`, which libc does not know: a map type without the operation.
const ENOTSUPP: i32 = 524;

/// How many values of a type the key and the value of one element are.
#[derive(Clone, Copy)]
pub(super) struct Units {
    pub(super) key: usize,
    pub(super) value: usize,
}

/// A type each.
const ONE: Units = Units { key: 1, value: 1 };

impl Map {
    /// Lends every element to `visit`, in batches. Elements written meanwhile may be missed, and
    /// those of a hash that moves may be seen twice.
    ///
    /// # Errors
    ///
    /// As [`Self::lookup`].
    pub fn for_each_batch<K: Wire, V: Wire>(
        &self,
        mut visit: impl FnMut(&[K], &[V]),
    ) -> io::Result<()> {
        self.check::<K>()?;
        self.check_value::<V>()?;
        self.batches(ONE, &mut visit)
    }

    /// Reads every element; see [`Self::for_each_batch`].
    ///
    /// # Errors
    ///
    /// As [`Self::lookup`].
    pub fn read_all<K: Wire, V: Wire>(&self) -> io::Result<Vec<(K, V)>> {
        let mut all = Vec::new();
        self.for_each_batch::<K, V>(|keys, values| {
            all.extend(keys.iter().copied().zip(values.iter().copied()));
        })?;
        Ok(all)
    }

    /// Lends every element of a per-CPU array to `visit`: index, and one value for each CPU.
    ///
    /// # Errors
    ///
    /// As [`Self::lookup`].
    pub fn for_each_per_cpu<V: Wire>(&self, mut visit: impl FnMut(u32, &[V])) -> io::Result<()> {
        self.check::<u32>()?;
        let cpus = self.check_per_cpu::<V>()?;
        let units = Units { value: cpus, ..ONE };
        self.batches(units, &mut |keys: &[u32], values: &[V]| {
            for (key, values) in keys.iter().zip(values.chunks_exact(cpus)) {
                visit(*key, values);
            }
        })
    }

    /// Writes many elements in as few calls as the kernel allows.
    ///
    /// # Errors
    ///
    /// The first failure; elements before it are written. `keys` and `values` must have one length.
    pub fn update_batch<K: Wire, V: Wire>(&self, keys: &[K], values: &[V]) -> io::Result<()> {
        self.check::<K>()?;
        self.check_value::<V>()?;
        if keys.len() != values.len() {
            return Err(invalid(format!(
                "{} keys, {} values",
                keys.len(),
                values.len()
            )));
        }
        if seam::is_watched() {
            let mut both = keys.iter().zip(values);
            return both.try_for_each(|(key, value)| self.update(key, value));
        }
        for (keys, values) in keys.chunks(BATCH).zip(values.chunks(BATCH)) {
            self.write(keys, values, ONE)?;
        }
        Ok(())
    }

    /// Lends some elements of a per-CPU array to `visit`: index, and one value for each CPU. Indices
    /// beyond the array are left out.
    ///
    /// # Errors
    ///
    /// As [`Self::lookup`].
    pub fn for_some_per_cpu<V: Wire>(
        &self,
        indices: impl IntoIterator<Item = u32>,
        mut visit: impl FnMut(u32, &[V]),
    ) -> io::Result<()> {
        self.check::<u32>()?;
        let cpus = self.check_per_cpu::<V>()?;
        let mut values = vec![zeroed::<V>(); cpus];
        for index in indices {
            let mut attr = self.element(address(&index), slice_mut(&mut values), 0);
            // SAFETY: `values` holds one value for each possible CPU, each a multiple of 8 bytes.
            if found(unsafe { bpf(command::LOOKUP_ELEM, &mut attr) })? {
                visit(index, &values);
            }
        }
        Ok(())
    }

    /// Makes elements of a per-CPU array zero, on every CPU. Indices beyond the array are left out.
    ///
    /// # Errors
    ///
    /// As [`Self::lookup`].
    pub fn zero_per_cpu<V: Wire>(&self, indices: &[u32]) -> io::Result<()> {
        if indices.is_empty() {
            return Ok(());
        }
        self.check::<u32>()?;
        let cpus = self.check_per_cpu::<V>()?;
        let capacity = self.info().max_entries;
        let indices: Vec<u32> = indices.iter().copied().filter(|i| *i < capacity).collect();
        let zeros = vec![zeroed::<V>(); indices.len().min(ZEROS) * cpus];
        for chunk in indices.chunks(ZEROS) {
            let zeros = zeros.get(..chunk.len() * cpus).unwrap_or_default();
            self.write(chunk, zeros, Units { value: cpus, ..ONE })?;
        }
        Ok(())
    }

    /// Removes many elements; missing ones are not an error.
    ///
    /// # Errors
    ///
    /// The first other failure; elements before it are removed.
    pub fn delete_batch<K: Wire>(&self, keys: &[K]) -> io::Result<()> {
        self.check::<K>()?;
        if seam::is_watched() {
            let mut keys = keys.iter();
            return keys.try_for_each(|key| self.delete(key).map(drop));
        }
        let mut rest = keys;
        while !rest.is_empty() {
            let chunk = rest.get(..BATCH.min(rest.len())).unwrap_or(rest);
            let mut attr = self.batch(slice(chunk), 0, chunk.len());
            // SAFETY: the array holds `count` keys of the size the kernel uses.
            let result = unsafe { bpf(command::DELETE_BATCH, &mut attr) };
            let done = (attr.count as usize).min(chunk.len());
            match result {
                Ok(_) => rest = rest.get(chunk.len()..).unwrap_or_default(),
                // The kernel stops at a missing key and tells how many it did before it.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                    rest = rest.get(done + 1..).unwrap_or_default();
                }
                Err(error) if is_unsupported(&error) => {
                    for key in chunk {
                        self.delete(key)?;
                    }
                    rest = rest.get(chunk.len()..).unwrap_or_default();
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Writes elements by one batch call, else one by one. `units` have the sizes the kernel uses.
    pub(super) fn write<K: Wire, V: Wire>(
        &self,
        keys: &[K],
        values: &[V],
        units: Units,
    ) -> io::Result<()> {
        let count = keys.len() / units.key;
        if keys.len() != count * units.key || values.len() != count * units.value {
            return Err(invalid(format!(
                "{} and {} of what an element has {} and {} of",
                keys.len(),
                values.len(),
                units.key,
                units.value
            )));
        }
        let mut attr = self.batch(slice(keys), slice(values), count);
        // SAFETY: both arrays hold `count` elements of the sizes the kernel uses.
        match unsafe { bpf(command::UPDATE_BATCH, &mut attr) } {
            Ok(_) => {}
            Err(error) if is_unsupported(&error) => {
                let values = values.chunks_exact(units.value);
                for (key, value) in keys.chunks_exact(units.key).zip(values) {
                    let mut attr = self.element(slice(key), slice(value), 0);
                    // SAFETY: a key and a value of the sizes the kernel uses.
                    unsafe { bpf(command::UPDATE_ELEM, &mut attr) }?;
                }
            }
            Err(error) => return Err(error),
        }
        seam::written(self.info().id);
        Ok(())
    }

    /// Walks the map by batch calls, else key by key. `units` have the sizes the kernel uses.
    pub(super) fn batches<K: Wire, V: Wire>(
        &self,
        units: Units,
        visit: &mut impl FnMut(&[K], &[V]),
    ) -> io::Result<()> {
        let mut room = BATCH.min(self.info().max_entries as usize).max(64);
        let mut keys = vec![zeroed::<K>(); room * units.key];
        let mut values = vec![zeroed::<V>(); room * units.value];
        // The kernel keeps its place here: a bucket number, or a whole key.
        let mut place = vec![0_u64; (size_of::<K>() * units.key).div_ceil(8).max(1)];
        let mut next = place.clone();
        let mut first = true;
        loop {
            let mut attr = self.batch(slice_mut(&mut keys), slice_mut(&mut values), room);
            attr.in_batch = if first { 0 } else { slice_mut(&mut place) };
            attr.out_batch = slice_mut(&mut next);
            // SAFETY: the arrays hold `room` keys and the values that belong to them; both places
            // hold at least a key and at least the four bytes of a bucket number.
            let result = unsafe { bpf(command::LOOKUP_BATCH, &mut attr) };
            let count = (attr.count as usize).min(room);
            let end = match result {
                Ok(_) => false,
                Err(error) => match error.raw_os_error() {
                    Some(libc::ENOENT) => true,
                    Some(libc::EINTR | libc::EAGAIN) => continue,
                    // One bucket holds more than there is room for.
                    Some(libc::ENOSPC) => {
                        room *= 2;
                        keys.resize(room * units.key, zeroed());
                        values.resize(room * units.value, zeroed());
                        continue;
                    }
                    _ if first && is_unsupported(&error) => {
                        return self.one_by_one(units, visit);
                    }
                    _ => return Err(error),
                },
            };
            let (keys, values) = (
                keys.get(..count * units.key).unwrap_or_default(),
                values.get(..count * units.value).unwrap_or_default(),
            );
            visit(keys, values);
            if end {
                return Ok(());
            }
            std::mem::swap(&mut place, &mut next);
            first = false;
        }
    }

    /// Walks the map key by key, at most twice its capacity: under churn a walk may start over.
    fn one_by_one<K: Wire, V: Wire>(
        &self,
        units: Units,
        visit: &mut impl FnMut(&[K], &[V]),
    ) -> io::Result<()> {
        let mut values = vec![zeroed::<V>(); units.value];
        let mut key: Option<Vec<K>> = None;
        for _ in 0..u64::from(self.info().max_entries) * 2 {
            let mut following = vec![zeroed::<K>(); units.key];
            let previous = key.as_deref().map_or(0, slice);
            let mut attr = self.element(previous, slice_mut(&mut following), 0);
            // SAFETY: both keys have the size the kernel uses, or the first is null: "the first".
            if !found(unsafe { bpf(command::GET_NEXT_KEY, &mut attr) })? {
                return Ok(());
            }
            let mut attr = self.element(slice(&following), slice_mut(&mut values), 0);
            // SAFETY: `values` holds as many values as belong to one key.
            if found(unsafe { bpf(command::LOOKUP_ELEM, &mut attr) })? {
                visit(&following, &values);
            }
            key = Some(following);
        }
        Ok(())
    }

    fn batch(&self, keys: u64, values: u64, count: usize) -> BatchAttr {
        BatchAttr {
            in_batch: 0,
            out_batch: 0,
            keys,
            values,
            count: u32::try_from(count).unwrap_or(u32::MAX),
            map_fd: raw(self.as_fd()),
            elem_flags: 0,
            flags: 0,
        }
    }
}

/// `union bpf_attr`, `BPF_MAP_*_BATCH`.
#[repr(C)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

fn is_unsupported(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EINVAL | libc::EOPNOTSUPP | ENOTSUPP)
    )
}
