//! Build, test and demonstration tasks: `cargo xtask TASK`.
//!
//! Uses none of the other crates, so that it builds before them. A task that finds something
//! missing runs [`setup`] for it first.
#![forbid(unsafe_code)]
#![expect(
    clippy::print_stdout,
    reason = "a task runner's results are its standard output"
)]

mod command;
mod ebpf;
mod object;
mod setup;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Build, test and demonstration tasks of Sluice.
#[derive(Parser)]
#[command(bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what the other tasks need; does nothing for what is already there
    Setup,
    /// Compile the data path to BPF byte code
    BuildEbpf {
        /// Cargo features of lb-ebpf; `bench` is written to a file of its own
        #[arg(long)]
        features: Vec<String>,
    },
}

fn main() -> ExitCode {
    let result = match Arguments::parse().task {
        Task::Setup => setup::everything(),
        Task::BuildEbpf { features } => ebpf::build(&features).map(|object| {
            println!("{}", object.display());
        }),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The directory of the workspace.
fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_owned()
}
