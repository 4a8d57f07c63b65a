//! The calls aya has no safe form of: batched map access, mapped arrays, `membarrier`, test runs.
//!
//! Everything here is an effect without a decision. Sizes are checked against the kernel's own
//! description of a map before a buffer is handed over, so the functions are safe to call with any
//! type: a wrong one is an [`io::ErrorKind::InvalidInput`], never memory corruption.
//!
//! This is the one module of the crate that may say `unsafe`.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
    ptr::NonNull,
    sync::atomic::{AtomicU32, AtomicU64, Ordering, fence},
    time::Duration,
};

use lb_common::wire::Wire;

/// Elements asked for in one batch call: large enough to make the call cheap, small enough for L2.
const BATCH: usize = 4096;
/// The kernel's `ENOTSUPP`, which libc does not know: a map type without the operation.
const ENOTSUPP: i32 = 524;

/// What the kernel says a map is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct MapInfo {
    /// `enum bpf_map_type`.
    pub kind: u32,
    /// Kernel id of the map.
    pub id: u32,
    /// Bytes of a key; 0 for queues.
    pub key_size: u32,
    /// Bytes of a value (of one CPU's value in a per-CPU map).
    pub value_size: u32,
    /// Capacity.
    pub max_entries: u32,
    /// `BPF_F_*` flags the map was created with.
    pub flags: u32,
}

impl MapInfo {
    /// `BPF_MAP_TYPE_HASH`.
    pub const HASH: u32 = 1;
    /// `BPF_MAP_TYPE_ARRAY`.
    pub const ARRAY: u32 = 2;
    /// `BPF_MAP_TYPE_PERCPU_HASH`.
    pub const PERCPU_HASH: u32 = 5;
    /// `BPF_MAP_TYPE_PERCPU_ARRAY`.
    pub const PERCPU_ARRAY: u32 = 6;
    /// `BPF_MAP_TYPE_LRU_HASH`.
    pub const LRU_HASH: u32 = 9;
    /// `BPF_MAP_TYPE_LRU_PERCPU_HASH`.
    pub const LRU_PERCPU_HASH: u32 = 10;
    /// `BPF_MAP_TYPE_LPM_TRIE`.
    pub const LPM_TRIE: u32 = 11;
    /// `BPF_MAP_TYPE_QUEUE`.
    pub const QUEUE: u32 = 22;
    /// `BPF_F_NO_PREALLOC`.
    pub const NO_PREALLOC: u32 = 1;
    /// `BPF_F_MMAPABLE`.
    pub const MMAPABLE: u32 = 1 << 10;

    /// Whether each CPU has a value of its own.
    pub const fn is_per_cpu(&self) -> bool {
        matches!(
            self.kind,
            Self::PERCPU_HASH | Self::PERCPU_ARRAY | Self::LRU_PERCPU_HASH
        )
    }

    /// Bytes from one element of a mapped array to the next.
    const fn stride(&self) -> usize {
        (self.value_size as usize).next_multiple_of(8)
    }
}

/// An open map. Dropping it closes the descriptor; a pinned map lives on.
#[derive(Debug)]
pub struct Map {
    fd: OwnedFd,
    info: MapInfo,
}

impl AsFd for Map {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Map {
    /// Opens a map pinned on a BPF file system.
    ///
    /// # Errors
    ///
    /// Whatever the kernel says, `NotFound` for a missing pin.
    pub fn open_pinned(path: &Path) -> io::Result<Self> {
        Self::from_fd(open_pinned(path)?)
    }

    /// Takes over a descriptor of a map.
    ///
    /// # Errors
    ///
    /// If the descriptor is not a map's.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        let info = map_info(fd.as_fd())?;
        Ok(Self { fd, info })
    }

    /// What the kernel says the map is, as of opening.
    pub const fn info(&self) -> &MapInfo {
        &self.info
    }

