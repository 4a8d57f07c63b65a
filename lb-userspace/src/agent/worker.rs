//! What runs off the event loop: planning and the map writes, which block.
//!
//! A [`Worker`] travels: the loop hands it to a blocking thread and gets it back with the answer. So
//! there is one owner of the tables at any time, and no lock.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tracing::{info, warn};

use self::{freed::Freed, nearby::Nearby};
use crate::{
    dataplane::{DataplaneError, TableOp, bpf::BpfDataplane, model::write},
    diff::diff,
    expire::InUse,
    metrics::Metrics,
    node::NodeConfig,
    plan::{HealthCheck, Patch, Plan, Planner, Quarantine, keep, raise_losers},
    snapshot::{ObjectName, Rejection, Snapshot},
    stack_flows::{Frontends, StackFlows},
    tables::{ServiceRecord, TableSet},
};

mod freed;
mod nearby;
mod read_back;
mod stack;

/// After this long, no packet is still on its way to make a flow from tables that changed.
const SETTLED: Duration = Duration::from_secs(1);

/// The tables, and what planning needs to remember.
#[derive(Debug)]
pub(super) struct Worker {
    dataplane: BpfDataplane,
    planner: Planner,
    metrics: Metrics,
    /// What the kernel holds, as far as we know.
    actual: TableSet,
    quarantine: Quarantine,
    /// When ids were freed: a scan frees only those which were free before it began.
    freed: Freed,
    /// What the source and the plan said last, and all of it as it was reported.
    heard: (Vec<Rejection>, Arc<Vec<Rejection>>),
    reported: Vec<Rejection>,
    /// The backends on this node, those of the last draft.
    nearby: Nearby,
    /// Service ports an agent before us left, of which no snapshot has told yet.
    unseen: BTreeSet<String>,
    /// When addresses last left the tables, if the filter still has their bits.
    filter_stale_since: Option<Instant>,
    /// A change failed in the middle and the tables could not be read back since.
    unknown: bool,
    /// What was written since the tables began to be read aside, if they are.
    since: Option<Vec<TableOp>>,
    /// The node's own connections, if what no flow knows is left to the stack.
    stack: Option<StackFlows>,
}

/// A plan on its way to the tables.
#[derive(Debug)]
pub(super) struct Draft {
    pub(super) ops: Vec<TableOp>,
    /// What is not served, or only in part. The same list as before is the same allocation.
    pub(super) rejected: Arc<Vec<Rejection>>,
    /// As [`Plan::health`], shared in the same way.
    pub(super) health: Arc<BTreeMap<ObjectName, HealthCheck>>,
    /// What waits for the room this plan gives back.
    pub(super) deferred: bool,
    /// The tables it leads to, if everything was planned.
    tables: Option<TableSet>,
    planned_in: Duration,
}

impl Worker {
    /// `in_use` is what flows of earlier agents name: their ids are not handed out.
    pub(super) fn new(
        dataplane: BpfDataplane,
        in_use: &InUse,
        now: Instant,
        metrics: Metrics,
    ) -> Result<Self, DataplaneError> {
        metrics.rejected(&[]);
        let mut worker = Self {
            dataplane,
            planner: Planner::default(),
            metrics,
            actual: TableSet::default(),
            quarantine: Quarantine::default(),
            freed: Freed::default(),
            heard: (Vec::new(), Arc::default()),
            reported: Vec::new(),
            nearby: Nearby::default(),
            unseen: BTreeSet::new(),
            filter_stale_since: Some(now),
            unknown: false,
            since: None,
            stack: None,
        };
        worker.resync()?;
        let services = worker.actual.services.values();
        worker.unseen = services.map(|record| record.name.clone()).collect();
        worker.withhold(in_use, now);
        Ok(worker)
    }

    /// What the kernel holds, as far as we know.
    pub(super) const fn tables(&self) -> &TableSet {
        &self.actual
    }

    /// The backends on this node, those of the last draft.
    pub(super) const fn nearby(&self) -> &Nearby {
        &self.nearby
    }

    /// Decides; writes nothing.
    ///
    /// While something of the source is `unread`, what the agent before us served and no snapshot has
    /// told of yet stays: the broken manifest may be its own.
    pub(super) fn plan(&mut self, snapshot: &Snapshot, node: &NodeConfig, unread: bool) -> Draft {
        let begun = clock();
        if !unread {
            self.unseen.clear();
        }
        self.quarantine
            .extents
            .clone_from(self.dataplane.unsettled());
        let patch = if self.unseen.is_empty() {
            self.planner
                .patch(&self.actual, snapshot, node, &self.quarantine)
        } else {
            None
        };
        match patch {
            Some(patch) => self.draft(patch, None, false, begun),
            None => self.plan_everything(snapshot, node, begun),
        }
    }

    fn plan_everything(&mut self, snapshot: &Snapshot, node: &NodeConfig, begun: Instant) -> Draft {
        let Plan {
            mut tables,
            rejected,
            deferred,
            health,
            without_local,
        } = self
            .planner
            .plan(&self.actual, snapshot, node, &self.quarantine);
        if !self.unseen.is_empty() {
            for (id, record) in &tables.services {
                // Its endpoints may be what cannot be read.
                let old = self.actual.services.get(id);
                if record.selects() || !old.is_some_and(ServiceRecord::selects) {
                    self.unseen.remove(&record.name);
                }
            }
            keep(&self.actual, &mut tables, &self.unseen);
            raise_losers(&self.actual, &mut tables);
            // The tables are not those that were planned.
            self.planner.forget();
        }
        let patch = Patch {
            ops: diff(&self.actual, &tables),
            rejected: Arc::new(rejected),
            health: Arc::new(health),
            without_local,
        };
        self.draft(patch, Some(tables), !deferred.is_empty(), begun)
    }

