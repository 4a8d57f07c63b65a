//! Nanoseconds a packet costs in `lb_xdp`, by `BPF_PROG_TEST_RUN`; run by `bench-micro`.
//!
//! The wrapper program `lb_bench` restores the packet before each iteration, makes it one of the
//! next flow and counts verdicts. Here each row gets its flows, is run for many short rounds which
//! alternate with those of every other row, and is judged by its median, net of the row that only
//! restores. Time is the CPU time of the calling thread: wall-clock time is worth nothing on a
//! machine that does something else as well.
//!
//! Every flow looks its route up again once a tick (about a second), so each timed call follows one
//! over all flows of the row, and is repeated if a tick began meanwhile. What that lookup costs is
//! a row of its own.

use std::{path::PathBuf, sync::mpsc::channel};

use anyhow::{Context as _, Result, ensure};

use crate::network::in_network;

mod case;
mod flows;
mod group;
mod kernel;
pub mod machine;
mod memory;
mod report;
mod round;

/// What to measure, and how long.
#[derive(Clone, Debug)]
pub struct Options {
    /// The data path, compiled with the feature `bench`.
    pub object: PathBuf,
    /// Timed calls per row.
    pub rounds: u32,
    /// Iterations of a timed call.
    pub iterations: u32,
    /// Where the rows go as JSON.
    pub json: Option<PathBuf>,
}

/// Measures every row and prints the table.
///
/// # Errors
///
/// The programs do not load, or a row did not do what it says: then its time means nothing.
pub fn run(options: Options) -> Result<()> {
    ensure!(options.rounds > 0, "--rounds is 0");
    ensure!(options.iterations > 0, "--iterations is 0");
    let (sender, receiver) = channel();
    in_network(move || {
        sender
            .send(measure(&options))
            .expect("the caller waits for the result");
    });
    receiver
        .recv()
        .context("the kernel can measure nothing here: see the message above")?
}

fn measure(options: &Options) -> Result<()> {
    machine::quiet()?;
    let before = machine::Load::now()?;
    let groups = group::groups();
    let mut kernel = kernel::Kernel::load(&options.object)?;
    let tables = group::tables(&groups);
    kernel.publish(&tables)?;
    let mut rows = case::rows(&groups, &kernel)?;
    for round in 0..options.rounds {
        eprintln!("bench: round {} of {}", round + 1, options.rounds);
        for row in &mut rows {
            round::run(&mut kernel, row, options.iterations, &tables)
                .with_context(|| format!("row {:?}", row.name))?;
        }
    }
    let results = report::results(&rows)?;
    let memory = memory::per_flow(&kernel)?;
    report::print(&results, &memory, &machine::describe(&before)?);
    if let Some(path) = &options.json {
        report::write(&results, path)?;
    }
    Ok(())
}