    /// Another descriptor of the same map.
    ///
    /// # Errors
    ///
    /// If the process has no descriptor left.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            fd: self.fd.try_clone()?,
            info: self.info.clone(),
        })
    }

    /// Reads one element of a map that is not per-CPU.
    ///
    /// # Errors
    ///
    /// If key or value have another size than the map's. A missing key is `Ok(None)`.
    pub fn lookup<K: Wire, V: Wire>(&self, key: &K) -> io::Result<Option<V>> {
        self.check::<K>()?;
        self.check_value::<V>()?;
        let mut value = zeroed::<V>();
        let mut attr = self.element(address(key), address_mut(&mut value), 0);
        // SAFETY: key and value point to buffers of the sizes the kernel uses for this map.
        found(unsafe { bpf(command::LOOKUP_ELEM, &mut attr) }).map(|found| found.then_some(value))
    }

    /// Reads one element of a per-CPU map: one value for each possible CPU.
    ///
    /// # Errors
    ///
    /// As [`Self::lookup`].
    pub fn lookup_per_cpu<K: Wire, V: Wire>(&self, key: &K) -> io::Result<Option<Vec<V>>> {
        self.check::<K>()?;
        let cpus = self.check_per_cpu::<V>()?;
        let mut values = vec![zeroed::<V>(); cpus];
        let mut attr = self.element(address(key), slice_mut(&mut values), 0);
        // SAFETY: `values` holds one value for each possible CPU, each a multiple of 8 bytes.
        found(unsafe { bpf(command::LOOKUP_ELEM, &mut attr) }).map(|found| found.then_some(values))
    }

    /// Writes one element, whether or not it exists.
    ///
    /// # Errors
    ///
    /// As [`Self::lookup`], and `E2BIG` for a full map.
    pub fn update<K: Wire, V: Wire>(&self, key: &K, value: &V) -> io::Result<()> {
        self.check::<K>()?;
        self.check_value::<V>()?;
        let mut attr = self.element(address(key), address(value), 0);
        // SAFETY: key and value point to buffers of the sizes the kernel uses for this map.
        unsafe { bpf(command::UPDATE_ELEM, &mut attr) }.map(drop)
    }

    /// Removes one element; false if it was not there.
    ///
    /// # Errors
    ///
    /// As [`Self::lookup`].
    pub fn delete<K: Wire>(&self, key: &K) -> io::Result<bool> {
        self.check::<K>()?;
        let mut attr = self.element(address(key), 0, 0);
        // SAFETY: key points to a buffer of the size the kernel uses for this map.
        found(unsafe { bpf(command::DELETE_ELEM, &mut attr) })
    }

    /// Appends to a queue.
    ///
    /// # Errors
    ///
    /// `E2BIG` if the queue is full.
    pub fn push<V: Wire>(&self, value: &V) -> io::Result<()> {
        self.check_value::<V>()?;
        let mut attr = self.element(0, address(value), 0);
        // SAFETY: a queue has no key; value points to a buffer of the map's value size.
        unsafe { bpf(command::UPDATE_ELEM, &mut attr) }.map(drop)
    }

    /// Takes the oldest element of a queue; `None` if the queue is empty.
    ///
    /// # Errors
    ///
    /// If the map is no queue or its elements have another size.
    pub fn pop<V: Wire>(&self) -> io::Result<Option<V>> {
        self.check_value::<V>()?;
        let mut value = zeroed::<V>();
        let mut attr = self.element(0, address_mut(&mut value), 0);
        // SAFETY: a queue has no key; value points to a buffer of the map's value size.
        let popped = found(unsafe { bpf(command::LOOKUP_AND_DELETE_ELEM, &mut attr) })?;
        Ok(popped.then_some(value))
    }

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
        self.batches(1, &mut visit)
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
        self.batches(cpus, &mut |keys: &[u32], values: &[V]| {
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
        for (keys, values) in keys.chunks(BATCH).zip(values.chunks(BATCH)) {
            let mut attr = self.batch(slice(keys), slice(values), keys.len());
            // SAFETY: both arrays hold `count` elements of the sizes the kernel uses.
            match unsafe { bpf(command::UPDATE_BATCH, &mut attr) } {
                Ok(_) => {}
                Err(error) if is_unsupported(&error) => {
                    for (key, value) in keys.iter().zip(values) {
                        self.update(key, value)?;
                    }
                }
                Err(error) => return Err(error),
            }
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

    /// Walks the map by batch calls, else key by key. `per_key` values belong to each key.
    fn batches<K: Wire, V: Wire>(
        &self,
        per_key: usize,
        visit: &mut impl FnMut(&[K], &[V]),
    ) -> io::Result<()> {
        let mut room = BATCH.min(self.info.max_entries as usize).max(64);
        let mut keys = vec![zeroed::<K>(); room];
        let mut values = vec![zeroed::<V>(); room * per_key];
        // The kernel keeps its place here: a bucket number, or a whole key.
        let mut place = vec![0_u64; size_of::<K>().div_ceil(8).max(1)];
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
                        keys.resize(room, zeroed());
                        values.resize(room * per_key, zeroed());
                        continue;
                    }
                    _ if first && is_unsupported(&error) => {
                        return self.one_by_one(per_key, visit);
                    }
                    _ => return Err(error),
                },
            };
            if let (Some(keys), Some(values)) = (keys.get(..count), values.get(..count * per_key)) {
                visit(keys, values);
            }
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
        per_key: usize,
        visit: &mut impl FnMut(&[K], &[V]),
    ) -> io::Result<()> {
        let mut values = vec![zeroed::<V>(); per_key];
        let mut key: Option<K> = None;
        for _ in 0..u64::from(self.info.max_entries) * 2 {
            let mut following = zeroed::<K>();
            let previous = key.as_ref().map_or(0, address);
            let mut attr = self.element(previous, address_mut(&mut following), 0);
            // SAFETY: both keys have the size the kernel uses, or the first is null: "the first".
            if !found(unsafe { bpf(command::GET_NEXT_KEY, &mut attr) })? {
                return Ok(());
            }
            let mut attr = self.element(address(&following), slice_mut(&mut values), 0);
            // SAFETY: `values` holds as many values as belong to one key.
            if found(unsafe { bpf(command::LOOKUP_ELEM, &mut attr) })? {
                visit(&[following], &values);
            }
            key = Some(following);
        }
        Ok(())
    }

    fn check<K: Wire>(&self) -> io::Result<()> {
        same_size("key", size_of::<K>(), self.info.key_size as usize)
    }

    fn check_value<V: Wire>(&self) -> io::Result<()> {
        if self.info.is_per_cpu() {
            return Err(invalid("the map is per-CPU".to_owned()));
        }
        same_size("value", size_of::<V>(), self.info.value_size as usize)
    }

    /// Number of possible CPUs, if `V` is this per-CPU map's value and needs no rounding up.
    fn check_per_cpu<V: Wire>(&self) -> io::Result<usize> {
        if !self.info.is_per_cpu() {
            return Err(invalid("the map is not per-CPU".to_owned()));
        }
        same_size("value", size_of::<V>(), self.info.stride())?;
        possible_cpus()
    }

    fn element(&self, key: u64, value: u64, flags: u64) -> ElementAttr {
        ElementAttr {
            map_fd: raw(self.as_fd()),
            padding: 0,
            key,
            value,
            flags,
        }
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

/// The memory of a `BPF_F_MMAPABLE` array, shared with the data path.
///
/// Every access is a single aligned word, atomic, so that the data path sees old or new, never a mix.
#[derive(Debug)]
pub struct Mapping {
    base: NonNull<u8>,
    bytes: usize,
    stride: usize,
    writable: bool,
}

// SAFETY: the mapping is plain memory, valid until drop, and accessed through atomics only.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps a whole array for reading and writing.
    ///
    /// # Errors
    ///
    /// If the map is not mappable.
    pub fn new(map: &Map) -> io::Result<Self> {
        Self::map(map, true)
    }

    /// Maps a whole array for reading; stores to it are refused.
    ///
    /// # Errors
    ///
    /// If the map is not mappable.
    pub fn read_only(map: &Map) -> io::Result<Self> {
        Self::map(map, false)
    }

    fn map(map: &Map, writable: bool) -> io::Result<Self> {
        let stride = map.info.stride();
        let bytes = stride * map.info.max_entries as usize;
        let protection = if writable {
            libc::PROT_READ | libc::PROT_WRITE
        } else {
            libc::PROT_READ
        };
        // SAFETY: a fresh shared mapping of a descriptor we hold; the kernel checks its size.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                protection,
                libc::MAP_SHARED,
                map.fd.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or_else(|| invalid("mapped at 0".to_owned()))?;
        Ok(Self {
            base,
            bytes,
            stride,
            writable,
        })
    }

    /// Offset of an element's first byte.
    pub const fn offset(&self, index: u32) -> usize {
        index as usize * self.stride
    }

    /// Length in bytes.
    pub const fn len(&self) -> usize {
        self.bytes
    }

    /// True for a mapping without bytes, which the kernel never makes.
    pub const fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Reads a 32-bit word (acquire). `None` beyond the end or off its alignment.
    pub fn load_u32(&self, offset: usize) -> Option<u32> {
        self.word32(offset).map(|word| word.load(Ordering::Acquire))
    }

    /// Reads a 64-bit word (acquire). `None` beyond the end or off its alignment.
    pub fn load_u64(&self, offset: usize) -> Option<u64> {
        self.word64(offset).map(|word| word.load(Ordering::Acquire))
    }

    /// Writes a 32-bit word (release).
    ///
    /// # Errors
    ///
    /// Beyond the end, off the alignment, or on a mapping for reading.
    pub fn store_u32(&self, offset: usize, value: u32) -> io::Result<()> {
        self.writable()?;
        let word = self.word32(offset).ok_or_else(|| self.outside(offset))?;
        word.store(value, Ordering::Release);
        Ok(())
    }

    /// Writes a 64-bit word (release).
    ///
    /// # Errors
    ///
    /// As [`Self::store_u32`].
    pub fn store_u64(&self, offset: usize, value: u64) -> io::Result<()> {
        self.writable()?;
        let word = self.word64(offset).ok_or_else(|| self.outside(offset))?;
        word.store(value, Ordering::Release);
        Ok(())
    }

    /// Sets bits of a 64-bit word.
    ///
    /// # Errors
    ///
    /// As [`Self::store_u32`].
    pub fn or_u64(&self, offset: usize, bits: u64) -> io::Result<()> {
        self.writable()?;
        let word = self.word64(offset).ok_or_else(|| self.outside(offset))?;
        word.fetch_or(bits, Ordering::AcqRel);
        Ok(())
    }

    /// Adds to a 32-bit word and returns what it held before.
    ///
    /// # Errors
    ///
    /// As [`Self::store_u32`].
    pub fn add_u32(&self, offset: usize, amount: u32) -> io::Result<u32> {
        self.writable()?;
        let word = self.word32(offset).ok_or_else(|| self.outside(offset))?;
        Ok(word.fetch_add(amount, Ordering::AcqRel))
    }

    /// Writes consecutive 32-bit words, then zeroes up to `padded` words. Not atomic as a whole.
    ///
    /// # Errors
    ///
    /// As [`Self::store_u32`]; nothing is written then.
    pub fn write_u32s(&self, offset: usize, words: &[u32], padded: usize) -> io::Result<()> {
        self.writable()?;
        let all = words.len().max(padded);
        let place = self
            .words32(offset, all)
            .ok_or_else(|| self.outside(offset))?;
        let source = words.iter().copied().chain(std::iter::repeat(0));
        for (word, value) in place.iter().zip(source) {
            word.store(value, Ordering::Relaxed);
        }
        fence(Ordering::SeqCst);
        Ok(())
    }

    /// Reads consecutive 32-bit words; `None` beyond the end.
    pub fn read_u32s(&self, offset: usize, count: usize) -> Option<Vec<u32>> {
        let place = self.words32(offset, count)?;
        Some(
            place
                .iter()
                .map(|word| word.load(Ordering::Relaxed))
                .collect(),
        )
    }

    fn word32(&self, offset: usize) -> Option<&AtomicU32> {
        self.words32(offset, 1)?.first()
    }

    fn words32(&self, offset: usize, count: usize) -> Option<&[AtomicU32]> {
        let end = count.checked_mul(4)?.checked_add(offset)?;
        if end > self.bytes || !offset.is_multiple_of(4) {
            return None;
        }
        // SAFETY: `offset` lies inside the mapping (checked).
        let first = unsafe { self.base.add(offset) };
        // SAFETY: in bounds and aligned (checked; the base is page-aligned), valid until drop, and
        // everyone in this process uses atomics on it.
        Some(unsafe { std::slice::from_raw_parts(first.cast::<AtomicU32>().as_ptr(), count) })
    }

    fn word64(&self, offset: usize) -> Option<&AtomicU64> {
        if offset.checked_add(8)? > self.bytes || !offset.is_multiple_of(8) {
            return None;
        }
        // SAFETY: `offset` lies inside the mapping (checked).
        let word = unsafe { self.base.add(offset) };
        // SAFETY: in bounds and aligned (checked; the base is page-aligned), valid until drop, and
        // everyone in this process uses atomics on it.
        Some(unsafe { word.cast::<AtomicU64>().as_ref() })
    }

    fn writable(&self) -> io::Result<()> {
        if self.writable {
            return Ok(());
        }
        Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "the mapping is for reading",
        ))
    }

    fn outside(&self, offset: usize) -> io::Error {
        invalid(format!(
            "offset {offset} of a mapping of {} bytes",
            self.bytes
        ))
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and no reference into it outlives `self`.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}

