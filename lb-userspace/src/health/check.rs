//! What a health-check node port answers.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use axum::{
    Router,
    extract::State,
    http::{HeaderName, HeaderValue},
    response::Response,
};
use serde::Serialize;

use super::{Health, code};
use crate::{http, snapshot::ObjectName};

/// Lets a load balancer before us send in proportion.
const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");

/// What the listeners of a Service answer from.
#[derive(Debug)]
pub(super) struct Check {
    name: ObjectName,
    local_ready: AtomicUsize,
    health: Health,
}

impl Check {
    /// A Service without endpoints.
    pub(super) const fn new(name: ObjectName, health: Health) -> Self {
        Self {
            name,
            local_ready: AtomicUsize::new(0),
            health,
        }
    }

    /// So many endpoints are ready from now on.
    pub(super) fn count(&self, local_ready: usize) {
        self.local_ready.store(local_ready, Ordering::Relaxed);
    }
}

/// Answers whatever is asked.
pub(super) fn router(check: Arc<Check>) -> Router {
    Router::new().fallback(answer).with_state(check)
}

/// Whether the node is eligible is no matter here: the autoscaler's mark drains by `/healthz`, and a
/// Service with local endpoints has to be drained by these.
async fn answer(State(check): State<Arc<Check>>) -> Response {
    let local_endpoints = check.local_ready.load(Ordering::Relaxed);
    let service_proxy_healthy = check.health.is_live();
    let body = Body {
        service: ServiceName {
            namespace: &check.name.namespace,
            name: &check.name.name,
        },
        local_endpoints,
        service_proxy_healthy,
    };
    let healthy = local_endpoints > 0 && service_proxy_healthy;
    let mut response = http::json(code(healthy), &body);
    response
        .headers_mut()
        .insert(WEIGHT, HeaderValue::from(local_endpoints));
    response
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body<'a> {
    service: ServiceName<'a>,
    local_endpoints: usize,
    service_proxy_healthy: bool,
}

#[derive(Serialize)]
struct ServiceName<'a> {
    namespace: &'a str,
    name: &'a str,
}
