//! Plans what changed, and only that: a change costs what the Services it touches cost.
//!
//! [`Memory`] is what a plan left behind: its input, and whatever of its tables several Services
//! share (backends, extents, gateway endpoints, ids), counted. A change withdraws the touched Services
//! as they were drafted then, admits them as they are drafted now, and looks at nothing else. It uses
//! the rules of the whole plan, and the tables it leads to are the same.
//!
//! Where a Service cannot be looked at apart from the others (two want one frontend, a table is full,
//! source ranges change) there is no answer, and the whole is planned.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
};

use imbl::ordmap::DiffItem;

pub(super) use self::memory::{Input, Memory};
use self::{memory::owner_of, work::Work};
use super::{
    HealthCheck, Quarantine, WithoutLocal,
    draft::{self, PortDraft, ServiceDraft},
};
use crate::{
    dataplane::TableOp,
    snapshot::{ObjectName, Rejection, ServiceObject, SliceObject, Snapshot},
    tables::TableSet,
};

mod memory;
mod settle;
mod taken;
mod work;

/// A change of the tables planned apart from the rest.
#[derive(Clone, Debug)]
#[must_use]
pub struct Patch {
    /// The operations that carry it out, as [`crate::diff::diff`] orders them.
    pub ops: Vec<TableOp>,
    /// As [`super::Plan::rejected`].
    pub rejected: Arc<Vec<Rejection>>,
    /// As [`super::Plan::health`].
    pub health: Arc<BTreeMap<ObjectName, HealthCheck>>,
    /// As [`super::Plan::without_local`].
    pub without_local: WithoutLocal,
}

/// A touched Service.
struct Change {
    name: ObjectName,
    /// As it is served. Its service ports and their ids.
    old: Vec<(u32, PortDraft)>,
    new: ServiceDraft,
}

impl Memory {
    /// Plans the difference between the last snapshot and `snapshot`. `tables` are what the last plan
    /// led to. `None`: everything must be planned, and this memory is of no use any more.
    pub(in crate::plan) fn change(
        &mut self,
        tables: &TableSet,
        snapshot: &Snapshot,
        quarantine: &Quarantine,
    ) -> Option<Patch> {
        self.withhold(&quarantine.extents);
        let touched = self.touched(snapshot)?;
        let mut said = (Vec::new(), Vec::new());
        let mut changes = Vec::new();
        for (name, slices) in touched {
            changes.push(self.draft(name, &slices, snapshot, tables, &mut said)?);
        }
        are_apart(&changes, tables)?;
        // In this order the plan of everything numbers what is new.
        changes.sort_by_cached_key(|change| {
            let is_new = change.old.is_empty();
            (
                change.new.created.unwrap_or(i64::MAX),
                is_new,
                change.name.clone(),
            )
        });
        let ops = Work::new(self, tables, quarantine).carry_out(&changes)?;
        for change in changes {
            self.check_health(change.name, change.new.health);
        }
        self.reject(said.0, said.1);
        self.snapshot = snapshot.clone();
        self.unwritten = true;
        Some(Patch {
            ops,
            rejected: Arc::clone(&self.report),
            health: Arc::clone(&self.health),
            without_local: self.without_local,
        })
    }

    /// The Services that changed or whose slices did, with their slices until now.
    fn touched(
        &mut self,
        snapshot: &Snapshot,
    ) -> Option<BTreeMap<ObjectName, Vec<Arc<SliceObject>>>> {
        let mut names = BTreeSet::new();
        for item in self.snapshot.services.diff(&snapshot.services) {
            let name = match item {
                DiffItem::Add(name, _)
                | DiffItem::Remove(name, _)
                | DiffItem::Update { new: (name, _), .. } => name,
            };
            names.insert(name.clone());
        }
        let mut slices = Vec::new();
        for item in self.snapshot.slices.diff(&snapshot.slices) {
            let (old, new) = match item {
                DiffItem::Add(_, new) => (None, Some(Arc::clone(new))),
                DiffItem::Remove(_, old) => (Some(Arc::clone(old)), None),
                DiffItem::Update {
                    old: (_, old),
                    new: (_, new),
                } => (Some(Arc::clone(old)), Some(Arc::clone(new))),
            };
            names.extend(old.iter().chain(&new).map(|slice| owner_of(slice)));
            slices.push((old, new));
        }
        // Beyond this the plan of everything is the faster one.
        if names.len() > 64 && names.len() > snapshot.services.len() / 2 {
            return None;
        }
        let until_now = |name: ObjectName| {
            let slices = self.slices.get(&name).cloned().unwrap_or_default();
            (name, slices)
        };
        let touched = names.into_iter().map(until_now).collect();
        for (old, new) in slices {
            self.index(old.as_deref(), new);
        }
        Some(touched)
    }