    fn draft(
        &mut self,
        patch: Patch,
        tables: Option<TableSet>,
        deferred: bool,
        begun: Instant,
    ) -> Draft {
        for op in &patch.ops {
            let (id, new) = match op {
                TableOp::SetBackend(id, new) => (id, Some(new)),
                TableOp::RemoveBackend(id) => (id, None),
                _ => continue,
            };
            self.nearby.replace(self.actual.backends.get(id), new);
        }
        let planned_in = begun.elapsed();
        self.metrics.planned(planned_in, patch.without_local);
        Draft {
            ops: patch.ops,
            rejected: patch.rejected,
            health: patch.health,
            deferred,
            tables,
            planned_in,
        }
    }

    /// Carries a draft out.
    ///
    /// On failure the tables are read back, so that the next plan starts from what is there.
    pub(super) fn apply(&mut self, draft: Draft) -> Result<(), DataplaneError> {
        let added = Frontends::added(&draft.ops, &self.actual);
        self.respect_at(&added);
        let begun = clock();
        let result = self.dataplane.apply_all(&draft.ops);
        let applied_in = begun.elapsed();
        self.respect_at(&added);
        if let Err((done, error)) = result {
            self.metrics.apply_failed();
            warn!(
                done,
                of = draft.ops.len(),
                "operations failed in the middle"
            );
            self.planner.forget();
            // Also if nothing was written: the plan that was to raise them is gone.
            self.planner.raise_epochs();
            self.unknown = true;
            let resynced = self.resync();
            self.nearby = Nearby::of(&self.actual);
            return resynced.and(Err(error));
        }
        if let Some(since) = &mut self.since {
            since.extend_from_slice(&draft.ops);
        }
        let now = clock();
        if draft.ops.iter().any(forgets_address) {
            self.filter_stale_since = Some(now);
        }
        self.remember_freed(&draft.ops, now);
        if let Some(tables) = draft.tables {
            self.actual = tables;
        } else {
            for op in &draft.ops {
                write(&mut self.actual, op);
            }
        }
        self.planner.written();
        self.metrics.applied(&draft.ops, &self.actual, applied_in);
        if !draft.ops.is_empty() {
            info!(
                operations = draft.ops.len(),
                services = self.actual.services.len(),
                backends = self.actual.backends.len(),
                frontends = self.actual.frontends.len(),
                planned_in = ?draft.planned_in,
                applied_in = ?applied_in,
                "tables changed"
            );
        }
        Ok(())
    }

    /// Logs what is not served, when it changed: what the source says, and what the plan says.
    /// Returns what is new.
    pub(super) fn report(
        &mut self,
        source: &[Rejection],
        planned: &Arc<Vec<Rejection>>,
    ) -> Vec<Rejection> {
        let (heard, from_plan) = &self.heard;
        if Arc::ptr_eq(from_plan, planned) && heard == source {
            return Vec::new();
        }
        self.heard = (source.to_vec(), Arc::clone(planned));
        let mut rejected = [source, planned.as_slice()].concat();
        rejected.sort_unstable();
        rejected.dedup();
        if rejected == self.reported {
            return Vec::new();
        }
        self.metrics.rejected(&rejected);
        let is_in = |list: &[Rejection], r: &Rejection| list.binary_search(r).is_ok();
        let news = rejected.iter().filter(|r| !is_in(&self.reported, r));
        let news: Vec<_> = news.cloned().collect();
        for rejection in &news {
            warn!(
                object = rejection.object,
                field = rejection.field,
                "{}",
                rejection.message
            );
        }
        for rejection in self.reported.iter().filter(|r| !is_in(&rejected, r)) {
            info!(
                object = rejection.object,
                field = rejection.field,
                "no longer rejected"
            );
        }
        self.reported = rejected;
        news
    }

    /// Clears the address filter's bits nobody needs any more: neither the tables, nor `in_use`, nor
    /// `more`. Only if the tables did not change since well before the scan: a flow it missed could
    /// need an address which they named then and do not name now.
    pub(super) fn sweep_filter(
        &mut self,
        in_use: &InUse,
        more: &BTreeSet<IpAddr>,
        scan_began: Instant,
    ) {
        let Some(changed) = self.filter_stale_since else {
            return;
        };
        if changed + SETTLED > scan_began {
            return;
        }
        let needed = in_use.addresses.union(more).copied();
        match self.dataplane.rebuild_filter(&self.actual, needed) {
            Ok(()) => self.filter_stale_since = None,
            Err(error) => warn!(%error, "address filter not swept"),
        }
    }
}

/// Whether an operation may leave a bit behind in the address filter.
const fn forgets_address(op: &TableOp) -> bool {
    matches!(
        op,
        TableOp::RemoveAddress(_) | TableOp::RemoveBackend(_) | TableOp::RemoveFrontend(_)
    )
}

/// Measures; decides nothing.
#[expect(
    clippy::disallowed_methods,
    reason = "durations for the log, ages of freed ids"
)]
pub(super) fn clock() -> Instant {
    Instant::now()
}

/// What is shared between the loop and a blocking thread.
pub(super) type Source = Arc<crate::source::SourceState>;
