//! From one layout to another, without losing a flow.
//!
//! The tables of two versions, or of two configured sizes, live in directories of their own. An agent
//! that finds another layout serving makes its own beside it, fills it, puts its programs before the
//! old ones, and lets them take over by one store:
//!
//! ```text
//! old  OPEN ─────────────────────────────────────────────▶ FROZEN ─────────────▶ STANDBY, removed
//! new        STANDBY: maps, tables, flows, plan, programs ────────▶ flows ─▶ OPEN
//! ```
//! While a layout is on standby its programs leave every packet to the next program, which is the
//! old one's. While one is frozen no flow begins or changes, so that a copy of its flows is whole. A
//! frozen gate opens by itself: an agent that dies at any moment leaves one layout that serves.
//!
//! What is where follows from the gates alone ([`crate::pins::decide`]). An agent of either version
//! that comes next goes on from there: it adopts its own layout if that serves, else makes it anew.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::PathBuf,
    time::{Duration, Instant},
};

use lb_common::{control::Gate, names};
use tracing::{error, info, warn};

use self::{flows::Flows, tables::Fate};
use crate::{
    dataplane::{
        Dataplane as _, DataplaneError,
        bpf::{BpfDataplane, wait_for_readers},
    },
    expire, kernel,
    pins::{
        GateWord, PinDirectory, PinError,
        format::FormatError,
        step::{Step, killed_after},
    },
};

mod flows;
mod tables;

/// Ticks (about seconds) a layout is frozen at most. It lasts as long as the last copy, which is short; this is
/// how long no flow begins if the agent dies in it, and what half a million halves may take on a node whose
/// CPUs are busy many times over.
const FREEZE_TICKS: u32 = 15;
/// How often the last copy is tried before the old layout is left to serve.
const ATTEMPTS: u32 = 3;

