//! The agent: waits for something to change, plans, and applies.
//!
//! ```text
//! manifests ──┐
//! network   ──┼─▶ loop ─▶ plan ─▶ diff ─▶ reach pods ─▶ apply
//! timers    ──┘                                └─ failure: dump, wait, again
//! ```
//! Nothing is changed before every source has delivered its first complete list. When the agent
//! ends, the data path stays: tables, programs and links are pinned.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use lb_common::names;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::JoinHandle,
    time::{MissedTickBehavior, interval_at},
};
use tracing::{error, info, warn};

use self::{
    interfaces::{Interfaces, chain},
    settings::{backoff, data_path_config, node_config, unknown_flows},
    worker::{Draft, Source, Worker, clock},
};
use crate::{
    attach::{AttachError, Attacher},
    config::{Config, PodInterfaces},
    dataplane::{DataplaneError, bpf::BpfDataplane},
    devices::{self, Monitor, MonitorError, NetworkView, SnatPolicy},
    expire::{Expiry, IdleTicks, Pass},
    manifests::{ManifestError, ManifestSource},
    netfilter,
    pins::{self, LoadOptions, PinError},
    preflight::{self, PreflightError},
    refusals::Refusals,
    source::Scope,
};

mod interfaces;
mod settings;
mod worker;

/// How often the tables are read back and compared.
const RESYNC: Duration = Duration::from_mins(1);
/// Longest time between two looks at the flows.
const EXPIRY: Duration = Duration::from_secs(10);
/// How often refusals of the data path are read.
const REFUSALS: Duration = Duration::from_secs(1);
/// How long a burst of changes is gathered.
const GATHER: Duration = Duration::from_millis(1);

