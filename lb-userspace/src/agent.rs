//! The agent: waits for something to change, plans, and applies.
//!
//! ```text
//! sources ──┐
//! network ──┼─▶ loop ─▶ plan ─▶ diff ─▶ reach pods ─▶ apply
//! timers  ──┘                                └─ failure: dump, wait, again
//! ```
//! At start the kernel verifies the programs while the lists arrive. Tables made anew are filled
//! meanwhile too: no packet meets them before the programs are attached.
//!
//! Nothing is changed before every source has delivered its first complete list. When the agent
//! ends, the data path stays: tables, programs and links are pinned.

use std::{sync::Arc, time::Duration};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::JoinHandle,
    time::{MissedTickBehavior, interval_at},
};
use tracing::{error, info, warn};

pub use self::error::AgentError;

use self::{
    begin::require_interfaces,
    flows::Gone,
    interfaces::chain,
    observe::Observer,
    programs::Programs,
    read_back::Found,
    settings::{backoff, node_config, snat_policy},
    translators::Translators,
    worker::{Source, Worker},
};
use crate::{
    config::Config,
    dataplane::DataplaneError,
    devices::{Monitor, NetworkView},
    drain::Drains,
    events,
    expire::Expiry,
    migrate::Migration,
    pins::{
        self,
        step::{Step, killed_after},
    },
    preflight,
    refusals::Refusals,
    source::SourceState,
};

mod begin;
mod error;
mod flows;
mod interfaces;
mod observe;
mod programs;
mod read_back;
mod settings;
mod sources;
mod translators;
mod worker;

/// How often the tables are read back and compared.
const RESYNC: Duration = Duration::from_mins(1);
/// How often the tables of a new layout may fail to be written before the one that serves is left to serve:
/// with the waits in between, about a minute.
const MOST_FAILURES: u32 = 9;
/// How often refusals of the data path are read.
const REFUSALS: Duration = Duration::from_secs(1);
/// Longest wait for the device tables to follow a change of the SNAT addresses.
const FOLLOW: Duration = Duration::from_secs(5);

/// Runs until SIGTERM or SIGINT. The data path stays attached.
///
/// # Errors
///
/// If the agent cannot start, or loses its view of the network. The data path goes on.
pub async fn run(config: Config) -> Result<(), AgentError> {
    // Held until the process ends: a thread may still write to the tables when this returns.
    std::mem::forget(preflight::lock(&config.lock_file)?);
    preflight::require_privileges()?;
    pins::require_bpffs(&config.pin_root)?;
    std::mem::forget(preflight::lock_pins(&config.pin_root)?);
    preflight::require_tcx()?;
    require_interfaces(&config)?;
    let mut terminated =
        signal(SignalKind::terminate()).map_err(AgentError::kernel("listen for SIGTERM"))?;
    let mut interrupted =
        signal(SignalKind::interrupt()).map_err(AgentError::kernel("listen for SIGINT"))?;
    // Its default would end us; there is nothing to read again that is not followed anyway.
    let _hangup = signal(SignalKind::hangup()).map_err(AgentError::kernel("listen for SIGHUP"))?;
    let agent = async {
        let mut agent = Agent::load(config).await?;
        agent.turn().await
    };
    tokio::select! {
        result = agent => result,
        _ = terminated.recv() => {
            info!("SIGTERM: the agent ends, the data path stays attached");
            Ok(())
        }
        _ = interrupted.recv() => {
            info!("SIGINT: the agent ends, the data path stays attached");
            Ok(())
        }
    }
}

/// Everything the loop holds.
struct Agent {
    config: Config,
    source: watch::Receiver<Source>,
    events: events::Sender,
    translators: Translators,
    monitor: Monitor,
    programs: Programs,
    /// The tables were made anew: no program that sees packets has them yet.
    anew: bool,
    /// Another layout serves until ours, which this filled, takes over.
    migration: Option<Migration>,
    /// The tables were filled and the programs attached.
    attached: bool,
    /// State of the network whose devices were followed.
    followed: u64,
    /// `None` while a blocking thread has it.
    worker: Option<Worker>,
    expiry: Option<Expiry>,
    drains: Drains,
    /// What the tables were made of.
    served: Source,
    refusals: Refusals,
    observer: Observer,
    expiry_interval: Duration,
    failures: u32,
}

