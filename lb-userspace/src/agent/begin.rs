//! Everything the loop needs, made ready.

use std::{path::Path, time::Duration};

use lb_common::{config::UnknownFlows, names};
use tracing::warn;

use super::{
    Agent, AgentError,
    interfaces::Interfaces,
    observe::Early,
    programs::Programs,
    settings::data_path_config,
    sources::{self, Sources},
    translators::Translators,
    worker::{Source, Worker, clock},
};
use crate::{
    attach::Attacher,
    config::{Config, PodInterfaces},
    dataplane::bpf::BpfDataplane,
    devices,
    drain::Drains,
    expire::{Expiry, IdleTicks},
    migrate::Migration,
    pins::{self, LoadOptions, Loaded, Prepared},
    preflight,
    refusals::Refusals,
    stack_flows::StackFlows,
};

/// Longest time between two looks at the flows.
const EXPIRY: Duration = Duration::from_secs(10);

/// Every interface of the configuration must be there.
pub(super) fn require_interfaces(config: &Config) -> Result<(), AgentError> {
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

impl Agent {
    /// Makes everything ready; no packet notices. The programs are still being verified.
    pub(super) async fn load(config: Config) -> Result<Self, AgentError> {
        let early = Early::serve(&config)?;
        let Sources {
            state: source,
            events,
            contact,
        } = sources::open(&config).await?;
        let translators = Translators::look(&config).await?;
        let jiffies = preflight::jiffies_per_second()?;
        let shift = preflight::tick_shift(jiffies);
        let tick_seconds = f64::from(1_u32 << shift) / f64::from(jiffies);
        let options = LoadOptions {
            root: config.pin_root.clone(),
            config: data_path_config(&config, translators.choices(), shift, tick_seconds),
            entries: config.tables.entries(),
        };
        let data_path = options.config;
        let file = config.object.clone();
        let preparing = tokio::task::spawn_blocking(move || prepare(file.as_deref(), &options));
        let (pins, anew, programs, migration) = match preparing.await?? {
            DataPath::Alone(prepared) => (
                prepared.directory.clone(),
                !prepared.adopted,
                Programs::verify(prepared, &config.pin_root),
                None,
            ),
            DataPath::Beside(loaded, migration) => {
                let pins = loaded.directory.clone();
                let attacher = Attacher::new(loaded, config.pin_root.clone());
                let programs = Programs::Verified(Box::new(Interfaces::new(attacher)));
                (pins, false, programs, Some(*migration))
            }
        };
        let monitor = devices::monitor(&pins).await?;
        let idle = IdleTicks::new(&config.timeouts, tick_seconds);
        let expiry =
            Expiry::open(&pins, idle).map_err(AgentError::kernel("open the flow tables"))?;
        let refusals = Refusals::open(&pins.map(names::EVENTS))
            .map_err(AgentError::kernel("open the ring buffer EVENTS"))?;
        let in_use = expiry
            .in_use()
            .map_err(AgentError::kernel("read the flow tables"))?;
        let drains = Drains::open(&pins, in_use.hanging.clone())
            .map_err(AgentError::kernel("read the drain deadlines"))?;
        let observer = early.observe(
            &config,
            &pins,
            &data_path,
            translators.found().kube_proxy,
            (events.clone(), contact),
        )?;
        let metrics = observer.metrics.clone();
        let mut worker = Worker::new(BpfDataplane::open_pinned(&pins)?, &in_use, clock(), metrics)?;
        if translators.choices().unknown_flows == UnknownFlows::Stack {
            let stack = StackFlows::open(&pins).map_err(AgentError::kernel(
                "open the flow tables for the stack's own",
            ))?;
            worker.respect(stack);
        }
        let shortest = config
            .timeouts
            .udp
            .min(config.timeouts.closed)
            .min(config.timeouts.tcp);
        Ok(Self {
            expiry_interval: (shortest / 4).clamp(Duration::from_secs(1), EXPIRY),
            config,
            source,
            events,
            translators,
            monitor,
            programs,
            anew,
            migration,
            attached: false,
            followed: 0,
            worker: Some(worker),
            expiry: Some(expiry),
            drains,
            served: Source::default(),
            refusals,
            observer,
            failures: 0,
        })
    }
}

/// The data path, alone or beside a layout that serves.
enum DataPath {
    Alone(Prepared),
    /// Filled from the one that serves: its programs must be known to be good before that is worth it.
    Beside(Loaded, Box<Migration>),
}

/// Makes or adopts the data path. One beside a layout that serves is filled from that.
fn prepare(file: Option<&Path>, options: &LoadOptions) -> Result<DataPath, AgentError> {
    let object = pins::object(file)?;
    let prepared = pins::prepare(&object, options)?;
    let Some(serving) = prepared.serving.clone() else {
        return Ok(DataPath::Alone(prepared));
    };
    let loaded = prepared.verify()?;
    match Migration::begin(serving, loaded.directory.clone()) {
        Ok(migration) => Ok(DataPath::Beside(loaded, Box::new(migration))),
        Err(error) => {
            if let Err(error) = loaded.directory.remove() {
                warn!(%error, "layout not removed");
            }
            Err(error.into())
        }
    }
}
