//! Benchmarks of the data path.

use std::path::Path;

use anyhow::Result;

use crate::{command, ebpf};

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
