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

use lb_common::service::backend_flag;
use tracing::{debug, info, warn};

use crate::{
    dataplane::{Dataplane as _, DataplaneError, TableOp, bpf::BpfDataplane},
    diff::diff,
    expire::InUse,
    metrics::Metrics,
    node::NodeConfig,
    plan::{Plan, Planner, Quarantine, keep},
    snapshot::{Rejection, Snapshot},
    tables::{BackendRecord, TableSet},
};

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
    reported: Vec<Rejection>,
    /// Service ports an agent before us left, of which no snapshot has told yet.
    unseen: BTreeSet<String>,
    /// When addresses last left the tables, if the filter still has their bits.
    filter_stale_since: Option<Instant>,
}

#[derive(Debug, Default)]
struct Freed {
    services: BTreeMap<u32, Instant>,
    backends: BTreeMap<u32, Instant>,
}

/// A plan on its way to the tables.
#[derive(Debug)]
pub(super) struct Draft {
    pub(super) plan: Plan,
    pub(super) ops: Vec<TableOp>,
    pub(super) planned_in: Duration,
}

impl Draft {
    /// Addresses of this node's own pods that are backends.
    pub(super) fn local_backends(&self) -> BTreeSet<IpAddr> {
        self.backends()
            .filter(|b| is(b, backend_flag::LOCAL))
            .map(|b| b.endpoint.ip())
            .collect()
    }

    /// Whether a backend is the node itself.
    pub(super) fn has_host_backend(&self) -> bool {
        self.backends()
            .any(|backend| is(backend, backend_flag::HOST))
    }

    fn backends(&self) -> impl Iterator<Item = &BackendRecord> {
        self.plan.tables.backends.values()
    }
}

const fn is(backend: &BackendRecord, flag: u16) -> bool {
    backend.flags & flag != 0
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
            reported: Vec::new(),
            unseen: BTreeSet::new(),
            filter_stale_since: Some(now),
        };
        worker.resync()?;
        let services = worker.actual.services.values();
        worker.unseen = services.map(|record| record.name.clone()).collect();
        for id in in_use.services.iter().filter(|id| **id != 0) {
            if !worker.actual.services.contains_key(id) {
                worker.quarantine.services.insert(*id);
                worker.freed.services.insert(*id, now);
            }
        }
        for id in in_use.backends.iter().filter(|id| **id != 0) {
            if !worker.actual.backends.contains_key(id) {
                worker.quarantine.backends.insert(*id);
                worker.freed.backends.insert(*id, now);
            }
        }
        Ok(worker)
    }

    /// Reads the tables back: the kernel is the truth. True if they were not as we thought.
    pub(super) fn resync(&mut self) -> Result<bool, DataplaneError> {
        let found = self.dataplane.dump()?;
        if found == self.actual {
            return Ok(false);
        }
        self.actual = found;
        self.metrics.found(&self.actual);
        // Whoever changed them may have stopped between members and the epoch.
        self.planner.raise_epochs();
        Ok(true)
    }

    /// Decides; writes nothing.
    ///
    /// While something of the source is `unread`, what the agent before us served and no snapshot has
    /// told of yet stays: the broken manifest may be its own.
    pub(super) fn plan(&mut self, snapshot: &Snapshot, node: &NodeConfig, unread: bool) -> Draft {
        let begun = clock();
        let mut plan = self
            .planner
            .plan(&self.actual, snapshot, node, &self.quarantine);
        for record in plan.tables.services.values() {
            self.unseen.remove(&record.name);
        }
        if !unread {
            self.unseen.clear();
        }
        if !self.unseen.is_empty() {
            keep(&self.actual, &mut plan.tables, &self.unseen);
        }
        let ops = diff(&self.actual, &plan.tables);
        let planned_in = begun.elapsed();
        self.metrics.planned(planned_in, plan.without_local);
        Draft {
            plan,
            ops,
            planned_in,
        }
    }

    /// Carries a draft out.
    ///
    /// On failure the tables are read back, so that the next plan starts from what is there.
    pub(super) fn apply(&mut self, draft: Draft) -> Result<(), DataplaneError> {
        let begun = clock();
        let result = self.dataplane.apply_all(&draft.ops);
        let applied_in = begun.elapsed();
        if let Err((done, error)) = result {
            self.metrics.apply_failed();
            warn!(
                done,
                of = draft.ops.len(),
                "operations failed in the middle"
            );
            self.resync()?;
            return Err(error);
        }
        if !draft.ops.is_empty() {
            info!(
                operations = draft.ops.len(),
                services = draft.plan.tables.services.len(),
                backends = draft.plan.tables.backends.len(),
                frontends = draft.plan.tables.frontends.len(),
                planned_in = ?draft.planned_in,
                applied_in = ?applied_in,
                "tables changed"
            );
        }
        self.metrics
            .applied(&draft.ops, &draft.plan.tables, applied_in);
        let now = clock();
        if draft.ops.iter().any(forgets_address) {
            self.filter_stale_since = Some(now);
        }
        self.remember_freed(&draft.plan.tables, now);
        self.actual = draft.plan.tables;
        Ok(())
    }

    /// Logs what is not served, when it changed. `rejected` is sorted. Returns what is new.
    pub(super) fn report(&mut self, rejected: Vec<Rejection>) -> Vec<Rejection> {
        if rejected == self.reported {
            return Vec::new();
        }
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

    /// Ids that were free before `scan_began` and that no flow named are free to use again.
    pub(super) fn release(&mut self, in_use: &InUse, scan_began: Instant) {
        let freed = &mut self.freed;
        let before = self.quarantine.services.len() + self.quarantine.backends.len();
        let kept = |at: &Instant| *at + SETTLED > scan_began;
        freed
            .services
            .retain(|id, at| in_use.services.contains(id) || kept(at));
        freed
            .backends
            .retain(|id, at| in_use.backends.contains(id) || kept(at));
        self.quarantine
            .services
            .retain(|id| freed.services.contains_key(id));
        self.quarantine
            .backends
            .retain(|id| freed.backends.contains_key(id));
        let after = self.quarantine.services.len() + self.quarantine.backends.len();
        if before != after {
            debug!(released = before - after, kept = after, "ids released");
        }
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

    fn remember_freed(&mut self, next: &TableSet, now: Instant) {
        for id in self
            .actual
            .services
            .keys()
            .filter(|id| !next.services.contains_key(id))
        {
            self.quarantine.services.insert(*id);
            self.freed.services.insert(*id, now);
        }
        for (id, record) in &self.actual.backends {
            let taken_over = next.backends.get(id);
            if taken_over.is_none_or(|new| new.incarnation != record.incarnation) {
                self.quarantine.incarnations.insert(*id, record.incarnation);
            }
            if taken_over.is_none() {
                self.quarantine.backends.insert(*id);
                self.freed.backends.insert(*id, now);
            }
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
