//! Measures Sluice beside its peers in one run; started by `cargo xtask bench peers` in namespaces of its
//! own.
//!
//! Every peer has a world of its own: client, balancer and backends, with the same addresses and cables
//! ([`world`]). All serve the same Services ([`services`]), which a real API server holds: kube-proxy and
//! the agent follow it, the proxies have configuration files of the same list. While one is measured, the
//! programs of the others are stopped where they are.

#![forbid(unsafe_code)]

mod api;
mod measure;
mod peers;
mod probe;
mod report;
mod run;
mod server;
mod services;
mod versions;
mod world;

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;

/// Sluice and its peers, side by side
#[derive(Debug, Parser)]
struct Arguments {
    /// The data path with the generator of frames
    #[arg(long)]
    object: PathBuf,
    /// The program that becomes etcd, the API server and kube-proxy
    #[arg(long)]
    components: PathBuf,
    /// lb-agent
    #[arg(long)]
    agent: PathBuf,
    /// Numbers of Services
    #[arg(long, value_delimiter = ',', default_values_t = [1, 100, 1_000])]
    services: Vec<u32>,
    /// Interleaved rounds of connections and of forwarding
    #[arg(long, default_value_t = 7)]
    rounds: u32,
    /// Changes of an endpoint, for each peer and number of Services
    #[arg(long, default_value_t = 5)]
    changes: u32,
    /// Additions of a Service, for each peer and number of Services
    #[arg(long, default_value_t = 3)]
    additions: u32,
    /// Write the figures to this file too, as JSON
    #[arg(long)]
    json: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run::run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
