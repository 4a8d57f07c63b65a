//! Reading the tables back.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use lb_common::{
    addr::Addr6,
    maglev::{LENGTHS, SLOTS_PER_ELEMENT},
    names,
    service::{
        AddressRole, Backend4, Backend6, Frontend, FrontendKey4, FrontendKey6, Member, MemberKey,
        Selection, Service, ServiceName, backend_flag, service_flag,
    },
};

use super::{
    encode::{self, SourceClassKey, SourceRangeKey},
    kernel_error,
    maps::Maps,
};
use crate::{
    dataplane::DataplaneError,
    kernel::{Map, Mapping},
    tables::{ServiceRecord, TableSet},
};

/// Rebuilds the tables. Extents nobody names any more are not among them.
pub(super) fn dump(maps: &Maps) -> Result<TableSet, DataplaneError> {
    let mut tables = TableSet::default();
    frontends(maps, &mut tables)?;
    services(maps, &mut tables)?;
    backends(maps, &mut tables)?;
    for (key, value) in read::<MemberKey, Member>(&maps.members, names::MEMBERS)? {
        tables
            .members
            .insert((key.service, key.backend), value.flags);
    }
    for (key, value) in read::<Addr6, AddressRole>(&maps.addresses, names::ADDRESSES)? {
        tables.addresses.insert(encode::unmapped(key), value.flags);
    }
    for (key, _) in read::<SourceRangeKey, u32>(&maps.source_ranges, names::SOURCE_RANGES)? {
        tables.source_ranges.extend(encode::source_range_id(key));
    }
    for (key, class) in read::<SourceClassKey, u32>(&maps.source_classes, names::SOURCE_CLASS)? {
        tables
            .source_classes
            .extend(encode::source_network(key).map(|network| (network, class)));
    }
    Ok(tables)
}

fn frontends(maps: &Maps, tables: &mut TableSet) -> Result<(), DataplaneError> {
    let v4 = |key: &FrontendKey4| {
        encode::frontend_id(Ipv4Addr::from(key.address).into(), key.port, key.protocol)
    };
    let v6 = |key: &FrontendKey6| {
        encode::frontend_id(Ipv6Addr::from(key.address).into(), key.port, key.protocol)
    };
    for (key, value) in read::<FrontendKey4, Frontend>(&maps.frontends_v4, names::FRONTENDS_V4)? {
        let record = encode::frontend_record(value);
        tables.frontends.extend(v4(&key).map(|id| (id, record)));
    }
    for (key, value) in read::<FrontendKey6, Frontend>(&maps.frontends_v6, names::FRONTENDS_V6)? {
        let record = encode::frontend_record(value);
        tables.frontends.extend(v6(&key).map(|id| (id, record)));
    }
    let endpoints = &maps.gateway_endpoints_v4;
    for (key, _) in read::<FrontendKey4, u32>(endpoints, names::GATEWAY_ENDPOINTS_V4)? {
        tables.gateway_endpoints.extend(v4(&key));
    }
    let endpoints = &maps.gateway_endpoints_v6;
    for (key, _) in read::<FrontendKey6, u32>(endpoints, names::GATEWAY_ENDPOINTS_V6)? {
        tables.gateway_endpoints.extend(v6(&key));
    }
    Ok(())
}

fn services(maps: &Maps, tables: &mut TableSet) -> Result<(), DataplaneError> {
    let names: BTreeMap<u32, ServiceName> = read(&maps.service_names, names::SERVICE_NAMES)?
        .into_iter()
        .collect();
    for id in 0..maps.services_capacity {
        let Some(service) = service(&maps.services, id) else {
            continue;
        };
        if service.flags & service_flag::LIVE == 0 {
            continue;
        }
        let record = ServiceRecord {
            name: names
                .get(&id)
                .map(encode::service_name_text)
                .unwrap_or_default(),
            cluster: Selection::from_word(service.cluster),
            local: Selection::from_word(service.local),
            epoch: service.epoch,
            flags: service.flags,
            affinity_seconds: service.affinity_seconds,
            source_ranges: service.source_ranges,
        };
        for selection in [record.cluster, record.local] {
            extent(maps, tables, selection);
        }
        tables.services.insert(id, record);
    }
    Ok(())
}

/// Reads an element word by word, without the lock the kernel does not have either.
fn service(services: &Mapping, id: u32) -> Option<Service> {
    let base = services.offset(id);
    let word32 = |at| services.load_u32(base + at);
    let word64 = |at| services.load_u64(base + at);
    Some(Service {
        cluster: word64(std::mem::offset_of!(Service, cluster))?,
        local: word64(std::mem::offset_of!(Service, local))?,
        epoch: word32(std::mem::offset_of!(Service, epoch))?,
        flags: word32(std::mem::offset_of!(Service, flags))?,
        affinity_seconds: word32(std::mem::offset_of!(Service, affinity_seconds))?,
        source_ranges: word32(std::mem::offset_of!(Service, source_ranges))?,
    })
}

/// Reads the extent of a selection, once. One that cannot have been written by us is left out: the
/// diff then sees it missing and writes it.
fn extent(maps: &Maps, tables: &mut TableSet, selection: Selection) {
    let Selection { element, length } = selection;
    let last = element.checked_add(length.div_ceil(SLOTS_PER_ELEMENT));
    let inside = last.is_some_and(|last| last <= maps.slots_capacity);
    if length == 0 || !inside || !LENGTHS.contains(&length) {
        return;
    }
    let known = tables.extents.get(&element);
    if known.is_some_and(|slots| slots.len() >= length as usize) {
        return;
    }
    if let Some(slots) = maps
        .slots
        .read_u32s(maps.slots.offset(element), length as usize)
    {
        tables.extents.insert(element, Arc::from(slots));
    }
}

fn backends(maps: &Maps, tables: &mut TableSet) -> Result<(), DataplaneError> {
    for (id, value) in read::<u32, Backend4>(&maps.backends_v4, names::BACKENDS_V4)? {
        if value.flags & backend_flag::LIVE != 0 {
            tables.backends.insert(id, encode::backend_record4(&value));
        }
    }
    for (id, value) in read::<u32, Backend6>(&maps.backends_v6, names::BACKENDS_V6)? {
        if value.flags & backend_flag::LIVE != 0 {
            tables.backends.insert(id, encode::backend_record6(&value));
        }
    }
    Ok(())
}

fn read<K: lb_common::wire::Wire, V: lb_common::wire::Wire>(
    map: &Map,
    name: &str,
) -> Result<Vec<(K, V)>, DataplaneError> {
    map.read_all()
        .map_err(|error| kernel_error(format!("read {name}"), error))
}
