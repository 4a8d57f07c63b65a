//! What a processor did, from the kernel's own accounts.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result};
use nix::time::{ClockId, clock_gettime};

/// Ticks of one processor, of which the kernel counts a hundred a second. They are charged to whatever ran
/// when the tick came, interrupts and their deferred work included.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ticks {
    /// Something ran.
    pub busy: u64,
    /// Nothing ran.
    pub idle: u64,
    /// The hypervisor ran something else.
    pub stolen: u64,
}

impl Ticks {
    /// Those of a processor since the machine started.
    ///
    /// # Errors
    ///
    /// `/proc/stat` does not know the processor.
    pub fn of(processor: usize) -> Result<Self> {
        let stat = fs::read_to_string("/proc/stat").context("read /proc/stat")?;
        let name = format!("cpu{processor} ");
        let line = stat.lines().find_map(|line| line.strip_prefix(&name));
        let line = line.with_context(|| format!("/proc/stat has no {name}"))?;
        // user nice system idle iowait irq softirq steal: proc_stat(5).
        let times: Vec<u64> = line
            .split_ascii_whitespace()
            .map_while(|word| word.parse().ok())
            .collect();
        let [user, nice, system, idle, iowait, irq, softirq, steal, ..] = times[..] else {
            anyhow::bail!("/proc/stat of {name}is {line:?}");
        };
        Ok(Self {
            busy: user + nice + system + irq + softirq,
            idle: idle + iowait,
            stolen: steal,
        })
    }

    /// What came since then.
    #[must_use]
    pub const fn since(self, then: Self) -> Self {
        Self {
            busy: self.busy - then.busy,
            idle: self.idle.saturating_sub(then.idle),
            stolen: self.stolen - then.stolen,
        }
    }

    /// All of them.
    pub const fn all(self) -> u64 {
        self.busy + self.idle + self.stolen
    }
}

/// Processor time the calling thread has had.
pub(super) fn own_time() -> Result<Duration> {
    let time =
        clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).context("read the thread's clock")?;
    Ok(time.into())
}
