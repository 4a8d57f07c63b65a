//! Measures the programs in the kernel; run by `cargo xtask bench micro`.

#![forbid(unsafe_code)]

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use lb_tests::bench::{self, Baseline, Options};

/// Nanoseconds a packet costs in the programs, by kind of packet and number of flows
#[derive(Parser)]
struct Arguments {
    /// The data path, compiled with the feature `bench`
    #[arg(long)]
    object: PathBuf,
    /// The data path as it is shipped, for `--check` and `--update`
    #[arg(long)]
    shipped: Option<PathBuf>,
    /// Only rows with this part in their name; may be repeated
    #[arg(long)]
    rows: Vec<String>,
    /// Timed calls per row; medians are taken over them
    #[arg(long, default_value_t = 9)]
    rounds: u32,
    /// Packets in a timed call
    #[arg(long, default_value_t = 65_536)]
    iterations: u32,
    /// Write the rows to this file too, as JSON
    #[arg(long)]
    json: Option<PathBuf>,
    /// Fail if a row or a program is more costly than the committed baseline and budget allow
    #[arg(long, conflicts_with = "update")]
    check: bool,
    /// Make baseline and budget anew
    #[arg(long)]
    update: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let baseline = match (arguments.check, arguments.update) {
        (true, _) => Baseline::Check,
        (_, true) => Baseline::Update,
        _ => Baseline::Leave,
    };
    let options = Options {
        object: arguments.object,
        shipped: arguments.shipped,
        rows: arguments.rows,
        rounds: arguments.rounds,
        iterations: arguments.iterations,
        json: arguments.json,
        baseline,
    };
    match bench::run(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
