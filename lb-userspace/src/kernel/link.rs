//! Links: what holds a program at its hook, and can be pinned and updated in one step.
//!
//! aya's own attach falls back to netlink when the kernel refuses a link, and such an attachment can
//! neither be pinned nor replaced atomically. These calls make a link or fail.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, FromRawFd as _, OwnedFd},
};

use super::{bpf, btf::IdAttr, command, invalid, raw};

/// Where a network program is attached.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Hook {
    /// XDP in the driver.
    XdpNative,
    /// XDP on socket buffers, before TCX.
    XdpGeneric,
    /// TCX, packets coming in.
    TcxIngress,
    /// TCX, packets going out.
    TcxEgress,
}

impl Hook {
    /// `enum bpf_attach_type`.
    const fn attach_type(self) -> u32 {
        match self {
            Self::XdpNative | Self::XdpGeneric => 37,
            Self::TcxIngress => 46,
            Self::TcxEgress => 47,
        }
    }

    /// `enum bpf_link_type`, and `enum bpf_prog_type` of what such a link holds.
    const fn types(self) -> (u32, u32) {
        match self {
            Self::XdpNative | Self::XdpGeneric => (6, 6),
            Self::TcxIngress | Self::TcxEgress => (11, 3),
        }
    }

    /// Whether a link is at this hook, as far as a link tells: XDP links do not say in which mode.
    pub const fn has(self, link: LinkInfo) -> bool {
        let at_hook = match self {
            Self::XdpNative | Self::XdpGeneric => true,
            Self::TcxIngress | Self::TcxEgress => link.attach_type == self.attach_type(),
        };
        link.kind == self.types().0 && at_hook
    }

    /// Whether a link holds a program of this hook's type there.
    pub const fn is_of(self, link: LinkInfo, program: &ProgramInfo) -> bool {
        program.kind == self.types().1 && self.has(link)
    }

    /// `XDP_FLAGS_*`.
    const fn flags(self) -> u32 {
        match self {
            Self::XdpGeneric => 1 << 1,
            Self::XdpNative => 1 << 2,
            Self::TcxIngress | Self::TcxEgress => 0,
        }
    }
}

/// An attached program. Dropping it detaches the program, unless the link is pinned.
#[derive(Debug)]
pub struct Link {
    fd: OwnedFd,
}

/// What the kernel says a link is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct LinkInfo {
    /// `enum bpf_link_type`.
    pub kind: u32,
    /// Kernel id of the link.
    pub id: u32,
    /// Kernel id of the program.
    pub program: u32,
    /// Interface index of an XDP or TCX link; 0 once the device is gone.
    pub ifindex: u32,
    /// `enum bpf_attach_type` of a TCX link.
    pub attach_type: u32,
}

/// What the kernel says a program is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ProgramInfo {
    /// `enum bpf_prog_type`.
    pub kind: u32,
    /// Kernel id.
    pub id: u32,
    /// Name, at most 15 bytes of it.
    pub name: String,
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<OwnedFd> for Link {
    fn from(fd: OwnedFd) -> Self {
        Self { fd }
    }
}

impl Link {
    /// Attaches a program to a device, at TCX after those that are there.
    ///
    /// # Errors
    ///
    /// `EBUSY` if a foreign XDP program is there, `EOPNOTSUPP` or `EINVAL` if driver or kernel does
    /// not know the hook, `ENODEV` for a missing device.
    pub fn create(program: BorrowedFd<'_>, ifindex: u32, hook: Hook) -> io::Result<Self> {
        Self::make(program, ifindex, hook, hook.flags(), 0)
    }

    /// Attaches a program to a device at TCX, directly before another link's.
    ///
    /// # Errors
    ///
    /// As [`Self::create`]; `ENOENT` if `other` is not at the same hook of the same device.
    pub fn create_before(
        program: BorrowedFd<'_>,
        ifindex: u32,
        hook: Hook,
        other: &Self,
    ) -> io::Result<Self> {
        const BEFORE: u32 = 1 << 3;
        const RELATIVE_IS_LINK: u32 = 1 << 13;
        let flags = hook.flags() | BEFORE | RELATIVE_IS_LINK;
        Self::make(program, ifindex, hook, flags, raw(other.as_fd()))
    }

    fn make(
        program: BorrowedFd<'_>,
        ifindex: u32,
        hook: Hook,
        flags: u32,
        relative_fd: u32,
    ) -> io::Result<Self> {
        let mut attr = CreateAttr {
            prog_fd: raw(program),
            target_ifindex: ifindex,
            attach_type: hook.attach_type(),
            flags,
            relative_fd,
            padding: 0,
            expected_revision: 0,
        };
        // SAFETY: the structure holds no pointer.
        let fd = unsafe { bpf(command::LINK_CREATE, &mut attr) }?;
        let fd = i32::try_from(fd).map_err(|error| invalid(error.to_string()))?;
        // SAFETY: the kernel gave us this descriptor just now.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { fd })
    }

