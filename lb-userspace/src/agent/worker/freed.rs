//! Ids that are free in the tables and may still be named by flows.

use std::{collections::BTreeMap, time::Instant};

use tracing::debug;

use super::{SETTLED, Worker};
use crate::{dataplane::TableOp, expire::InUse, tables::TableSet};

/// When ids were freed.
#[derive(Debug, Default)]
pub(super) struct Freed {
    services: BTreeMap<u32, Instant>,
    backends: BTreeMap<u32, Instant>,
}

impl Worker {
    /// What flows of earlier agents name is not handed out.
    pub(super) fn withhold(&mut self, in_use: &InUse, now: Instant) {
        for id in in_use.services.iter().filter(|id| **id != 0) {
            if !self.actual.services.contains_key(id) {
                self.quarantine.services.insert(*id);
                self.freed.services.insert(*id, now);
            }
        }
        for id in in_use.backends.iter().filter(|id| **id != 0) {
            if !self.actual.backends.contains_key(id) {
                self.quarantine.backends.insert(*id);
                self.freed.backends.insert(*id, now);
            }
        }
    }

    /// Ids that were free before `scan_began` and that no flow named are free to use again.
    pub(in super::super) fn release(&mut self, in_use: &InUse, scan_began: Instant) {
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

    /// Puts what `ops` freed, which were carried out on the tables we know, into quarantine.
    pub(super) fn remember_freed(&mut self, ops: &[TableOp], now: Instant) {
        for op in ops {
            match op {
                TableOp::RemoveService(id) => self.free_service(*id, now),
                TableOp::SetBackend(id, new) => {
                    let old = self.actual.backends.get(id);
                    if let Some(old) = old.filter(|old| old.incarnation != new.incarnation) {
                        self.quarantine.incarnations.insert(*id, old.incarnation);
                    }
                }
                TableOp::RemoveBackend(id) => self.free_backend(*id, now),
                _ => {}
            }
        }
    }

    /// The same for what is gone, or another's, without an operation of ours that says so.
    pub(super) fn remember_gone(&mut self, found: &TableSet, now: Instant) {
        let services = self.actual.services.keys();
        let services: Vec<_> = services
            .filter(|id| !found.services.contains_key(id))
            .copied()
            .collect();
        for id in services {
            self.free_service(id, now);
        }
        let mut backends = Vec::new();
        for (id, old) in &self.actual.backends {
            match found.backends.get(id) {
                None => backends.push(*id),
                Some(new) if new.incarnation != old.incarnation => {
                    self.quarantine.incarnations.insert(*id, old.incarnation);
                }
                Some(_) => {}
            }
        }
        for id in backends {
            self.free_backend(id, now);
        }
    }

    fn free_service(&mut self, id: u32, now: Instant) {
        self.quarantine.services.insert(id);
        self.freed.services.insert(id, now);
    }

    fn free_backend(&mut self, id: u32, now: Instant) {
        if let Some(old) = self.actual.backends.get(&id) {
            self.quarantine.incarnations.insert(id, old.incarnation);
        }
        self.quarantine.backends.insert(id);
        self.freed.backends.insert(id, now);
    }
}
