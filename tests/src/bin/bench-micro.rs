//! Measures the fast path in the kernel; run by `cargo xtask bench micro`.

#![forbid(unsafe_code)]

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use lb_tests::bench::{self, Options};

/// Nanoseconds a packet costs in the XDP program, by kind of packet and number of flows
#[derive(Parser)]
struct Arguments {
    /// The data path, compiled with the feature `bench`
    #[arg(long)]
    object: PathBuf,
    /// Timed calls per row; medians are taken over them
    #[arg(long, default_value_t = 15)]
    rounds: u32,
    /// Packets in a timed call
    #[arg(long, default_value_t = 131_072)]
    iterations: u32,
    /// Write the rows to this file too, as JSON
    #[arg(long)]
    json: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let options = Options {
        object: arguments.object,
        rounds: arguments.rounds,
        iterations: arguments.iterations,
        json: arguments.json,
    };
    match bench::run(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
