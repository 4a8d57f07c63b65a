//! Programs that measure in namespaces of their own: nothing is left behind, however they end.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use super::Profile;
use crate::{command, root};

/// Files are in memory.
const FILES: &str = r"
mount -t bpf bpf /sys/fs/bpf
mount -t tmpfs tmpfs /run
export TMPDIR=/run
ip link set lo up
";

/// The shell stays, and listens: the first process of a namespace, which all others end with, gets no signal
/// it does not listen for.
const RUN: &str = r#"
trap 'exit 130' INT TERM
"$@" &
wait $!
"#;

/// Compiles a program of lb-tests; returns the command that runs it alone, to which its arguments may be added.
/// Before it the shell commands of `network` are run, where there is no device but the loopback one.
///
/// # Errors
/// The compilation fails.
pub(super) fn alone(name: &str, profile: Profile, network: &str) -> Result<Command> {
    let mut cargo = command::cargo();
    cargo.args(["build", "--package", "lb-tests", "--bin", name]);
    let mut program: PathBuf = root().join("target");
    match profile {
        Profile::Dev => program.push("debug"),
        Profile::Release => {
            cargo.arg("--release");
            program.push("release");
        }
    }
    command::run(&mut cargo)?;
    program.push(name);
    let mut alone = Command::new("unshare");
    alone
        .args(["--net", "--mount", "--pid", "--fork", "--kill-child"])
        .args(["--mount-proc", "sh", "-e", "-c"])
        .arg([FILES, network, RUN].concat())
        .arg("sh")
        .arg(program);
    Ok(alone)
}
