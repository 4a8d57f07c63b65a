//! Measures how fast the tables follow the cluster; run by `cargo xtask bench control`.

#![forbid(unsafe_code)]

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use lb_tests::control::{self, Options};

/// Milliseconds from a change of Services and EndpointSlices to the kernel's tables
#[derive(Parser)]
struct Arguments {
    /// The compiled data path
    #[arg(long)]
    object: PathBuf,
    /// Numbers of Services
    #[arg(long, value_delimiter = ',', default_value = "100,1000,10000,50000")]
    services: Vec<u32>,
    /// Endpoints of each
    #[arg(long, default_value_t = 5)]
    endpoints: u32,
    /// Changes of each kind
    #[arg(long, default_value_t = 1_000)]
    changes: u32,
    /// How often everything is programmed from nothing
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Write the figures to this file too, as JSON
    #[arg(long)]
    json: Option<PathBuf>,
}

fn main() -> ExitCode {
    let Arguments {
        object,
        services,
        endpoints,
        changes,
        rounds,
        json,
    } = Arguments::parse();
    let options = Options {
        object,
        services,
        endpoints,
        changes,
        rounds,
        json,
    };
    match control::run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
