//! How many entries each map of the data path has.

use std::collections::BTreeMap;

use lb_common::names::{MAPS, entries};

use super::{Problem, raw::RawTables};

/// Sizes of the tables. Another size is another layout: the next agent starts beside the old maps.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TableSizes {
    /// `tables.frontends`: frontends of each family.
    pub frontends: u32,
    /// `tables.gatewayEndpoints`: endpoints of gateway backends of each family.
    pub gateway_endpoints: u32,
    /// `tables.services`: service-port ids, 0 included.
    pub services: u32,
    /// `tables.backends`: backend ids, 0 included.
    pub backends: u32,
    /// `tables.members`: (service port, backend) pairs.
    pub members: u32,
    /// `tables.slots`: elements of sixteen slots in the arena of Maglev tables.
    pub slots: u32,
    /// `tables.flowsV4`: established IPv4 entries, two a flow.
    pub flows_v4: u32,
    /// `tables.flowsV6`: established IPv6 entries, two a flow.
    pub flows_v6: u32,
    /// `tables.embryonicV4`: unproven IPv4 entries, two a flow.
    pub embryonic_v4: u32,
    /// `tables.embryonicV6`: unproven IPv6 entries, two a flow.
    pub embryonic_v6: u32,
    /// `tables.affinity`: (service port, client) pairs.
    pub affinity: u32,
    /// `tables.sourceRanges`: prefixes over all services.
    pub source_ranges: u32,
    /// `tables.sourceClass`: prefixes of pods and nodes.
    pub source_class: u32,
    /// `tables.addresses`: VIPs, node-port and SNAT addresses.
    pub addresses: u32,
    /// `tables.nextHops`: neighbours.
    pub next_hops: u32,
    /// `tables.devices`: network devices.
    pub devices: u32,
    /// `tables.snat`: SNAT addresses of each family.
    pub snat: u32,
    /// `tables.fragments`: datagrams in fragments.
    pub fragments: u32,
}

impl Default for TableSizes {
    fn default() -> Self {
        let default = |entries: usize| u32::try_from(entries).unwrap_or(u32::MAX);
        Self {
            frontends: default(entries::FRONTENDS_V4),
            gateway_endpoints: default(entries::GATEWAY_ENDPOINTS_V4),
            services: default(entries::SERVICES),
            backends: default(entries::BACKENDS_V4),
            members: default(entries::MEMBERS),
            slots: default(entries::SLOTS),
            flows_v4: default(entries::FLOWS_V4),
            flows_v6: default(entries::FLOWS_V6),
            embryonic_v4: default(entries::EMBRYONIC_V4),
            embryonic_v6: default(entries::EMBRYONIC_V6),
            affinity: default(entries::AFFINITY),
            source_ranges: default(entries::SOURCE_RANGES),
            source_class: default(entries::SOURCE_CLASS),
            addresses: default(entries::ADDRESSES),
            next_hops: default(entries::NEXT_HOPS),
            devices: default(entries::DEVICES),
            snat: default(entries::SNAT_V4),
            fragments: default(entries::FRAGMENTS),
        }
    }
}

/// Least entries of any table.
const LEAST: u32 = 16;
/// Most entries of a table the data path indexes by 16 bits.
const MOST_INDEXED: u32 = 1 << 16;
/// Most entries of any other table: a typing error should not take the machine's memory.
const MOST: u32 = 1 << 26;

impl TableSizes {
    /// `max_entries` of every map of the data path, by its name.
    pub fn entries(&self) -> BTreeMap<&'static str, u32> {
        let fixed = MAPS
            .iter()
            .map(|&(name, n)| (name, u32::try_from(n).unwrap_or(u32::MAX)));
        let mut entries: BTreeMap<_, _> = fixed.collect();
        entries.extend([
            ("FRONTENDS_V4", self.frontends),
            ("FRONTENDS_V6", self.frontends),
            ("GATEWAY_ENDPOINTS_V4", self.gateway_endpoints),
            ("GATEWAY_ENDPOINTS_V6", self.gateway_endpoints),
            ("SERVICES", self.services),
            ("SERVICE_NAMES", self.services),
            ("SERVICE_TRAFFIC", self.services),
            ("BACKENDS_V4", self.backends),
            ("BACKENDS_V6", self.backends),
            ("BACKEND_TRAFFIC", self.backends),
            ("MEMBERS", self.members),
            ("SLOTS", self.slots),
            ("FLOWS_V4", self.flows_v4),
            ("FLOWS_V6", self.flows_v6),
            // A flow has two entries and closes once.
            ("CLOSING_V4", self.flows_v4.div_ceil(2)),
            ("CLOSING_V6", self.flows_v6.div_ceil(2)),
            ("EMBRYONIC_V4", self.embryonic_v4),
            ("EMBRYONIC_V6", self.embryonic_v6),
            ("AFFINITY", self.affinity),
            ("SOURCE_RANGES", self.source_ranges),
            ("SOURCE_CLASS", self.source_class),
            ("ADDRESSES", self.addresses),
            ("NEXT_HOPS", self.next_hops),
            ("NEXT_HOP_INDEX", self.next_hops),
            ("NEXT_HOP_FREE", self.next_hops),
            ("DEVICES", self.devices),
            ("DEVICE_INDEX", self.devices),
            ("SNAT_V4", self.snat),
            ("SNAT_V6", self.snat),
            ("FRAGMENTS", self.fragments),
        ]);
        entries
    }

    /// Takes over the sizes given, and names those out of bounds.
    pub(super) fn check(raw: &RawTables, problems: &mut Vec<Problem>) -> Self {
        let mut sizes = Self::default();
        let rows = [
            ("frontends", raw.frontends, &mut sizes.frontends, MOST),
            (
                "gatewayEndpoints",
                raw.gateway_endpoints,
                &mut sizes.gateway_endpoints,
                MOST,
            ),
            ("services", raw.services, &mut sizes.services, MOST),
            ("backends", raw.backends, &mut sizes.backends, MOST),
            ("members", raw.members, &mut sizes.members, MOST),
            ("slots", raw.slots, &mut sizes.slots, MOST),
            ("flowsV4", raw.flows_v4, &mut sizes.flows_v4, MOST),
            ("flowsV6", raw.flows_v6, &mut sizes.flows_v6, MOST),
            (
                "embryonicV4",
                raw.embryonic_v4,
                &mut sizes.embryonic_v4,
                MOST,
            ),
            (
                "embryonicV6",
                raw.embryonic_v6,
                &mut sizes.embryonic_v6,
                MOST,
            ),
            ("affinity", raw.affinity, &mut sizes.affinity, MOST),
            (
                "sourceRanges",
                raw.source_ranges,
                &mut sizes.source_ranges,
                MOST,
            ),
            (
                "sourceClass",
                raw.source_class,
                &mut sizes.source_class,
                MOST,
            ),
            ("addresses", raw.addresses, &mut sizes.addresses, MOST),
            (
                "nextHops",
                raw.next_hops,
                &mut sizes.next_hops,
                MOST_INDEXED,
            ),
            ("devices", raw.devices, &mut sizes.devices, MOST_INDEXED),
            ("snat", raw.snat, &mut sizes.snat, MOST_INDEXED),
            ("fragments", raw.fragments, &mut sizes.fragments, MOST),
        ];
        for (key, value, size, most) in rows {
            match value {
                None => {}
                Some(value) if (LEAST..=most).contains(&value) => *size = value,
                Some(value) => problems.push(Problem {
                    key: format!("tables.{key}"),
                    message: format!("{value} is not between {LEAST} and {most}"),
                }),
            }
        }
        sizes
    }
}
