//! The machine that measures: made as quiet as one thread can, and described.

use std::fs;

use anyhow::{Context as _, Result};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    time::{ClockId, clock_gettime},
    unistd::{Pid, gettid},
};

/// The CPU measured on: not the one that gets most interrupts.
const CPU: usize = 1;
/// Highest priority of an ordinary thread.
const NICE: &str = "-20";

/// Ties this thread to one CPU and puts it before all others.
pub(super) fn quiet() -> Result<()> {
    let mut cpus = CpuSet::new();
    let cpu = if std::thread::available_parallelism()?.get() > CPU {
        CPU
    } else {
        0
    };
    cpus.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &cpus).context("stay on one CPU")?;
    go_first()
}

/// Puts this thread before all others, and those it starts from now on.
///
/// # Errors
///
/// `renice` fails.
pub fn go_first() -> Result<()> {
    let status = std::process::Command::new("renice")
        .args(["-n", NICE, "-p", &gettid().to_string()])
        .stdout(std::process::Stdio::null())
        .status()
        .context("run renice")?;
    anyhow::ensure!(status.success(), "renice failed");
    Ok(())
}

/// CPU time this thread has had, in nanoseconds.
pub(super) fn cpu_time() -> Result<f64> {
    let time =
        clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).context("read the thread's clock")?;
    #[expect(
        clippy::cast_precision_loss,
        reason = "a benchmark runs for seconds, which a double holds to the nanosecond"
    )]
    Ok(time.tv_sec() as f64 * 1e9 + time.tv_nsec() as f64)
}

/// How busy the machine is.
#[derive(Debug)]
pub struct Load {
    average: String,
    /// Ticks the hypervisor took from all CPUs, and all ticks.
    stolen: u64,
    all: u64,
}

impl Load {
    /// As of now.
    ///
    /// # Errors
    ///
    /// `/proc` does not tell.
    pub fn now() -> Result<Self> {
        let average = fs::read_to_string("/proc/loadavg").context("read /proc/loadavg")?;
        let stat = fs::read_to_string("/proc/stat").context("read /proc/stat")?;
        // cpu user nice system idle iowait irq softirq steal ...: proc_stat(5).
        let times: Vec<u64> = stat
            .lines()
            .next()
            .unwrap_or_default()
            .split_whitespace()
            .filter_map(|word| word.parse().ok())
            .collect();
        Ok(Self {
            average: average.split(' ').next().unwrap_or_default().to_owned(),
            stolen: times.get(7).copied().unwrap_or(0),
            all: times.iter().take(8).sum(),
        })
    }
}

/// Kernel, CPU, and the load before and after.
///
/// # Errors
///
/// `/proc` does not tell.
pub fn describe(before: &Load) -> Result<String> {
    let after = Load::now()?;
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let cpu = fs::read_to_string("/proc/cpuinfo")?;
    let cpu = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map_or("unknown CPU", |name| {
            name.trim_start_matches([' ', '\t', ':'])
        });
    let retpolines = fs::read_to_string("/sys/devices/system/cpu/vulnerabilities/spectre_v2")
        .unwrap_or_default();
    let stolen = (after.stolen - before.stolen) * 1_000 / (after.all - before.all).max(1);
    Ok(format!(
        "Linux {}, {cpu}, load {} before and {} after, {}.{} % stolen\nspectre_v2: {}",
        kernel.trim(),
        before.average,
        after.average,
        stolen / 10,
        stolen % 10,
        retpolines.trim(),
    ))
}
