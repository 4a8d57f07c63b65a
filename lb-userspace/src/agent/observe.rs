//! What the loop tells of itself: health, metrics, and the Services' own health checks.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use lb_common::config::Config as DataPathConfig;
use tracing::warn;

use super::{
    AgentError, RESYNC,
    worker::{Draft, clock},
};
use crate::{
    config::{Config, Switch},
    events,
    expire::Pass,
    health::{Bind, EVENT_REASON, Health, Policy, Servers, Wanted},
    http::{self, Server},
    metrics::{Causes, Metrics},
    node::{NodeConfig, NodePortAddresses},
    pins::PinDirectory,
    pressure::{self, Pressure},
    snapshot::{NodeObject, ObjectName, Subject, SubjectKind},
    source::SourceState,
    watch::Contact,
};

/// How long a change may be pending.
const TIMEOUT: Duration = Duration::from_secs(2 * RESYNC.as_secs());
/// How long a kube-proxy on the node has to listen on a health-check node port first.
const DEFERENCE: Duration = Duration::from_secs(3);

/// When the outside is told what is served.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Announcing {
    OnceAttached,
    AtOnce,
}

/// Those who are told.
pub(super) struct Observer {
    health: Health,
    pub(super) metrics: Metrics,
    checks: Option<Servers>,
    bind_all: bool,
    causes: Causes,
    /// What the last draft wants, until it is applied.
    wanted: Option<Wanted>,
    changes_tables: bool,
    /// Drafts were carried out, and nobody told yet.
    is_news: bool,
    announcing: Announcing,
    pressure: Pressure,
    /// Closed with us.
    _servers: Vec<Server>,
}

/// Health and metrics from the agent's first moment: who asks gets an answer, and a taken address is
/// told before anything is changed.
pub(super) struct Early {
    health: Health,
    metrics: Metrics,
    servers: Vec<Server>,
}

impl Early {
    /// Serves `healthAddress` and `metricsAddress`.
    pub(super) fn serve(config: &Config) -> Result<Self, AgentError> {
        if let Err(error) = http::raise_descriptor_limit() {
            warn!(%error, "the limit of open files stays as it is");
        }
        let health = Health::new(TIMEOUT);
        let metrics = Metrics::new();
        let mut servers = health.serve(&config.health_addresses)?;
        servers.append(&mut metrics.serve(&config.metrics_addresses)?);
        Ok(Self {
            health,
            metrics,
            servers,
        })
    }

    /// Observes, now that there is a data path. By `events` the cluster learns of health-check
    /// node ports that cannot be listened on.
    pub(super) fn observe(
        self,
        config: &Config,
        pins: &PinDirectory,
        data_path: &DataPathConfig,
        kube_proxy: bool,
        (events, contact): (events::Sender, Option<Contact>),
    ) -> Result<Observer, AgentError> {
        let Self {
            health,
            metrics,
            servers,
        } = self;
        metrics
            .open(pins, data_path)
            .map_err(AgentError::kernel("open the maps for the metrics"))?;
        metrics.follow_events(events.clone());
        if let Some(contact) = contact {
            metrics.follow_api(contact);
        }
        let policy = match config.health_check_node_ports {
            Switch::Off => None,
            Switch::Auto if kube_proxy => Some(Policy {
                leave_taken: true,
                wait: DEFERENCE,
            }),
            Switch::On | Switch::Auto => Some(Policy::default()),
        };
        let tell = move |service: &ObjectName, text: &str| {
            let subject = Subject {
                kind: SubjectKind::Service,
                name: service.clone(),
            };
            events.send(&subject, EVENT_REASON, text);
        };
        let checks = policy.map(|policy| Servers::start(policy, health.clone(), tell));
        if let Some(checks) = &checks {
            metrics.health_ports(checks.states());
        }
        Ok(Observer {
            health,
            metrics,
            checks,
            bind_all: config.node_port_addresses == NodePortAddresses::All,
            causes: Causes::new(Timestamp::now().as_millisecond()),
            wanted: None,
            changes_tables: false,
            is_news: false,
            announcing: Announcing::OnceAttached,
            pressure: Pressure::default(),
            _servers: servers,
        })
    }
}

impl Observer {
    /// The loop woke: something may be to be carried out.
    pub(super) fn woke(&self) {
        self.health.changed();
    }

    /// Nothing can be carried out.
    pub(super) fn incomplete(&self) {
        self.metrics.source_complete(false);
        self.health.settled();
    }

    /// A draft was made of what a source delivered.
    pub(super) fn drafted(&mut self, source: &SourceState, bind: Bind, draft: &Draft) {
        self.metrics.source_complete(true);
        self.health.node(source.node.as_ref().map(is_eligible));
        self.causes.note(&source.snapshot.slices);
        self.changes_tables |= !draft.ops.is_empty();
        self.wanted = Some(Wanted {
            checks: Arc::clone(&draft.health),
            bind,
        });
    }

    /// The draft was carried out.
    pub(super) fn applied(&mut self) {
        self.health.applied();
        self.is_news = true;
        self.announce();
    }

    /// The programs are attached.
    pub(super) fn attached(&mut self) {
        self.health.attached();
        self.announcing = Announcing::AtOnce;
        self.announce();
    }

    /// Tells the outside what is served. Before the programs are attached nothing is: whoever asks a
    /// health-check node port would send clients to the bare stack.
    fn announce(&mut self) {
        if self.announcing == Announcing::OnceAttached || !std::mem::take(&mut self.is_news) {
            return;
        }
        if std::mem::take(&mut self.changes_tables) {
            let now = Timestamp::now().as_millisecond();
            self.metrics.programmed(&self.causes.reached(now));
        } else {
            self.causes.forget();
        }
        if let (Some(checks), Some(wanted)) = (&self.checks, self.wanted.take()) {
            checks.update(wanted);
        }
    }

    /// The tables were read back.
    pub(super) fn resynced(&self, drifted: bool) {
        self.metrics.resynced(drifted);
    }

    /// The flow tables were gone over.
    pub(super) fn expired(&self, pass: &Pass, began: Instant) {
        self.metrics
            .expired(pass, clock().saturating_duration_since(began));
    }

    /// Tells of tables that fill, before they are full.
    pub(super) fn look_at_room(&mut self) {
        let news = self.pressure.look(&self.metrics.rooms());
        self.metrics.pressed(&news);
        pressure::log(&news);
    }

    /// Where health-check node ports are to be listened on.
    pub(super) fn bind(&self, node: &NodeConfig) -> Bind {
        if self.bind_all {
            Bind::All
        } else {
            Bind::Addresses(node.node_port_addresses.clone())
        }
    }
}

/// Whether a load balancer before us may send to the node.
const fn is_eligible(node: &NodeObject) -> bool {
    !node.deleting && !node.marked_for_deletion
}
