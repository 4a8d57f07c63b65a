//! Maps: single elements, batches, queues, per-CPU values.

use std::{
    io,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
    path::Path,
};

use lb_common::wire::Wire;

use super::{
    address, address_mut, bpf, command, invalid, open_pinned, possible_cpus, raw, seam, slice_mut,
    zeroed,
};

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
    /// `BPF_MAP_TYPE_RINGBUF`; its `max_entries` are bytes.
    pub const RINGBUF: u32 = 27;
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
    pub(super) const fn stride(&self) -> usize {
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
    /// Whatever the kernel says, `NotFound` for a missing pin, `InvalidInput` for another object's.
    pub fn open_pinned(path: &Path) -> io::Result<Self> {
        let fd = open_pinned(path)?;
        // The kernel describes whatever it is; a program's description would be read as a map's.
        let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
        match std::fs::read_link(link) {
            Ok(kind) if !kind.ends_with("anon_inode:bpf-map") => {
                Err(invalid(format!("not a map but {}", kind.display())))
            }
            _ => Self::from_fd(fd),
        }
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
        unsafe { bpf(command::UPDATE_ELEM, &mut attr) }?;
        seam::written(self.info.id);
        Ok(())
    }

    /// Writes one element that is not there yet; false if it is.
    ///
    /// # Errors
    ///
    /// As [`Self::update`].
    pub fn insert<K: Wire, V: Wire>(&self, key: &K, value: &V) -> io::Result<bool> {
        const NOEXIST: u64 = 1;
        self.check::<K>()?;
        self.check_value::<V>()?;
        let mut attr = self.element(address(key), address(value), NOEXIST);
        // SAFETY: key and value point to buffers of the sizes the kernel uses for this map.
        match unsafe { bpf(command::UPDATE_ELEM, &mut attr) } {
            Ok(_) => {
                seam::written(self.info.id);
                Ok(true)
            }
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
            Err(error) => Err(error),
        }
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
        let found = found(unsafe { bpf(command::DELETE_ELEM, &mut attr) })?;
        seam::written(self.info.id);
        Ok(found)
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

    /// Reads the oldest element of a queue and leaves it there; `None` if the queue is empty.
    ///
    /// # Errors
    ///
    /// As [`Self::pop`].
    pub fn peek<V: Wire>(&self) -> io::Result<Option<V>> {
        self.check_value::<V>()?;
        let mut value = zeroed::<V>();
        let mut attr = self.element(0, address_mut(&mut value), 0);
        // SAFETY: a queue has no key; value points to a buffer of the map's value size.
        let peeked = found(unsafe { bpf(command::LOOKUP_ELEM, &mut attr) })?;
        Ok(peeked.then_some(value))
    }

    pub(super) fn check<K: Wire>(&self) -> io::Result<()> {
        same_size("key", size_of::<K>(), self.info.key_size as usize)
    }

    pub(super) fn check_value<V: Wire>(&self) -> io::Result<()> {
        if self.info.is_per_cpu() {
            return Err(invalid("the map is per-CPU".to_owned()));
        }
        same_size("value", size_of::<V>(), self.info.value_size as usize)
    }

    /// Number of possible CPUs, if `V` is this per-CPU map's value and needs no rounding up.
    pub(super) fn check_per_cpu<V: Wire>(&self) -> io::Result<usize> {
        if !self.info.is_per_cpu() {
            return Err(invalid("the map is not per-CPU".to_owned()));
        }
        same_size("value", size_of::<V>(), self.info.stride())?;
        possible_cpus()
    }

    pub(super) fn element(&self, key: u64, value: u64, flags: u64) -> ElementAttr {
        ElementAttr {
            map_fd: raw(self.as_fd()),
            padding: 0,
            key,
            value,
            flags,
        }
    }
}

fn map_info(fd: BorrowedFd<'_>) -> io::Result<MapInfo> {
    let mut words = [0_u32; 20];
    super::object_info(fd, &mut words)?;
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

/// `union bpf_attr`, `BPF_MAP_*_ELEM`.
#[repr(C)]
pub(super) struct ElementAttr {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

pub(super) fn found(result: io::Result<libc::c_long>) -> io::Result<bool> {
    match result {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

fn same_size(what: &str, ours: usize, kernels: usize) -> io::Result<()> {
    if ours == kernels {
        return Ok(());
    }
    Err(invalid(format!(
        "a {what} of {ours} bytes for a map with {kernels}"
    )))
}
