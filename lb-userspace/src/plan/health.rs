//! What a load balancer before us, and whoever watches us, must be told about Services.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::IpAddr,
};

use lb_common::service::service_flag;

use super::draft::owner;
use crate::{
    node::NodeConfig,
    snapshot::{ObjectName, ServiceKind, ServiceObject, SliceObject, TrafficPolicy},
    tables::{ServiceRecord, TableSet},
};

/// The health check of one Service: where it answers, and what.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct HealthCheck {
    /// `spec.healthCheckNodePort`.
    pub port: u16,
    /// Endpoints this node sends new flows to: addresses that are ready.
    pub local_ready: usize,
}

/// Service ports under a `Local` policy which have endpoints, but none on this node.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct WithoutLocal {
    /// By `internalTrafficPolicy`.
    pub internal: usize,
    /// By `externalTrafficPolicy`.
    pub external: usize,
}

impl WithoutLocal {
    /// Counts them in the tables.
    pub(super) fn count(tables: &TableSet) -> Self {
        let mut count = Self::default();
        for service in tables.services.values() {
            let one = Self::of(service);
            count.internal += one.internal;
            count.external += one.external;
        }
        count
    }

    /// What one service port counts.
    pub(super) fn of(service: &ServiceRecord) -> Self {
        let has = |flag: u32| service.flags & flag != 0;
        let without = has(service_flag::HAS_ENDPOINTS) && service.local.length == 0;
        Self {
            internal: usize::from(without && has(service_flag::INTERNAL_LOCAL)),
            external: usize::from(without && has(service_flag::EXTERNAL_LOCAL)),
        }
    }
}

/// The health check of a load-balancer Service whose `policy` for external traffic is `Local`.
pub(super) fn check(
    service: &ServiceObject,
    policy: TrafficPolicy,
    slices: &[&SliceObject],
    node: &NodeConfig,
    reject: impl FnOnce(&str, &str),
) -> Option<HealthCheck> {
    if service.kind != ServiceKind::LoadBalancer || policy != TrafficPolicy::Local {
        return None;
    }
    if service.health_check_node_port == 0 {
        reject(
            "spec.healthCheckNodePort",
            "is 0: nobody can ask whether this node has endpoints",
        );
        return None;
    }
    Some(HealthCheck {
        port: service.health_check_node_port,
        local_ready: ready(service, slices, node),
    })
}

/// Addresses of the primary family that are ready, on whatever port: those of this node, or of a
/// gateway, which serves every endpoint with the client's address, all.
fn ready(service: &ServiceObject, slices: &[&SliceObject], node: &NodeConfig) -> usize {
    let Some(primary) = service.families.first() else {
        return 0;
    };
    let mut addresses: BTreeMap<IpAddr, (bool, bool)> = BTreeMap::new();
    let slices = slices.iter().filter(|slice| slice.family == *primary);
    for slice in slices.filter(|slice| !slice.ports.is_empty()) {
        for endpoint in &slice.endpoints {
            let (ready, here) = addresses.entry(endpoint.address).or_default();
            *ready |= endpoint.ready;
            *here |= node.gateway || endpoint.node.as_deref() == Some(&node.name);
        }
    }
    let counts = |(ready, here): &&(bool, bool)| *ready && *here;
    addresses.values().filter(counts).count()
}

/// Takes away the endpoints of Services that want to be served but are not in the tables.
pub(super) fn forget_unserved(
    checks: &mut BTreeMap<ObjectName, HealthCheck>,
    wanted: &BTreeSet<ObjectName>,
    tables: &TableSet,
) {
    if wanted.is_empty() {
        return;
    }
    let names = tables.services.values();
    let served: HashSet<_> = names.map(|record| owner(&record.name)).collect();
    for (name, check) in checks {
        if wanted.contains(name) && !served.contains(name.to_string().as_str()) {
            check.local_ready = 0;
        }
    }
}

#[cfg(test)]
mod tests;
