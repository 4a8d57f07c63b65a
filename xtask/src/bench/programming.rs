//! Time from a change in a real API server to the kernel's tables.

use std::process::Command;

use anyhow::Result;
use clap::Args;

use super::Output;
use crate::{cluster, command, compile, root};

/// Namespaces of its own: nothing is left behind, however it ends. Files are in memory.
const ALONE: &str = r#"
mount -t bpf bpf /sys/fs/bpf
mount -t tmpfs tmpfs /run
export TMPDIR=/run
ip link set lo up
ip link add lb0 type veth peer name lb1
ip address add 192.0.2.1/24 dev lb0
ip link set lb0 up
ip link set lb1 up
exec "$@"
"#;

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
    let mut cargo = command::cargo();
    cargo.args(["build", "--release", "--package", "lb-tests"]);
    cargo.args(["--bin", "bench-programming"]);
    command::run(&mut cargo)?;
    let mut alone = Command::new("unshare");
    alone
        .args(["--net", "--mount", "--pid", "--fork", "--kill-child"])
        .args(["--mount-proc", "sh", "-e", "-c", ALONE, "sh"])
        .arg(root().join("target/release/bench-programming"))
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
