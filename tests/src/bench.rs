//! Nanoseconds a packet costs in the programs, by `BPF_PROG_TEST_RUN`; run by `bench-micro`.
//!
//! Wrapper programs restore the packet before each iteration, make it one of the next flow and count
//! results. Here each row gets its flows, is run for many short rounds which alternate with those of every
//! other row, and is judged by its median, net of the row that only restores. Time is the CPU time of the
//! calling thread: wall-clock time is worth nothing on a machine that does something else as well.
//!
//! Every flow looks its route up again once a tick (about a second), so each timed call follows one
//! over all flows of the row, and is repeated if a tick began meanwhile. What that lookup costs is
//! a row of its own.
//!
//! Rows that need other tables, for a million flows or for fifty thousand services, have programs and
//! maps of their own; their rounds alternate with the others' all the same.

use std::{
    path::{Path, PathBuf},
    sync::mpsc::channel,
};

use anyhow::{Context as _, Result, ensure};
use lb_userspace::tables::TableSet;

use self::{case::Row, kernel::Kernel, rows::Draft};
use crate::{figure, network::in_network};

mod case;
mod flows;
mod gate;
mod group;
mod kernel;
pub mod machine;
mod memory;
mod plots;
mod report;
mod round;
mod rows;
mod services;
pub mod verifier;

/// Flows each group with established flows has, unless it says otherwise.
const FLOWS: u32 = 65_536;

/// What becomes of the committed baseline.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Baseline {
    /// Nothing.
    Leave,
    /// What was measured is held against it.
    Check,
    /// What was measured takes its place.
    Update,
}

/// What to measure, and how long.
#[derive(Clone, Debug)]
pub struct Options {
    /// The data path, compiled with the feature `bench`.
    pub object: PathBuf,
    /// The data path as it is shipped: the verifier's budget is for it.
    pub shipped: Option<PathBuf>,
    /// Parts of row names; none means every row.
    pub rows: Vec<String>,
    /// Timed calls per row.
    pub rounds: u32,
    /// Iterations of a timed call.
    pub iterations: u32,
    /// Where the rows go as JSON.
    pub json: Option<PathBuf>,
    /// The regression gate.
    pub baseline: Baseline,
}

/// Measures the rows, prints the table and draws the plots.
///
/// # Errors
///
/// The programs do not load, a row did not do what it says (then its time means nothing), or something is
/// more costly than the baseline or the budget allows.
pub fn run(options: Options) -> Result<()> {
    ensure!(options.rounds > 0, "--rounds is 0");
    ensure!(options.iterations > 0, "--iterations is 0");
    ensure!(
        options.rows.is_empty() || options.baseline != Baseline::Update,
        "a baseline is made of every row: --update goes without --rows"
    );
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

/// Rows with the tables they share, in the kernel.
struct World {
    kernel: Kernel,
    tables: TableSet,
    rows: Vec<Row>,
}

impl World {
    fn build(draft: Draft, object: &Path, first: bool) -> Result<Self> {
        let mut kernel = Kernel::load(object, &draft.sizes, first)?;
        let tables = services::tables(&draft.groups, draft.sizes.snat_addresses);
        kernel.publish(&tables)?;
        let mut rows = draft.rows;
        for row in &mut rows {
            row.aim(&kernel)
                .with_context(|| format!("row {:?}", row.name))?;
        }
        if first {
            kernel.fill_reference(&rows)?;
        }
        Ok(Self {
            kernel,
            tables,
            rows,
        })
    }
}

fn measure(options: &Options) -> Result<()> {
    machine::quiet()?;
    let before = machine::Load::now()?;
    let mut drafts = rows::drafts();
    for draft in &mut drafts {
        draft.keep(&options.rows);
    }
    drafts.retain(|draft| !draft.rows.is_empty());
    let mut worlds = Vec::new();
    for draft in drafts {
        let first = worlds.is_empty();
        eprintln!("bench: prepare {} rows", draft.rows.len());
        worlds.push(World::build(draft, &options.object, first)?);
    }
    for round in 0..options.rounds {
        eprintln!("bench: round {} of {}", round + 1, options.rounds);
        for world in &mut worlds {
            for row in &mut world.rows {
                round::run(&mut world.kernel, row, options.iterations, &world.tables)
                    .with_context(|| format!("row {:?}", row.name))?;
            }
        }
    }
    let rows: Vec<&Row> = worlds.iter().flat_map(|world| &world.rows).collect();
    let results = report::results(&rows)?;
    let ordinary = worlds.first().context("the first draft has yardsticks")?;
    let memory = memory::per_flow(&ordinary.kernel)?;
    report::print(&results, &memory, &machine::describe(&before)?);
    for path in plots::write(&rows, &results)? {
        eprintln!("bench: {}", path.display());
    }
    if let Some(path) = &options.json {
        figure::write_json(path, &results)?;
    }
    settle(options, &report::ratios(&results))
}

/// Updates the baseline and the verifier's budget, or holds what was measured against them.
fn settle(options: &Options, measured: &gate::Rows) -> Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("bench/baseline.json");
    let shipped = || {
        let object = options.shipped.as_ref();
        object.context("--shipped is missing: whose instructions shall be counted?")
    };
    match options.baseline {
        Baseline::Leave => Ok(()),
        Baseline::Update => {
            gate::write(&path, measured)?;
            verifier::write(&verifier::count(shipped()?)?)
        }
        Baseline::Check => {
            let baseline = gate::read(&path)?;
            let comparison = gate::compare(&baseline, measured, !options.rows.is_empty());
            let budget = verifier::check(&verifier::count(shipped()?)?, &verifier::budget()?);
            // Both are told before either ends it.
            let rows = comparison.judge(measured.len());
            match (rows, budget) {
                (Err(rows), Err(budget)) => Err(rows.context(format!("{budget:#}"))),
                (rows, budget) => rows.and(budget),
            }
        }
    }
}
