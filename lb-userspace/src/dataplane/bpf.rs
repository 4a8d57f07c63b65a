//! The kernel's tables.
//!
//! What several packets must see change at once is one store: a selection is an aligned word of the
//! mapped `SERVICES`. Everything else is a map update, which the kernel makes atomic. The order
//! inside an operation is what keeps the promise of [`TableOp`]: what an element names is written
//! before it, and the word that makes it live is written last.

use std::{collections::BTreeMap, io, net::IpAddr, path::Path, sync::Arc};

use lb_common::{
    flow::{filter_position4, filter_position6},
    names,
    service::{Backend4, Backend6, Service, ServiceName},
    wire::Wire,
};

pub(crate) use self::extents::wait_for_readers;
use self::{
    encode::Key,
    extents::{Freed, elements},
    maps::Maps,
};
use super::{Dataplane, DataplaneError, TableOp};
use crate::{
    kernel::Map,
    pins::PinDirectory,
    tables::{BackendRecord, ServiceRecord, TableSet},
};

mod bulk;
mod dump;
mod encode;
mod extents;
mod maps;
mod publish;
mod traffic;

/// The kernel's tables, by their pins. It needs no agent and no program, only the maps.
#[derive(Debug)]
pub struct BpfDataplane {
    maps: Arc<Maps>,
    /// First element of each extent we wrote or found, and its number of elements.
    extents: BTreeMap<u32, u32>,
    freed: Freed,
}

impl BpfDataplane {
    /// Opens the maps of a layout.
    ///
    /// # Errors
    ///
    /// If a map is missing or cannot be mapped.
    pub fn open_pinned(layout: &PinDirectory) -> Result<Self, DataplaneError> {
        Self::open(&layout.maps())
    }

    /// Opens the maps pinned directly in `directory`.
    ///
    /// # Errors
    ///
    /// If a map is missing or cannot be mapped.
    pub fn open(directory: &Path) -> Result<Self, DataplaneError> {
        let mut opened = Self {
            maps: Arc::new(Maps::open(directory)?),
            extents: BTreeMap::new(),
            freed: Freed::unknown(),
        };
        let tables = opened.dump()?;
        opened.extents = tables
            .extents
            .iter()
            .map(|(first, slots)| (*first, elements(slots.len())))
            .collect();
        Ok(opened)
    }

    /// For reading the tables aside, while they are written here.
    pub fn reader(&self) -> Reader {
        Reader(Arc::clone(&self.maps))
    }

    /// Performs operations in order; runs of one kind go to the kernel in batches.
    ///
    /// # Errors
    ///
    /// The first failure, with the number of operations known to be performed before it. Some after
    /// it, of the same kind, may have been performed too: dump before planning again.
    pub fn apply_all(&mut self, ops: &[TableOp]) -> Result<(), (usize, DataplaneError)> {
        let mut done = 0;
        for run in ops.chunk_by(bulk::same_batch) {
            if run.len() > 1 && self.apply_run(run) {
                done += run.len();
                continue;
            }
            // One by one: the kind has no batch, or the batch failed and its culprit is wanted.
            for op in run {
                self.apply(op).map_err(|error| (done, error))?;
                done += 1;
            }
        }
        self.freed.settle();
        Ok(())
    }

    /// Clears the address filter but for the addresses the tables and `more` name.
    ///
    /// # Errors
    ///
    /// If the filter cannot be written; bits may then be set that need not be.
    pub fn rebuild_filter(
        &self,
        tables: &TableSet,
        more: impl IntoIterator<Item = IpAddr>,
    ) -> Result<(), DataplaneError> {
        let mut words = vec![0_u64; lb_common::flow::FILTER_WORDS];
        for address in named_by(tables).chain(more) {
            let (word, bit) = filter_position(address);
            if let Some(word) = words.get_mut(word as usize) {
                *word |= 1 << bit;
            }
        }
        for (index, word) in words.into_iter().enumerate() {
            self.maps
                .filter
                .store_u64(index * 8, word)
                .map_err(|error| kernel_error("rebuild the address filter", error))?;
        }
        Ok(())
    }

    /// Sets the bits of every address the tables name, and leaves the others.
    ///
    /// # Errors
    ///
    /// If the filter cannot be written.
    pub fn fill_filter(&self, tables: &TableSet) -> Result<(), DataplaneError> {
        let what = || "fill the address filter".to_owned();
        named_by(tables).try_for_each(|address| self.mark(address, &what))
    }

