//! Packets per second over a veth pair, beside what the device itself can do.

use anyhow::Result;
use clap::Args;

use super::{Output, Profile, program};
use crate::{command, ebpf};

/// What is asked of the program `bench-wire`.
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
    let mut wire = program("bench-wire", Profile::Dev, &object);
    arguments.output.tell(&mut wire)?;
    command::run(&mut wire)
}