impl Agent {
    /// Follows every change, until something fails that cannot be repaired here.
    async fn turn(&mut self) -> Result<(), AgentError> {
        let now = tokio::time::Instant::now();
        let mut resync = interval_at(now + RESYNC, RESYNC);
        let mut expiry = interval_at(now + self.expiry_interval, self.expiry_interval);
        expiry.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut refusals = interval_at(now + REFUSALS, REFUSALS);
        refusals.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut expiring: Option<JoinHandle<Gone>> = None;
        let mut reading: Option<JoinHandle<Found>> = None;
        let mut retry: Option<tokio::time::Instant> = None;
        let mut stale = true;
        loop {
            if std::mem::take(&mut stale) {
                self.observer.woke();
                let wait = self.update().await?;
                retry = wait.map(|wait| tokio::time::Instant::now() + wait);
            }
            let retrying = async {
                match retry {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = self.source.changed() => {
                    changed.map_err(|_gone| source_gone())?;
                    stale = true;
                }
                changed = self.monitor.view.changed() => {
                    if changed.is_err() {
                        return Err((&mut self.monitor.task).await?.into());
                    }
                    stale = true;
                }
                // Nobody waits for them as long as the lists are not complete.
                verified = self.programs.finish(), if self.programs.are_being_verified() => verified?,
                () = retrying => stale = true,
                _ = resync.tick(), if reading.is_none() => {
                    self.translators.look_again(&self.config).await?;
                    self.ask_drivers();
                    reading = self.read_back();
                    stale = true;
                }
                done = async { reading.as_mut()?.await.ok() }, if reading.is_some() => {
                    reading = None;
                    stale = self.compare(done).await?;
                }
                // The flows of a layout on standby are copies.
                _ = expiry.tick(), if expiring.is_none() && self.migration.is_none() => {
                    expiring = self.expire();
                }
                _ = refusals.tick() => {
                    self.refusals.log();
                    self.observer.look_at_room();
                }
                done = async { expiring.as_mut()?.await.ok() }, if expiring.is_some() => {
                    expiring = None;
                    self.expired(done);
                }
            }
        }
    }

    /// Follows the sources, once they are complete. The first time the tables are filled before the
    /// programs are attached: those that replace programs of another layout find what these had.
    /// Returns when to try again, if some of the tables could not be written.
    async fn update(&mut self) -> Result<Option<Duration>, AgentError> {
        let source = Arc::clone(&self.source.borrow_and_update());
        if !source.complete {
            self.observer.incomplete();
            return Ok(None);
        }
        self.follow_devices();
        let retry = self.reconcile(source).await?;
        if self.attached {
            // They may have moved meanwhile.
            self.follow_devices();
        } else if self.migration.is_some() && retry.is_some() {
            // Nobody looks after the layout that serves as long as this goes on.
            if self.failures >= MOST_FAILURES {
                self.programs.abandon();
                return Err(AgentError::kernel("fill the tables of the new layout")(
                    std::io::Error::other(format!("failed {MOST_FAILURES} times, see above")),
                ));
            }
            info!("the layout that serves goes on until the new tables are whole");
        } else {
            killed_after(Step::Plan);
            self.programs.finish().await?;
            let view = self.view();
            self.reach(&view).await?;
            self.programs.verified().await?.start(&self.config, &view)?;
            killed_after(Step::Attached);
            self.take_over().await?;
            let interfaces = self.programs.verified().await?;
            interfaces.settle(&self.config, &view);
            self.followed = view.moved;
            self.attached = true;
            self.blocking(Worker::respect_all).await?;
            self.observer.attached();
        }
        Ok(retry)
    }

    /// Lets our layout serve instead of the one that does, if another does.
    async fn take_over(&mut self) -> Result<(), AgentError> {
        let Some(migration) = self.migration.take() else {
            return Ok(());
        };
        let done = tokio::task::spawn_blocking(move || migration.take_over());
        let done = match done.await {
            Ok(done) => done.map_err(AgentError::from),
            Err(died) => Err(died.into()),
        };
        if done.is_err() {
            self.programs.abandon();
        }
        done
    }

    /// Brings the tables to what the sources ask for. Returns when to try again, if it must.
    async fn reconcile(
        &mut self,
        source: Arc<SourceState>,
    ) -> Result<Option<Duration>, AgentError> {
        let view = self.follow_snat(&source).await?;
        let node = node_config(&self.config, &view, source.node.as_ref());
        let planned = Arc::clone(&source);
        let bind = self.observer.bind(&node);
        let drafted = self.blocking(move |worker| {
            worker.reread()?;
            let draft = worker.plan(&planned.snapshot, &node, planned.unread);
            let news = worker.report(&planned.rejections, &draft.rejected);
            Ok((draft, news))
        });
        let (draft, news) = match drafted.await? {
            Ok(drafted) => drafted,
            Err(error) => return Ok(Some(self.failed("read the tables back", &error))),
        };
        for rejection in &news {
            self.events.reject(rejection);
        }
        self.observer.drafted(&source, bind, &draft);
        // Before any packet is sent there.
        if self.attached || !self.anew {
            self.reach(&view).await?;
        }
        let again = draft.deferred && !draft.ops.is_empty();
        let removes = self.worker.as_ref().is_some_and(|worker| {
            let before = &self.served.snapshot;
            self.drains.expect(&draft.ops, worker.tables(), before)
        });
        match self.blocking(move |worker| worker.apply(draft)).await? {
            Ok(()) => {
                self.failures = 0;
                self.observer.applied();
                self.served = source;
                if removes {
                    // Most often the Service lives on under this name or another port.
                    self.drain();
                }
                // What the plan gave back makes room for the rest.
                Ok(again.then_some(Duration::ZERO))
            }
            Err(error) => Ok(Some(self.failed("apply", &error))),
        }
    }

    /// Says what failed, and returns how long to wait before trying again.
    fn failed(&mut self, what: &str, error: &DataplaneError) -> Duration {
        self.failures = self.failures.saturating_add(1);
        let wait = backoff(self.failures);
        error!(failures = self.failures, ?wait, "{what}: {}", chain(error));
        wait
    }

    /// The network, its SNAT addresses being those the configuration and the Node ask for.
    async fn follow_snat(&mut self, source: &SourceState) -> Result<Arc<NetworkView>, AgentError> {
        let translators = self.translators.found();
        let policy = Some(snat_policy(&self.config, source.node.as_ref(), translators));
        self.monitor.snat.send_if_modified(|current| {
            let changed = *current != policy;
            current.clone_from(&policy);
            changed
        });
        let followed = self.monitor.view.wait_for(|view| view.snat == policy);
        match tokio::time::timeout(FOLLOW, followed).await {
            Ok(Ok(view)) => return Ok(Arc::clone(&view)),
            Ok(Err(_gone)) => {}
            Err(_elapsed) => warn!("the device tables do not follow the SNAT addresses"),
        }
        if self.monitor.task.is_finished() {
            return Err((&mut self.monitor.task).await?.into());
        }
        Ok(Arc::clone(&self.monitor.view.borrow_and_update()))
    }

    /// Asks drivers again that refused the fast path.
    fn ask_drivers(&mut self) {
        let view = self.view();
        if self.attached
            && let Programs::Verified(interfaces) = &mut self.programs
        {
            interfaces.ask_again(&self.config, &view);
        }
    }

    /// Attaches to devices that came and forgets those that went.
    fn follow_devices(&mut self) {
        let view = self.view();
        if self.attached
            && self.followed != view.moved
            && let Programs::Verified(interfaces) = &mut self.programs
        {
            self.followed = view.moved;
            interfaces.follow(&self.config, &view);
        }
    }

    /// Puts programs on the way to backends on this node, those of the last draft.
    async fn reach(&mut self, view: &NetworkView) -> Result<(), AgentError> {
        let Some(worker) = &self.worker else {
            return Ok(());
        };
        let (pods, has_host) = (worker.nearby().addresses(), worker.nearby().has_host());
        let routes = &self.monitor.routes;
        let interfaces = self.programs.verified().await?;
        interfaces
            .reach_pods(&self.config, view, routes, &pods)
            .await;
        if has_host {
            interfaces.reach_host(view);
        }
        Ok(())
    }

    /// Lends the worker to a blocking thread.
    async fn blocking<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Worker) -> T + Send + 'static,
    ) -> Result<T, AgentError> {
        let Some(mut worker) = self.worker.take() else {
            return Err(AgentError::kernel("find the tables")(
                std::io::ErrorKind::NotFound.into(),
            ));
        };
        let task = tokio::task::spawn_blocking(move || {
            let result = work(&mut worker);
            (worker, result)
        });
        let (worker, result) = task.await?;
        self.worker = Some(worker);
        Ok(result)
    }

    fn view(&self) -> Arc<NetworkView> {
        Arc::clone(&self.monitor.view.borrow())
    }
}

/// A source ended: what is in the tables stays in force.
fn source_gone() -> AgentError {
    AgentError::kernel("follow the sources")(std::io::ErrorKind::BrokenPipe.into())
}
