//! Prometheus metrics, in the `OpenMetrics` text format.
//!
//! Every name begins with `sluice_`; a counter ends in `_total`. Nothing is counted twice: traffic is
//! read from the pinned maps when somebody asks, for the ids that are live, and the agent counts what
//! it does itself.
//!
//! # Traffic
//!
//! Packets and bytes of service ports and backends are handed over by each flow once a tick (about a
//! second), and by the agent's expiry pass if it fell silent.
//!
//! Labels of a service port: `namespace`, `service`, `port` (its name), `protocol`, `family`. Labels of
//! a backend: `address`, `port`; one (address, port) is one backend, however many service ports have
//! it. `direction` is `forward`, from clients, or `reply`. Backends without any flow so far are left
//! out, so that a large cluster's idle endpoints cost nothing. Packets of `reason` were not balanced,
//! and `verdict` says what became of them.
//!
//! | Metric | Type | Labels |
//! |---|---|---|
//! | `sluice_service_packets_total`, `sluice_service_bytes_total` | counter | service port, `direction` |
//! | `sluice_service_new_flows_total`, `sluice_service_established_flows_total` | counter | service port |
//! | `sluice_service_active_flows` | gauge | service port |
//! | `sluice_backend_packets_total`, `sluice_backend_bytes_total` | counter | backend, `direction` |
//! | `sluice_backend_new_flows_total`, `sluice_backend_established_flows_total` | counter | backend |
//! | `sluice_backend_active_flows` | gauge | backend |
//! | `sluice_reason_packets_total`, `sluice_reason_bytes_total` | counter | `reason`, `verdict` |
//! | `sluice_event_packets_total`, `sluice_event_bytes_total` | counter | `event` |
//!
//! # Room
//!
//! | Metric | Type | Labels |
//! |---|---|---|
//! | `sluice_flow_table_entries`, `sluice_flow_table_limit_entries` | gauge | `family`, `protocol` |
//! | `sluice_flow_table_capacity_entries` | gauge | `family` |
//! | `sluice_snat_flows`, `sluice_snat_busiest_backend_ports`, `sluice_snat_capacity_ports` | gauge | `address` |
//! | `sluice_map_entries`, `sluice_map_capacity_entries` | gauge | `map` |
//! | `sluice_map_read_failures` | gauge | |
//!
//! New TCP flows are refused while all entries of a family exceed the limit of `protocol="TCP"`, new
//! UDP flows while those of UDP exceed the limit of `protocol="UDP"`. An SNAT port serves one flow to
//! each backend: an address is exhausted for a backend when `busiest_backend` reaches
//! `capacity`; closed flows, which give their port to whoever needs it, are left out. Next
//! hops are the map `next_hop_index`. The agent warns of a table that reaches 80 % of its limit.
//!
//! # The agent
//!
//! | Metric | Type | Labels |
//! |---|---|---|
//! | `sluice_plan_duration_seconds`, `sluice_apply_duration_seconds` | histogram | |
//! | `sluice_network_programming_duration_seconds` | histogram | |
//! | `sluice_apply_failures_total`, `sluice_resync_passes_total`, `sluice_resync_drifts_total` | counter | |
//! | `sluice_table_operations_total` | counter | `operation` |
//! | `sluice_expiry_pass_duration_seconds` | histogram | |
//! | `sluice_expired_entries_total` | counter | |
//! | `sluice_table_pressure_warnings_total` | counter | `table` |
//! | `sluice_draining_flows` | gauge | |
//! | `sluice_rejected_objects` | gauge | `kind` |
//! | `sluice_without_local_endpoint_service_ports` | gauge | `traffic`: `internal`, `external` |
//! | `sluice_source_complete` | gauge | |
//! | `sluice_source_outage_seconds`, `sluice_source_last_event_timestamp_seconds` | gauge | |
//! | `sluice_kubernetes_dropped_events_total` | counter | |
//! | `sluice_health_check_ports` | gauge | `state`: `serving`, `elsewhere`, `failed` |
//! | `sluice_agent_resident_memory_bytes` | gauge | |
//! | `sluice_build_info` | info | `version` |

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse as _, Response},
    routing::get,
};
use lb_common::config::Config;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, text},
    registry::Registry,
};
use tokio::sync::watch;

