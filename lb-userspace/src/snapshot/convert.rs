//! From the Kubernetes types to the [`Snapshot`](super::Snapshot)'s. What cannot be understood is
//! left out and named; it never takes the rest of the object with it.

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

pub use node::{node, service_networks};
pub use slice::slice;

use super::{
    FieldAddress, ObjectName, PortProtocol, Rejection, ServiceKind, ServiceObject,
    ServicePortObject, TrafficPolicy,
    address::{parse_cidr, parse_usable},
};
use crate::tables::{Family, Protocol};

mod annotations;
mod node;
mod slice;

/// Label: the object belongs to another proxy.
const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// Label: balance nothing although addresses are assigned.
const HEADLESS: &str = "service.kubernetes.io/headless";
/// Affinity timeout where the API server has not filled one in.
const AFFINITY_SECONDS: i32 = 10_800;
/// Fields named of one object; who has ten thousand broken ones need not read of each.
const MOST_REJECTIONS: usize = 16;

/// Namespace and name as metadata gives them; a manifest without a namespace means `default`.
pub fn object_name(metadata: &ObjectMeta) -> ObjectName {
    ObjectName::new(
        metadata
            .namespace
            .as_deref()
            .filter(|n| !n.is_empty())
            .unwrap_or("default"),
        metadata.name.as_deref().unwrap_or_default(),
    )
}

/// Reduces a Service to what balancing needs. `None`: not ours to balance, by kind or label.
///
/// Ours are those which name the proxy `claimed`, or, without a name, those which name none.
pub fn service(
    service: &Service,
    claimed: Option<&str>,
) -> (Option<ServiceObject>, Vec<Rejection>) {
    let name = object_name(&service.metadata);
    let mut rejected = Rejected {
        name: &name,
        of: Rejection::service,
        list: Vec::new(),
        more: 0,
    };
    let Some(spec) = &service.spec else {
        rejected.push("spec", "is missing");
        return (None, rejected.finish());
    };
    if is_another_proxys(&service.metadata, claimed) || is_headless(&service.metadata, spec) {
        return (None, rejected.finish());
    }
    let Some(kind) = kind(spec, &mut rejected) else {
        return (None, rejected.finish());
    };
    let cluster_ips = cluster_ips(spec, &mut rejected);
    let external_ips = addresses(
        spec.external_ips.iter().flatten().map(Some),
        |i| format!("spec.externalIPs[{i}]"),
        &mut rejected,
    );
    let ingress = service
        .status
        .iter()
        .flat_map(|s| &s.load_balancer)
        .flat_map(|l| &l.ingress);
    let ingress_ips = addresses(
        // An ingress in proxy mode, or known by name only, must be reached through that proxy.
        ingress.flatten().map(|i| {
            i.ip.as_ref()
                .filter(|_| !matches!(i.ip_mode.as_deref(), Some(mode) if mode != "VIP"))
        }),
        |i| format!("status.loadBalancer.ingress[{i}].ip"),
        &mut rejected,
    );
    let families = families(
        spec,
        [&cluster_ips, &ingress_ips, &external_ips],
        &mut rejected,
    );
    let source_ranges = spec.load_balancer_source_ranges.iter().flatten();
    let object = ServiceObject {
        uid: service.metadata.uid.clone(),
        created: service
            .metadata
            .creation_timestamp
            .as_ref()
            .map(|t| t.0.as_second()),
        kind,
        families,
        ports: service_ports(spec, &mut rejected),
        cluster_ips,
        external_ips,
        ingress_ips,
        external_policy: policy(
            spec.external_traffic_policy.as_deref(),
            "spec.externalTrafficPolicy",
            &mut rejected,
        ),
        internal_policy: policy(
            spec.internal_traffic_policy.as_deref(),
            "spec.internalTrafficPolicy",
            &mut rejected,
        ),
        affinity_seconds: affinity(spec, &mut rejected),
        restricts_sources: spec
            .load_balancer_source_ranges
            .iter()
            .flatten()
            .next()
            .is_some(),
        source_ranges: source_ranges
            .enumerate()
            .filter_map(|(i, text)| {
                let field = || format!("spec.loadBalancerSourceRanges[{i}]");
                parse_cidr(text)
                    .map_err(|why| rejected.push(field(), why))
                    .ok()
            })
            .collect(),
        health_check_node_port: optional_port(
            spec.health_check_node_port,
            "spec.healthCheckNodePort",
            &mut rejected,
        ),
        publish_not_ready: spec.publish_not_ready_addresses.unwrap_or(false),
        allocate_node_ports: spec.allocate_load_balancer_node_ports.unwrap_or(true),
        load_balancer_class: spec.load_balancer_class.clone(),
        drain_deadline: annotations::drain_deadline(&service.metadata, &mut rejected),
        annotations: annotations::ours(&service.metadata),
        name: name.clone(),
    };
    (Some(object), rejected.finish())
}

