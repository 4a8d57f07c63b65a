//! Running the tests, by tier.
//!
//! The file name in `tests/tests` tells the tier: `packet_*.rs`, `netns_*.rs`, `disruption_*.rs`,
//! `kubernetes_*.rs`; the directory `conformance` is a tier of its own. All need root and a kernel with
//! BPF; where that is missing they are skipped aloud, but fail under `CI=true`.

use std::env;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;

use crate::{cluster, command, compile, ebpf, image, root, setup};

mod conformance;

/// Tests that run under the same conditions.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum Tier {
    /// No privileges, no BPF compiler: unit and model tests
    Host,
    /// Single packets through the programs in the kernel
    Packet,
    /// Real programs in network namespaces
    Netns,
    /// Every upstream case of a Service proxy by its id, counted
    Conformance,
    /// Established flows under watch while everything changes around them
    Disruption,
    /// Sluice's own DaemonSet in a real Kubernetes cluster on this machine
    Kubernetes,
}

/// What the tests are told, beside which of them to run.
#[derive(Debug, Default)]
pub(crate) struct Options {
    /// How long the disruption tier disturbs, in seconds.
    pub(crate) seconds: Option<u64>,
    /// A part of test names, or options of the test programs.
    pub(crate) filter: Vec<String>,
}

/// What the test programs of one tier reported.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Tally {
    passed: u64,
    failed: u64,
    ignored: u64,
}

/// What became of one tier.
struct Report {
    tier: Tier,
    tally: Tally,
    /// Why the tier did not run, or did not run to its end.
    note: Option<String>,
    failed: bool,
    took: Duration,
}

/// Runs one tier or all, each to its end, and prints a line for each.
///
/// # Errors
/// A test failed, or a tier could not run.
pub(crate) fn test(only: Option<Tier>, options: &Options) -> Result<()> {
    let tiers = only.map_or_else(|| Tier::value_variants().to_vec(), |tier| vec![tier]);
    let reports: Vec<Report> = tiers.into_iter().map(|tier| run(tier, options)).collect();

    println!();
    for report in &reports {
        println!("{report}");
    }
    let sum = reports.iter().fold(Tally::default(), |sum, report| {
        sum.plus(report.tally, u64::from(report.failed))
    });
    let Tally {
        passed,
        failed,
        ignored,
    } = sum;
    println!("{passed} passed, {failed} failed, {ignored} skipped");
    if failed > 0 {
        bail!("{failed} tests or tiers failed");
    }
    Ok(())
}

#[expect(
    clippy::disallowed_methods,
    reason = "how long a tier took is for the reader only"
)]
fn run(tier: Tier, options: &Options) -> Report {
    let start = Instant::now();
    let mut report = Report {
        tier,
        tally: Tally::default(),
        note: None,
        failed: false,
        took: Duration::ZERO,
    };
    match unprivileged(tier) {
        None => match run_privileged(tier, options) {
            Ok((tally, mut failure)) => {
                if let (Tier::Kubernetes, Err(error)) = (tier, cluster::settle()) {
                    report.failed = true;
                    failure = Some(format!("{error:#}"));
                }
                // A test program that failed has told how many tests did; one that died has not.
                report.failed |= failure.is_some() && tally.failed == 0;
                report.tally = tally;
                report.note = failure;
            }
            Err(error) => {
                report.failed = true;
                report.note = Some(format!("{error:#}"));
            }
        },
        Some(missing) => {
            report.failed = env::var("CI").is_ok_and(|ci| ci == "true");
            report.note = Some(format!("SKIPPED: {missing}"));
        }
    }
    report.took = start.elapsed();
    report
}

/// Runs a tier's tests.
fn run_privileged(tier: Tier, options: &Options) -> Result<(Tally, Option<String>)> {
    let mut filter = options.filter.clone();
    if tier == Tier::Conformance {
        return conformance::test(&filter);
    }
    let mut cargo = cargo(tier)?;
    if tier == Tier::Disruption {
        if let Some(seconds) = options.seconds {
            cargo.env("SLUICE_SECONDS", seconds.to_string());
        }
        // Its counts are the result.
        filter.push("--nocapture".to_owned());
    }
    cargo_test(cargo, &filter, |_| {})
}

/// What this process lacks to run the tier, if anything.
fn unprivileged(tier: Tier) -> Option<String> {
    if tier == Tier::Host {
        return None;
    }
    if !command::is_root() {
        return Some("needs root".to_owned());
    }
    if !command::has_bpffs() {
        return Some("needs a BPF file system at /sys/fs/bpf".to_owned());
    }
    None
}

