//! The maps the plan decides, opened by their pins.

use std::path::Path;

use lb_common::names;

use super::kernel_error;
use crate::{
    dataplane::DataplaneError,
    kernel::{Map, Mapping},
};

/// Every map a [`crate::dataplane::TableOp`] can touch.
#[derive(Debug)]
pub(super) struct Maps {
    pub(super) frontends_v4: Map,
    pub(super) frontends_v6: Map,
    pub(super) gateway_endpoints_v4: Map,
    pub(super) gateway_endpoints_v6: Map,
    pub(super) service_names: Map,
    pub(super) backends_v4: Map,
    pub(super) backends_v6: Map,
    pub(super) members: Map,
    pub(super) addresses: Map,
    pub(super) source_ranges: Map,
    pub(super) source_classes: Map,
    pub(super) service_traffic: Map,
    pub(super) backend_traffic: Map,
    pub(super) services: Mapping,
    pub(super) services_capacity: u32,
    pub(super) slots: Mapping,
    pub(super) slots_capacity: u32,
    pub(super) filter: Mapping,
}

impl Maps {
    pub(super) fn open(directory: &Path) -> Result<Self, DataplaneError> {
        let open = |name: &str| {
            let path = directory.join(name);
            Map::open_pinned(&path)
                .map_err(|error| kernel_error(format!("open pinned map {}", path.display()), error))
        };
        let mapped = |name: &str| {
            let map = open(name)?;
            let mapping = Mapping::new(&map)
                .map_err(|error| kernel_error(format!("map {name} into memory"), error))?;
            Ok::<_, DataplaneError>((mapping, map.info().max_entries))
        };
        let (services, services_capacity) = mapped(names::SERVICES)?;
        let (slots, slots_capacity) = mapped(names::SLOTS)?;
        let (filter, _) = mapped(names::ADDRESS_FILTER)?;
        Ok(Self {
            frontends_v4: open(names::FRONTENDS_V4)?,
            frontends_v6: open(names::FRONTENDS_V6)?,
            gateway_endpoints_v4: open(names::GATEWAY_ENDPOINTS_V4)?,
            gateway_endpoints_v6: open(names::GATEWAY_ENDPOINTS_V6)?,
            service_names: open(names::SERVICE_NAMES)?,
            backends_v4: open(names::BACKENDS_V4)?,
            backends_v6: open(names::BACKENDS_V6)?,
            members: open(names::MEMBERS)?,
            addresses: open(names::ADDRESSES)?,
            source_ranges: open(names::SOURCE_RANGES)?,
            source_classes: open(names::SOURCE_CLASS)?,
            service_traffic: open(names::SERVICE_TRAFFIC)?,
            backend_traffic: open(names::BACKEND_TRAFFIC)?,
            services,
            services_capacity,
            slots,
            slots_capacity,
            filter,
        })
    }
}
