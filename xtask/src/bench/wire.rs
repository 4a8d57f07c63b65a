//! Packets per second over veth, beside what the devices alone can do.

use anyhow::Result;
use clap::Args;

use super::{Output, Profile, alone::alone};
use crate::{command, compile, ebpf, setup};

/// What is asked of the program `bench-wire`.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Timed calls per row, over which medians are taken
    #[arg(long)]
    rounds: Option<u32>,
    /// Only rows whose name has this in it
    #[arg(long)]
    only: Option<String>,
    #[command(flatten)]
    output: Output,
}

/// Measures the agent with the ordinary programs; the generator comes from the object with the feature
/// `bench`.
///
/// # Errors
/// A compilation or the program fails.
pub(super) fn run(arguments: &Arguments) -> Result<()> {
    setup::network()?;
    compile::build(false)?;
    let object = ebpf::build(&["bench".to_owned()])?;
    // What is measured runs in the kernel, so that the program needs no optimisation.
    let mut alone = alone("bench-wire", Profile::Dev, "")?;
    alone.arg("--object").arg(object);
    if let Some(rounds) = arguments.rounds {
        alone.arg("--rounds").arg(rounds.to_string());
    }
    if let Some(only) = &arguments.only {
        alone.arg("--only").arg(only);
    }
    arguments.output.tell(&mut alone)?;
    command::run(&mut alone)
}
