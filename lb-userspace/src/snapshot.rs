//! The Services and EndpointSlices a plan is made of, as plain data.
//!
//! Every source (a directory of manifests, the Kubernetes API) delivers a [`Snapshot`]. Only
//! [`convert`] knows the Kubernetes types; what it cannot understand becomes a [`Rejection`] and the
//! rest of the object goes on.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use imbl::OrdMap;
use ipnet::IpNet;

use crate::tables::{Family, Protocol};

pub mod address;
pub mod convert;

/// Everything the sources know about the cluster.
///
/// A copy costs nothing, whatever its size, and two copies tell how they differ in the time their
/// differences take.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Snapshot {
    /// Services to balance; excluded kinds (headless, `ExternalName`, another proxy's) are left out.
    pub services: OrdMap<ObjectName, Arc<ServiceObject>>,
    /// EndpointSlices which name a Service.
    pub slices: OrdMap<ObjectName, Arc<SliceObject>>,
    /// Networks the cluster takes its cluster addresses from, by ServiceCIDR objects.
    pub service_networks: BTreeSet<IpNet>,
}

/// Namespace and name of an object. A cluster's object has no namespace. Copies share the text: maps of
/// tens of thousands of objects are copied in part with every change.
#[derive(Clone, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ObjectName {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
}

impl ObjectName {
    /// Puts a name together.
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            return f.write_str(&self.name);
        }
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Something in the input that is not served, and why. Bad input is data, not an error.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Rejection {
    /// The object, such as `Service default/web`, with its file when it comes from one.
    pub object: String,
    /// Path of the field; empty when the object as a whole is meant.
    pub field: String,
    /// What is wrong, and what happens instead.
    pub message: String,
    /// The object in the cluster, if it is one.
    pub subject: Option<Subject>,
}

/// An object somebody may be told something about.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Subject {
    /// What it is.
    pub kind: SubjectKind,
    /// Namespace and name.
    pub name: ObjectName,
}

/// Kinds of [`Subject`].
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum SubjectKind {
    /// A Service.
    Service,
    /// An EndpointSlice.
    EndpointSlice,
}

impl Rejection {
    /// Names a Service's field.
    pub fn service(
        name: &ObjectName,
        field: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        Self {
            object: format!("Service {name}"),
            field: field.into(),
            message: message.into(),
            subject: Some(Subject {
                kind: SubjectKind::Service,
                name: name.clone(),
            }),
        }
    }

    /// Names an EndpointSlice's field.
    pub fn slice(name: &ObjectName, field: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            object: format!("EndpointSlice {name}"),
            field: field.into(),
            message: message.into(),
            subject: Some(Subject {
                kind: SubjectKind::EndpointSlice,
                name: name.clone(),
            }),
        }
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.field.is_empty() {
            write!(f, "{}: {}", self.object, self.message)
        } else {
            write!(f, "{}: {}: {}", self.object, self.field, self.message)
        }
    }
}

/// How a Service may be reached, from its `spec.type`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum ServiceKind {
    /// By its cluster addresses.
    #[default]
    ClusterIp,
    /// Also by a port of every node.
    NodePort,
    /// Also by addresses of a load balancer.
    LoadBalancer,
}

/// Which endpoints a kind of traffic may use.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum TrafficPolicy {
    /// All.
    #[default]
    Cluster,
    /// Those of this node.
    Local,
}

/// A transport protocol as a Service may name it.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum PortProtocol {
    /// TCP or UDP, which the data path balances.
    Balanced(Protocol),
    /// SCTP, which it does not.
    Sctp,
}

impl fmt::Display for PortProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Balanced(protocol) => protocol.fmt(f),
            Self::Sctp => f.write_str("SCTP"),
        }
    }
}

/// One entry of `spec.ports`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ServicePortObject {
    /// Its place in `spec.ports`, for messages.
    pub index: usize,
    /// Name; empty for the only port of a Service.
    pub name: String,
    /// Protocol.
    pub protocol: PortProtocol,
    /// Port of every address of the Service.
    pub port: u16,
    /// Port of the nodes; 0 for none.
    pub node_port: u16,
    /// Application protocol, a hint.
    pub app_protocol: Option<String>,
}

/// An address together with the field it was read from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct FieldAddress {
    /// Path of the field.
    pub field: Arc<str>,
    /// The address, in canonical form.
    pub address: IpAddr,
}

