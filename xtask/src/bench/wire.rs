//! Packets per second over veth, beside what the devices alone can do.

use std::process::Command;

use anyhow::Result;
use clap::Args;

use super::Output;
use crate::{command, compile, ebpf, root, setup};

/// Namespaces of its own: nothing is left behind, however it ends. Files are in memory.
const ALONE: &str = r#"
mount -t bpf bpf /sys/fs/bpf
mount -t tmpfs tmpfs /run
export TMPDIR=/run
ip link set lo up
exec "$@"
"#;

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
    let mut cargo = command::cargo();
    // What is measured runs in the kernel, so that the program needs no optimisation.
    cargo.args(["build", "--package", "lb-tests", "--bin", "bench-wire"]);
    command::run(&mut cargo)?;
    let mut alone = Command::new("unshare");
    alone
        .args(["--net", "--mount", "--pid", "--fork", "--kill-child"])
        .args(["--mount-proc", "sh", "-e", "-c", ALONE, "sh"])
        .arg(root().join("target/debug/bench-wire"))
        .arg("--object")
        .arg(object);
    if let Some(rounds) = arguments.rounds {
        alone.arg("--rounds").arg(rounds.to_string());
    }
    if let Some(only) = &arguments.only {
        alone.arg("--only").arg(only);
    }
    arguments.output.tell(&mut alone)?;
    command::run(&mut alone)
}