    fn index(&mut self, old: Option<&SliceObject>, new: Option<Arc<SliceObject>>) {
        if let Some(old) = old {
            let owner = owner_of(old);
            if let Some(slices) = self.slices.get_mut(&owner) {
                slices.retain(|slice| slice.name != old.name);
                if slices.is_empty() {
                    self.slices.remove(&owner);
                }
            }
        }
        if let Some(new) = new {
            let slices = self.slices.entry(owner_of(&new)).or_default();
            let at = slices.partition_point(|slice| slice.name < new.name);
            slices.insert(at, new);
        }
    }

    /// Drafts a Service as it was and as it is.
    fn draft(
        &self,
        name: ObjectName,
        slices: &[Arc<SliceObject>],
        snapshot: &Snapshot,
        tables: &TableSet,
        said: &mut (Vec<Rejection>, Vec<Rejection>),
    ) -> Option<Change> {
        let (was, is) = (
            self.snapshot.services.get(&name),
            snapshot.services.get(&name),
        );
        let now = self.slices.get(&name).map_or(&[][..], Vec::as_slice);
        let mut old = self.draft_one(&name, was, slices, &mut said.0);
        let mut new = self.draft_one(&name, is, now, &mut said.1);
        if was == is {
            // Who has what two ask for does not change with their endpoints.
            self.take_lost(&mut old);
            self.take_lost(&mut new);
        } else if self.is_contested(&old) || self.is_contested(&new) {
            return None;
        }
        if !same_sources(&old, &new) {
            return None;
        }
        let numbered = |port: PortDraft| {
            let frontend = port.frontends.first()?.frontend;
            let id = tables.frontends.get(&frontend)?.service;
            let record = tables.services.get(&id)?;
            (record.name == port.name).then_some((id, port))
        };
        let old = old.ports.into_iter().map(numbered);
        Some(Change {
            old: old.collect::<Option<_>>()?,
            name,
            new,
        })
    }

    fn draft_one(
        &self,
        name: &ObjectName,
        object: Option<&Arc<ServiceObject>>,
        slices: &[Arc<SliceObject>],
        said: &mut Vec<Rejection>,
    ) -> ServiceDraft {
        let Some(object) = object else {
            return ServiceDraft {
                name: name.clone(),
                ..ServiceDraft::default()
            };
        };
        let slices: Vec<_> = slices.iter().map(AsRef::as_ref).collect();
        draft::service(object, &slices, &self.node, said)
    }

    /// Takes away the frontends the Service did not get.
    fn take_lost(&self, draft: &mut ServiceDraft) {
        if self.lost.is_empty() {
            return;
        }
        for port in &mut draft.ports {
            port.frontends.retain(|claim| {
                let frontend = claim.frontend;
                !self.contested.contains(&frontend)
                    || !self.lost.contains(&(draft.name.clone(), frontend))
            });
        }
        draft.ports.retain(|port| !port.frontends.is_empty());
    }

    fn is_contested(&self, draft: &ServiceDraft) -> bool {
        let mut claims = draft.ports.iter().flat_map(|port| &port.frontends);
        claims.any(|claim| self.contested.contains(&claim.frontend))
    }
}

/// Makes sure that no frontend is wanted by two Services.
fn are_apart(changes: &[Change], tables: &TableSet) -> Option<()> {
    let old = changes.iter().flat_map(|change| &change.old);
    let old: HashSet<_> = old.map(|(id, _)| *id).collect();
    let mut wanted = HashSet::new();
    for change in changes {
        for claim in change.new.ports.iter().flat_map(|port| &port.frontends) {
            let holder = tables.frontends.get(&claim.frontend);
            let elsewhere = holder.is_some_and(|holder| !old.contains(&holder.service));
            if elsewhere || !wanted.insert(claim.frontend) {
                return None;
            }
        }
    }
    Some(())
}

/// Whether both name the same source-range sets.
fn same_sources(old: &ServiceDraft, new: &ServiceDraft) -> bool {
    let families = |draft: &ServiceDraft| -> BTreeSet<_> {
        draft.ports.iter().map(|port| port.family).collect()
    };
    let none = old.source_ranges.is_empty() && new.source_ranges.is_empty();
    none || (old.source_ranges == new.source_ranges && families(old) == families(new))
}

#[cfg(test)]
mod tests;