/// What was wrong with one object.
struct Rejected<'a> {
    name: &'a ObjectName,
    of: fn(&ObjectName, String, String) -> Rejection,
    list: Vec<Rejection>,
    /// What [`MOST_REJECTIONS`] left out.
    more: usize,
}

impl Rejected<'_> {
    fn push(&mut self, field: impl Into<String>, message: impl Into<String>) {
        if self.list.len() < MOST_REJECTIONS {
            self.list
                .push((self.of)(self.name, field.into(), message.into()));
        } else {
            self.more += 1;
        }
    }

    fn finish(mut self) -> Vec<Rejection> {
        if self.more > 0 {
            let message = format!("{} more fields cannot be understood", self.more);
            self.list.push((self.of)(self.name, String::new(), message));
        }
        self.list
    }
}

fn label<'a>(metadata: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    metadata
        .labels
        .as_ref()
        .and_then(|labels| labels.get(key))
        .map(String::as_str)
}

fn has_label(metadata: &ObjectMeta, key: &str) -> bool {
    label(metadata, key).is_some()
}

fn is_another_proxys(metadata: &ObjectMeta, claimed: Option<&str>) -> bool {
    label(metadata, PROXY_NAME) != claimed
}

/// Without addresses to balance; a name elsewhere has none either.
fn is_headless(metadata: &ObjectMeta, spec: &ServiceSpec) -> bool {
    let headless = spec.cluster_ip.as_deref() == Some("None")
        || spec.cluster_ips.iter().flatten().any(|ip| ip == "None");
    headless || spec.type_.as_deref() == Some("ExternalName") || has_label(metadata, HEADLESS)
}

fn kind(spec: &ServiceSpec, rejected: &mut Rejected<'_>) -> Option<ServiceKind> {
    match spec.type_.as_deref() {
        None | Some("ClusterIP" | "") => Some(ServiceKind::ClusterIp),
        Some("NodePort") => Some(ServiceKind::NodePort),
        Some("LoadBalancer") => Some(ServiceKind::LoadBalancer),
        Some(other) => {
            rejected.push("spec.type", format!("`{other}` is not a type of Service"));
            None
        }
    }
}

fn policy(text: Option<&str>, field: &str, rejected: &mut Rejected<'_>) -> TrafficPolicy {
    match text {
        None | Some("Cluster" | "") => TrafficPolicy::Cluster,
        Some("Local") => TrafficPolicy::Local,
        Some(other) => {
            rejected.push(
                field,
                format!("`{other}` is neither Cluster nor Local; taken as Cluster"),
            );
            TrafficPolicy::Cluster
        }
    }
}

fn affinity(spec: &ServiceSpec, rejected: &mut Rejected<'_>) -> u32 {
    match spec.session_affinity.as_deref() {
        None | Some("None" | "") => return 0,
        Some("ClientIP") => {}
        Some(other) => {
            let message = format!("`{other}` is neither None nor ClientIP; taken as None");
            rejected.push("spec.sessionAffinity", message);
            return 0;
        }
    }
    let config = spec
        .session_affinity_config
        .as_ref()
        .and_then(|c| c.client_ip.as_ref());
    let seconds = config
        .and_then(|c| c.timeout_seconds)
        .unwrap_or(AFFINITY_SECONDS);
    u32::try_from(seconds)
        .ok()
        .filter(|s| (1..=86_400).contains(s))
        .unwrap_or_else(|| {
            rejected.push(
                "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
                format!("{seconds} is not between 1 and 86400; taken as {AFFINITY_SECONDS}"),
            );
            AFFINITY_SECONDS.unsigned_abs()
        })
}

