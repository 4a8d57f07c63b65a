//! Measures how fast the tables follow a real API server; run by `cargo xtask bench programming`.

#![forbid(unsafe_code)]

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use lb_tests::programming::{self, Options};

/// Milliseconds from a change in the API server to the kernel's tables
#[derive(Parser)]
struct Arguments {
    /// The program that becomes etcd and the API server
    #[arg(long)]
    components: PathBuf,
    /// lb-agent
    #[arg(long)]
    agent: PathBuf,
    /// The interface the agent balances on
    #[arg(long)]
    interface: String,
    /// Number of Services
    #[arg(long, default_value_t = 10_000)]
    services: u32,
    /// Endpoints of each
    #[arg(long, default_value_t = 5)]
    endpoints: u32,
    /// Changes of one endpoint
    #[arg(long, default_value_t = 500)]
    changes: u32,
    /// Write the figures to this file too, as JSON
    #[arg(long)]
    json: Option<PathBuf>,
}

fn main() -> ExitCode {
    let Arguments {
        components,
        agent,
        interface,
        services,
        endpoints,
        changes,
        json,
    } = Arguments::parse();
    let options = Options {
        components,
        agent,
        interface,
        services,
        endpoints,
        changes,
        json,
    };
    match programming::run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
