//! The tables in memory: they refuse what would hurt a packet in the kernel, and fail on request.
//!
//! [`forward`] says, from the same tables, what must become of a packet.

use crate::{
    maglev::elements,
    tables::{ServiceRecord, TableSet},
};

use super::{Dataplane, DataplaneError, TableOp};

pub mod forward;

/// Tables in memory.
#[derive(Clone, Debug, Default)]
pub struct ModelDataplane {
    tables: TableSet,
    applied: usize,
    fail_at: Option<usize>,
}

impl ModelDataplane {
    /// A data plane that already holds `tables`.
    pub fn new(tables: TableSet) -> Self {
        Self {
            tables,
            applied: 0,
            fail_at: None,
        }
    }

    /// Makes the `n`th operation from now on fail once (0: the next), without effect.
    pub fn fail_at(&mut self, n: usize) {
        self.fail_at = Some(self.applied + n);
    }

    /// What the tables hold.
    pub fn tables(&self) -> &TableSet {
        &self.tables
    }

    fn refuse(op: &TableOp, why: String) -> DataplaneError {
        DataplaneError::Kernel {
            what: format!("{op:?}"),
            source: why.into(),
        }
    }
}

impl Dataplane for ModelDataplane {
    fn dump(&self) -> Result<TableSet, DataplaneError> {
        Ok(self.tables.clone())
    }

    fn apply(&mut self, op: &TableOp) -> Result<(), DataplaneError> {
        if self.fail_at == Some(self.applied) {
            self.fail_at = None;
            return Err(Self::refuse(op, "told to fail".to_owned()));
        }
        if let TableOp::WriteExtent(element, table) = op {
            let end = element + elements(u32::try_from(table.len()).unwrap_or(u32::MAX));
            if let Some(name) = names_extent(&self.tables, *element, end) {
                return Err(Self::refuse(op, format!("{name} names the extent")));
            }
        }
        write(&mut self.tables, op);
        self.applied += 1;
        Ok(())
    }
}

/// Carries one operation out on tables in memory.
pub fn write(tables: &mut TableSet, op: &TableOp) {
    match op {
        TableOp::SetBackend(id, record) => drop(tables.backends.insert(*id, *record)),
        TableOp::RemoveBackend(id) => drop(tables.backends.remove(id)),
        TableOp::SetMember(key, flags) => drop(tables.members.insert(*key, *flags)),
        TableOp::RemoveMember(key) => drop(tables.members.remove(key)),
        TableOp::WriteExtent(element, table) => {
            tables
                .extents
                .insert(*element, std::sync::Arc::clone(table));
        }
        TableOp::FreeExtent(element) => drop(tables.extents.remove(element)),
        TableOp::SetService(id, record) => drop(tables.services.insert(*id, record.clone())),
        TableOp::RemoveService(id) => drop(tables.services.remove(id)),
        TableOp::SetAddress(address, roles) => drop(tables.addresses.insert(*address, *roles)),
        TableOp::RemoveAddress(address) => drop(tables.addresses.remove(address)),
        TableOp::SetFrontend(id, record) => drop(tables.frontends.insert(*id, *record)),
        TableOp::RemoveFrontend(id) => drop(tables.frontends.remove(id)),
        TableOp::SetGatewayEndpoint(endpoint) => drop(tables.gateway_endpoints.insert(*endpoint)),
        TableOp::RemoveGatewayEndpoint(endpoint) => {
            tables.gateway_endpoints.remove(endpoint);
        }
        TableOp::SetSourceRange(set, network) => {
            tables.source_ranges.insert((*set, *network));
        }
        TableOp::RemoveSourceRange(set, network) => {
            tables.source_ranges.remove(&(*set, *network));
        }
        TableOp::SetSourceClass(network, class) => {
            tables.source_classes.insert(*network, *class);
        }
        TableOp::RemoveSourceClass(network) => drop(tables.source_classes.remove(network)),
    }
}

/// What in the tables contradicts something else in them. A packet must never meet any of it.
pub fn violations(tables: &TableSet) -> Vec<String> {
    let mut found = Vec::new();
    for (frontend, record) in &tables.frontends {
        if !tables.services.contains_key(&record.service) {
            found.push(format!(
                "frontend {frontend} names missing service {}",
                record.service
            ));
        }
    }
    for (id, record) in &tables.services {
        if *id == 0 {
            found.push("service id 0 is assigned".to_owned());
        }
        for selection in selections(record) {
            match tables.extents.get(&selection.element) {
                Some(table) if u32::try_from(table.len()) == Ok(selection.length) => {}
                _ => found.push(format!(
                    "{} names missing extent {selection:?}",
                    record.name
                )),
            }
        }
    }
    let mut end = 0;
    for (element, table) in &tables.extents {
        if *element < end {
            found.push(format!("extent {element} overlaps the one before"));
        }
        end = element + elements(u32::try_from(table.len()).unwrap_or(u32::MAX));
        let mut ids = table.to_vec();
        ids.sort_unstable();
        ids.dedup();
        for id in ids
            .into_iter()
            .filter(|id| !tables.backends.contains_key(id))
        {
            found.push(format!(
                "a slot of extent {element} names missing backend {id}"
            ));
        }
    }
    found
}

fn selections(record: &ServiceRecord) -> impl Iterator<Item = lb_common::service::Selection> {
    [record.cluster, record.local]
        .into_iter()
        .filter(|selection| selection.length > 0)
}

/// The service port which names anything between two elements.
fn names_extent(tables: &TableSet, start: u32, end: u32) -> Option<&str> {
    let overlaps = |record: &&ServiceRecord| {
        selections(record).any(|s| s.element < end && start < s.element + elements(s.length))
    };
    tables
        .services
        .values()
        .find(overlaps)
        .map(|record| record.name.as_str())
}
