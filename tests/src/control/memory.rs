//! What the tables take: of the agent, and of the kernel.

use std::{
    collections::BTreeMap,
    os::fd::{AsFd as _, AsRawFd as _},
};

use anyhow::{Context as _, Result};
use lb_common::{maglev::SLOTS_PER_ELEMENT, names};
use lb_userspace::{kernel::Map, tables::TableSet};

/// Maps with an entry for each service port.
const OF_SERVICES: [&str; 3] = [
    names::SERVICES,
    names::SERVICE_NAMES,
    names::SERVICE_TRAFFIC,
];
/// Maps with an entry for each backend.
const OF_BACKENDS: [&str; 3] = [
    names::BACKENDS_V4,
    names::BACKENDS_V6,
    names::BACKEND_TRAFFIC,
];

/// Bytes of kernel memory, as the kernel charges them.
#[derive(Debug)]
pub(super) struct Kernel {
    /// Of all maps, whether used or not.
    pub(super) all: u64,
    /// Of a service port: its entries, frontends, addresses and Maglev tables.
    pub(super) service: f64,
    /// Of that, its Maglev tables.
    pub(super) slots: f64,
    /// Of a backend: its entries, and its memberships.
    pub(super) backend: f64,
    /// Of an established flow, both directions: IPv4, IPv6.
    pub(super) flow: [f64; 2],
}

impl Kernel {
    pub(super) fn of(maps: &BTreeMap<&'static str, Map>, tables: &TableSet) -> Result<Self> {
        let mut all = 0;
        let mut entry = BTreeMap::new();
        for (&name, map) in maps {
            let charged = charged(map)?;
            all += charged;
            entry.insert(name, float(charged) / f64::from(map.info().max_entries));
        }
        let bytes = |name: &str| entry.get(name).copied().unwrap_or_default();
        let rows = |name: &str, rows: usize| bytes(name) * count(rows);
        let slots = tables.extents.values().map(|table| {
            let elements = u32::try_from(table.len()).map_or(0, |n| n.div_ceil(SLOTS_PER_ELEMENT));
            bytes(names::SLOTS) * f64::from(elements)
        });
        let services = count(tables.services.len());
        let slots = slots.sum::<f64>() / services;
        let shared = rows(names::FRONTENDS_V4, tables.frontends.len())
            + rows(names::ADDRESSES, tables.addresses.len());
        let members = rows(names::MEMBERS, tables.members.len());
        Ok(Self {
            all,
            service: OF_SERVICES.into_iter().map(bytes).sum::<f64>() + shared / services + slots,
            slots,
            backend: OF_BACKENDS.into_iter().map(bytes).sum::<f64>()
                + members / count(tables.backends.len()),
            // What a map takes beside its entries is not a flow's, and less than a byte of each.
            flow: [names::FLOWS_V4, names::FLOWS_V6].map(|name| (2.0 * bytes(name)).floor()),
        })
    }
}

/// Bytes of kernel memory, as the kernel charges them for a map.
///
/// # Errors
///
/// `/proc` does not tell them.
pub fn charged(map: &Map) -> Result<u64> {
    let path = format!("/proc/self/fdinfo/{}", map.as_fd().as_raw_fd());
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let mut lines = text.lines();
    let bytes = lines.find_map(|line| line.strip_prefix("memlock:")?.trim().parse().ok());
    bytes.with_context(|| format!("{path} does not tell memlock"))
}

/// The highest resident memory of this process until now, in bytes.
///
/// # Errors
///
/// `/proc` does not tell it.
pub fn peak_memory() -> Result<u64> {
    peak_memory_of("self")
}

/// As [`peak_memory`], of another process.
///
/// # Errors
///
/// `/proc` does not tell it.
pub fn peak_memory_of(process: &str) -> Result<u64> {
    let path = format!("/proc/{process}/status");
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let mut lines = text.lines();
    let kilobytes = lines.find_map(|line| {
        let (kilobytes, _unit) = line.strip_prefix("VmHWM:")?.trim().split_once(' ')?;
        kilobytes.parse::<u64>().ok()
    });
    Ok(kilobytes.with_context(|| format!("{path} does not tell VmHWM"))? * 1024)
}

/// Lets [`peak_memory`] count from now on.
pub(super) fn forget_peak() -> Result<()> {
    std::fs::write("/proc/self/clear_refs", "5").context("write /proc/self/clear_refs")
}

#[expect(clippy::cast_precision_loss, reason = "for people to read")]
fn float(bytes: u64) -> f64 {
    bytes as f64
}

fn count(rows: usize) -> f64 {
    float(u64::try_from(rows).unwrap_or(u64::MAX))
}
