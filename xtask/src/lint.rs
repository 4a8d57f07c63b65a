//! Format, lints and licences.

use anyhow::Result;

use crate::{command, ebpf, setup};

/// Checks everything that needs no test.
///
/// # Errors
/// The first check that fails.
pub(crate) fn lint() -> Result<()> {
    setup::lint()?;
    command::run(command::cargo().args(["fmt", "--all", "--check"]))?;
    // lb-tests embeds the object, so it must be there before clippy reads that crate.
    ebpf::build(&[])?;
    ebpf::lint()?;
    command::run(
        command::cargo()
            .args(["clippy", "--workspace", "--exclude", "lb-ebpf"])
            .args(["--all-targets", "--", "--deny", "warnings"]),
    )?;
    deny()
}

/// Licences, advisories and duplicates, by `deny.toml`.
fn deny() -> Result<()> {
    if command::find("cargo-deny").is_none() {
        eprintln!("lint: cargo-deny is not installed, deny.toml is not checked");
        return Ok(());
    }
    command::run(command::cargo().args(["deny", "check"]))
}
