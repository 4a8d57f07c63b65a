//! `lbctl detach`: takes the data path off the node, and unless told otherwise breaks nothing by it.
//!
//! ```text
//! frontends and addresses go ─▶ new flows go to the node's stack, known ones go on
//! each second                ─▶ UDP flows that were silent for long are ended, the others are counted
//! none is left               ─▶ programs are taken off their hooks, pins removed
//! ```

use std::{collections::BTreeSet, io::Write, path::Path, time::Duration};

use anyhow::{Context as _, bail};
use lb_userspace::{
    attach,
    dataplane::{Dataplane as _, bpf::BpfDataplane},
    expire::{Expiry, IdleTicks},
    pins::PinDirectory,
    preflight,
    view::{
        drain,
        flows::Table,
        read::{self, Reader},
    },
};

use crate::now;

/// What to take off, and how.
pub(crate) struct Detach<'a> {
    pub(crate) reader: &'a Reader,
    pub(crate) pins: &'a PinDirectory,
    /// Locked while an agent runs.
    pub(crate) lock_file: &'a Path,
    /// None: at once, whatever breaks.
    pub(crate) patience: Option<Patience>,
}

/// What to wait for.
pub(crate) struct Patience {
    /// None: for ever.
    pub(crate) timeout: Option<Duration>,
    /// A UDP flow without a packet for so long has ended.
    pub(crate) udp_idle: Duration,
}

impl Detach<'_> {
    pub(crate) fn run(&self, writer: &mut dyn Write) -> anyhow::Result<()> {
        if self.agent_runs() {
            bail!("the agent runs and would attach again: stop it first");
        }
        if let Some(patience) = &self.patience {
            let mut dataplane = BpfDataplane::open_pinned(self.pins)?;
            for op in drain::drain(&dataplane.dump()?) {
                dataplane.apply(&op)?;
            }
            writeln!(writer, "new flows go to the node's stack")?;
            writer.flush()?;
            self.wait_for_flows(patience, writer)?;
        }
        // An agent that starts now would attach again what is being removed.
        let _lock = preflight::lock(self.lock_file)?;
        let root = self.pins.path().parent().unwrap_or(self.pins.path());
        let serves = PinDirectory::find(root)?.first() == Some(self.pins);
        remove(self.pins, writer)?;
        // Rests of an agent that died while it changed the layout must not begin to serve now.
        let rests = PinDirectory::all(root)?.into_iter().filter(|_| serves);
        for rest in rests {
            remove(&rest, writer)?;
        }
        Ok(())
    }

    fn agent_runs(&self) -> bool {
        read::is_locked(self.lock_file).unwrap_or(false)
    }

    /// Waits until no flow is left that would break, and tells when their number changes.
    fn wait_for_flows(&self, patience: &Patience, writer: &mut dyn Write) -> anyhow::Result<()> {
        let start = now();
        let clock = self.reader.clock().context("the tick cannot be read")?;
        let idle = IdleTicks::udp_alone(patience.udp_idle, clock.tick_seconds());
        let expiry = Expiry::open(self.pins, idle)?;
        let mut told = None;
        loop {
            if self.agent_runs() {
                bail!("an agent was started, and serves new flows again: stop it first");
            }
            // Each for itself: of many clients that use their ports again some one is never silent.
            expiry.pass_over_flows(&BTreeSet::new())?;
            // Embryonic before established: a flow promoted between the two readings is in the latter.
            let mut halves = self.reader.halves(Table::Embryonic)?;
            halves.extend(self.reader.halves(Table::Established)?);
            let udp_idle = patience.udp_idle.as_secs();
            let remaining = drain::holding(&halves, self.reader.clock(), udp_idle);
            // Once more after a pause: a handshake or the last acknowledgements may be on their way.
            if remaining == 0 && told == Some(0) {
                return Ok(());
            }
            if told != Some(remaining) {
                writeln!(writer, "flows: {remaining}")?;
                writer.flush()?;
                told = Some(remaining);
            }
            let in_time = patience
                .timeout
                .is_none_or(|timeout| start.elapsed() < timeout);
            if remaining != 0 && !in_time {
                bail!(
                    "flows: {remaining}; they go on. Repeat to wait for them, \
                     use --force to break them, or start the agent to serve new flows again"
                );
            }
            std::thread::sleep(Duration::from_secs(1));
        }
    }
}

/// Once this returns no packet meets the programs.
fn remove(pins: &PinDirectory, writer: &mut dyn Write) -> anyhow::Result<()> {
    attach::detach(pins)?;
    pins.remove()?;
    writeln!(writer, "removed {}", pins.path().display())?;
    Ok(())
}
