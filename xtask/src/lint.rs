//! Format, lints and licences.

use anyhow::{Result, ensure};

use crate::{command, ebpf, setup};

/// Checks everything that needs no test, each to its end.
///
/// # Errors
/// All that failed.
pub(crate) fn lint() -> Result<()> {
    let checks = [format, data_path, user_space, deny];
    let failed: Vec<_> = checks
        .iter()
        .filter_map(|check| check().err())
        .map(|error| format!("{error:#}"))
        .collect();
    ensure!(failed.is_empty(), "{}", failed.join("; "));
    Ok(())
}

fn format() -> Result<()> {
    setup::lint()?;
    command::run(command::cargo().args(["fmt", "--all", "--check"]))
}

fn data_path() -> Result<()> {
    // Compiles it too: lb-tests embeds the object, which must be there before clippy reads that.
    ebpf::build(&[])?;
    ebpf::lint()
}

fn user_space() -> Result<()> {
    command::run(
        command::cargo()
            .args(["clippy", "--workspace", "--exclude", "lb-ebpf"])
            .args(["--all-targets", "--", "--deny", "warnings"]),
    )
}

/// Licences, advisories and duplicates, by `deny.toml`.
fn deny() -> Result<()> {
    if command::find("cargo-deny").is_none() {
        eprintln!("lint: cargo-deny is not installed, deny.toml is not checked");
        return Ok(());
    }
    command::run(command::cargo().args(["deny", "check"]))
}
