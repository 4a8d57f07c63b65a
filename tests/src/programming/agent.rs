//! The agent, and what its log says.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::{Options, PATIENCE, plane::Process};
use crate::{control::peak_memory_of, netns::now};

/// The node's name.
pub(super) const NODE: &str = "edge-1";
/// Where it pins.
pub(super) const PIN_ROOT: &str = "/sys/fs/bpf/sluice";

/// A running agent.
pub(super) struct Agent {
    process: Process,
    log: PathBuf,
}

/// How the agent began, in milliseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Begin {
    /// From its start until its lists were complete.
    pub(super) listed: f64,
    /// From its start until the programs were verified, which happens meanwhile.
    pub(super) loaded: f64,
    /// From its start until they were attached: from then on packets are balanced.
    pub(super) attached: f64,
    /// Planning everything, and writing it.
    pub(super) planned: f64,
    pub(super) applied: f64,
    /// From complete lists until everything was in the tables.
    pub(super) programmed: f64,
}

impl Agent {
    pub(super) fn start(options: &Options, kubeconfig: &Path, directory: &Path) -> Result<Self> {
        let config = directory.join("agent.yaml");
        let text = format!(
            "kubernetes: {{enabled: true, kubeconfig: \"{}\"}}
nodeName: {NODE}
interfaces: [{}]
pinRoot: {PIN_ROOT}
lockFile: \"{}\"
healthAddress: off
metricsAddress: off
log: {{format: json}}
",
            kubeconfig.display(),
            options.interface,
            directory.join("agent.lock").display(),
        );
        std::fs::write(&config, text).context("write the agent's configuration")?;
        let log = directory.join("agent.log");
        let mut command = Command::new(&options.agent);
        command.arg("run").arg("--config").arg(config);
        Ok(Self {
            process: Process::start(&mut command, &log)?,
            log,
        })
    }

    /// Waits until everything was written and the programs are attached.
    pub(super) fn wait_until_programmed(&self) -> Result<Begin> {
        let start = now();
        loop {
            let lines = self.lines()?;
            if let Some(begin) = Begin::of(&lines) {
                return Ok(begin);
            }
            if start.elapsed() > PATIENCE {
                let text = std::fs::read_to_string(&self.log).unwrap_or_default();
                bail!("the agent did not program everything:\n{text}");
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Milliseconds the agent planned and wrote, change by change; the first, of everything, apart.
    pub(super) fn times(&self) -> Result<(Vec<f64>, Vec<f64>)> {
        let lines = self.lines()?;
        let changes = lines
            .iter()
            .filter(|line| message(line) == Some("tables changed"))
            .skip(1);
        let times: Option<Vec<_>> = changes
            .map(|line| Some((field(line, "planned_in")?, field(line, "applied_in")?)))
            .collect();
        let times = times.context("the agent's log does not tell how long it took")?;
        Ok(times.into_iter().unzip())
    }

    /// The highest resident memory until now, in bytes.
    pub(super) fn peak_memory(&self) -> Result<u64> {
        peak_memory_of(&self.process.0.id().to_string())
    }

    fn lines(&self) -> Result<Vec<Value>> {
        let text = std::fs::read_to_string(&self.log)
            .with_context(|| format!("read {}", self.log.display()))?;
        let lines = text.lines();
        Ok(lines
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect())
    }
}

impl Begin {
    /// By the lines of the log; `None` while the last one is missing.
    fn of(lines: &[Value]) -> Option<Self> {
        let line = |what: &str| lines.iter().find(|line| message(line) == Some(what));
        let time = |line: &Value| time_of_day(line.get("timestamp")?.as_str()?);
        let start = time(lines.first()?)?;
        let listed = time(line("the Kubernetes API's lists are complete")?)?;
        let loaded = time(line("data path loaded")?)?;
        let changed = line("tables changed")?;
        let attached = |line: &&Value| message(line).is_some_and(|text| text.contains("TCX"));
        let attached = time(lines.iter().find(attached)?)?;
        Some(Self {
            listed: listed - start,
            loaded: loaded - start,
            attached: attached - start,
            planned: field(changed, "planned_in")?,
            applied: field(changed, "applied_in")?,
            programmed: time(changed)? - listed,
        })
    }
}

/// A field that tells a duration, in milliseconds.
fn field(line: &Value, name: &str) -> Option<f64> {
    milliseconds(line.get(name)?.as_str()?)
}

fn message(line: &Value) -> Option<&str> {
    line.get("message")?.as_str()
}

/// Milliseconds since midnight, of `2026-01-01T12:34:56.789012Z`.
fn time_of_day(text: &str) -> Option<f64> {
    let (_, time) = text.trim_end_matches('Z').split_once('T')?;
    let mut parts = time.splitn(3, ':').map(str::parse::<f64>);
    let (hours, minutes, seconds) = (parts.next()?, parts.next()?, parts.next()?);
    Some(((hours.ok()? * 60.0 + minutes.ok()?) * 60.0 + seconds.ok()?) * 1e3)
}

/// A duration as `Debug` writes it, in milliseconds.
fn milliseconds(text: &str) -> Option<f64> {
    let (number, factor) = [("ns", 1e-6), ("µs", 1e-3), ("ms", 1.0), ("s", 1e3)]
        .into_iter()
        .find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, factor)))?;
    Some(number.parse::<f64>().ok()? * factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_is_understood() {
        assert_eq!(milliseconds("1.5s"), Some(1_500.0));
        assert_eq!(milliseconds("250µs"), Some(0.25));
        assert_eq!(milliseconds("12ms"), Some(12.0));
        assert_eq!(milliseconds("5"), None);
        assert_eq!(time_of_day("2026-01-01T00:01:02.500Z"), Some(62_500.0));
    }
}
