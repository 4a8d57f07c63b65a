//! Until when flows may stay with a backend that is terminating or gone.
//!
//! ```text
//! a backend left its Service, flows are still there       ─▶ DRAINS: now + the Service's drain deadline
//! it is back, its flows ended, or the annotation is gone  ─▶ DRAINS: nothing
//! the deadline passed                                     ─▶ expire: both halves of each flow are ended
//! ```
//! The deadlines lie in a map of their own, so that an agent goes on with those of the one before. Without
//! the annotation `sluice.dev/drain-deadline` nothing here touches a flow.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

use jiff::Timestamp;
use lb_common::{names, service::MemberKey};
use tracing::{debug, warn};

use crate::{
    dataplane::TableOp, expire::Hanging, kernel::Map, pins::PinDirectory, snapshot::Snapshot,
    tables::TableSet,
};

use self::decide::{Deadline, ServicePorts, decide, expect};

mod decide;

/// The deadlines, in memory and in `DRAINS`.
#[derive(Debug)]
pub struct Drains {
    map: Map,
    deadlines: BTreeMap<MemberKey, Deadline>,
    /// What flows named when somebody looked last.
    hanging: BTreeMap<MemberKey, Hanging>,
    /// Names of service ports that went while flows may name them. Not known to an agent after this one.
    gone: BTreeMap<u32, String>,
    /// Service ports that went since a look began, which may have missed their flows.
    fresh: BTreeSet<u32>,
}

impl Drains {
    /// Goes on with the deadlines an agent before us set. `hanging` is what flows name.
    ///
    /// # Errors
    ///
    /// If the map cannot be read.
    pub fn open(pins: &PinDirectory, hanging: BTreeMap<MemberKey, Hanging>) -> io::Result<Self> {
        let map = Map::open_pinned(&pins.map(names::DRAINS))?;
        let mut this = Self {
            deadlines: BTreeMap::new(),
            map,
            hanging,
            gone: BTreeMap::new(),
            fresh: BTreeSet::new(),
        };
        for (key, at) in this.map.read_all::<MemberKey, u64>()? {
            if this.hanging.contains_key(&key) {
                this.deadlines.insert(key, Deadline::found(at));
            } else {
                // The ids may soon mean somebody else.
                this.map.delete(&key)?;
            }
        }
        Ok(this)
    }

    /// A look at the flows begins. Returns those to be ended.
    pub fn overdue(&mut self) -> BTreeSet<MemberKey> {
        self.fresh.clear();
        let now = now();
        let overdue = self.deadlines.iter();
        let overdue = overdue.filter(|(_, deadline)| deadline.has_passed(now));
        overdue.map(|(key, _)| *key).collect()
    }

    /// The look ended: this is what flows name. To be called before ids that none names are used again.
    pub fn seen(&mut self, hanging: &BTreeMap<MemberKey, Hanging>) {
        self.hanging.clone_from(hanging);
        let mut deadlines = self.deadlines.clone();
        deadlines.retain(|key, _| hanging.contains_key(key) || self.fresh.contains(&key.service));
        let named: BTreeSet<u32> = hanging.keys().map(|key| key.service).collect();
        let fresh = &self.fresh;
        self.gone
            .retain(|id, _| named.contains(id) || fresh.contains(id));
        self.write(deadlines);
    }

    /// Follows the tables and the Services they were made of: begins and drops deadlines.
    pub fn follow(&mut self, tables: &TableSet, snapshot: &Snapshot) {
        let ports = self.ports(tables);
        let decided = decide(&self.deadlines, &self.hanging, ports, snapshot, now());
        self.write(decided);
    }

    /// Operations are about to be carried out on `tables`, which were made of `before`. Returns whether a service
    /// port goes: then [`Self::follow`] is due as soon as they are.
    pub fn expect(&mut self, ops: &[TableOp], tables: &TableSet, before: &Snapshot) -> bool {
        let ports = self.ports(tables);
        let expected = expect(&self.deadlines, &self.hanging, ops, ports, before, now());
        let mut removes = false;
        for op in ops {
            if let TableOp::RemoveService(id) = *op
                && let Some(record) = tables.services.get(&id)
            {
                self.gone.insert(id, record.name.clone());
                self.fresh.insert(id);
                removes = true;
            }
        }
        self.write(expected);
        removes
    }

    const fn ports<'a>(&'a self, tables: &'a TableSet) -> ServicePorts<'a> {
        ServicePorts {
            tables,
            gone: &self.gone,
        }
    }

    /// Flows that have a deadline.
    pub fn flows(&self) -> u64 {
        let hanging = self
            .deadlines
            .keys()
            .filter_map(|key| self.hanging.get(key));
        hanging.map(|hanging| hanging.flows).sum()
    }

    /// Writes what differs. A deadline the map does not take holds as long as this agent lives.
    fn write(&mut self, decided: BTreeMap<MemberKey, Deadline>) {
        let old = std::mem::replace(&mut self.deadlines, decided);
        for (key, deadline) in &self.deadlines {
            if old.get(key).is_some_and(|old| old.at == deadline.at) {
                continue;
            }
            debug!(
                service = key.service,
                backend = key.backend,
                at = deadline.at,
                "drains"
            );
            if let Err(error) = self.map.update(key, &deadline.at) {
                warn!(
                    service = key.service,
                    backend = key.backend,
                    %error,
                    "drain deadline not written to DRAINS: an agent after this one will not know it"
                );
            }
        }
        for key in old.keys().filter(|key| !self.deadlines.contains_key(key)) {
            debug!(
                service = key.service,
                backend = key.backend,
                "drains no longer"
            );
            if let Err(error) = self.map.delete(key) {
                warn!(%error, "drain deadline not removed from DRAINS");
            }
        }
    }
}

/// Seconds since 1970.
fn now() -> u64 {
    u64::try_from(Timestamp::now().as_second()).unwrap_or_default()
}
