//! What others ask about our health.
//!
//! ```text
//! plan ─ count of ready endpoints ─▶ Servers: a port for each Service that has a health check
//! loop ─ changed, applied, node ───▶ Health ─▶ Servers, and /livez /healthz /readyz
//! ```
//! A load balancer before us asks a Service's own port whether this node serves it, and `/healthz`
//! whether to send anything here at all; whoever restarts the agent asks `/livez`.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use axum::{Router, extract::State, http::StatusCode, response::Response, routing::get};
use jiff::Timestamp;

pub use self::{
    node_ports::{Bind, EVENT_REASON, Policy, PortState, Servers, Wanted},
    status::{Body, Report, Status},
};
use crate::http::{self, ListenError, Server};

mod check;
mod node_ports;
mod status;

/// The agent's health, shared by those who report it and those who are asked.
#[derive(Clone, Debug)]
pub struct Health(Arc<Mutex<Status>>);

impl Health {
    /// Healthy, and not ready. A change may be pending for `timeout`.
    pub fn new(timeout: Duration) -> Self {
        Self(Arc::new(Mutex::new(Status::new(timeout, Timestamp::now()))))
    }

    /// A change was seen.
    pub fn changed(&self) {
        self.with(|status| status.changed(clock()));
    }

    /// Every change seen was carried out.
    pub fn applied(&self) {
        self.with(|status| status.applied(Timestamp::now()));
    }

    /// There is nothing to carry out: the sources are not complete.
    pub fn settled(&self) {
        self.with(Status::settled);
    }

    /// The programs are attached.
    pub fn attached(&self) {
        self.with(Status::attached);
    }

    /// What the node's object says: whether others may send to it. `None` keeps the last answer.
    pub fn node(&self, eligible: Option<bool>) {
        self.with(|status| status.node(eligible));
    }

    /// Whether no change is pending for too long.
    pub fn is_live(&self) -> bool {
        self.with(|status| status.is_live(clock()))
    }

    /// What is to be told now.
    pub fn report(&self) -> Report {
        self.with(|status| status.report(clock(), Timestamp::now()))
    }

    /// Serves `/livez`, `/healthz` and `/readyz` on each address. To be called within a runtime.
    ///
    /// # Errors
    ///
    /// If an address cannot be listened on.
    pub fn serve(&self, addresses: &[SocketAddr]) -> Result<Vec<Server>, ListenError> {
        addresses
            .iter()
            .map(|address| Server::start_configured("healthAddress", *address, self.router()))
            .collect()
    }

    /// The answers to `/livez`, `/healthz` and `/readyz`.
    pub fn router(&self) -> Router {
        Router::new()
            .route("/livez", get(livez))
            .route("/healthz", get(healthz))
            .route("/readyz", get(readyz))
            .with_state(self.clone())
    }

    /// Nobody panics with the lock held; if somebody did, the last answer is as good as any.
    fn with<T>(&self, act: impl FnOnce(&mut Status) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

async fn livez(State(health): State<Health>) -> Response {
    let report = health.report();
    http::json(code(report.live), &report.livez())
}

async fn healthz(State(health): State<Health>) -> Response {
    let report = health.report();
    http::json(code(report.live && report.eligible), &report.healthz())
}

async fn readyz(State(health): State<Health>) -> Response {
    let report = health.report();
    http::json(code(report.is_ready()), &report.readyz())
}

const fn code(healthy: bool) -> StatusCode {
    if healthy {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    }
}

/// Ages only: decisions get the time as an argument.
#[expect(clippy::disallowed_methods, reason = "how long a change is pending")]
fn clock() -> Instant {
    Instant::now()
}