/// The test command of a tier, after compiling what it needs.
fn cargo(tier: Tier) -> Result<Command> {
    let mut cargo = command::cargo();
    cargo.args(["test", "--no-fail-fast"]);
    match tier {
        // The conformance tier is more than one command.
        Tier::Host | Tier::Conformance => {}
        Tier::Packet => {
            ebpf::build(&[])?;
            cargo.args(["--package", "lb-tests", "--lib"]);
        }
        Tier::Netns => {
            setup::network()?;
            compile::build(false)?;
            compile::second_layout()?;
            cargo.args(["--package", "lb-tests"]);
        }
        Tier::Disruption => {
            setup::disruption()?;
            compile::build(false)?;
            compile::second_layout()?;
            // The flood's generator.
            ebpf::build(&["bench".to_owned()])?;
            cargo.args(["--package", "lb-tests"]);
        }
        Tier::Kubernetes => {
            cluster::prepare()?;
            image::image(image::NAME, None)?;
            image::second_layout()?;
            // The tests start and remove clusters by this very program.
            let own = env::current_exe().context("find this program")?;
            cargo
                .args(["--package", "lb-tests"])
                .env("SLUICE_XTASK", own);
        }
    }
    if let Some(prefix) = tier.prefix() {
        let files = files(prefix)?;
        if files.is_empty() {
            bail!("tests/tests holds no file {prefix}*.rs");
        }
        cargo.args(files.iter().flat_map(|file| ["--test", file.as_str()]));
    }
    Ok(cargo)
}

/// Names of the test programs whose file name starts with `prefix`.
fn files(prefix: &str) -> Result<Vec<String>> {
    let directory = root().join("tests/tests");
    let entries =
        fs::read_dir(&directory).with_context(|| format!("read {}", directory.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        let name = name.to_string_lossy();
        if let Some(stem) = name.strip_suffix(".rs")
            && stem.starts_with(prefix)
        {
            names.push(stem.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// Runs a `cargo test`, showing and counting what it prints; the text tells how it failed.
fn cargo_test(
    mut command: Command,
    filter: &[String],
    mut look: impl FnMut(&str),
) -> Result<(Tally, Option<String>)> {
    if !filter.is_empty() {
        command.arg("--").args(filter);
    }
    eprintln!("+ {}", command::line(&command));
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("start `{}`", command::line(&command)))?;
    let mut tally = Tally::default();
    for line in BufReader::new(child.stdout.take().context("no output")?).lines() {
        let line = line?;
        println!("{line}");
        look(&line);
        if let Some(one) = Tally::of_line(&line) {
            tally = tally.plus(one, 0);
        }
    }
    let status = child.wait()?;
    let failure = (!status.success()).then(|| format!("cargo test ended with {status}"));
    Ok((tally, failure))
}

impl Tier {
    fn prefix(self) -> Option<&'static str> {
        match self {
            Self::Host | Self::Conformance => None,
            Self::Packet => Some("packet_"),
            Self::Netns => Some("netns_"),
            Self::Disruption => Some("disruption_"),
            Self::Kubernetes => Some("kubernetes_"),
        }
    }
}

impl Tally {
    /// Reads `test result: ok. 5 passed; 0 failed; 1 ignored; …`.
    fn of_line(line: &str) -> Option<Self> {
        let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
        let count = |word: &str| {
            let part = counts.split("; ").find(|part| part.ends_with(word))?;
            part.split(' ').next()?.parse().ok()
        };
        Some(Self {
            passed: count(" passed")?,
            failed: count(" failed")?,
            ignored: count(" ignored")?,
        })
    }

    fn plus(self, other: Self, more_failed: u64) -> Self {
        Self {
            passed: self.passed + other.passed,
            failed: self.failed + other.failed + more_failed,
            ignored: self.ignored + other.ignored,
        }
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Tally {
            passed,
            failed,
            ignored,
        } = self.tally;
        write!(
            f,
            "tier {}: {passed} passed, {failed} failed, {ignored} ignored in {:.1} s",
            format!("{:?}", self.tier).to_lowercase(),
            self.took.as_secs_f64()
        )?;
        match &self.note {
            Some(note) => write!(f, "; {note}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Tally;

    #[test]
    fn result_lines_are_counted() {
        let line = "test result: FAILED. 12 passed; 3 failed; 1 ignored; 0 measured; 7 filtered \
                    out; finished in 0.01s";
        let expected = Tally {
            passed: 12,
            failed: 3,
            ignored: 1,
        };
        assert_eq!(Tally::of_line(line), Some(expected));
        assert_eq!(Tally::of_line("test tests::ok ... ok"), None);
    }
}
