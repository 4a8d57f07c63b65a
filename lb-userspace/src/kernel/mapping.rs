//! Arrays of the data path, mapped into this process.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _},
    ptr::NonNull,
    sync::atomic::{AtomicU32, AtomicU64, Ordering, fence},
};

use super::{Map, invalid, seam};

/// The memory of a `BPF_F_MMAPABLE` array, shared with the data path.
///
/// Every access is a single aligned word, atomic, so that the data path sees old or new, never a mix.
#[derive(Debug)]
pub struct Mapping {
    /// Kernel id of the array.
    map: u32,
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
        let stride = map.info().stride();
        let bytes = stride * map.info().max_entries as usize;
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
                map.as_fd().as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or_else(|| invalid("mapped at 0".to_owned()))?;
        Ok(Self {
            map: map.info().id,
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
        seam::written(self.map);
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
        seam::written(self.map);
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
        seam::written(self.map);
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
        let before = word.fetch_add(amount, Ordering::AcqRel);
        seam::written(self.map);
        Ok(before)
    }

    /// Adds to a 64-bit word and returns what it held before.
    ///
    /// # Errors
    ///
    /// As [`Self::store_u32`].
    pub fn add_u64(&self, offset: usize, amount: u64) -> io::Result<u64> {
        self.writable()?;
        let word = self.word64(offset).ok_or_else(|| self.outside(offset))?;
        let before = word.fetch_add(amount, Ordering::AcqRel);
        seam::written(self.map);
        Ok(before)
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
        for (at, (word, value)) in place.iter().zip(source).enumerate() {
            word.store(value, Ordering::Relaxed);
            if at == all / 2 {
                seam::written(self.map);
            }
        }
        fence(Ordering::SeqCst);
        seam::written(self.map);
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