/// Waits until every program run that began before the call has ended, on every CPU.
///
/// # Errors
///
/// `EINVAL` on a kernel started with `nohz_full`.
pub fn membarrier() -> io::Result<()> {
    const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;
    // SAFETY: takes no pointer.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Input of [`test_run`].
#[derive(Clone, Copy, Debug, Default)]
pub struct TestRun<'a> {
    /// The packet, Ethernet header included. At least 14 bytes.
    pub data: &'a [u8],
    /// The context (`struct xdp_md`, `struct __sk_buff`), or empty.
    pub context: &'a [u8],
    /// Bytes the packet may grow by.
    pub headroom: usize,
    /// How often to run; 0 counts as once. The packet is not restored between runs.
    pub repeat: u32,
    /// `BPF_F_TEST_*`.
    pub flags: u32,
    /// Frames of a batch with `BPF_F_TEST_XDP_LIVE_FRAMES`.
    pub batch_size: u32,
}

/// Result of [`test_run`].
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TestRunOutput {
    /// What the program returned (the last run).
    pub retval: u32,
    /// Mean time of one run, as the kernel measured it.
    pub duration: Duration,
    /// The packet afterwards; empty for live frames.
    pub data: Vec<u8>,
    /// The context afterwards, if one was given.
    pub context: Vec<u8>,
}

