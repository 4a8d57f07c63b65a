//! Decides what the tables should hold. Pure: no clock, no randomness, no I/O.
//!
//! ```text
//! Snapshot -draft-> service ports with frontends and endpoint sets
//!          -claims-> every frontend has one owner
//!          -admit-> ids, and everything fits the tables
//!          -publish-> Maglev tables in extents, epochs, records: TableSet
//! ```
//! Whatever `previous` already holds keeps its id and, if its backends are the same, its extent: so
//! flows stay valid across plans and restarts, and a change costs what it changes.

use std::collections::{BTreeMap, BTreeSet};

use self::{
    incremental::{Input, Memory},
    publish::TableCache,
};
use crate::{
    node::NodeConfig,
    snapshot::{ObjectName, Rejection, Snapshot},
    tables::TableSet,
};

mod admit;
mod arena;
mod claims;
mod classes;
mod draft;
mod endpoints;
mod health;
mod ids;
mod incremental;
mod keep;
mod publish;
mod ranges;

pub(crate) use draft::owner;
pub use health::{HealthCheck, WithoutLocal};
pub use incremental::Patch;
pub use keep::keep;
pub use publish::raise_losers;

/// What the tables should hold, and what we refused to put there.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
#[must_use]
pub struct Plan {
    /// The tables.
    pub tables: TableSet,
    /// What is not served, or only in part, and why.
    pub rejected: Vec<Rejection>,
    /// Service ports whose new backend set found no room beside the extents this plan gives back.
    /// They keep their old set, if they had one: apply this plan, then plan again.
    pub deferred: Vec<String>,
    /// The health checks of load-balancer Services under `externalTrafficPolicy: Local`.
    pub health: BTreeMap<ObjectName, HealthCheck>,
    /// Service ports that have endpoints, but none here where only those count.
    pub without_local: WithoutLocal,
}

/// Ids which nothing in the tables names but a flow may: they are not handed out.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Quarantine {
    /// Service-port ids.
    pub services: BTreeSet<u32>,
    /// Backend ids.
    pub backends: BTreeSet<u32>,
    /// Last incarnation of backend ids which were used before and are free or in quarantine. An id
    /// that is not here starts at 1.
    pub incarnations: BTreeMap<u32, u32>,
    /// Extents given back which a program may still be reading: first element and elements. Writing
    /// there has to wait, so that they are used when nothing else is free.
    pub extents: BTreeMap<u32, u32>,
}

/// Decides the tables for `snapshot`. Equal inputs give equal plans.
///
/// A Service that cannot be balanced is left out and named in [`Plan::rejected`]; it never fails
/// the others.
pub fn plan(
    previous: &TableSet,
    snapshot: &Snapshot,
    node: &NodeConfig,
    quarantine: &Quarantine,
) -> Plan {
    Planner::default().plan(previous, snapshot, node, quarantine)
}

/// Plans again and again. It remembers the last plan; apart from the time it takes, the next is the
/// same as [`plan`]'s.
#[derive(Debug, Default)]
pub struct Planner {
    tables: TableCache,
    /// What the last plan left behind, if the next can be made from it.
    memory: Option<Memory>,
    raise_epochs: bool,
}

impl Planner {
    /// Raises every set epoch in the next plan, so that UDP flows look at their backend once more.
    ///
    /// To be called when `previous` is a dump which an interrupted change may have left between
    /// `MEMBERS` and the epoch: at start, and after an operation failed.
    pub fn raise_epochs(&mut self) {
        self.raise_epochs = true;
    }

    /// Says that the last plan was carried out: `previous` of the next call is what it led to.
    pub fn written(&mut self) {
        if let Some(memory) = &mut self.memory {
            memory.unwritten = false;
        }
    }

    /// Forgets the last plan: `previous` of the next call is something else.
    pub fn forget(&mut self) {
        if let Some(memory) = self.memory.take() {
            self.tables = memory.into_cache();
        }
    }

    /// Plans only what changed since the last plan, which must have been [`Planner::written`]. The
    /// tables are those [`plan`] would lead to, and nothing is deferred.
    ///
    /// `None`: the change cannot be planned apart from the rest, call [`Planner::plan`].
    pub fn patch(
        &mut self,
        previous: &TableSet,
        snapshot: &Snapshot,
        node: &NodeConfig,
        quarantine: &Quarantine,
    ) -> Option<Patch> {
        let memory = self.memory.as_mut()?;
        let patch = if !self.raise_epochs && memory.holds(snapshot, node) {
            memory.change(previous, snapshot, quarantine)
        } else {
            None
        };
        if patch.is_none() {
            self.forget();
        }
        patch
    }

    /// As [`plan`].
    pub fn plan(
        &mut self,
        previous: &TableSet,
        snapshot: &Snapshot,
        node: &NodeConfig,
        quarantine: &Quarantine,
    ) -> Plan {
        self.forget();
        let mut rejected = Vec::new();
        let mut drafts = draft::services(snapshot, node, &mut rejected);
        let lost = claims::resolve(&mut drafts, previous, &mut rejected);
        let checks = drafts
            .iter()
            .filter_map(|d| Some((d.name.clone(), d.health?)));
        let mut health: BTreeMap<_, _> = checks.collect();
        drafts.retain(|service| !service.ports.is_empty());
        let wanted = drafts.iter().filter(|draft| draft.health.is_some());
        let wanted: BTreeSet<_> = wanted.map(|draft| draft.name.clone()).collect();
        let drafted = drafts.iter().map(|draft| draft.ports.len()).sum();
        let admitted = admit::admit(drafts, previous, node, quarantine, &mut rejected);
        let (mut tables, deferred) =
            publish::publish(&admitted, previous, quarantine, node, self, &mut rejected);
        tables.source_classes = classes::classes(snapshot, node, &mut rejected);
        health::forget_unserved(&mut health, &wanted, &tables);
        self.raise_epochs = false;
        let said = rejected.clone();
        rejected.sort_unstable();
        rejected.dedup();
        let plan = Plan {
            without_local: WithoutLocal::count(&tables),
            tables,
            rejected,
            deferred,
            health,
        };
        let input = Input {
            snapshot,
            node,
            admitted: &admitted,
            drafted,
            cache: &self.tables,
            lost,
            rejected: said,
        };
        self.memory = Memory::new(input, &plan);
        if self.memory.is_some() {
            // It has them, too.
            self.tables = TableCache::default();
        }
        plan
    }
}

#[cfg(test)]
pub(crate) mod fixture;
#[cfg(test)]
mod tests;