/// Why the agent ended. The data path is as it was.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// Something it needs is missing.
    #[error(transparent)]
    Preflight(#[from] PreflightError),
    /// An interface of the configuration is not there.
    #[error("{key}: there is no interface {name}")]
    NoInterface {
        /// The key that names it.
        key: &'static str,
        /// Its name.
        name: String,
    },
    /// The data path could not be loaded.
    #[error(transparent)]
    Pins(#[from] PinError),
    /// A program could not be attached.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// The network cannot be followed.
    #[error(transparent)]
    Network(#[from] MonitorError),
    /// The manifests cannot be read.
    #[error(transparent)]
    Manifests(#[from] ManifestError),
    /// The tables cannot be read.
    #[error(transparent)]
    Tables(#[from] DataplaneError),
    /// Something else the kernel refused. `what` names the operation.
    #[error("{what}")]
    Kernel {
        /// The operation.
        what: &'static str,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// A task of the agent panicked.
    #[error("a task of the agent ended unexpectedly")]
    Task(#[from] tokio::task::JoinError),
}

impl AgentError {
    fn kernel(what: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Kernel { what, source }
    }
}

/// Runs until SIGTERM or SIGINT. The data path stays attached.
///
/// # Errors
///
/// If the agent cannot start, or loses its view of the network. The data path goes on.
pub async fn run(config: Config) -> Result<(), AgentError> {
    let _lock = preflight::lock(&config.lock_file)?;
    preflight::require_privileges()?;
    pins::require_bpffs(&config.pin_root)?;
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
        let retry = agent.attach().await?;
        agent.turn(retry).await
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

fn require_interfaces(config: &Config) -> Result<(), AgentError> {
    let exists = |name: &String| nix::net::if_::if_nametoindex(name.as_str()).is_ok();
    let missing = |key, name: &String| AgentError::NoInterface {
        key,
        name: name.clone(),
    };
    if let Some(name) = config.interfaces.iter().find(|name| !exists(name)) {
        return Err(missing("interfaces", name));
    }
    let PodInterfaces::List(names) = &config.pod_interfaces else {
        return Ok(());
    };
    names
        .iter()
        .find(|name| !exists(name))
        .map_or(Ok(()), |n| Err(missing("podInterfaces", n)))
}

/// Everything the loop holds.
struct Agent {
    config: Config,
    source: watch::Receiver<Source>,
    monitor: Monitor,
    interfaces: Interfaces,
    /// `None` while a blocking thread has it.
    worker: Option<Worker>,
    expiry: Option<Expiry>,
    refusals: Refusals,
    expiry_interval: Duration,
    failures: u32,
}

impl Agent {
    /// Makes everything ready; no packet notices.
    async fn load(config: Config) -> Result<Self, AgentError> {
        let manifests = config.manifests.as_ref().ok_or_else(source_gone)?;
        let scope = Scope {
            node_name: config.node_name.clone(),
            service_proxy_name: config.service_proxy_name.clone(),
        };
        let source = ManifestSource::watch(manifests, scope)?;
        let netfilter = tokio::task::spawn_blocking(netfilter::inspect).await?;
        let unknown_flows = unknown_flows(config.unknown_flows, netfilter);
        info!(
            masquerade = netfilter.masquerade,
            kube_proxy = netfilter.kube_proxy,
            ?unknown_flows,
            "other translators on this node"
        );
        let jiffies = preflight::jiffies_per_second()?;
        let shift = preflight::tick_shift(jiffies);
        let tick_seconds = f64::from(1_u32 << shift) / f64::from(jiffies);
        let options = LoadOptions {
            root: config.pin_root.clone(),
            config: data_path_config(&config, unknown_flows, shift, tick_seconds),
            entries: config.tables.entries(),
        };
        let file = config.object.clone();
        let loading = tokio::task::spawn_blocking(move || load(file.as_deref(), &options));
        let loaded = loading.await??;
        let pins = loaded.directory.clone();
        let snat = SnatPolicy {
            addresses: config.snat_addresses.clone(),
            masquerade: netfilter.masquerade,
        };
        let monitor = devices::monitor(&pins, snat).await?;
        let interfaces = Interfaces::new(Attacher::new(loaded, config.pin_root.clone()));
        let idle = IdleTicks::new(&config.timeouts, tick_seconds);
        let expiry =
            Expiry::open(&pins, idle).map_err(AgentError::kernel("open the flow tables"))?;
        let refusals = Refusals::open(&pins.map(names::EVENTS))
            .map_err(AgentError::kernel("open the ring buffer EVENTS"))?;
        let in_use = expiry
            .in_use()
            .map_err(AgentError::kernel("read the flow tables"))?;
        let worker = Worker::new(BpfDataplane::open_pinned(&pins)?, &in_use, clock())?;
        let shortest = config
            .timeouts
            .udp
            .min(config.timeouts.closed)
            .min(config.timeouts.tcp);
        Ok(Self {
            expiry_interval: (shortest / 4).clamp(Duration::from_secs(1), EXPIRY),
            config,
            source,
            monitor,
            interfaces,
            worker: Some(worker),
            expiry: Some(expiry),
            refusals,
            failures: 0,
        })
    }

    /// Fills the tables, then attaches: programs that replace those of another layout find what
    /// these had. Returns when to try again, if some of the tables could not be written.
    async fn attach(&mut self) -> Result<Option<Duration>, AgentError> {
        while !self.source.borrow_and_update().complete {
            let changed = self.source.changed().await;
            changed.map_err(|_gone| source_gone())?;
        }
        let retry = self.reconcile().await?;
        let view = self.view();
        self.interfaces.start(&self.config, &view)?;
        Ok(retry)
    }

    /// Follows every change, until something fails that cannot be repaired here.
    async fn turn(&mut self, retry: Option<Duration>) -> Result<(), AgentError> {
        let now = tokio::time::Instant::now();
        let mut resync = interval_at(now + RESYNC, RESYNC);
        let mut expiry = interval_at(now + self.expiry_interval, self.expiry_interval);
        expiry.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut refusals = interval_at(now + REFUSALS, REFUSALS);
        refusals.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut expiring: Option<JoinHandle<(Expiry, Instant, std::io::Result<Pass>)>> = None;
        let mut retry = retry.map(|wait| now + wait);
        loop {
            let retrying = async {
                match retry {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = self.source.changed() => {
                    changed.map_err(|_gone| source_gone())?;
                    tokio::time::sleep(GATHER).await;
                }
                changed = self.monitor.view.changed() => {
                    if changed.is_err() {
                        return Err((&mut self.monitor.task).await?.into());
                    }
                    let view = self.view();
                    self.interfaces.follow(&self.config, &view);
                }
                () = retrying => {}
                _ = resync.tick() => self.resync().await?,
                _ = expiry.tick(), if expiring.is_none() => {
                    expiring = self.expire();
                    continue;
                }
                _ = refusals.tick() => {
                    self.refusals.log();
                    continue;
                }
                done = async { expiring.as_mut()?.await.ok() }, if expiring.is_some() => {
                    expiring = None;
                    self.expired(done);
                    continue;
                }
            }
            retry = self
                .reconcile()
                .await?
                .map(|wait| tokio::time::Instant::now() + wait);
        }
    }

    /// Brings the tables to what the sources ask for. Returns when to try again, if it must.
    async fn reconcile(&mut self) -> Result<Option<Duration>, AgentError> {
        let source = Arc::clone(&self.source.borrow_and_update());
        if !source.complete {
            return Ok(None);
        }
        let view = Arc::clone(&self.monitor.view.borrow_and_update());
        let node = node_config(&self.config, &view);
        let planned = Arc::clone(&source);
        let (draft, ()) = self
            .blocking(move |worker| {
                let mut draft = worker.plan(&planned.snapshot, &node, planned.unread);
                let mut rejected = planned.rejections.clone();
                rejected.append(&mut draft.plan.rejected);
                rejected.sort_unstable();
                rejected.dedup();
                worker.report(rejected);
                (draft, ())
            })
            .await?;
        self.reach(&view, &draft).await;
        let again = !draft.plan.deferred.is_empty() && !draft.ops.is_empty();
        match self.blocking(move |worker| worker.apply(draft)).await? {
            Ok(()) => {
                self.failures = 0;
                // What the plan gave back makes room for the rest.
                Ok(again.then_some(Duration::ZERO))
            }
            Err(error) => {
                self.failures = self.failures.saturating_add(1);
                let wait = backoff(self.failures);
                error!(failures = self.failures, ?wait, "apply: {}", chain(&error));
                Ok(Some(wait))
            }
        }
    }

    async fn reach(&mut self, view: &NetworkView, draft: &Draft) {
        let local = draft.local_backends();
        let routes = &self.monitor.routes;
        self.interfaces
            .reach_pods(&self.config, view, routes, &local)
            .await;
        if draft.has_host_backend() {
            self.interfaces.reach_host(view);
        }
    }

    /// Compares memory with the kernel.
    async fn resync(&mut self) -> Result<(), AgentError> {
        match self.blocking(Worker::resync).await? {
            Ok(false) => {}
            Ok(true) => warn!("the tables were not as the agent left them"),
            Err(error) => error!("read the tables back: {}", chain(&error)),
        }
        Ok(())
    }

    fn expire(&mut self) -> Option<JoinHandle<(Expiry, Instant, std::io::Result<Pass>)>> {
        let mut expiry = self.expiry.take()?;
        Some(tokio::task::spawn_blocking(move || {
            let began = clock();
            let result = expiry.pass();
            (expiry, began, result)
        }))
    }

    fn expired(&mut self, done: Option<(Expiry, Instant, std::io::Result<Pass>)>) {
        let Some((expiry, began, result)) = done else {
            error!("the task that expires flows is gone");
            return;
        };
        self.expiry = Some(expiry);
        match result {
            Ok(pass) => {
                if pass.condemned + pass.deleted > 0 {
                    let Pass {
                        halves,
                        condemned,
                        deleted,
                        ..
                    } = pass;
                    info!(halves, condemned, deleted, "idle flows");
                }
                let own = self.own_addresses();
                if let Some(worker) = &mut self.worker {
                    worker.release(&pass.in_use, began);
                    worker.sweep_filter(&pass.in_use, &own, began);
                }
            }
            Err(error) => warn!(%error, "look at the flows"),
        }
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

    /// Addresses that may serve for SNAT: errors about our packets come to them from anywhere.
    fn own_addresses(&self) -> BTreeSet<IpAddr> {
        let view = self.monitor.view.borrow();
        let network = &view.network;
        let primary = network.links().keys().flat_map(|index| {
            let (v4, v6) = network.primary(*index);
            v4.into_iter().chain(v6)
        });
        primary
            .chain(self.config.snat_addresses.iter().copied())
            .collect()
    }

    fn view(&self) -> Arc<NetworkView> {
        Arc::clone(&self.monitor.view.borrow())
    }
}

/// The thread that watches the manifests ended: what is in the tables stays in force.
fn source_gone() -> AgentError {
    AgentError::kernel("watch the manifests")(std::io::ErrorKind::BrokenPipe.into())
}

fn load(file: Option<&Path>, options: &LoadOptions) -> Result<pins::Loaded, PinError> {
    let object = pins::object(file)?;
    pins::load(&object, options)
}