/// A Service, reduced to what balancing needs.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ServiceObject {
    /// Namespace and name.
    pub name: ObjectName,
    /// `metadata.uid`.
    pub uid: Option<String>,
    /// `metadata.creationTimestamp` in seconds since 1970.
    pub created: Option<i64>,
    /// `spec.type`.
    pub kind: ServiceKind,
    /// Families whose traffic is balanced, from `spec.ipFamilies` or the addresses; the primary one
    /// first.
    pub families: Vec<Family>,
    /// `spec.clusterIPs`, valid ones.
    pub cluster_ips: Vec<FieldAddress>,
    /// `spec.ports`.
    pub ports: Vec<ServicePortObject>,
    /// `spec.externalIPs`, valid ones.
    pub external_ips: Vec<FieldAddress>,
    /// `status.loadBalancer.ingress[].ip` of those in VIP mode.
    pub ingress_ips: Vec<FieldAddress>,
    /// `spec.externalTrafficPolicy`.
    pub external_policy: TrafficPolicy,
    /// `spec.internalTrafficPolicy`.
    pub internal_policy: TrafficPolicy,
    /// Timeout of `sessionAffinity: ClientIP` in seconds; 0 without affinity.
    pub affinity_seconds: u32,
    /// `spec.loadBalancerSourceRanges`.
    pub source_ranges: Vec<IpNet>,
    /// True if `spec.loadBalancerSourceRanges` names any range, also an unreadable one.
    pub restricts_sources: bool,
    /// `spec.healthCheckNodePort`; 0 for none.
    pub health_check_node_port: u16,
    /// `spec.publishNotReadyAddresses`. Slices carry its effect already.
    pub publish_not_ready: bool,
    /// `spec.allocateLoadBalancerNodePorts`, true by default.
    pub allocate_node_ports: bool,
    /// `spec.loadBalancerClass`.
    pub load_balancer_class: Option<String>,
    /// Annotation `sluice.dev/drain-deadline`: how long flows may stay with a backend that left.
    /// None: until they end.
    pub drain_deadline: Option<Duration>,
    /// Annotations of ours, `sluice.dev/…`.
    pub annotations: BTreeMap<String, String>,
}

/// An EndpointSlice, reduced to what balancing needs.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SliceObject {
    /// Namespace and name.
    pub name: ObjectName,
    /// Label `kubernetes.io/service-name`: the Service in the same namespace.
    pub service: String,
    /// Family of all its addresses.
    pub family: Family,
    /// Ports every endpoint of the slice has.
    pub ports: Vec<SlicePort>,
    /// Endpoints with at least one valid address.
    pub endpoints: Vec<Endpoint>,
    /// When the last change to it was caused, in milliseconds since 1970: by the annotation
    /// `endpoints.kubernetes.io/last-change-trigger-time`.
    pub triggered: Option<i64>,
}

/// One entry of a slice's `ports` that has a name and a number.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SlicePort {
    /// Name, which a Service's port of the same name joins.
    pub name: String,
    /// Protocol.
    pub protocol: PortProtocol,
    /// Number on the endpoint.
    pub port: u16,
}

/// One address of a slice.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Endpoint {
    /// `addresses[0]`, in canonical form.
    pub address: IpAddr,
    /// Takes new connections. True if the API does not say.
    pub ready: bool,
    /// Still answers. True if the API does not say.
    pub serving: bool,
    /// On its way out. False if the API does not say.
    pub terminating: bool,
    /// Node it runs on.
    pub node: Option<String>,
    /// `hints.forZones`.
    pub zone_hints: Vec<String>,
    /// `hints.forNodes`.
    pub node_hints: Vec<String>,
}

/// The Node object of this node, reduced to what balancing needs.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct NodeObject {
    /// Name.
    pub name: String,
    /// Label `topology.kubernetes.io/zone`.
    pub zone: Option<String>,
    /// `spec.podCIDRs`: where the addresses of this node's own pods are from.
    pub pod_networks: Vec<IpNet>,
    /// `status.addresses` that are addresses.
    pub addresses: Vec<IpAddr>,
    /// It is being deleted.
    pub deleting: bool,
    /// It has the taint `ToBeDeletedByClusterAutoscaler`.
    pub marked_for_deletion: bool,
    /// Annotation `sluice.dev/snat-addresses`: addresses of the node that no masquerade uses.
    pub snat_addresses: Vec<IpAddr>,
}