pub use self::latency::Causes;
use self::{
    agent::Agent,
    names::Names,
    reading::{Maps, Reading},
};
use crate::{
    dataplane::TableOp,
    events,
    expire::{FlowCounts, Pass},
    health::PortState,
    http::{ListenError, Server},
    pins::PinDirectory,
    plan::WithoutLocal,
    pressure::{Level, Room},
    snapshot::{ObjectName, Rejection, SubjectKind},
    tables::TableSet,
    watch::Contact,
};

mod agent;
mod encode;
mod latency;
mod names;
mod reading;

const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The metrics, shared by those who count and those who ask.
#[derive(Clone, Debug)]
pub struct Metrics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    registry: Registry,
    agent: Agent,
    data_path: Arc<DataPath>,
}

impl Metrics {
    /// Metrics of the agent, as yet without a data path.
    pub fn new() -> Self {
        let data_path = Arc::new(DataPath::default());
        let mut registry = Registry::with_prefix("sluice");
        let agent = Agent::new(&mut registry);
        registry.register_collector(Box::new(Arc::clone(&data_path)));
        Self(Arc::new(Inner {
            registry,
            agent,
            data_path,
        }))
    }

    /// From now on metrics of the data path pinned in `pins` too, which runs with `config`.
    ///
    /// # Errors
    ///
    /// If a map is missing.
    pub fn open(&self, pins: &PinDirectory, config: &Config) -> io::Result<()> {
        let maps = Maps::open(pins, config)?;
        *lock(&self.0.data_path.maps) = Some(Arc::new(maps));
        Ok(())
    }

    /// The tables are these, whatever was known of them.
    pub fn found(&self, tables: &TableSet) {
        *lock(&self.0.data_path.names) = Names::of(tables);
    }

    /// A plan was made.
    pub fn planned(&self, took: Duration, without_local: WithoutLocal) {
        let agent = &self.0.agent;
        agent.plans.observe(took.as_secs_f64());
        agent.without_local("internal", without_local.internal);
        agent.without_local("external", without_local.external);
    }

    /// Operations were carried out; the tables are these now.
    pub fn applied(&self, ops: &[TableOp], tables: &TableSet, took: Duration) {
        if ops.is_empty() {
            return;
        }
        lock(&self.0.data_path.names).apply(ops, tables);
        self.0.agent.operations(ops);
        self.0.agent.applies.observe(took.as_secs_f64());
    }

    /// The tables could not be written.
    pub fn apply_failed(&self) {
        self.0.agent.apply_failures.inc();
    }

    /// Changes of endpoints reached the tables, so long after their cause.
    pub fn programmed(&self, delays: &[Duration]) {
        self.0.agent.programmed(delays);
    }

    /// The tables were read back, and were or were not as they were left.
    pub fn resynced(&self, drifted: bool) {
        self.0.agent.resyncs.inc();
        if drifted {
            self.0.agent.drifts.inc();
        }
    }

    /// The flow tables were gone over.
    pub fn expired(&self, pass: &Pass, took: Duration) {
        self.0.agent.expiry_passes.observe(took.as_secs_f64());
        self.0.agent.expired.inc_by(pass.deleted);
        *lock(&self.0.data_path.flows) = pass.flows.clone();
    }

    /// Flows which a drain deadline will end.
    pub fn draining(&self, flows: u64) {
        let flows = i64::try_from(flows).unwrap_or(i64::MAX);
        self.0.agent.draining.set(flows);
    }

    /// How much of each table that clients can fill is in use.
    pub fn rooms(&self) -> Vec<Room> {
        let maps = lock(&self.0.data_path.maps).clone();
        let flows = lock(&self.0.data_path.flows);
        maps.map(|maps| maps.rooms(&flows)).unwrap_or_default()
    }

    /// Tables that fill, or have room again.
    pub fn pressed(&self, news: &[(Room, Level)]) {
        for (room, level) in news {
            if *level != Level::Calm {
                self.0.agent.pressed(room.table.label());
            }
        }
    }

