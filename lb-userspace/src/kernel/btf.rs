//! What a map says of its own types, and its elements as bytes: for maps whose types are not ours.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
};

use lb_common::wire::Wire;

use super::{InfoAttr, Map, address_mut, batch::Units, bpf, command, invalid, raw, slice_mut};

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
        self.batches(self.bytes()?, &mut visit)
    }

    /// Writes elements given as bytes: keys one after the other, and values. Not for per-CPU maps.
    ///
    /// # Errors
    ///
    /// The first failure; elements before it are written. Bytes that are no whole elements, or not as
    /// many keys as values.
    pub fn update_raw(&self, keys: &[u8], values: &[u8]) -> io::Result<()> {
        let bytes = self.bytes()?;
        if keys.is_empty() && values.is_empty() {
            return Ok(());
        }
        self.write(keys, values, bytes)
    }

    /// Bytes of an element.
    fn bytes(&self) -> io::Result<Units> {
        let info = self.info();
        if info.is_per_cpu() || info.key_size == 0 || info.value_size == 0 {
            return Err(invalid(
                "the map is per-CPU, or has no keys or no values".to_owned(),
            ));
        }
        Ok(Units {
            key: info.key_size as usize,
            value: info.value_size as usize,
        })
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