/// Reads addresses, each with the path `field` gives for its index. `None` keeps its index.
#[expect(single_use_lifetimes, reason = "`impl Trait` cannot elide it")]
fn addresses<'a>(
    texts: impl Iterator<Item = Option<&'a String>>,
    field: impl Fn(usize) -> String,
    rejected: &mut Rejected<'_>,
) -> Vec<FieldAddress> {
    let texts = texts.enumerate().filter_map(|(i, text)| Some((i, text?)));
    texts
        .filter(|(_, text)| !text.is_empty())
        .filter_map(|(i, text)| match parse_usable(text) {
            Ok(address) => Some(FieldAddress {
                field: field(i).into(),
                address,
            }),
            Err(why) => {
                rejected.push(field(i), why);
                None
            }
        })
        .collect()
}

fn cluster_ips(spec: &ServiceSpec, rejected: &mut Rejected<'_>) -> Vec<FieldAddress> {
    match &spec.cluster_ips {
        Some(ips) if !ips.is_empty() => addresses(
            ips.iter().map(Some),
            |i| format!("spec.clusterIPs[{i}]"),
            rejected,
        ),
        _ => addresses(
            spec.cluster_ip.iter().map(Some),
            |_| "spec.clusterIP".to_owned(),
            rejected,
        ),
    }
}

/// `spec.ipFamilies`, the primary one first; without them the families of the first list which has
/// an address. A manifest has no API server to fill them in, so its load-balancer addresses speak
/// for it.
fn families(
    spec: &ServiceSpec,
    [cluster, ingress, external]: [&Vec<FieldAddress>; 3],
    rejected: &mut Rejected<'_>,
) -> Vec<Family> {
    let mut families = Vec::new();
    for (i, text) in spec.ip_families.iter().flatten().enumerate() {
        match text.as_str() {
            "IPv4" => families.push(Family::V4),
            "IPv6" => families.push(Family::V6),
            other => rejected.push(
                format!("spec.ipFamilies[{i}]"),
                format!("`{other}` is neither IPv4 nor IPv6"),
            ),
        }
    }
    if families.is_empty() {
        let lists = if cluster.is_empty() {
            [ingress, external]
        } else {
            [cluster, cluster]
        };
        families.extend(lists.into_iter().flatten().map(|a| Family::of(a.address)));
    }
    if families.is_empty() {
        // Node ports alone: whatever family the node and the endpoints have.
        families.extend([Family::V4, Family::V6]);
    }
    let primary = families.first().copied();
    families.retain(|family| Some(*family) != primary);
    families.dedup();
    primary.into_iter().chain(families).collect()
}

fn service_ports(spec: &ServiceSpec, rejected: &mut Rejected<'_>) -> Vec<ServicePortObject> {
    let ports = spec.ports.iter().flatten().enumerate();
    ports
        .filter_map(|(i, port)| service_port(i, port, rejected))
        .collect()
}

fn service_port(
    index: usize,
    port: &ServicePort,
    rejected: &mut Rejected<'_>,
) -> Option<ServicePortObject> {
    let number = u16::try_from(port.port).ok().filter(|&p| p != 0);
    let Some(number) = number else {
        let message = format!("{} is not between 1 and 65535", port.port);
        rejected.push(format!("spec.ports[{index}].port"), message);
        return None;
    };
    let Some(protocol) = protocol(port.protocol.as_deref()) else {
        let message = format!(
            "`{}` is not TCP, UDP or SCTP",
            port.protocol.as_deref().unwrap_or("")
        );
        rejected.push(format!("spec.ports[{index}].protocol"), message);
        return None;
    };
    let node_port = optional_port(
        port.node_port,
        &format!("spec.ports[{index}].nodePort"),
        rejected,
    );
    Some(ServicePortObject {
        index,
        name: port.name.clone().unwrap_or_default(),
        protocol,
        port: number,
        node_port,
        app_protocol: port.app_protocol.clone(),
    })
}

/// A port number that may be absent: 0 then, and also if it is none.
fn optional_port(number: Option<i32>, field: &str, rejected: &mut Rejected<'_>) -> u16 {
    let Some(number) = number else { return 0 };
    u16::try_from(number).unwrap_or_else(|_out_of_range| {
        rejected.push(field, format!("{number} is not between 1 and 65535"));
        0
    })
}

fn protocol(text: Option<&str>) -> Option<PortProtocol> {
    match text {
        None | Some("TCP" | "") => Some(PortProtocol::Balanced(Protocol::Tcp)),
        Some("UDP") => Some(PortProtocol::Balanced(Protocol::Udp)),
        Some("SCTP") => Some(PortProtocol::Sctp),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests;
