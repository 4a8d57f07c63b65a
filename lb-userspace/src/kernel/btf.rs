//! What a map says of its own types, and its elements as bytes: for maps whose types are not ours.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
};

use lb_common::wire::Wire;

use super::{InfoAttr, Map, address_mut, bpf, command, invalid, raw, seam, slice, slice_mut};

/// Bytes of keys and of values asked for in one call.
const BATCH: usize = 1 << 17;
/// The kernel's `ENOTSUPP`, which libc does not know: a map type without the operation.
const ENOTSUPP: i32 = 524;

/// The types of a map's keys and values, as the map's maker told the kernel.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct MapTypes {
    /// Type information (`struct btf_header` and what follows it).
    pub btf: Vec<u8>,
    /// Type id of the keys.
    pub key: u32,
    /// Type id of the values.
    pub value: u32,
}

/// Reads a value from its bytes; `None` if there are more or fewer than it has.
pub fn from_bytes<T: Wire>(bytes: &[u8]) -> Option<T> {
    if bytes.len() != size_of::<T>() {
        return None;
    }
    // SAFETY: as many bytes as the type has, every bit pattern of which is valid.
    Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

impl Map {
    /// The types of keys and values; `None` for a map made without.
    ///
    /// # Errors
    ///
    /// Whatever the kernel says.
    pub fn types(&self) -> io::Result<Option<MapTypes>> {
        let mut words = [0_u32; 20];
        super::object_info(self.as_fd(), &mut words)?;
        // `struct bpf_map_info`: the type ids are at bytes 64, 68 and 72.
        let [.., id, key, value, _] = words;
        if id == 0 || value == 0 {
            return Ok(None);
        }
        let btf = read_btf(open_btf(id)?.as_fd())?;
        Ok(Some(MapTypes { btf, key, value }))
    }

    /// Lends every element to `visit` as bytes, in batches: keys one after the other, and values. Not for
    /// per-CPU maps. Elements written meanwhile may be missed, and those that move be seen twice.
    ///
    /// # Errors
    ///
    /// Whatever the kernel says.
    pub fn for_each_raw(&self, mut visit: impl FnMut(&[u8], &[u8])) -> io::Result<()> {
        let (key, value) = self.raw_sizes()?;
        let most = (BATCH / value.max(key)).max(64);
        let mut room = most.min(self.info().max_entries.max(64) as usize);
        let mut keys = vec![0_u8; room * key];
        let mut values = vec![0_u8; room * value];
        // The kernel keeps its place here: a bucket number, or a whole key.
        let mut place = vec![0_u64; key.div_ceil(8).max(1)];
        let mut next = place.clone();
        let mut first = true;
        loop {
            let mut attr = self.batch(slice_mut(&mut keys), slice_mut(&mut values), room);
            attr.in_batch = if first { 0 } else { slice_mut(&mut place) };
            attr.out_batch = slice_mut(&mut next);
            // SAFETY: the buffers hold `room` keys and values of the sizes the kernel told; both places
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
                        keys.resize(room * key, 0);
                        values.resize(room * value, 0);
                        continue;
                    }
                    _ => return Err(error),
                },
            };
            if let (Some(keys), Some(values)) =
                (keys.get(..count * key), values.get(..count * value))
            {
                visit(keys, values);
            }
            if end {
                return Ok(());
            }
            std::mem::swap(&mut place, &mut next);
            first = false;
        }
    }

    /// Writes elements given as bytes: keys one after the other, and values. Not for per-CPU maps.
    ///
    /// # Errors
    ///
    /// The first failure; elements before it are written. Bytes that are no whole elements, or not as
    /// many keys as values.
    pub fn update_raw(&self, keys: &[u8], values: &[u8]) -> io::Result<()> {
        let (key, value) = self.raw_sizes()?;
        let count = keys.len() / key;
        if keys.len() != count * key || values.len() != count * value {
            return Err(invalid(format!(
                "{} bytes of keys and {} of values for a map with {key} and {value}",
                keys.len(),
                values.len()
            )));
        }
        if count == 0 {
            return Ok(());
        }
        let mut attr = self.batch(slice(keys), slice(values), count);
        // SAFETY: both buffers hold `count` elements of the sizes the kernel told.
        match unsafe { bpf(command::UPDATE_BATCH, &mut attr) } {
            Ok(_) => {}
            Err(error) if error.raw_os_error() == Some(ENOTSUPP) => {
                for (key, value) in keys.chunks_exact(key).zip(values.chunks_exact(value)) {
                    let mut attr = self.element(slice(key), slice(value), 0);
                    // SAFETY: a key and a value of the sizes the kernel told.
                    unsafe { bpf(command::UPDATE_ELEM, &mut attr) }?;
                }
            }
            Err(error) => return Err(error),
        }
        seam::written(self.info().id);
        Ok(())
    }

    fn raw_sizes(&self) -> io::Result<(usize, usize)> {
        let info = self.info();
        if info.is_per_cpu() || info.key_size == 0 {
            return Err(invalid(
                "the map is per-CPU, or has no keys or no values".to_owned(),
            ));
        }
        Ok((info.key_size as usize, info.value_size as usize))
    }
}

fn open_btf(id: u32) -> io::Result<OwnedFd> {
    let mut attr = IdAttr {
        id,
        next_id: 0,
        open_flags: 0,
    };
    // SAFETY: the structure holds no pointer.
    let fd = unsafe { bpf(command::BTF_GET_FD_BY_ID, &mut attr) }?;
    let fd = i32::try_from(fd).map_err(|error| invalid(error.to_string()))?;
    // SAFETY: the kernel gave us this descriptor just now.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn read_btf(btf: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    let mut info = [0_u64; 4];
    btf_info(btf, &mut info)?;
    // `struct btf_info`: address of a buffer, its size and an id in one word, then a name.
    let [_, size, ..] = info;
    let size = size & u64::from(u32::MAX);
    let mut data = vec![0_u8; usize::try_from(size).map_err(io::Error::other)?];
    let mut info = [slice_mut(&mut data), size, 0, 0];
    btf_info(btf, &mut info)?;
    Ok(data)
}

/// Asks for the description of type information. `info` begins with a buffer's address and size.
fn btf_info(btf: BorrowedFd<'_>, info: &mut [u64; 4]) -> io::Result<()> {
    let mut attr = InfoAttr {
        bpf_fd: raw(btf),
        info_len: 32,
        info: address_mut(info),
    };
    // SAFETY: `info` has 32 bytes; what it points to is null with size 0, or a buffer of that size.
    unsafe { bpf(command::OBJ_GET_INFO_BY_FD, &mut attr) }.map(drop)
}

/// `union bpf_attr`, `BPF_*_GET_FD_BY_ID`.
#[repr(C)]
pub(super) struct IdAttr {
    pub(super) id: u32,
    pub(super) next_id: u32,
    pub(super) open_flags: u32,
}
