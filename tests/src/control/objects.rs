//! Objects of a large cluster.

use std::{net::Ipv4Addr, sync::Arc};

use lb_userspace::{
    snapshot::{
        Endpoint, FieldAddress, ObjectName, PortProtocol, ServiceKind, ServiceObject,
        ServicePortObject, SliceObject, SlicePort, Snapshot,
    },
    tables::{Family, Protocol},
};

/// A kind of change.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Edit {
    /// An endpoint takes another's place.
    Replace,
    /// An endpoint less.
    Remove,
    /// And one more.
    Add,
    /// A pod begins to terminate.
    Terminate,
    /// It does not after all.
    Recover,
    /// A Service with its endpoints more.
    AddService,
    /// And one less.
    RemoveService,
}

impl Edit {
    /// Each kind, in an order that ends with as many of everything as there were before.
    pub(super) const ALL: [Self; 7] = [
        Self::Replace,
        Self::Remove,
        Self::Add,
        Self::Terminate,
        Self::Recover,
        Self::AddService,
        Self::RemoveService,
    ];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Replace => "an endpoint replaced",
            Self::Remove => "an endpoint removed",
            Self::Add => "an endpoint added",
            Self::Terminate => "an endpoint terminating",
            Self::Recover => "an endpoint ready again",
            Self::AddService => "a Service added",
            Self::RemoveService => "a Service removed",
        }
    }
}

/// Services, each with a cluster address, an address of a load balancer, and endpoints of its own.
pub(super) struct Cluster {
    pub(super) services: u32,
    pub(super) endpoints: u32,
    snapshot: Snapshot,
    fresh: u32,
}

impl Cluster {
    pub(super) fn new(services: u32, endpoints: u32) -> Self {
        let mut cluster = Self {
            services,
            endpoints,
            snapshot: Snapshot::default(),
            fresh: services * endpoints,
        };
        for n in 0..services {
            cluster.put(service(n));
            let first = n * endpoints;
            let endpoints = (first..first + endpoints).map(endpoint).collect();
            cluster.put_slice(slice(n, endpoints));
        }
        cluster
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        self.snapshot.clone()
    }

    /// Makes the `n`th change of a kind. Each meets another Service, all over the cluster.
    pub(super) fn edit(&mut self, edit: Edit, n: u32) {
        let at = n.wrapping_mul(7_919) % self.services;
        let fresh = endpoint(self.fresh);
        self.fresh += 1;
        let mut endpoints = self.endpoints_of(at);
        match edit {
            Edit::Replace => {
                endpoints.pop();
                endpoints.push(fresh);
                self.put_slice(slice(at, endpoints));
            }
            Edit::Remove => {
                endpoints.pop();
                self.put_slice(slice(at, endpoints));
            }
            Edit::Add => {
                endpoints.push(fresh);
                self.put_slice(slice(at, endpoints));
            }
            Edit::Terminate => {
                if let Some(endpoint) = endpoints.iter_mut().find(|e| e.ready) {
                    endpoint.ready = false;
                    endpoint.terminating = true;
                }
                self.put_slice(slice(at, endpoints));
            }
            Edit::Recover => {
                if let Some(endpoint) = endpoints.iter_mut().find(|e| e.terminating) {
                    endpoint.ready = true;
                    endpoint.terminating = false;
                }
                self.put_slice(slice(at, endpoints));
            }
            Edit::AddService => {
                let n = self.services + n;
                self.put(service(n));
                self.put_slice(slice(n, vec![fresh]));
            }
            Edit::RemoveService => {
                let n = self.services + n;
                self.snapshot.services.remove(&service(n).name);
                self.snapshot.slices.remove(&slice(n, Vec::new()).name);
            }
        }
    }

    fn put(&mut self, object: ServiceObject) {
        let name = object.name.clone();
        self.snapshot.services.insert(name, Arc::new(object));
    }

    fn put_slice(&mut self, object: SliceObject) {
        let name = object.name.clone();
        self.snapshot.slices.insert(name, Arc::new(object));
    }

    fn endpoints_of(&self, n: u32) -> Vec<Endpoint> {
        let name = slice(n, Vec::new()).name;
        let slice = self.snapshot.slices.get(&name);
        slice.map_or_else(Vec::new, |slice| slice.endpoints.clone())
    }
}

fn name(n: u32) -> String {
    format!("service-{n}")
}

fn service(n: u32) -> ServiceObject {
    let field = |field: &str, first: u32| {
        vec![FieldAddress {
            field: field.into(),
            address: Ipv4Addr::from(first + n).into(),
        }]
    };
    ServiceObject {
        // A few namespaces, as clusters have.
        name: ObjectName::new(format!("namespace-{}", n % 50), name(n)),
        created: Some(1_700_000_000 + i64::from(n)),
        kind: ServiceKind::LoadBalancer,
        families: vec![Family::V4],
        cluster_ips: field("spec.clusterIPs[0]", 0x0a60_0001),
        ingress_ips: field("status.loadBalancer.ingress[0].ip", 0xc612_0001),
        ports: vec![ServicePortObject {
            index: 0,
            name: "http".to_owned(),
            protocol: PortProtocol::Balanced(Protocol::Tcp),
            port: 80,
            node_port: 0,
            app_protocol: None,
        }],
        ..ServiceObject::default()
    }
}

fn slice(n: u32, endpoints: Vec<Endpoint>) -> SliceObject {
    SliceObject {
        name: ObjectName::new(
            format!("namespace-{}", n % 50),
            format!("{}-abcde", name(n)),
        ),
        service: name(n),
        family: Family::V4,
        ports: vec![SlicePort {
            name: "http".to_owned(),
            protocol: PortProtocol::Balanced(Protocol::Tcp),
            port: 8080,
        }],
        endpoints,
        triggered: None,
    }
}

/// Endpoints on a hundred nodes.
fn endpoint(n: u32) -> Endpoint {
    Endpoint {
        address: Ipv4Addr::from(0x0a80_0001 + n).into(),
        ready: true,
        serving: true,
        terminating: false,
        node: Some(format!("node-{}", n % 100)),
        zone_hints: Vec::new(),
        node_hints: Vec::new(),
    }
}
