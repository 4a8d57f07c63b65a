//! Compiling everything: the data path first, then the programs that embed it.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::{command, ebpf, root};

/// The two programs of user space, with the data path inside.
pub(crate) struct Programs {
    /// `lb-agent`.
    pub(crate) agent: PathBuf,
    /// `lbctl`.
    pub(crate) lbctl: PathBuf,
}

/// Compiles the data path and both programs.
///
/// # Errors
/// A compilation fails, or what it needs cannot be installed.
pub(crate) fn build(release: bool) -> Result<Programs> {
    ebpf::build(&[])?;
    let mut cargo = command::cargo();
    cargo.args(["build", "--package", "lb-userspace", "--bins"]);
    cargo.args(["--features", "bpf"]);
    if release {
        cargo.arg("--release");
    }
    command::run(&mut cargo)?;
    let target = root().join("target");
    Ok(Programs::within(&target.join(if release {
        "release"
    } else {
        "debug"
    })))
}

/// Compiles data path and agent of the second layout, for tests, into `target/second-layout`. Returns
/// where the agent is.
///
/// Their dependencies are those of the ordinary ones; only what the layout reaches is compiled again.
///
/// # Errors
/// A compilation fails, or what it needs cannot be installed.
pub(crate) fn second_layout() -> Result<PathBuf> {
    const NAME: &str = "lb-agent-second-layout";
    let object = ebpf::build(&["second-layout".to_owned()])?;
    let mut cargo = command::cargo();
    cargo.args(["build", "--package", "lb-userspace", "--bin", NAME]);
    cargo.args(["--features", "bpf,second-layout"]);
    command::run(&mut cargo)?;
    let agent = object.with_file_name("lb-agent");
    command::replace(&root().join("target/debug").join(NAME), &agent)?;
    Ok(agent)
}

impl Programs {
    /// The programs in a directory.
    pub(crate) fn within(directory: &Path) -> Self {
        Self {
            agent: directory.join("lb-agent"),
            lbctl: directory.join("lbctl"),
        }
    }
}