    fn set_backend(&self, id: u32, record: &BackendRecord) -> Result<(), DataplaneError> {
        let what = || format!("set backend {id} {}", record.endpoint);
        self.mark(record.endpoint.ip(), &what)?;
        self.begin_backends([(id, *record)])
            .map_err(|error| kernel_error(what(), error))?;
        let maps = &self.maps;
        match encode::backend(record) {
            encode::Backend::V4(value) => {
                put(&maps.backends_v4, names::BACKENDS_V4, &id, &value, &what)?;
                put(
                    &maps.backends_v6,
                    names::BACKENDS_V6,
                    &id,
                    &Backend6::default(),
                    &what,
                )
            }
            encode::Backend::V6(value) => {
                put(&maps.backends_v6, names::BACKENDS_V6, &id, &value, &what)?;
                put(
                    &maps.backends_v4,
                    names::BACKENDS_V4,
                    &id,
                    &Backend4::default(),
                    &what,
                )
            }
        }
    }

    fn remove_backend(&self, id: u32) -> Result<(), DataplaneError> {
        let what = || format!("remove backend {id}");
        let maps = &self.maps;
        put(
            &maps.backends_v4,
            names::BACKENDS_V4,
            &id,
            &Backend4::default(),
            &what,
        )?;
        put(
            &maps.backends_v6,
            names::BACKENDS_V6,
            &id,
            &Backend6::default(),
            &what,
        )
    }

    fn set_service(&self, id: u32, record: &ServiceRecord) -> Result<(), DataplaneError> {
        let what = || format!("set service port {id} {}", record.name);
        let name = encode::service_name(&record.name);
        self.begin_services([id])
            .map_err(|error| kernel_error(what(), error))?;
        put(
            &self.maps.service_names,
            names::SERVICE_NAMES,
            &id,
            &name,
            &what,
        )?;
        self.publish(id, record)
    }

    fn remove_service(&self, id: u32) -> Result<(), DataplaneError> {
        let what = || format!("remove service port {id}");
        let services = &self.maps.services;
        let base = services.offset(id);
        let failed = |error| kernel_error(what(), error);
        // First the word that says it is live.
        let flags = std::mem::offset_of!(Service, flags);
        services.store_u32(base + flags, 0).map_err(failed)?;
        for at in (0..size_of::<Service>()).step_by(8) {
            services.store_u64(base + at, 0).map_err(failed)?;
        }
        delete(&self.maps.service_names, &id, &what)
    }

    /// Sets an address's bit in the filter: from now on its packets are looked at.
    fn mark(&self, address: IpAddr, what: &impl Fn() -> String) -> Result<(), DataplaneError> {
        let (word, bit) = filter_position(address);
        let offset = word as usize * 8;
        let bits = 1_u64 << bit;
        if self
            .maps
            .filter
            .load_u64(offset)
            .is_some_and(|found| found & bits != 0)
        {
            return Ok(());
        }
        self.maps
            .filter
            .or_u64(offset, bits)
            .map_err(|error| kernel_error(what(), error))
    }
}

/// Reads the tables.
#[derive(Debug)]
pub struct Reader(Arc<Maps>);

impl Reader {
    /// As [`Dataplane::dump`]. What is written meanwhile is found as it was before or as it is after, row
    /// by row.
    ///
    /// # Errors
    ///
    /// If a table cannot be read.
    pub fn dump(&self) -> Result<TableSet, DataplaneError> {
        dump::dump(&self.0)
    }
}

impl Dataplane for BpfDataplane {
    fn dump(&self) -> Result<TableSet, DataplaneError> {
        dump::dump(&self.maps)
    }

