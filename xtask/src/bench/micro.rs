//! Time per packet and case, in `BPF_PROG_TEST_RUN`.

use anyhow::Result;
use clap::Args;

use super::{Output, Profile, program};
use crate::{command, ebpf};

/// What is asked of the program `bench-micro`.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Timed calls per row, over which medians are taken
    #[arg(long)]
    rounds: Option<u32>,
    /// Only rows with this part in their name; may be repeated
    #[arg(long)]
    rows: Vec<String>,
    /// Fail if a row or a program is more costly than the committed baseline and budget allow
    #[arg(long, conflicts_with = "update")]
    check: bool,
    /// Make the committed baseline and budget anew
    #[arg(long, conflicts_with = "rows")]
    update: bool,
    #[command(flatten)]
    output: Output,
}

/// Measures the object compiled with the wrapper programs that restore the packet between runs.
///
/// # Errors
/// A compilation or the program fails.
pub(super) fn run(arguments: &Arguments) -> Result<()> {
    // lb-tests embeds the ordinary object, by lb-userspace.
    let shipped = ebpf::build(&[])?;
    let object = ebpf::build(&["bench".to_owned()])?;
    let mut micro = program("bench-micro", Profile::Dev, &object);
    if let Some(rounds) = arguments.rounds {
        micro.arg("--rounds").arg(rounds.to_string());
    }
    for part in &arguments.rows {
        micro.arg("--rows").arg(part);
    }
    if arguments.check || arguments.update {
        micro.arg("--shipped").arg(shipped);
        micro.arg(if arguments.check {
            "--check"
        } else {
            "--update"
        });
    }
    arguments.output.tell(&mut micro)?;
    command::run(&mut micro)
}
