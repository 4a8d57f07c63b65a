//! The steps of a change of the layout, and dying after one of them for a test.

/// What is done when an agent gets there. The order is that of the sequence in [`crate::migrate`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Step {
    /// The maps of the new layout are made and their gate is closed.
    Maps,
    /// The new layout is complete and its programs are loaded.
    Complete,
    /// The tables the plan decides are carried over.
    Tables,
    /// The flows are carried over for the first time.
    Flows,
    /// The new tables are what the sources ask for.
    Plan,
    /// The first of the new TCX programs stands before the old one.
    Tcx,
    /// The first XDP link has the new program.
    Xdp,
    /// Every device has the new programs.
    Attached,
    /// No flow of the old layout begins or changes.
    Frozen,
    /// The flows are carried over for the last time.
    Copied,
    /// The new layout serves.
    Open,
    /// The old layout does not.
    Standby,
    /// The old links are gone.
    Links,
    /// The old layout is gone.
    Removed,
}

impl Step {
    /// Every step, in order.
    pub const ALL: [Self; 14] = [
        Self::Maps,
        Self::Complete,
        Self::Tables,
        Self::Flows,
        Self::Plan,
        Self::Tcx,
        Self::Xdp,
        Self::Attached,
        Self::Frozen,
        Self::Copied,
        Self::Open,
        Self::Standby,
        Self::Links,
        Self::Removed,
    ];

    /// Its name, as [`KILL_AFTER`] has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Maps => "maps",
            Self::Complete => "complete",
            Self::Tables => "tables",
            Self::Flows => "flows",
            Self::Plan => "plan",
            Self::Tcx => "tcx",
            Self::Xdp => "xdp",
            Self::Attached => "attached",
            Self::Frozen => "frozen",
            Self::Copied => "copied",
            Self::Open => "open",
            Self::Standby => "standby",
            Self::Links => "links",
            Self::Removed => "removed",
        }
    }
}

/// The environment's variable that names the step after which an agent kills itself. Debug builds only.
pub const KILL_AFTER: &str = "SLUICE_KILL_AFTER";

/// Ends this process as `kill -9` does if [`KILL_AFTER`] names this step; in a release build, never.
pub fn killed_after(step: Step) {
    #[cfg(debug_assertions)]
    if std::env::var_os(KILL_AFTER).is_some_and(|name| name == step.name()) {
        use nix::{
            sys::signal::{Signal, kill},
            unistd::Pid,
        };
        // It cannot fail, and if it did the test would find this process alive.
        if let Err(error) = kill(Pid::this(), Signal::SIGKILL) {
            tracing::error!(%error, "kill -9 of this process");
        }
    }
    #[cfg(not(debug_assertions))]
    let _ = step;
}