/// `BPF_F_TEST_XDP_LIVE_FRAMES`.
pub const LIVE_FRAMES: u32 = 1 << 1;

/// Runs a program on a packet, without a device.
///
/// # Errors
///
/// Whatever the kernel says: `ENOSPC` if the packet grew by more than `headroom`.
pub fn test_run(program: BorrowedFd<'_>, input: &TestRun<'_>) -> io::Result<TestRunOutput> {
    let live = input.flags & LIVE_FRAMES != 0;
    let mut data = vec![
        0_u8;
        if live {
            0
        } else {
            input.data.len() + input.headroom
        }
    ];
    let mut context = vec![0_u8; if live { 0 } else { input.context.len() }];
    let mut attr = TestRunAttr {
        prog_fd: raw(program),
        retval: 0,
        data_size_in: length(input.data)?,
        data_size_out: length(&data)?,
        data_in: optional(input.data),
        data_out: if data.is_empty() {
            0
        } else {
            slice_mut(&mut data)
        },
        repeat: input.repeat,
        duration: 0,
        ctx_size_in: length(input.context)?,
        ctx_size_out: length(&context)?,
        ctx_in: optional(input.context),
        ctx_out: if context.is_empty() {
            0
        } else {
            slice_mut(&mut context)
        },
        flags: input.flags,
        cpu: 0,
        batch_size: input.batch_size,
        padding: 0,
    };
    // SAFETY: every pointer is null or covers as many bytes as the size beside it says.
    unsafe { bpf(command::PROG_TEST_RUN, &mut attr) }?;
    data.truncate(attr.data_size_out as usize);
    context.truncate(attr.ctx_size_out as usize);
    let duration = Duration::from_nanos(u64::from(attr.duration));
    Ok(TestRunOutput {
        retval: attr.retval,
        duration,
        data,
        context,
    })
}

