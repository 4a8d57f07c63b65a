//! How full each map is.

use std::collections::BTreeMap;

use lb_common::{control::Control, maglev::SLOTS_PER_ELEMENT, names, traffic::Tally};
use serde::Serialize;

use crate::{
    kernel::MapInfo,
    tables::Family,
    view::{
        catalog::View,
        contents::Contents,
        flows::{Half, Table},
    },
};

/// A map, what it is and how full.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MapUse {
    /// The name under which `lbctl map-dump` shows it.
    pub name: &'static str,
    /// Its name in the data path.
    pub map: &'static str,
    /// Its type.
    pub kind: String,
    /// Entries, or elements that are not zero; none where that says nothing.
    pub used: Option<usize>,
    /// Entries it can hold.
    pub capacity: u32,
    /// Bytes of a key.
    pub key_bytes: u32,
    /// Bytes of a value, for one CPU.
    pub value_bytes: u32,
}

/// Every map that exists, in the order of the views.
pub fn usage(contents: &Contents, infos: &BTreeMap<&'static str, MapInfo>) -> Vec<MapUse> {
    let maps = View::ALL
        .iter()
        .flat_map(|view| view.maps().iter().map(|&map| (*view, map)));
    maps.filter_map(|(view, map)| {
        let info = infos.get(map)?;
        Some(MapUse {
            name: view.name(),
            map,
            kind: kind_name(info.kind),
            used: used(contents, map),
            capacity: info.max_entries,
            key_bytes: info.key_size,
            value_bytes: info.value_size,
        })
    })
    .collect()
}

/// Entries of a map.
fn used(contents: &Contents, map: &str) -> Option<usize> {
    let tables = &contents.tables;
    let frontends = |family| {
        tables
            .frontends
            .keys()
            .filter(|id| Family::of(id.address) == family)
            .count()
    };
    let endpoints = |family| {
        tables
            .gateway_endpoints
            .iter()
            .filter(|id| Family::of(id.address) == family)
            .count()
    };
    let backends = |family| {
        tables
            .backends
            .values()
            .filter(|b| Family::of(b.endpoint.ip()) == family)
            .count()
    };
    let halves = |table, family| {
        let held =
            |half: &&Half| half.table == table && Family::of(half.seen.source.ip()) == family;
        contents.halves.iter().filter(held).count()
    };
    let moved = |tally: &&Tally| tally.packets != 0;
    Some(match map {
        names::FRONTENDS_V4 => frontends(Family::V4),
        names::FRONTENDS_V6 => frontends(Family::V6),
        names::GATEWAY_ENDPOINTS_V4 => endpoints(Family::V4),
        names::GATEWAY_ENDPOINTS_V6 => endpoints(Family::V6),
        names::SERVICES | names::SERVICE_NAMES => tables.services.len(),
        names::BACKENDS_V4 => backends(Family::V4),
        names::BACKENDS_V6 => backends(Family::V6),
        names::MEMBERS => tables.members.len(),
        names::SLOTS => {
            let elements =
                |slots: &std::sync::Arc<[u32]>| slots.len().div_ceil(SLOTS_PER_ELEMENT as usize);
            tables.extents.values().map(elements).sum()
        }
        names::FLOWS_V4 => halves(Table::Established, Family::V4),
        names::FLOWS_V6 => halves(Table::Established, Family::V6),
        names::EMBRYONIC_V4 => halves(Table::Embryonic, Family::V4),
        names::EMBRYONIC_V6 => halves(Table::Embryonic, Family::V6),
        names::FLOW_USE => contents.flow_use.iter().filter(|used| **used != 0).count(),
        names::AFFINITY => contents.affinity.len(),
        names::SOURCE_RANGES => contents.source_ranges.len(),
        names::SOURCE_CLASS => contents.source_class.len(),
        names::ADDRESSES => tables.addresses.len(),
        names::ADDRESS_FILTER => usize::from(contents.address_filter.iter().any(|w| *w != 0)),
        names::NEXT_HOPS => contents.next_hops.len(),
        names::NEXT_HOP_INDEX => contents.next_hop_index.len(),
        names::DEVICES => contents.devices.len(),
        names::DEVICE_INDEX => contents.device_index.len(),
        names::SNAT_V4 => contents.snat4.len(),
        names::SNAT_V6 => contents.snat6.len(),
        names::FRAGMENTS => contents.fragments.len(),
        names::CONTROL => usize::from(contents.control != Control::default()),
        names::DRAINS => contents.drains.len(),
        names::COUNTERS => contents.counters.iter().filter(moved).count(),
        names::SERVICE_TRAFFIC => contents.service_traffic.len(),
        names::BACKEND_TRAFFIC => contents.backend_traffic.len(),
        names::REPLY_BUDGET => usize::from(contents.reply_budget.iter().any(|b| b.tick != 0)),
        // The kernel lends a queue's first element only (CLOSING_V4, CLOSING_V6, NEXT_HOP_FREE);
        // working memory (SCRATCH) is not in use between packets; reading EVENTS would empty it.
        _ => return None,
    })
}

/// The name of a `BPF_MAP_TYPE_*`.
fn kind_name(kind: u32) -> String {
    match kind {
        MapInfo::HASH => "hash".into(),
        MapInfo::ARRAY => "array".into(),
        MapInfo::PERCPU_ARRAY => "per-cpu array".into(),
        MapInfo::LRU_HASH => "lru hash".into(),
        MapInfo::LPM_TRIE => "lpm trie".into(),
        MapInfo::QUEUE => "queue".into(),
        MapInfo::RINGBUF => "ring buffer".into(),
        other => format!("type {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::{
        fixture,
        render::{Output, text_of},
    };

    #[test]
    fn every_map_but_queues_and_scratch_tells_its_use() {
        let silent = [
            names::CLOSING_V4,
            names::CLOSING_V6,
            names::NEXT_HOP_FREE,
            names::SCRATCH,
            names::EVENTS,
        ];
        for &(map, _) in names::MAPS {
            let told = used(&Contents::default(), map);
            assert_eq!(told.is_none(), silent.contains(&map), "{map}");
            assert!(told.is_none_or(|used| used == 0), "{map}");
        }
    }

    #[test]
    fn usage_as_a_table() {
        let info = |kind, max_entries| MapInfo {
            kind,
            id: 1,
            key_size: 16,
            value_size: 48,
            max_entries,
            flags: 0,
        };
        let infos = [
            (names::FLOWS_V4, info(MapInfo::HASH, 524_288)),
            (names::SLOTS, info(MapInfo::ARRAY, 262_144)),
            (names::CLOSING_V4, info(MapInfo::QUEUE, 262_144)),
        ];
        let usage = usage(&fixture::contents(), &infos.into());
        insta::assert_snapshot!(text_of(&usage, Output::Table), @r#"
        NAME     MAP         KIND   USED  CAPACITY  KEY BYTES  VALUE BYTES
        slots    SLOTS       array    17    262144         16           48
        flows    FLOWS_V4    hash      4    524288         16           48
        closing  CLOSING_V4  queue     -    262144         16           48
        "#);
    }
}