    /// Puts another program in the place of the attached one; no packet falls between.
    ///
    /// # Errors
    ///
    /// `ENOLINK` if the device is gone. The old program stays then.
    pub fn update(&self, program: BorrowedFd<'_>) -> io::Result<()> {
        let mut attr = UpdateAttr {
            link_fd: raw(self.as_fd()),
            new_prog_fd: raw(program),
            flags: 0,
            old_prog_fd: 0,
        };
        // SAFETY: the structure holds no pointer.
        unsafe { bpf(command::LINK_UPDATE, &mut attr) }.map(drop)
    }

    /// Takes the program off its hook before the call returns. A link whose last pin or descriptor
    /// goes is taken off by a kernel worker, some time after.
    ///
    /// # Errors
    ///
    /// Those of `BPF_LINK_DETACH` (Linux 5.9). A link whose device is gone is success.
    pub fn detach(&self) -> io::Result<()> {
        let mut attr = DetachAttr {
            link_fd: raw(self.as_fd()),
        };
        // SAFETY: the structure holds no pointer.
        unsafe { bpf(command::LINK_DETACH, &mut attr) }.map(drop)
    }

    /// What the kernel says the link is.
    ///
    /// # Errors
    ///
    /// If the descriptor is not a link's.
    pub fn info(&self) -> io::Result<LinkInfo> {
        let mut words = [0_u32; 16];
        super::object_info(self.as_fd(), &mut words)?;
        let [kind, id, program, _, ifindex, attach_type, ..] = words;
        Ok(LinkInfo {
            kind,
            id,
            program,
            ifindex,
            attach_type,
        })
    }
}

/// Opens a loaded program by its kernel id.
///
/// # Errors
///
/// `NotFound` if there is none.
pub fn open_program(id: u32) -> io::Result<OwnedFd> {
    let mut attr = IdAttr {
        id,
        next_id: 0,
        open_flags: 0,
    };
    // SAFETY: the structure holds no pointer.
    let fd = unsafe { bpf(command::PROG_GET_FD_BY_ID, &mut attr) }?;
    let fd = i32::try_from(fd).map_err(|error| invalid(error.to_string()))?;
    // SAFETY: the kernel gave us this descriptor just now.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// What the kernel says a program is.
///
/// # Errors
///
/// If the descriptor is not a program's.
pub fn program_info(program: BorrowedFd<'_>) -> io::Result<ProgramInfo> {
    // `struct bpf_prog_info`, whose name is at byte 64. Sizes of zero ask for no code.
    let mut words = [0_u32; 20];
    super::object_info(program, &mut words)?;
    let [kind, id, .., a, b, c, d] = words;
    let name = [a, b, c, d].map(u32::to_ne_bytes);
    let name = name.as_flattened().split(|byte| *byte == 0).next();
    Ok(ProgramInfo {
        kind,
        id,
        name: String::from_utf8_lossy(name.unwrap_or_default()).into_owned(),
    })
}

/// Kernel id of a program.
///
/// # Errors
///
/// If the descriptor is not a program's.
pub fn program_id(program: BorrowedFd<'_>) -> io::Result<u32> {
    let mut words = [0_u32; 4];
    super::object_info(program, &mut words)?;
    let [_, id, ..] = words;
    Ok(id)
}

/// Whether this kernel has TCX (Linux 6.6): asks what is attached to the loopback device.
///
/// # Errors
///
/// Without the privilege to ask.
pub fn has_tcx() -> io::Result<bool> {
    const LOOPBACK: u32 = 1;
    let mut attr = QueryAttr {
        target_ifindex: LOOPBACK,
        attach_type: Hook::TcxIngress.attach_type(),
        query_flags: 0,
        attach_flags: 0,
        prog_ids: 0,
        prog_cnt: 0,
        padding: 0,
        prog_attach_flags: 0,
        link_ids: 0,
        link_attach_flags: 0,
        revision: 0,
    };
    // SAFETY: every pointer is null, which asks for the number of programs only.
    match unsafe { bpf(command::PROG_QUERY, &mut attr) } {
        Ok(_) => Ok(true),
        // More programs than there is room for: it knows the hook all the better.
        Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(false),
        Err(error) => Err(error),
    }
}

/// `union bpf_attr`, `BPF_LINK_CREATE`.
#[repr(C)]
struct CreateAttr {
    prog_fd: u32,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
    relative_fd: u32,
    padding: u32,
    expected_revision: u64,
}

/// `union bpf_attr`, `BPF_LINK_UPDATE`.
#[repr(C)]
struct UpdateAttr {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

/// `union bpf_attr`, `BPF_LINK_DETACH`.
#[repr(C)]
struct DetachAttr {
    link_fd: u32,
}

/// `union bpf_attr`, `BPF_PROG_QUERY`.
#[repr(C)]
struct QueryAttr {
    target_ifindex: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    padding: u32,
    prog_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}