/// Opens whatever is pinned at `path`: map, program or link.
///
/// # Errors
///
/// Whatever the kernel says, `NotFound` for a missing pin.
pub fn open_pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let mut attr = ObjectAttr {
        pathname: path.as_ptr() as u64,
        bpf_fd: 0,
        file_flags: 0,
    };
    // SAFETY: `path` is a C string that outlives the call.
    let fd = unsafe { bpf(command::OBJ_GET, &mut attr) }?;
    let fd = i32::try_from(fd).map_err(|error| invalid(error.to_string()))?;
    // SAFETY: the kernel gave us this descriptor just now.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Pins a map, program or link. The directory must lie on a BPF file system.
///
/// # Errors
///
/// Whatever the kernel says, `AlreadyExists` if the name is taken.
pub fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut attr = ObjectAttr {
        pathname: path.as_ptr() as u64,
        bpf_fd: raw(object),
        file_flags: 0,
    };
    // SAFETY: `path` is a C string that outlives the call.
    unsafe { bpf(command::OBJ_PIN, &mut attr) }.map(drop)
}

/// Number of CPUs the kernel keeps per-CPU values for.
///
/// # Errors
///
/// If sysfs is not mounted or says something unexpected.
pub fn possible_cpus() -> io::Result<usize> {
    const POSSIBLE: &str = "/sys/devices/system/cpu/possible";
    let text = std::fs::read_to_string(POSSIBLE)?;
    let last = text.trim().rsplit(['-', ',']).next().unwrap_or_default();
    let last: usize = last
        .parse()
        .map_err(|error| invalid(format!("{POSSIBLE}: {error}")))?;
    Ok(last + 1)
}

