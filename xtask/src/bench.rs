//! Benchmarks of the data path and of the way to its tables.
//!
//! Each part has a file with its arguments. What measures is a program of lb-tests; a part compiles
//! what is measured and starts that program.

mod alone;
mod control;
mod micro;
mod peers;
mod programming;
mod wire;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use clap::{Args, Subcommand};

use crate::command;

/// What is measured.
#[derive(Subcommand)]
pub(crate) enum Part {
    /// Time per packet, in the kernel, without a network
    Micro(micro::Arguments),
    /// Packets per second over veth, beside what the devices alone can do
    Wire(wire::Arguments),
    /// Time from a change of Services to the kernel's tables, without a cluster
    Control(control::Arguments),
    /// Time from a change in a real API server to the kernel's tables
    Programming(programming::Arguments),
    /// Beside kube-proxy, HAProxy and nginx: forwarding, connections, changes, memory
    Peers(peers::Arguments),
}

/// Measures one part.
///
/// # Errors
/// A compilation or the program that measures fails.
pub(crate) fn bench(part: &Part) -> Result<()> {
    match part {
        Part::Micro(arguments) => micro::run(arguments),
        Part::Wire(arguments) => wire::run(arguments),
        Part::Control(arguments) => control::run(arguments),
        Part::Programming(arguments) => programming::run(arguments),
        Part::Peers(arguments) => peers::run(arguments),
    }
}

/// Where the figures go, beside the terminal.
#[derive(Args)]
struct Output {
    /// Write the figures to this file too, as JSON
    #[arg(long)]
    json: Option<PathBuf>,
}

impl Output {
    /// Tells it to the program that measures.
    ///
    /// # Errors
    /// The working directory, which the path may be relative to, is not known.
    fn tell(&self, program: &mut Command) -> Result<()> {
        if let Some(json) = &self.json {
            // Relative to where the task was called, wherever the program runs.
            program.arg("--json").arg(std::path::absolute(json)?);
        }
        Ok(())
    }
}

/// How a program that measures is compiled.
#[derive(Clone, Copy)]
enum Profile {
    /// For what runs in the kernel: the program itself need not be fast.
    Dev,
    Release,
}

/// A program of lb-tests with the compiled data path as its first argument; cargo compiles it first.
fn program(name: &str, profile: Profile, object: &Path) -> Command {
    let mut cargo = command::cargo();
    cargo.arg("run");
    if let Profile::Release = profile {
        cargo.arg("--release");
    }
    cargo.args(["--package", "lb-tests", "--bin", name, "--", "--object"]);
    cargo.arg(object);
    cargo
}
