//! The load balancer side by side with others, in one run.

use anyhow::Result;
use clap::Args;

use super::{Output, Profile, program};
use crate::{command, ebpf};

/// What is asked of the program `bench-peers`.
#[derive(Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    output: Output,
}

/// Measures the ordinary programs; the generator comes from the object with the feature `bench`.
///
/// # Errors
/// A compilation or the program fails.
pub(super) fn run(arguments: &Arguments) -> Result<()> {
    ebpf::build(&[])?;
    let object = ebpf::build(&["bench".to_owned()])?;
    let mut peers = program("bench-peers", Profile::Dev, &object);
    arguments.output.tell(&mut peers)?;
    command::run(&mut peers)
}