    /// What is not served now.
    pub fn rejected(&self, rejections: &[Rejection]) {
        let kinds = ["Service", "EndpointSlice", "other"];
        let mut objects = kinds.map(|kind| (kind, BTreeSet::new()));
        let [(_, services), (_, slices), (_, others)] = &mut objects;
        for rejection in rejections {
            // One object may be named in several ways, with its file and without.
            match &rejection.subject {
                Some(subject) => match subject.kind {
                    SubjectKind::Service => services.insert(subject.name.to_string()),
                    SubjectKind::EndpointSlice => slices.insert(subject.name.to_string()),
                },
                None => others.insert(rejection.object.clone()),
            };
        }
        for (kind, objects) in objects {
            self.0.agent.rejected(kind, objects.len());
        }
    }

    /// Whether every source of objects is complete.
    pub fn source_complete(&self, complete: bool) {
        self.0.agent.source_complete.set(i64::from(complete));
    }

    /// Where Kubernetes Events that were not sent are counted.
    pub fn follow_events(&self, events: events::Sender) {
        *lock(&self.0.data_path.events) = events;
    }

    /// Who knows whether the Kubernetes API is reached.
    pub fn follow_api(&self, contact: Contact) {
        *lock(&self.0.data_path.contact) = Some(contact);
    }

    /// What becomes of health-check node ports.
    pub fn health_ports(&self, states: watch::Receiver<BTreeMap<ObjectName, PortState>>) {
        *lock(&self.0.data_path.health_ports) = Some(states);
    }

    /// All metrics as text. It reads maps: not for a thread that must not block.
    ///
    /// # Errors
    ///
    /// Never; writing to a text does not fail.
    pub fn text(&self) -> Result<String, fmt::Error> {
        let mut out = String::new();
        text::encode(&mut out, &self.0.registry)?;
        Ok(out)
    }

    /// Serves `/metrics`, and `/proxyMode` for those who look for a proxy there, on each address. To be
    /// called within a runtime.
    ///
    /// # Errors
    ///
    /// If an address cannot be listened on.
    pub fn serve(&self, addresses: &[SocketAddr]) -> Result<Vec<Server>, ListenError> {
        let start = |address: &SocketAddr| {
            Server::start_configured("metricsAddress", *address, self.router())
        };
        addresses.iter().map(start).collect()
    }

    /// The answers to `/metrics` and `/proxyMode`.
    pub fn router(&self) -> Router {
        Router::new()
            .route("/metrics", get(answer))
            .route("/proxyMode", get(|| async { "sluice" }))
            .with_state(self.clone())
    }
}

async fn answer(State(metrics): State<Metrics>) -> Response {
    let text = tokio::task::spawn_blocking(move || metrics.text()).await;
    match text {
        Ok(Ok(text)) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response(),
        _ => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// What is looked up when somebody asks.
#[derive(Debug, Default)]
struct DataPath {
    maps: Mutex<Option<Arc<Maps>>>,
    names: Mutex<Names>,
    flows: Mutex<FlowCounts>,
    health_ports: Mutex<Option<watch::Receiver<BTreeMap<ObjectName, PortState>>>>,
    events: Mutex<events::Sender>,
    contact: Mutex<Option<Contact>>,
}

impl DataPath {
    fn read(&self) -> Reading {
        // Copies, so that nobody who counts waits for a scrape.
        let names = lock(&self.names).clone();
        let flows = lock(&self.flows).clone();
        let maps = lock(&self.maps).clone();
        let mut reading = maps
            .map(|maps| maps.read(&names, &flows))
            .unwrap_or_default();
        let states = lock(&self.health_ports).clone();
        for state in states.iter().flat_map(|s| s.borrow().clone().into_values()) {
            *reading.health_ports.entry(state).or_default() += 1;
        }
        reading.dropped_events = lock(&self.events).dropped();
        reading.api = lock(&self.contact).as_ref().map(Contact::now);
        reading.resident_bytes = reading::resident_bytes();
        reading
    }
}

impl Collector for DataPath {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.read().encode(&mut encoder)
    }
}

/// Nobody panics with a lock held; if somebody did, what is behind it is as good as any.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
