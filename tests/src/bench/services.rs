//! The tables of the benchmark's services.

use std::sync::Arc;

use lb_common::{
    maglev::{LENGTHS, SLOTS_PER_ELEMENT},
    service::{Selection, address_role, backend_flag, member_flag, service_flag},
};
use lb_userspace::tables::{BackendRecord, FrontendId, FrontendRecord, ServiceRecord, TableSet};

use super::group::{Group, Mode, NODE, Policy, SNAT, plus};
use crate::tables::tables as no_tables;

/// Source ranges of a service that has some.
const RANGES: usize = 100;
/// Seconds a client is remembered: Kubernetes' default.
const AFFINITY: u32 = 10_800;

/// The tables of all groups.
pub(super) fn tables(groups: &[Group], snat_addresses: u16) -> TableSet {
    let mut tables = no_tables();
    for node in NODE {
        tables = tables.node_ports_on(node);
    }
    for first in SNAT {
        for number in 0..u32::from(snat_addresses) {
            let address = plus(first.parse().expect("an address"), number);
            tables = tables.snat(&address.to_string());
        }
    }
    for (set, group) in (1_u32..).zip(groups) {
        if group.shape.services > 1 {
            continue;
        }
        let frontend = format!("{}/{}", group.vip(0), group.shape.protocol);
        tables = tables.frontend(&frontend.to_lowercase());
        let backends = group.backends().map(|backend| backend.to_string());
        let backends = backends.each_ref().map(String::as_str);
        tables = match group.shape.mode {
            _ if group.shape.policy == Policy::Empty => tables,
            Mode::Dnat => tables.keep_source().backends(backends),
            Mode::FullNat => tables.backends(backends),
            Mode::Local => tables.local_backends(backends),
            Mode::Host => tables.host_backends(backends),
        };
        tables = match group.shape.policy {
            Policy::Plain | Policy::Empty => tables,
            Policy::Affinity => tables.affinity(AFFINITY),
            Policy::Admits => {
                // Everybody new is in the last one.
                let ranges = ranges(172, Some("10.128.0.0/9"));
                tables.source_ranges(set, ranges.each_ref().map(String::as_str))
            }
            Policy::Refuses => {
                let ranges = ranges(173, None);
                tables.source_ranges(set, ranges.each_ref().map(String::as_str))
            }
        };
    }
    let mut set = tables.build(1);
    for group in groups.iter().filter(|group| group.shape.services > 1) {
        many(&mut set, group);
    }
    set
}

fn ranges(first_byte: u8, last: Option<&str>) -> [String; RANGES] {
    std::array::from_fn(|index| match last {
        Some(last) if index + 1 == RANGES => last.to_owned(),
        _ => format!("{first_byte}.16.{index}.0/24"),
    })
}

/// Services of one backend each, all alike. As a plan would write them: nothing is shared but what
/// Services share.
fn many(set: &mut TableSet, group: &Group) {
    let next = |last: Option<u32>| last.unwrap_or(0) + 1;
    let first_service = next(set.services.keys().next_back().copied());
    let first_backend = next(set.backends.keys().next_back().copied());
    let length = LENGTHS.first().copied().expect("a length");
    let elements = length.div_ceil(SLOTS_PER_ELEMENT);
    let last_extent = set.extents.keys().next_back().copied();
    let first_element = last_extent.map_or(0, |last| last + elements);
    let keep_source = if group.shape.mode == Mode::Dnat {
        service_flag::KEEP_SOURCE
    } else {
        0
    };
    for number in 0..group.shape.services {
        let (service, backend) = (first_service + number, first_backend + number);
        let (vip, endpoint) = (group.vip(number), group.backend(number));
        let element = first_element + number * elements;
        let slots: Arc<[u32]> = vec![backend; length as usize].into();
        set.extents.insert(element, slots);
        let record = ServiceRecord {
            name: format!("default/many-{number}:443/TCP/{}", group.shape.family()),
            cluster: Selection { element, length },
            local: Selection::default(),
            epoch: 1,
            flags: service_flag::LIVE | service_flag::HAS_ENDPOINTS | keep_source,
            affinity_seconds: 0,
            source_ranges: 0,
        };
        set.services.insert(service, record);
        let frontend = FrontendId {
            address: vip.ip(),
            port: vip.port(),
            protocol: group.shape.protocol,
        };
        let leads_to = FrontendRecord { service, flags: 0 };
        set.frontends.insert(frontend, leads_to);
        set.addresses.insert(vip.ip(), address_role::VIP);
        let record = BackendRecord {
            endpoint,
            flags: backend_flag::LIVE,
            incarnation: 1,
        };
        set.backends.insert(backend, record);
        let member = member_flag::SERVING | member_flag::CLUSTER;
        set.members.insert((service, backend), member);
        if keep_source != 0 {
            set.gateway_endpoints.insert(FrontendId {
                address: endpoint.ip(),
                port: endpoint.port(),
                protocol: group.shape.protocol,
            });
        }
    }
}
