//! The rows of what service ports share, once everybody has left and joined.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use lb_common::service::address_role;

use super::work::{Work, size};
use crate::{
    plan::{
        WithoutLocal,
        admit::{backend_flags, may_be_vip},
        ids::incarnation,
    },
    tables::{BackendRecord, Family, FrontendId, FrontendRecord, Protocol},
};

impl Work<'_> {
    pub(super) fn settle_services(&mut self) {
        let count = &mut self.memory.without_local;
        for record in self.before.services.values() {
            let one = WithoutLocal::of(record);
            count.internal -= one.internal;
            count.external -= one.external;
        }
        for record in self.after.services.values() {
            let one = WithoutLocal::of(record);
            count.internal += one.internal;
            count.external += one.external;
        }
    }

    pub(super) fn settle_backends(&mut self) -> Option<()> {
        for &endpoint in &self.backends {
            let shared = *self.memory.backends.get(&endpoint)?;
            let old = self.tables.backends.get(&shared.id);
            if let Some(old) = old {
                self.before.backends.insert(shared.id, *old);
            }
            if shared.users == 0 {
                self.memory.backends.remove(&endpoint);
                continue;
            }
            let record = BackendRecord {
                endpoint,
                flags: backend_flags(&self.memory.node, endpoint, shared.on_node > 0),
                incarnation: match old {
                    Some(old) => old.incarnation,
                    None => incarnation(&self.quarantine.incarnations, shared.id),
                },
            };
            self.after.backends.insert(shared.id, record);
        }
        Some(())
    }

    pub(super) fn settle_gateway_endpoints(&mut self) {
        for &endpoint in &self.gateway_endpoints {
            if self.tables.gateway_endpoints.contains(&endpoint) {
                self.before.gateway_endpoints.insert(endpoint);
            }
            let users = self.memory.gateway_endpoints.get(&endpoint);
            if users.is_some_and(|users| *users > 0) {
                self.after.gateway_endpoints.insert(endpoint);
            } else {
                self.memory.gateway_endpoints.remove(&endpoint);
            }
        }
    }

    /// An address is a VIP as long as any frontend has it.
    pub(super) fn settle_addresses(&mut self) {
        let (before, after) = (&self.before.frontends, &self.after.frontends);
        if before.keys().eq(after.keys()) {
            return;
        }
        let node = &self.memory.node;
        let addresses = before.keys().chain(after.keys()).map(|id| id.address);
        let addresses: BTreeSet<_> = addresses
            .filter(|&address| !address.is_unspecified() && may_be_vip(node, address))
            .collect();
        for address in addresses {
            let first = FrontendId {
                address,
                port: 0,
                protocol: Protocol::Tcp,
            };
            let of_address = |id: &&FrontendId| id.address == address;
            let has = |tables: &BTreeMap<FrontendId, FrontendRecord>| {
                let mut ids = tables.range(first..).map(|(id, _)| id);
                ids.next().is_some_and(|id| of_address(&id))
            };
            let others = self.tables.frontends.range(first..).map(|(id, _)| id);
            let mut others = others.take_while(of_address);
            let remains = has(after) || others.any(|id| !before.contains_key(id));
            let own = self.memory.own_roles.get(&address).copied().unwrap_or(0);
            let roles = own | if remains { address_role::VIP } else { 0 };
            if let Some(old) = self.tables.addresses.get(&address) {
                self.before.addresses.insert(address, *old);
            }
            if roles != 0 {
                self.after.addresses.insert(address, roles);
            }
        }
    }

    /// Frees the extents nobody uses any more.
    pub(super) fn settle_extents(&mut self) -> Option<()> {
        let mut used = BTreeSet::new();
        for set in &self.sets {
            let shared = self.memory.extents.get(set)?;
            if shared.users == 0 {
                self.memory.extents.remove(set);
            } else {
                used.insert(shared.element?);
            }
        }
        for &element in self.left.difference(&used) {
            let table = Arc::clone(self.tables.extents.get(&element)?);
            self.before.extents.insert(element, table);
        }
        Some(())
    }

    /// Whether everything fits. If not, the plan of everything says who is turned away.
    pub(super) fn has_room(&self) -> Option<()> {
        let sizes = &self.memory.node.sizes;
        let fits =
            |rows: usize, capacity: u32| rows <= usize::try_from(capacity).unwrap_or(usize::MAX);
        let rows = |all: usize, before: usize, after: usize| all + after - before;
        let addresses = rows(
            self.tables.addresses.len(),
            self.before.addresses.len(),
            self.after.addresses.len(),
        );
        let members = rows(
            self.tables.members.len(),
            self.before.members.len(),
            self.after.members.len(),
        );
        let frontends = |family: &Family| {
            let rows = self.memory.frontends_of.get(family);
            fits(rows.copied().unwrap_or(0), sizes.frontends)
        };
        let fit = fits(addresses, sizes.addresses)
            && fits(members, sizes.members)
            && [Family::V4, Family::V6].iter().all(frontends)
            && fits(self.memory.gateway_endpoints.len(), sizes.gateway_endpoints);
        fit.then_some(())
    }

    /// Frees what the tables name now and will not name any more: for the next change, not for this.
    pub(super) fn give_back(&mut self) {
        for id in self.before.services.keys() {
            if !self.after.services.contains_key(id) {
                self.memory.service_ids.remove(*id);
            }
        }
        for id in self.before.backends.keys() {
            if !self.after.backends.contains_key(id) {
                self.memory.backend_ids.remove(*id);
            }
        }
        for (&element, table) in &self.before.extents {
            self.memory.arena.give_back(element, size(table));
        }
    }
}
