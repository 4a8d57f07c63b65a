//! Time from a change in a real API server to the kernel's tables.

use anyhow::Result;
use clap::Args;

use super::{Output, Profile, alone::alone};
use crate::{cluster, command, compile};

/// What the agent balances on.
const INTERFACE: &str = r"
ip link add lb0 type veth peer name lb1
ip address add 192.0.2.1/24 dev lb0
ip link set lb0 up
ip link set lb1 up
";

/// What is asked of the program `bench-programming`.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Number of Services
    #[arg(long, default_value_t = 10_000)]
    services: u32,
    /// Endpoints of each
    #[arg(long, default_value_t = 5)]
    endpoints: u32,
    /// Changes of one endpoint
    #[arg(long, default_value_t = 500)]
    changes: u32,
    #[command(flatten)]
    output: Output,
}

/// Measures the agent beside etcd and an API server.
///
/// # Errors
/// A compilation or the program fails.
pub(super) fn run(arguments: &Arguments) -> Result<()> {
    let components = cluster::components()?;
    let programs = compile::build(true)?;
    let mut alone = alone("bench-programming", Profile::Release, INTERFACE)?;
    alone
        .arg("--components")
        .arg(components)
        .arg("--agent")
        .arg(programs.agent)
        .args(["--interface", "lb0"]);
    for (flag, value) in [
        ("--services", arguments.services),
        ("--endpoints", arguments.endpoints),
        ("--changes", arguments.changes),
    ] {
        alone.arg(flag).arg(value.to_string());
    }
    arguments.output.tell(&mut alone)?;
    command::run(&mut alone)
}
