//! Measures packets per second over veth; run by `cargo xtask bench wire`.
//!
//! Frames of established flows are made by a program run with live frames, leave the client's device, and are
//! counted and dropped by a program at the backend's. In between is what a row is about. Client, load
//! balancer and backend share the processor that sends, so that a rate is what one processor does with a
//! packet from its birth to its end; what the same processor does without a balancer stands beside it.
//!
//! Every row has namespaces of its own and a call of most of a second in each round, so that whatever slows the
//! machine slows all rows alike.

#![forbid(unsafe_code)]

mod report;
mod round;
mod rows;
mod setup;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use lb_tests::{
    bench::machine::{self, Load},
    netns::agent::binary,
    stream::{Programs, line::line},
};

use rows::rows;
use setup::{Scene, Setup};

/// Packets per second through the load balancer, beside what the devices alone can do
#[derive(Parser)]
struct Arguments {
    /// The data path, compiled with the feature `bench`: the generator is from it
    #[arg(long)]
    object: PathBuf,
    /// Timed calls per row; medians are taken over them
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Only rows whose name has this in it
    #[arg(long)]
    only: Option<String>,
    /// Write the figures to this file too, as JSON
    #[arg(long)]
    json: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    ensure!(arguments.rounds > 0, "--rounds is 0");
    require()?;
    let before = Load::now()?;
    let mut rows = rows();
    if let Some(only) = &arguments.only {
        rows.retain(|row| row.name.contains(only.as_str()));
        ensure!(!rows.is_empty(), "no row has {only:?} in its name");
    }
    let mut programs = Programs::load(&arguments.object)?;
    let mut setups: Vec<Setup> = rows.iter().map(|row| row.setup).collect();
    setups.sort_unstable();
    setups.dedup();
    let lines: Vec<_> = setups.iter().map(|_| line()).collect();
    let mut scenes = Vec::new();
    for (setup, line) in setups.into_iter().zip(&lines) {
        eprintln!("wire: set up {setup:?}");
        let scene = Scene::new(setup, line, &mut programs);
        scenes.push(scene.with_context(|| format!("set up {setup:?}"))?);
    }
    // After the agents were started, which must not inherit it.
    machine::go_first()?;
    for round in 0..=arguments.rounds {
        for row in &mut rows {
            let scene = scenes.iter().find(|scene| scene.setup == row.setup);
            let scene = scene.context("every setup has a scene")?;
            let run = if round == 0 {
                round::prepare(row, scene, &mut programs)
            } else {
                round::run(row, scene, &mut programs)
            };
            run.with_context(|| format!("row {:?}", row.name))?;
        }
        eprintln!("wire: round {round} of {}", arguments.rounds);
    }
    report::report(
        &rows,
        &machine::describe(&before)?,
        arguments.json.as_deref(),
    )
}

/// What the fixtures need; they would only panic.
fn require() -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "needs root");
    let path = std::env::var_os("PATH").unwrap_or_default();
    for program in ["ip", "ethtool", "nsenter", "setpriv", "renice"] {
        let found = std::env::split_paths(&path).any(|directory| directory.join(program).exists());
        ensure!(found, "the program {program} is missing");
    }
    for file in [binary("lb-agent"), lb_tests::require::object_path()] {
        ensure!(
            file.exists(),
            "{} is missing: run this by `cargo xtask bench wire`",
            file.display()
        );
    }
    Ok(())
}