    fn apply(&mut self, op: &TableOp) -> Result<(), DataplaneError> {
        let maps = &self.maps;
        match op {
            TableOp::SetBackend(id, record) => self.set_backend(*id, record),
            TableOp::RemoveBackend(id) => self.remove_backend(*id),
            TableOp::SetMember((service, backend), flags) => {
                let (key, value) = encode::member(*service, *backend, *flags);
                put(&maps.members, names::MEMBERS, &key, &value, &|| {
                    format!("set member {backend} of service port {service}")
                })
            }
            TableOp::RemoveMember((service, backend)) => {
                let (key, _) = encode::member(*service, *backend, 0);
                delete(&maps.members, &key, &|| {
                    format!("remove member {backend} of service port {service}")
                })
            }
            TableOp::WriteExtent(first, slots) => self.write_extent(*first, slots),
            TableOp::FreeExtent(first) => {
                self.free_extent(*first);
                Ok(())
            }
            TableOp::SetService(id, record) => self.set_service(*id, record),
            TableOp::RemoveService(id) => self.remove_service(*id),
            TableOp::SetAddress(address, flags) => {
                let what = || format!("set address {address}");
                self.mark(*address, &what)?;
                let (key, value) = encode::role(*address, *flags);
                put(&maps.addresses, names::ADDRESSES, &key, &value, &what)
            }
            TableOp::RemoveAddress(address) => {
                let (key, _) = encode::role(*address, 0);
                delete(&maps.addresses, &key, &|| {
                    format!("remove address {address}")
                })
            }
            TableOp::SetFrontend(id, record) => {
                let what = || format!("set frontend {id}");
                if !id.address.is_unspecified() {
                    self.mark(id.address, &what)?;
                }
                let value = encode::frontend(*record);
                match encode::key(id) {
                    Key::V4(key) => {
                        put(&maps.frontends_v4, names::FRONTENDS_V4, &key, &value, &what)
                    }
                    Key::V6(key) => {
                        put(&maps.frontends_v6, names::FRONTENDS_V6, &key, &value, &what)
                    }
                }
            }
            TableOp::RemoveFrontend(id) => {
                let what = || format!("remove frontend {id}");
                match encode::key(id) {
                    Key::V4(key) => delete(&maps.frontends_v4, &key, &what),
                    Key::V6(key) => delete(&maps.frontends_v6, &key, &what),
                }
            }
            TableOp::SetGatewayEndpoint(id) => {
                let what = || format!("set gateway endpoint {id}");
                self.mark(id.address, &what)?;
                let (v4, v6) = (names::GATEWAY_ENDPOINTS_V4, names::GATEWAY_ENDPOINTS_V6);
                match encode::key(id) {
                    Key::V4(key) => put(&maps.gateway_endpoints_v4, v4, &key, &1_u32, &what),
                    Key::V6(key) => put(&maps.gateway_endpoints_v6, v6, &key, &1_u32, &what),
                }
            }
            TableOp::RemoveGatewayEndpoint(id) => {
                let what = || format!("remove gateway endpoint {id}");
                match encode::key(id) {
                    Key::V4(key) => delete(&maps.gateway_endpoints_v4, &key, &what),
                    Key::V6(key) => delete(&maps.gateway_endpoints_v6, &key, &what),
                }
            }
            TableOp::SetSourceRange(set, network) => {
                let what = || format!("set source range {network} of set {set}");
                let (table, key) = (names::SOURCE_RANGES, encode::source_range(*set, *network));
                put(&maps.source_ranges, table, &key, &1_u32, &what)
            }
            TableOp::RemoveSourceRange(set, network) => {
                let key = encode::source_range(*set, *network);
                delete(&maps.source_ranges, &key, &|| {
                    format!("remove source range {network} of set {set}")
                })
            }
            TableOp::SetSourceClass(network, class) => {
                let what = || format!("set source class {network}");
                let (table, key) = (names::SOURCE_CLASS, encode::source_class(*network));
                put(&maps.source_classes, table, &key, class, &what)
            }
            TableOp::RemoveSourceClass(network) => {
                let key = encode::source_class(*network);
                delete(&maps.source_classes, &key, &|| {
                    format!("remove source class {network}")
                })
            }
        }
    }
}

/// The addresses by which packets of the tables' frontends and backends are known.
fn named_by(tables: &TableSet) -> impl Iterator<Item = IpAddr> {
    let frontends = tables.frontends.keys().map(|id| id.address);
    let backends = tables
        .backends
        .values()
        .map(|backend| backend.endpoint.ip());
    let addresses = tables.addresses.keys().copied();
    addresses.chain(frontends).chain(backends)
}

/// Word and bit of an address in the filter.
fn filter_position(address: IpAddr) -> (u32, u32) {
    match address {
        IpAddr::V4(address) => filter_position4(address.into()),
        IpAddr::V6(address) => filter_position6(address.into()),
    }
}

fn put<K: Wire, V: Wire>(
    map: &Map,
    table: &'static str,
    key: &K,
    value: &V,
    what: &impl Fn() -> String,
) -> Result<(), DataplaneError> {
    map.update(key, value)
        .map_err(|error| match error.raw_os_error() {
            // The kernel says E2BIG for a full hash and for an index beyond an array alike.
            Some(libc::E2BIG | libc::ENOSPC) => full(what(), table, map.info().max_entries),
            _ => kernel_error(what(), error),
        })
}

fn delete<K: Wire>(map: &Map, key: &K, what: &impl Fn() -> String) -> Result<(), DataplaneError> {
    map.delete(key)
        .map(drop)
        .map_err(|error| kernel_error(what(), error))
}

fn kernel_error(what: impl Into<String>, error: io::Error) -> DataplaneError {
    DataplaneError::Kernel {
        what: what.into(),
        source: Box::new(error),
    }
}

const fn full(what: String, table: &'static str, capacity: u32) -> DataplaneError {
    DataplaneError::Full {
        what,
        table,
        capacity,
    }
}

const _: () = assert!(size_of::<Service>().is_multiple_of(8));
const _: () = assert!(size_of::<ServiceName>() == 192);
