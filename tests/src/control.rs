//! How long a change of the cluster takes to the kernel's tables, without the cluster; run by
//! `bench-control`.
//!
//! The real planner and the real maps, in a directory of BPF pins that is gone when the program
//! starts to measure. What an agent does between its source and the maps is done in the same order,
//! by one thread.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use lb_userspace::snapshot::Snapshot;

use self::{
    agent::{Agent, Took},
    objects::{Cluster, Edit},
};
use crate::figure;

mod agent;
mod figures;
mod memory;
mod objects;
mod percentiles;
mod plots;
mod report;

pub use memory::{charged, peak_memory, peak_memory_of};
pub use percentiles::Percentiles;

/// What to measure.
#[derive(Clone, Debug)]
pub struct Options {
    /// The compiled data path.
    pub object: PathBuf,
    /// Numbers of Services.
    pub services: Vec<u32>,
    /// Endpoints of each.
    pub endpoints: u32,
    /// Changes of each kind.
    pub changes: u32,
    /// How often everything is programmed from nothing.
    pub rounds: u32,
    /// Where the figures go as JSON.
    pub json: Option<PathBuf>,
}

/// Nothing is in the tables, then everything.
const LOAD: &str = "from nothing";

/// One number of Services.
#[derive(Debug)]
struct Outcome {
    services: u32,
    endpoints: u32,
    /// Peak of the program's resident memory, in bytes: before, with the objects; and after
    /// everything was programmed once.
    memory: [u64; 2],
    whole: Vec<Whole>,
    changes: Vec<Changes>,
    /// Milliseconds it takes to read everything back, and to compare.
    read_back: [f64; 2],
    kernel: memory::Kernel,
}

impl Outcome {
    /// The median of the times everything was programmed from nothing.
    fn load(&self) -> Whole {
        let mut all: Vec<_> = self.whole.iter().filter(|w| w.what == LOAD).collect();
        all.sort_by(|a, b| (a.plan + a.apply).total_cmp(&(b.plan + b.apply)));
        all.get(all.len() / 2).copied().copied().unwrap_or_default()
    }

    /// Replacing an endpoint.
    fn replaced(&self) -> Option<&Percentiles> {
        let what = Edit::Replace.name();
        let changes = self.changes.iter().find(|changes| changes.what == what);
        changes.map(|changes| &changes.total)
    }
}

/// Everything programmed at once, in milliseconds.
#[derive(Clone, Copy, Debug, Default)]
struct Whole {
    what: &'static str,
    plan: f64,
    apply: f64,
    operations: usize,
}

/// Many changes of one kind.
#[derive(Debug)]
struct Changes {
    what: &'static str,
    /// How many were planned as a whole.
    whole: usize,
    plan: Percentiles,
    apply: Percentiles,
    total: Percentiles,
}

/// Measures, prints the figures and draws the pictures.
///
/// # Errors
///
/// The maps cannot be made or written, or a plan turns something away.
pub fn run(options: &Options) -> Result<()> {
    ensure!(options.rounds > 0, "--rounds is 0");
    ensure!(!options.services.contains(&0), "--services has a 0");
    let mut outcomes = Vec::new();
    for &services in &options.services {
        let outcome =
            measure(options, services).with_context(|| format!("with {services} Services"))?;
        report::print(&outcome);
        outcomes.push(outcome);
    }
    let figures = figures::figures(&outcomes);
    figure::print(&figures);
    report::drawn(&plots::write(&outcomes)?);
    match &options.json {
        Some(path) => figure::write_json(path, &figures),
        None => Ok(()),
    }
}

fn measure(options: &Options, services: u32) -> Result<Outcome> {
    memory::forget_peak()?;
    let mut cluster = Cluster::new(services, options.endpoints);
    let full = cluster.snapshot();
    let mut agent = Agent::start(&options.object, &cluster)?;
    let before = peak_memory()?;
    let mut whole = Vec::new();
    let mut program = |agent: &mut Agent, what, snapshot: &Snapshot| {
        let took = agent.follow(snapshot)?;
        whole.push(Whole {
            what,
            plan: milliseconds(took.plan),
            apply: milliseconds(took.apply),
            operations: took.operations,
        });
        anyhow::Ok(())
    };
    program(&mut agent, LOAD, &full)?;
    let after = peak_memory()?;
    let kernel = agent.kernel()?;
    for _ in 1..options.rounds {
        program(&mut agent, "all taken away", &Snapshot::default())?;
        agent.release();
        program(&mut agent, LOAD, &full)?;
    }
    program(&mut agent, "nothing changed", &full)?;
    let changes = change(&mut agent, &mut cluster, options.changes)?;
    Ok(Outcome {
        services,
        endpoints: options.endpoints,
        memory: [before, after],
        whole,
        changes,
        read_back: agent.read_back()?.map(milliseconds),
        kernel,
    })
}

/// Makes `count` changes of each kind. No Service meets two of a kind in a row.
fn change(agent: &mut Agent, cluster: &mut Cluster, count: u32) -> Result<Vec<Changes>> {
    let mut all = Edit::ALL.map(|edit| (edit, Vec::new()));
    for first in (0..count).step_by(cluster.services as usize) {
        for (edit, took) in &mut all {
            agent.release();
            for n in first..count.min(first + cluster.services) {
                cluster.edit(*edit, n);
                let one = agent.follow(&cluster.snapshot())?;
                ensure!(one.operations > 0, "{}: nothing was done", edit.name());
                took.push(one);
                // Changes come one by one, not in a row.
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
    all.into_iter()
        .map(|(edit, all)| Changes::of(edit, &all))
        .collect()
}

impl Changes {
    fn of(edit: Edit, all: &[Took]) -> Result<Self> {
        let of = |time: fn(&Took) -> Duration| {
            Percentiles::of(all.iter().map(|took| milliseconds(time(took))).collect())
        };
        Ok(Self {
            what: edit.name(),
            whole: all.iter().filter(|took| took.whole).count(),
            plan: of(|took| took.plan)?,
            apply: of(|took| took.apply)?,
            total: of(|took| took.plan + took.apply)?,
        })
    }
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// The time, for the measurement.
#[expect(clippy::disallowed_methods, reason = "a measurement")]
fn clock() -> Instant {
    Instant::now()
}

/// Makes a directory, which is to be removed again.
fn scratch(path: &Path) -> Result<()> {
    std::fs::create_dir_all(path).with_context(|| format!("create {}", path.display()))
}