fn map_info(fd: BorrowedFd<'_>) -> io::Result<MapInfo> {
    let mut words = [0_u32; 20];
    let mut attr = InfoAttr {
        bpf_fd: raw(fd),
        info_len: u32::try_from(size_of_val(&words)).unwrap_or(0),
        info: slice_mut(&mut words),
    };
    // SAFETY: `words` covers `info_len` bytes; the kernel writes at most that.
    unsafe { bpf(command::OBJ_GET_INFO_BY_FD, &mut attr) }?;
    let [kind, id, key_size, value_size, max_entries, flags, ..] = words;
    Ok(MapInfo {
        kind,
        id,
        key_size,
        value_size,
        max_entries,
        flags,
    })
}

/// `enum bpf_cmd`, the part used here.
mod command {
    pub(super) const LOOKUP_ELEM: u32 = 1;
    pub(super) const UPDATE_ELEM: u32 = 2;
    pub(super) const DELETE_ELEM: u32 = 3;
    pub(super) const GET_NEXT_KEY: u32 = 4;
    pub(super) const OBJ_PIN: u32 = 6;
    pub(super) const OBJ_GET: u32 = 7;
    pub(super) const PROG_TEST_RUN: u32 = 10;
    pub(super) const OBJ_GET_INFO_BY_FD: u32 = 15;
    pub(super) const LOOKUP_AND_DELETE_ELEM: u32 = 21;
    pub(super) const LOOKUP_BATCH: u32 = 24;
    pub(super) const UPDATE_BATCH: u32 = 26;
    pub(super) const DELETE_BATCH: u32 = 27;
}

/// `union bpf_attr`, `BPF_MAP_*_ELEM`.
#[repr(C)]
struct ElementAttr {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
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

/// `union bpf_attr`, `BPF_OBJ_*`.
#[repr(C)]
struct ObjectAttr {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// `union bpf_attr`, `BPF_OBJ_GET_INFO_BY_FD`.
#[repr(C)]
struct InfoAttr {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// `union bpf_attr`, `BPF_PROG_TEST_RUN`.
#[repr(C)]
struct TestRunAttr {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    padding: u32,
}

/// Calls bpf(2).
///
/// # Safety
///
/// `A` is the kernel's layout for `command`, and each pointer in it is valid for what the kernel
/// reads or writes there.
unsafe fn bpf<A>(command: u32, attr: &mut A) -> io::Result<libc::c_long> {
    // SAFETY: by the caller's promise.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attr),
            size_of::<A>(),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// A value of zeros.
fn zeroed<T: Wire>() -> T {
    // SAFETY: every bit pattern is a valid `Wire` value.
    unsafe { std::mem::zeroed() }
}

fn found(result: io::Result<libc::c_long>) -> io::Result<bool> {
    match result {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

fn is_unsupported(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EINVAL | libc::EOPNOTSUPP | ENOTSUPP)
    )
}

fn same_size(what: &str, ours: usize, kernels: usize) -> io::Result<()> {
    if ours == kernels {
        return Ok(());
    }
    Err(invalid(format!(
        "a {what} of {ours} bytes for a map with {kernels}"
    )))
}

fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, message)
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|error| invalid(error.to_string()))
}

fn length(bytes: &[u8]) -> io::Result<u32> {
    u32::try_from(bytes.len()).map_err(|error| invalid(error.to_string()))
}

/// Descriptors are never negative.
fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

fn address<T: Wire>(value: &T) -> u64 {
    std::ptr::from_ref(value) as u64
}

fn address_mut<T: Wire>(value: &mut T) -> u64 {
    std::ptr::from_mut(value) as u64
}

fn slice<T: Wire>(values: &[T]) -> u64 {
    values.as_ptr() as u64
}

fn slice_mut<T: Wire>(values: &mut [T]) -> u64 {
    values.as_mut_ptr() as u64
}

fn optional(bytes: &[u8]) -> u64 {
    if bytes.is_empty() { 0 } else { slice(bytes) }
}
