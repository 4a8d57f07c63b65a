//! `BPF_PROG_TEST_RUN`: a program run on a packet without a device.

use std::{io, os::fd::BorrowedFd, time::Duration};

use super::{bpf, command, invalid, raw, slice, slice_mut};

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

fn length(bytes: &[u8]) -> io::Result<u32> {
    u32::try_from(bytes.len()).map_err(|error| invalid(error.to_string()))
}

fn optional(bytes: &[u8]) -> u64 {
    if bytes.is_empty() { 0 } else { slice(bytes) }
}
