//! Bytes a flow takes in the kernel, both halves.

use anyhow::Result;
use lb_common::names;

use super::kernel::Kernel;
use crate::control::charged;

/// `struct htab_elem` before the key.
const ELEMENT_HEADER: u32 = 48;
/// `struct bucket`; there are as many as entries, rounded up to a power of two.
const BUCKET: u32 = 16;

/// Memory of one family's established flows.
pub(super) struct Memory {
    pub(super) family: &'static str,
    /// Bytes of one hash element.
    pub(super) element: u32,
    /// Bytes per flow, by arithmetic.
    pub(super) computed: u32,
    /// Bytes per flow, from what the kernel charges for the map.
    pub(super) measured: f64,
    /// The target in bytes.
    pub(super) target: u32,
}

/// Both families.
pub(super) fn per_flow(kernel: &Kernel) -> Result<[Memory; 2]> {
    Ok([
        family(kernel, "IPv4", names::FLOWS_V4, 256)?,
        family(kernel, "IPv6", names::FLOWS_V6, 400)?,
    ])
}

fn family(kernel: &Kernel, family: &'static str, name: &str, target: u32) -> Result<Memory> {
    let map = kernel.map(name)?;
    let info = map.info();
    let element =
        ELEMENT_HEADER + info.key_size.next_multiple_of(8) + info.value_size.next_multiple_of(8);
    let charged = u32::try_from(charged(map)?)?;
    Ok(Memory {
        family,
        element,
        computed: 2 * (element + BUCKET),
        measured: 2.0 * f64::from(charged) / f64::from(info.max_entries),
        target,
    })
}
