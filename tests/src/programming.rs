//! How long a change takes from a real API server to the kernel's tables; run by `bench-programming`
//! in namespaces of its own.
//!
//! etcd and the API server are the real ones and nothing else of Kubernetes runs: Services and
//! EndpointSlices are written by this program. It sees a change arrive in the mapped table of service
//! ports, whose epoch moves last.

use std::{path::PathBuf, sync::mpsc::Receiver, time::Duration};

use anyhow::{Context as _, Result, ensure};

use self::{
    agent::{Agent, Begin},
    api::Api,
    plane::Plane,
    tables::Tables,
};
use crate::{control::Percentiles, figure};

mod agent;
mod api;
mod figures;
pub mod plane;
mod tables;

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_mins(5);

/// What to measure.
#[derive(Clone, Debug)]
pub struct Options {
    /// The program that becomes etcd and the API server.
    pub components: PathBuf,
    /// `lb-agent`.
    pub agent: PathBuf,
    /// The interface the agent balances on, with the address 192.0.2.1.
    pub interface: String,
    /// Number of Services.
    pub services: u32,
    /// Endpoints of each.
    pub endpoints: u32,
    /// Changes of one endpoint.
    pub changes: u32,
    /// Where the figures go as JSON.
    pub json: Option<PathBuf>,
}

/// What was measured. Times are in milliseconds.
#[derive(Debug)]
struct Outcome {
    services: u32,
    endpoints: u32,
    begin: Begin,
    /// From the write to the API server until it was in the tables.
    from_write: Percentiles,
    /// From the event, as another watch saw it, until it was in the tables.
    from_event: Percentiles,
    /// What the agent itself says of planning, and of writing the tables.
    planned: Percentiles,
    applied: Percentiles,
    /// The agent's peak of resident memory, in bytes: when everything was programmed, and at the end.
    memory: [u64; 2],
}

/// Measures, and prints the figures.
///
/// # Errors
///
/// A program does not start, or a change does not arrive.
pub fn run(options: &Options) -> Result<()> {
    let directory = tempfile::tempdir().context("make a directory")?;
    let plane = Plane::start(&options.components, directory.path())?;
    let api = Api::connect(&plane.kubeconfig)?;
    say(&format!(
        "writing {} Services of {} endpoints",
        options.services, options.endpoints
    ));
    api.fill(options.services, options.endpoints)?;
    say("starting the agent");
    let agent = Agent::start(options, &plane.kubeconfig, directory.path())?;
    let begin = agent.wait_until_programmed()?;
    let before = agent.peak_memory()?;
    say("everything is in the tables, changing endpoints");
    let tables = Tables::open()?;
    let events = api.watch()?;
    let changes = change(options, &api, &tables, &events)?;
    let (planned, applied) = agent.times()?;
    let of = |pick: fn(&(f64, f64)) -> f64| Percentiles::of(changes.iter().map(pick).collect());
    let outcome = Outcome {
        services: options.services,
        endpoints: options.endpoints,
        begin,
        from_write: of(|times| times.0)?,
        from_event: of(|times| times.1)?,
        planned: Percentiles::of(planned)?,
        applied: Percentiles::of(applied)?,
        memory: [before, agent.peak_memory()?],
    };
    let figures = outcome.figures();
    figure::print(&figures);
    match &options.json {
        Some(path) => figure::write_json(path, &figures),
        None => Ok(()),
    }
}

/// Changes one endpoint after the other; from the write and from the event to the tables.
fn change(
    options: &Options,
    api: &Api,
    tables: &Tables,
    events: &Receiver<api::Event>,
) -> Result<Vec<(f64, f64)>> {
    let mut all = Vec::new();
    for n in 0..options.changes {
        let service = n.wrapping_mul(7_919) % options.services;
        let watched = tables.service(service)?;
        let written = api.replace_endpoint(service, options.endpoints, n);
        let reached = tables.wait_for_change(watched)?;
        let seen = api::wait_for(events, service)?;
        let milliseconds = |since| (reached.saturating_duration_since(since)).as_secs_f64() * 1e3;
        all.push((milliseconds(written), milliseconds(seen)));
        std::thread::sleep(Duration::from_millis(20));
    }
    ensure!(!all.is_empty(), "--changes is 0");
    Ok(all)
}

#[expect(clippy::print_stderr, reason = "it takes minutes")]
fn say(what: &str) {
    eprintln!("programming: {what}");
}
