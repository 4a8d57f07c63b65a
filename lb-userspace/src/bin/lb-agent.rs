//! `lb-agent`: keeps the data path of this node at what the manifests ask for.

use std::{process::ExitCode, time::Duration};

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use lb_userspace::{
    agent,
    config::{Config, ConfigFlags},
    telemetry,
};

/// Load-balances Kubernetes Services on this node's interfaces.
#[derive(Debug, Parser)]
#[command(name = "lb-agent", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Load the data path, attach it, and follow the manifests until SIGTERM
    Run(Box<ConfigFlags>),
    /// Check the configuration and say nothing if it is good
    CheckConfig(Box<ConfigFlags>),
}

pub(crate) fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lb-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    match cli.command {
        Command::CheckConfig(flags) => {
            Config::load(*flags)?;
            Ok(())
        }
        Command::Run(flags) => {
            let config = Config::load(*flags)?;
            telemetry::start(&config.log_level, config.log_format)?;
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .context("start the runtime")?;
            let result = runtime.block_on(agent::run(config));
            // A change that is being applied is applied to its end.
            runtime.shutdown_timeout(Duration::from_secs(5));
            Ok(result?)
        }
    }
}
