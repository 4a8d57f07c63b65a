//! Benchmarks of the data path and of the way to its tables.

use std::{path::Path, process::Command};

use anyhow::Result;

use crate::{cluster, command, compile, ebpf, root};

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

/// Time per packet and case, in `BPF_PROG_TEST_RUN`.
///
/// The runner is the program `bench-micro` of lb-tests; it loads the object compiled with the
/// wrapper programs that restore the packet between runs.
///
/// # Errors
/// A compilation or the runner fails.
pub(crate) fn micro(rounds: Option<u32>, json: Option<&Path>) -> Result<()> {
    ebpf::build(&[])?;
    let object = ebpf::build(&["bench".to_owned()])?;
    let mut cargo = command::cargo();
    // What is measured runs in the kernel, so that the runner needs no optimisation.
    cargo.args(["run", "--package", "lb-tests"]);
    cargo.args(["--bin", "bench-micro", "--", "--object"]);
    cargo.arg(object);
    if let Some(rounds) = rounds {
        cargo.arg("--rounds").arg(rounds.to_string());
    }
    if let Some(json) = json {
        // Relative to where the task was called, wherever it runs the runner.
        cargo.arg("--json").arg(std::path::absolute(json)?);
    }
    command::run(&mut cargo)
}

/// Time from a change of Services to the kernel's tables, without a cluster.
///
/// # Errors
/// A compilation or the runner fails.
pub(crate) fn control(services: &[u32], json: Option<&Path>) -> Result<()> {
    let object = ebpf::build(&[])?;
    let mut cargo = command::cargo();
    cargo.args(["run", "--release", "--package", "lb-tests"]);
    cargo.args(["--bin", "bench-control", "--", "--object"]);
    cargo.arg(object);
    if !services.is_empty() {
        let services: Vec<_> = services.iter().map(u32::to_string).collect();
        cargo.arg("--services").arg(services.join(","));
    }
    if let Some(json) = json {
        cargo.arg("--json").arg(std::path::absolute(json)?);
    }
    command::run(&mut cargo)
}

/// Time from a change in a real API server to the kernel's tables.
///
/// # Errors
/// A compilation or the runner fails.
pub(crate) fn programming(
    services: u32,
    endpoints: u32,
    changes: u32,
    json: Option<&Path>,
) -> Result<()> {
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
        ("--services", services),
        ("--endpoints", endpoints),
        ("--changes", changes),
    ] {
        alone.arg(flag).arg(value.to_string());
    }
    if let Some(json) = json {
        alone.arg("--json").arg(std::path::absolute(json)?);
    }
    command::run(&mut alone)
}