/// Why a layout could not take over. The other one serves on.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// A table or a gate could not be read or written. `what` names operation and object.
    #[error("{what}")]
    Io {
        /// Operation and object.
        what: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A table of the other layout is of another kind than ours.
    #[error("table {table} of layout {layout} cannot be carried over")]
    Format {
        /// The table.
        table: &'static str,
        /// The other layout's hash.
        layout: String,
        /// What differs.
        #[source]
        source: FormatError,
    },
    /// A table that handing over needs is not there: the layout is of a version before gates, or damaged.
    #[error(
        "layout {layout} serves and has no table {table}: flows cannot be carried over from it; remove it \
         with `lbctl detach`"
    )]
    NoTable {
        /// The other layout's hash.
        layout: String,
        /// The table.
        table: &'static str,
    },
    /// A map was made without a description of its types.
    #[error("map {0} does not tell its types")]
    NoTypes(PathBuf),
    /// The kernel tells types and programs by their ids to `CAP_SYS_ADMIN` alone.
    #[error(
        "another table layout ({layout}) serves: to carry its flows over, the agent needs CAP_SYS_ADMIN (or a \
         privileged container) for this one start"
    )]
    NotPermitted {
        /// The other layout's hash.
        layout: String,
    },
    /// What must be carried over does not fit.
    #[error(
        "{table} has room for {capacity} entries, {needed} must be carried over from the layout that \
         serves: raise its size in the configuration (`tables`)"
    )]
    TooSmall {
        /// The table.
        table: &'static str,
        /// Its entries.
        capacity: u32,
        /// Entries needed.
        needed: u64,
    },
    /// The last copy took longer than the data path may be frozen, each time.
    #[error("the flows could not be carried over in {FREEZE_TICKS} ticks, {ATTEMPTS} times")]
    TooSlow,
    /// Pins.
    #[error(transparent)]
    Pins(#[from] PinError),
    /// The new tables could not be read or written.
    #[error(transparent)]
    Tables(#[from] DataplaneError),
}

fn io_error(what: impl Into<String>) -> impl FnOnce(io::Error) -> MigrateError {
    let what = what.into();
    move |source| MigrateError::Io { what, source }
}

fn store(word: &GateWord, gate: Gate) -> Result<(), MigrateError> {
    word.store(gate).map_err(io_error("write a gate"))
}

/// A layout about to take over from another.
#[derive(Debug)]
pub struct Migration {
    old: PinDirectory,
    new: PinDirectory,
    old_gate: GateWord,
    new_gate: GateWord,
    clock: OwnedFd,
    flows: Flows,
}

impl Migration {
    /// Fills a new layout, on standby, from the one that serves, which goes on serving.
    ///
    /// # Errors
    ///
    /// If the other layout cannot be read, or does not fit. Nothing is changed but the new tables.
    pub fn begin(old: PinDirectory, new: PinDirectory) -> Result<Self, MigrateError> {
        if !old.map(names::CONTROL).exists() {
            return Err(MigrateError::NoTable {
                layout: old.hash().to_owned(),
                table: names::CONTROL,
            });
        }
        let old_gate = GateWord::open(&old)?;
        let new_gate = GateWord::open(&new)?;
        let clock = old.program(names::LB_CLOCK);
        let clock = kernel::open_pinned(&clock)
            .map_err(io_error(format!("open program {}", clock.display())))?;
        let flows = Flows::open(&old, &new)?;
        let this = Self {
            old,
            new,
            old_gate,
            new_gate,
            clock,
            flows,
        };
        // Of an agent that died in between: new flows need not wait for the deadline.
        this.thaw()?;
        this.fill()?;
        Ok(this)
    }

    fn fill(&self) -> Result<(), MigrateError> {
        let layouts = (&self.old, &self.new);
        tables::copy(layouts, Fate::Once)?;
        let dataplane = BpfDataplane::open_pinned(&self.new)?;
        let found = dataplane.dump()?;
        tables::copy_extents(layouts, &found.services)?;
        dataplane.fill_filter(&found)?;
        killed_after(Step::Tables);
        tables::copy(layouts, Fate::AtLast)?;
        let halves = self.flows.copy()?;
        info!(
            from = self.old.hash(),
            to = self.new.hash(),
            services = found.services.len(),
            halves,
            "tables carried over from the layout that serves"
        );
        killed_after(Step::Flows);
        Ok(())
    }

    /// Takes over: what changed since [`Self::begin`] is carried over while nothing changes, then the new
    /// layout serves and the old one does not. Every device has the new programs by now.
    ///
    /// # Errors
    ///
    /// If a table cannot be carried over, or not in time. The old layout serves on, not frozen.
    pub fn take_over(&self) -> Result<(), MigrateError> {
        for attempt in 1..=ATTEMPTS {
            match self.attempt() {
                Ok(Some((halves, frozen_for))) => {
                    info!(
                        from = self.old.hash(),
                        to = self.new.hash(),
                        halves,
                        ?frozen_for,
                        "the layout has taken over"
                    );
                    return Ok(());
                }
                Ok(None) => warn!(attempt, "the flows were not carried over in time"),
                Err(error) => {
                    if let Err(error) = self.thaw() {
                        error!(%error, "the other layout opens at its deadline");
                    }
                    return Err(error);
                }
            }
            self.thaw()?;
        }
        Err(MigrateError::TooSlow)
    }

    /// One try: how many halves were carried over, and how long none could begin. `None`: the freeze was
    /// over too soon.
    #[expect(clippy::disallowed_methods, reason = "a duration for the log")]
    fn attempt(&self) -> Result<Option<(usize, Duration)>, MigrateError> {
        let begun = Instant::now();
        let frozen = Gate::frozen(self.tick()?.wrapping_add(FREEZE_TICKS));
        store(&self.old_gate, frozen)?;
        // Programs that began before may still make and change flows.
        wait_for_readers().map_err(io_error("wait for programs that run"))?;
        killed_after(Step::Frozen);
        let halves = self.flows.finish(self.tick()?)?;
        tables::copy((&self.old, &self.new), Fate::AtLast)?;
        killed_after(Step::Copied);
        // A tick to spare: the store must come before the deadline, not only the look at the clock.
        if !frozen.is_frozen(self.tick()?.wrapping_add(1)) {
            return Ok(None);
        }
        store(&self.new_gate, Gate::OPEN)?;
        let frozen_for = begun.elapsed();
        killed_after(Step::Open);
        // A packet that met the new programs on standby may be on its way to the old ones.
        if let Err(error) = wait_for_readers() {
            warn!(%error, "wait for programs that run");
        }
        // Ours serves by now, whatever becomes of the other one, whose links go next.
        if let Err(error) = store(&self.old_gate, Gate::STANDBY) {
            warn!(%error, "the other layout is not on standby");
        }
        killed_after(Step::Standby);
        Ok(Some((halves, frozen_for)))
    }

    fn thaw(&self) -> Result<(), MigrateError> {
        if self.old_gate.load() == Gate::OPEN {
            return Ok(());
        }
        store(&self.old_gate, Gate::OPEN)
    }

    /// The current tick, by the old layout's count.
    fn tick(&self) -> Result<u32, MigrateError> {
        expire::tick(self.clock.as_fd()).map_err(io_error("run lb_clock"))
    }
}
