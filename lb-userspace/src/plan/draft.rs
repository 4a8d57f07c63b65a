//! From Services to service ports: frontends, flags and endpoint sets, before anything is numbered.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use lb_common::service::{ServiceName, frontend_flag, service_flag};

use super::{
    endpoints::{self, EndpointSets, Wanted},
    health::{self, HealthCheck},
    ranges::{self, Networks},
};
use crate::{
    node::NodeConfig,
    snapshot::{
        FieldAddress, ObjectName, PortProtocol, Rejection, ServiceKind, ServiceObject,
        ServicePortObject, SliceObject, Snapshot, TrafficPolicy,
    },
    tables::{Family, FrontendId, Protocol},
};

/// Annotation: on a gateway node, keep the client's address although the policy is `Cluster`.
const KEEP_SOURCE: &str = "sluice.dev/keep-source";

/// One Service with everything of it that may be served.
#[derive(Clone, Debug, Default)]
pub(super) struct ServiceDraft {
    pub(super) name: ObjectName,
    /// Seconds since 1970, if known.
    pub(super) created: Option<i64>,
    pub(super) ports: Vec<PortDraft>,
    /// Who may use the load-balancer addresses, by family; empty for everybody.
    pub(super) source_ranges: BTreeMap<Family, Networks>,
    pub(super) health: Option<HealthCheck>,
}

/// One service port of one family.
#[derive(Clone, Debug)]
pub(super) struct PortDraft {
    /// `namespace/name:port/PROTOCOL/FAMILY`, which keeps its id over time.
    pub(super) name: String,
    pub(super) family: Family,
    pub(super) protocol: Protocol,
    pub(super) frontends: Vec<Claim>,
    /// Bits of [`service_flag`].
    pub(super) flags: u32,
    pub(super) affinity_seconds: u32,
    pub(super) sets: EndpointSets,
}

/// A frontend a service port wants.
#[derive(Clone, Debug)]
pub(super) struct Claim {
    pub(super) frontend: FrontendId,
    /// Bits of [`frontend_flag`].
    pub(super) flags: u32,
    /// The field that asks for it.
    pub(super) field: Arc<str>,
}

/// Drafts every Service, in the order of names. Service ports without any frontend are left out.
pub(super) fn services(
    snapshot: &Snapshot,
    node: &NodeConfig,
    rejected: &mut Vec<Rejection>,
) -> Vec<ServiceDraft> {
    let mut slices: BTreeMap<(&str, &str), Vec<&SliceObject>> = BTreeMap::new();
    for slice in snapshot.slices.values() {
        let service = (&*slice.name.namespace, slice.service.as_str());
        slices.entry(service).or_default().push(slice);
    }
    let drafts = snapshot.services.values().map(|service| {
        let key = (&*service.name.namespace, &*service.name.name);
        let slices = slices.get(&key).map_or(&[][..], Vec::as_slice);
        self::service(service, slices, node, rejected)
    });
    drafts.collect()
}

/// Drafts one Service. `slices` are those which name it, in the order of their names.
pub(super) fn service(
    service: &ServiceObject,
    slices: &[&SliceObject],
    node: &NodeConfig,
    rejected: &mut Vec<Rejection>,
) -> ServiceDraft {
    Drafter {
        service,
        node,
        rejected,
    }
    .draft(slices)
}

struct Drafter<'a> {
    service: &'a ServiceObject,
    node: &'a NodeConfig,
    rejected: &'a mut Vec<Rejection>,
}

impl<'a> Drafter<'a> {
    fn reject(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.rejected
            .push(Rejection::service(&self.service.name, field, message));
    }

    fn draft(mut self, slices: &[&SliceObject]) -> ServiceDraft {
        let service = self.service;
        self.check_addresses();
        let source_ranges = ranges::of_service(service, self.node, |field, message| {
            self.reject(field, message);
        });
        let (policy, node) = (self.external_policy(), self.node);
        let health = health::check(service, policy, slices, node, |field, message| {
            self.reject(field, message);
        });
        let keep_source = self.keeps_source();
        let mut ports = Vec::new();
        let usable = self.usable_ports();
        for &family in &service.families {
            let slices: Vec<_> = slices
                .iter()
                .copied()
                .filter(|s| s.family == family)
                .collect();
            for &(port, protocol) in &usable {
                let frontends = self.claims(port, protocol, family);
                if !frontends.is_empty() {
                    ports.extend(self.port(
                        port,
                        protocol,
                        family,
                        frontends,
                        &slices,
                        keep_source,
                    ));
                }
            }
        }
        if ports.is_empty() && service.kind == ServiceKind::LoadBalancer && !usable.is_empty() {
            self.reject(
                "status.loadBalancer.ingress",
                "has no address we serve, and nothing else of the Service does: it is not served",
            );
        }
        ServiceDraft {
            name: service.name.clone(),
            created: service.created,
            ports,
            source_ranges,
            health,
        }
    }

