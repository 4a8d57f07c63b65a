//! Time from a change of Services to the kernel's tables, without a cluster.

use anyhow::Result;
use clap::Args;

use super::{Output, Profile, program};
use crate::{command, ebpf};

/// What is asked of the program `bench-control`.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Numbers of Services
    #[arg(long, value_delimiter = ',')]
    services: Vec<u32>,
    #[command(flatten)]
    output: Output,
}

/// Measures the agent's own steps on tables of the kernel.
///
/// # Errors
/// A compilation or the program fails.
pub(super) fn run(arguments: &Arguments) -> Result<()> {
    let object = ebpf::build(&[])?;
    let mut control = program("bench-control", Profile::Release, &object);
    if !arguments.services.is_empty() {
        let services: Vec<_> = arguments.services.iter().map(u32::to_string).collect();
        control.arg("--services").arg(services.join(","));
    }
    arguments.output.tell(&mut control)?;
    command::run(&mut control)
}
