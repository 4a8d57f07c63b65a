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
use serde::Serialize;

use self::{
    agent::{Agent, Took},
    objects::{Cluster, Edit},
};

mod agent;
mod memory;
mod objects;
mod report;

pub use memory::{peak_memory, peak_memory_of};
pub use report::Percentiles;

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
    /// Where the rows go as JSON.
    pub json: Option<PathBuf>,
}

/// One number of Services.
#[derive(Debug, Serialize)]
struct Outcome {
    services: u32,
    endpoints: u32,
    /// Peak of the program's resident memory, in bytes: before, with the objects; and after
    /// everything was programmed once.
    memory: [u64; 2],
    whole: Vec<Whole>,
    changes: Vec<Changes>,
    kernel: memory::Kernel,
}

/// Everything programmed at once, in milliseconds.
#[derive(Debug, Serialize)]
struct Whole {
    what: &'static str,
    plan: f64,
    apply: f64,
    operations: usize,
}

/// Many changes of one kind.
#[derive(Debug, Serialize)]
struct Changes {
    what: &'static str,
    /// How many were planned as a whole.
    whole: usize,
    plan: Percentiles,
    apply: Percentiles,
    total: Percentiles,
}

/// Measures, and prints the tables.
///
/// # Errors
///
/// The maps cannot be made or written, or a plan turns something away.
pub fn run(options: &Options) -> Result<()> {
    ensure!(options.rounds > 0, "--rounds is 0");
    let mut outcomes = Vec::new();
    for &services in &options.services {
        let outcome =
            measure(options, services).with_context(|| format!("with {services} Services"))?;
        report::print(&outcome);
        outcomes.push(outcome);
    }
    if let Some(path) = &options.json {
        report::write(&outcomes, path)?;
    }
    Ok(())
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
    program(&mut agent, "from nothing", &full)?;
    let after = peak_memory()?;
    let kernel = agent.kernel()?;
    for _ in 1..options.rounds {
        program(&mut agent, "all taken away", &Snapshot::default())?;
        agent.release();
        program(&mut agent, "from nothing", &full)?;
    }
    program(&mut agent, "nothing changed", &full)?;
    let edits = [
        Edit::Replace,
        Edit::Remove,
        Edit::Add,
        Edit::Terminate,
        Edit::AddService,
        Edit::RemoveService,
    ];
    let changes = edits
        .into_iter()
        .map(|edit| change(&mut agent, &mut cluster, edit, options.changes));
    Ok(Outcome {
        services,
        endpoints: options.endpoints,
        memory: [before, after],
        whole: std::mem::take(&mut whole),
        changes: changes.collect::<Result<_>>()?,
        kernel,
    })
}

fn change(agent: &mut Agent, cluster: &mut Cluster, edit: Edit, count: u32) -> Result<Changes> {
    let mut all = Vec::new();
    for n in 0..count {
        if n % 64 == 0 {
            agent.release();
        }
        cluster.edit(edit, n);
        let took = agent.follow(&cluster.snapshot())?;
        ensure!(took.operations > 0, "{}: nothing was done", edit.name());
        all.push(took);
        // Changes come one by one, not in a row.
        std::thread::sleep(Duration::from_millis(1));
    }
    let of = |time: fn(&Took) -> Duration| {
        Percentiles::of(all.iter().map(|took| milliseconds(time(took))).collect())
    };
    Ok(Changes {
        what: edit.name(),
        whole: all.iter().filter(|took| took.whole).count(),
        plan: of(|took| took.plan)?,
        apply: of(|took| took.apply)?,
        total: of(|took| took.plan + took.apply)?,
    })
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