    /// Says which of the Service's addresses are left out as a whole, and why.
    fn check_addresses(&mut self) {
        let service = self.service;
        if !service.ingress_ips.is_empty() && service.kind != ServiceKind::LoadBalancer {
            self.reject(
                "status.loadBalancer.ingress",
                "is not served: spec.type is not LoadBalancer",
            );
        }
        if !service.external_ips.is_empty() && !self.node.external_ips {
            self.reject("spec.externalIPs", "are not served: externalIPs is off");
        }
    }

    /// Whether backends elsewhere see the client's address: only a gateway can promise it.
    fn keeps_source(&mut self) -> bool {
        let asked = match self
            .service
            .annotations
            .get(KEEP_SOURCE)
            .map(String::as_str)
        {
            None | Some("false") => false,
            Some("true") => {
                if !self.node.gateway {
                    self.reject(
                        format!("metadata.annotations[{KEEP_SOURCE}]"),
                        "needs a node with `gateway: true`; ignored",
                    );
                }
                true
            }
            Some(other) => {
                let message = format!("`{other}` is neither true nor false; ignored");
                self.reject(format!("metadata.annotations[{KEEP_SOURCE}]"), message);
                false
            }
        };
        self.node.gateway && (asked || self.external_policy() == TrafficPolicy::Local)
    }

    /// `spec.externalTrafficPolicy`, which means nothing to a Service that is only internal.
    fn external_policy(&self) -> TrafficPolicy {
        let service = self.service;
        if service.kind == ServiceKind::ClusterIp && service.external_ips.is_empty() {
            TrafficPolicy::Cluster
        } else {
            service.external_policy
        }
    }

    /// The ports we can balance that do not collide with an earlier one.
    fn usable_ports(&mut self) -> Vec<(&'a ServicePortObject, Protocol)> {
        let service = self.service;
        let mut usable = Vec::new();
        let mut taken = BTreeMap::new();
        for port in &service.ports {
            let field = |name: &str| format!("spec.ports[{}].{name}", port.index);
            let PortProtocol::Balanced(protocol) = port.protocol else {
                self.reject(
                    field("protocol"),
                    format!("{} is not balanced", port.protocol),
                );
                continue;
            };
            let has_node_port = port.node_port != 0 && service.kind != ServiceKind::ClusterIp;
            let uses = [
                Some(Unique::Port(port.port)),
                Some(Unique::Name(Cow::Borrowed(&port.name))),
                Some(Unique::Name(label(port))),
                has_node_port.then_some(Unique::NodePort(port.node_port)),
            ];
            let uses = uses.map(|what| what.map(|what| (what, protocol)));
            let collision = uses
                .iter()
                .flatten()
                .find_map(|it| Some((it, *taken.get(it)?)));
            if let Some(((what, _), earlier)) = collision {
                let message = format!(
                    "{} is that of spec.ports[{earlier}], which keeps it",
                    what.of(protocol)
                );
                self.reject(field(what.field()), message);
                continue;
            }
            taken.extend(uses.into_iter().flatten().map(|it| (it, port.index)));
            usable.push((port, protocol));
        }
        usable
    }

