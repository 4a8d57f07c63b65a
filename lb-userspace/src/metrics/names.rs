//! What the maps' ids mean now: kept up with every operation, so that a scrape asks for live ids only
//! and a change costs what it changes.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
};

use lb_common::{maglev::SLOTS_PER_ELEMENT, names};

use crate::{
    dataplane::TableOp,
    tables::{Family, FrontendId, TableSet},
};

/// Names of the live ids, and how many elements the plan's tables have.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Names {
    /// Service-port id to `namespace/name:port/PROTOCOL/FAMILY`.
    pub(super) services: BTreeMap<u32, Arc<str>>,
    pub(super) backends: BTreeMap<u32, SocketAddr>,
    frontends: BTreeSet<FrontendId>,
    gateway_endpoints: BTreeSet<FrontendId>,
    /// Elements of each extent.
    extents: BTreeMap<u32, usize>,
    lengths: Lengths,
}

/// Tables of which the number alone is wanted.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Lengths {
    members: usize,
    addresses: usize,
    source_ranges: usize,
    source_classes: usize,
}

impl Names {
    /// What a dump found.
    pub(super) fn of(tables: &TableSet) -> Self {
        let names = |(id, record): (&u32, &crate::tables::ServiceRecord)| {
            (*id, Arc::from(record.name.as_str()))
        };
        Self {
            services: tables.services.iter().map(names).collect(),
            backends: tables
                .backends
                .iter()
                .map(|(id, record)| (*id, record.endpoint))
                .collect(),
            frontends: tables.frontends.keys().copied().collect(),
            gateway_endpoints: tables.gateway_endpoints.iter().copied().collect(),
            extents: tables
                .extents
                .iter()
                .map(|(first, slots)| (*first, elements(slots)))
                .collect(),
            lengths: Lengths::of(tables),
        }
    }

    /// Operations that led to `tables` were carried out.
    pub(super) fn apply(&mut self, ops: &[TableOp], tables: &TableSet) {
        for op in ops {
            self.apply_one(op);
        }
        self.lengths = Lengths::of(tables);
    }

    fn apply_one(&mut self, op: &TableOp) {
        match op {
            TableOp::SetService(id, record) => {
                let name = self.services.entry(*id).or_default();
                if **name != *record.name {
                    *name = Arc::from(record.name.as_str());
                }
            }
            TableOp::RemoveService(id) => {
                self.services.remove(id);
            }
            TableOp::SetBackend(id, record) => {
                self.backends.insert(*id, record.endpoint);
            }
            TableOp::RemoveBackend(id) => {
                self.backends.remove(id);
            }
            TableOp::SetFrontend(id, _) => {
                self.frontends.insert(*id);
            }
            TableOp::RemoveFrontend(id) => {
                self.frontends.remove(id);
            }
            TableOp::SetGatewayEndpoint(id) => {
                self.gateway_endpoints.insert(*id);
            }
            TableOp::RemoveGatewayEndpoint(id) => {
                self.gateway_endpoints.remove(id);
            }
            TableOp::WriteExtent(first, slots) => {
                self.extents.insert(*first, elements(slots));
            }
            TableOp::FreeExtent(first) => {
                self.extents.remove(first);
            }
            TableOp::SetMember(..)
            | TableOp::RemoveMember(_)
            | TableOp::SetAddress(..)
            | TableOp::RemoveAddress(_)
            | TableOp::SetSourceRange(..)
            | TableOp::RemoveSourceRange(..)
            | TableOp::SetSourceClass(..)
            | TableOp::RemoveSourceClass(_) => {}
        }
    }

    /// Elements of a map, if it is one of the plan's.
    pub(super) fn entries(&self, map: &str) -> Option<usize> {
        let of = |ids: &BTreeSet<FrontendId>, family| {
            ids.iter()
                .filter(|id| Family::of(id.address) == family)
                .count()
        };
        let backends = |family| {
            self.backends
                .values()
                .filter(|endpoint| Family::of(endpoint.ip()) == family)
                .count()
        };
        Some(match map {
            names::FRONTENDS_V4 => of(&self.frontends, Family::V4),
            names::FRONTENDS_V6 => of(&self.frontends, Family::V6),
            names::GATEWAY_ENDPOINTS_V4 => of(&self.gateway_endpoints, Family::V4),
            names::GATEWAY_ENDPOINTS_V6 => of(&self.gateway_endpoints, Family::V6),
            names::SERVICES | names::SERVICE_NAMES => self.services.len(),
            names::BACKENDS_V4 => backends(Family::V4),
            names::BACKENDS_V6 => backends(Family::V6),
            names::MEMBERS => self.lengths.members,
            names::SLOTS => self.extents.values().sum(),
            names::SOURCE_RANGES => self.lengths.source_ranges,
            names::SOURCE_CLASS => self.lengths.source_classes,
            names::ADDRESSES => self.lengths.addresses,
            _ => return None,
        })
    }
}

impl Lengths {
    fn of(tables: &TableSet) -> Self {
        Self {
            members: tables.members.len(),
            addresses: tables.addresses.len(),
            source_ranges: tables.source_ranges.len(),
            source_classes: tables.source_classes.len(),
        }
    }
}

const fn elements(slots: &[u32]) -> usize {
    slots.len().div_ceil(SLOTS_PER_ELEMENT as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{diff::diff, view::fixture};

    #[test]
    fn operations_and_a_dump_give_the_same_names() {
        let tables = fixture::contents().tables;
        let empty = TableSet::default();
        let mut names = Names::default();
        names.apply(&diff(&empty, &tables), &tables);
        assert_eq!(names, Names::of(&tables));
        assert!(!names.services.is_empty() && !names.backends.is_empty());
        for map in [
            names::FRONTENDS_V4,
            names::SERVICES,
            names::BACKENDS_V4,
            names::SLOTS,
        ] {
            assert!(names.entries(map).is_some_and(|n| n > 0), "{map}");
        }
        names.apply(&diff(&tables, &empty), &empty);
        assert_eq!(names, Names::default());
    }
}
