//! Which versions of the peers were measured.

use std::{path::Path, process::Command};

use anyhow::{Context as _, Result};

/// A line for each.
///
/// # Errors
/// A program is not there.
pub(crate) fn versions(components: &Path) -> Result<String> {
    let of = |program: &Path, arguments: &[&str]| -> Result<String> {
        let name = program.display();
        let output = Command::new(program).args(arguments).output();
        let output = output.with_context(|| format!("run {name}"))?;
        // nginx tells it on standard error.
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        let line = text.lines().next();
        Ok(line
            .with_context(|| format!("{name} tells no version"))?
            .to_owned())
    };
    let kube_proxy = of(components, &["kube-proxy", "--version"])?;
    let lines = [
        format!("kube-proxy of {kube_proxy}"),
        of(Path::new("nft"), &["--version"])?,
        of(Path::new("iptables"), &["--version"])?,
        of(Path::new("haproxy"), &["-v"])?,
        of(Path::new("nginx"), &["-v"])?,
    ];
    Ok(lines.join("\n"))
}