    /// The frontends of one port in one family: cluster addresses, load-balancer addresses, external
    /// addresses, node port. An address that is there twice counts once.
    fn claims(&self, port: &ServicePortObject, protocol: Protocol, family: Family) -> Vec<Claim> {
        let service = self.service;
        let balanced = service.kind == ServiceKind::LoadBalancer;
        let lists: [(&[FieldAddress], bool, u32); 3] = [
            (&service.cluster_ips, true, frontend_flag::INTERNAL),
            (&service.ingress_ips, balanced, frontend_flag::SOURCE_RANGES),
            (&service.external_ips, self.node.external_ips, 0),
        ];
        let mut seen = BTreeSet::new();
        let mut claims = Vec::new();
        for (addresses, served, flags) in lists {
            let of_family = |a: &&FieldAddress| served && Family::of(a.address) == family;
            for FieldAddress { field, address } in addresses.iter().filter(of_family) {
                if seen.insert(*address) {
                    let frontend = FrontendId {
                        address: *address,
                        port: port.port,
                        protocol,
                    };
                    claims.push(Claim {
                        frontend,
                        flags,
                        field: Arc::clone(field),
                    });
                }
            }
        }
        let has_node_ports = service.kind != ServiceKind::ClusterIp
            && self
                .node
                .node_port_addresses
                .iter()
                .any(|&a| Family::of(a) == family);
        if port.node_port != 0 && has_node_ports {
            let frontend = FrontendId {
                address: family.unspecified(),
                port: port.node_port,
                protocol,
            };
            let field = format!("spec.ports[{}].nodePort", port.index).into();
            claims.push(Claim {
                frontend,
                flags: 0,
                field,
            });
        }
        claims
    }

    fn port(
        &mut self,
        port: &ServicePortObject,
        protocol: Protocol,
        family: Family,
        frontends: Vec<Claim>,
        slices: &[&SliceObject],
        keep_source: bool,
    ) -> Option<PortDraft> {
        let service = self.service;
        let name = format!("{}:{}/{protocol}/{family}", service.name, label(port));
        if name.len() > size_of::<ServiceName>() {
            let message = format!("`{name}` is longer than {} bytes", size_of::<ServiceName>());
            self.reject(format!("spec.ports[{}].name", port.index), message);
            return None;
        }
        let external_local = self.external_policy() == TrafficPolicy::Local && !self.node.gateway;
        let internal_local = service.internal_policy == TrafficPolicy::Local;
        let is_external = |claim: &Claim| claim.flags & frontend_flag::INTERNAL == 0;
        let wanted = Wanted {
            // Also under `Local`: this node's own pods and processes may use every endpoint.
            cluster: !internal_local || frontends.iter().any(is_external),
            local: internal_local || external_local,
            // A gateway stands for the cloud's load balancer, which knows no topology.
            topology: !keep_source,
        };
        let sets = endpoints::sets(slices, &port.name, protocol, self.node, wanted);
        let bit = |set: bool, bit: u32| if set { bit } else { 0 };
        let flags = service_flag::LIVE
            | bit(external_local, service_flag::EXTERNAL_LOCAL)
            | bit(internal_local, service_flag::INTERNAL_LOCAL)
            | bit(keep_source, service_flag::KEEP_SOURCE)
            | bit(sets.any, service_flag::HAS_ENDPOINTS);
        let affinity_seconds = service.affinity_seconds;
        Some(PortDraft {
            name,
            family,
            protocol,
            frontends,
            flags,
            affinity_seconds,
            sets,
        })
    }
}

/// What no two ports of a Service may have in one protocol.
#[derive(Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Unique<'a> {
    Port(u16),
    Name(Cow<'a, str>),
    NodePort(u16),
}

impl Unique<'_> {
    const fn field(&self) -> &'static str {
        match self {
            Self::Port(_) => "port",
            Self::Name(_) => "name",
            Self::NodePort(_) => "nodePort",
        }
    }

    /// In words.
    fn of(&self, protocol: Protocol) -> String {
        match self {
            Self::Port(port) => format!("port {port}/{protocol}"),
            Self::Name(name) => format!("name `{name}` of {protocol}"),
            Self::NodePort(port) => format!("node port {port}/{protocol}"),
        }
    }
}

/// What tells a port from the other ports of its Service.
fn label(port: &ServicePortObject) -> Cow<'_, str> {
    if port.name.is_empty() {
        port.port.to_string().into()
    } else {
        port.name.as_str().into()
    }
}

/// The Service a service port's name names.
pub(crate) fn owner(name: &str) -> &str {
    name.split_once(':').map_or(name, |(owner, _)| owner)
}

/// Addresses of a draft's frontends, node ports apart.
pub(super) fn addresses(ports: &[PortDraft]) -> impl Iterator<Item = IpAddr> {
    let claims = ports.iter().flat_map(|port| &port.frontends);
    claims
        .map(|claim| claim.frontend.address)
        .filter(|address| !address.is_unspecified())
}
