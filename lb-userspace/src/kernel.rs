//! The calls aya has no safe form of: batched map access, mapped arrays, `membarrier`, test runs.
//!
//! Everything here is an effect without a decision. Sizes are checked against the kernel's own
//! description of a map before a buffer is handed over, so the functions are safe to call with any
//! type: a wrong one is an [`io::ErrorKind::InvalidInput`], never memory corruption.
//!
//! This module and those below it are the only ones of the crate that may say `unsafe`.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
    sync::OnceLock,
};

use lb_common::wire::Wire;

#[cfg(debug_assertions)]
pub use self::seam::look_after_each_write;
pub use self::{
    btf::{MapTypes, from_bytes},
    link::{Hook, Link, LinkInfo, ProgramInfo, has_tcx, open_program, program_id, program_info},
    map::{Map, MapInfo},
    mapping::Mapping,
    offload::receive_vlan_offload,
    run::{LIVE_FRAMES, TestRun, TestRunOutput, test_run},
};

mod batch;
mod btf;
mod link;
mod map;
mod mapping;
mod offload;
mod run;
mod seam;

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
    /// It stays the same until the machine is started again.
    static KNOWN: OnceLock<usize> = OnceLock::new();
    if let Some(known) = KNOWN.get() {
        return Ok(*known);
    }
    let text = std::fs::read_to_string(POSSIBLE)?;
    let last = text.trim().rsplit(['-', ',']).next().unwrap_or_default();
    let last: usize = last
        .parse()
        .map_err(|error| invalid(format!("{POSSIBLE}: {error}")))?;
    Ok(*KNOWN.get_or_init(|| last + 1))
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
    pub(super) const PROG_GET_FD_BY_ID: u32 = 13;
    pub(super) const OBJ_GET_INFO_BY_FD: u32 = 15;
    pub(super) const PROG_QUERY: u32 = 16;
    pub(super) const BTF_GET_FD_BY_ID: u32 = 19;
    pub(super) const LINK_CREATE: u32 = 28;
    pub(super) const LINK_UPDATE: u32 = 29;
    pub(super) const LINK_DETACH: u32 = 34;
    pub(super) const LOOKUP_AND_DELETE_ELEM: u32 = 21;
    pub(super) const LOOKUP_BATCH: u32 = 24;
    pub(super) const UPDATE_BATCH: u32 = 26;
    pub(super) const DELETE_BATCH: u32 = 27;
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

/// Asks for the description of a map, program or link.
fn object_info(object: BorrowedFd<'_>, words: &mut [u32]) -> io::Result<()> {
    let length = u32::try_from(size_of_val(words)).map_err(|error| invalid(error.to_string()))?;
    let mut attr = InfoAttr {
        bpf_fd: raw(object),
        info_len: length,
        info: slice_mut(words),
    };
    // SAFETY: `words` covers `length` bytes; the kernel writes at most that.
    unsafe { bpf(command::OBJ_GET_INFO_BY_FD, &mut attr) }.map(drop)
}

/// A value of zeros.
fn zeroed<T: Wire>() -> T {
    // SAFETY: every bit pattern is a valid `Wire` value.
    unsafe { std::mem::zeroed() }
}

fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, message)
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|error| invalid(error.to_string()))
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
