//! The Kubernetes objects of the tier: Services with predictable addresses, and their slices.

use std::net::{IpAddr, SocketAddr};

use serde_json::{Map, Value, json};

use super::{
    cluster::{Side, endpoint_address},
    targets::{Target, Targets, Transport},
};

/// Conditions of an endpoint.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum State {
    /// Ready.
    Ready,
    /// Not ready yet.
    Unready,
    /// Terminating, still answers.
    Draining,
    /// Terminating, does not answer any more.
    Gone,
    /// Terminating and ready, as `publishNotReadyAddresses` makes it.
    Published,
}

impl State {
    fn conditions(self) -> Value {
        let (ready, serving, terminating) = match self {
            Self::Ready => (true, true, false),
            Self::Unready => (false, false, false),
            Self::Draining => (false, true, true),
            Self::Gone => (false, false, true),
            Self::Published => (true, true, true),
        };
        json!({"ready": ready, "serving": serving, "terminating": terminating})
    }
}

#[derive(Clone, Debug)]
struct Port {
    name: String,
    number: u16,
    target: u16,
    protocol: &'static str,
}

#[derive(Clone, Debug)]
struct Endpoint {
    name: String,
    state: State,
    hints: Value,
}

/// Ports and endpoints that belong together.
#[derive(Clone, Debug, Default)]
struct Slice {
    /// Target port by port name; empty: as the Service says.
    targets: Vec<(String, u16)>,
    endpoints: Vec<Endpoint>,
}

/// Where addresses of one kind come from.
struct Networks {
    v4: &'static str,
    v6: &'static str,
}

const CLUSTER: Networks = Networks {
    v4: "10.96.0",
    v6: "2001:db8:96",
};
const BALANCER: Networks = Networks {
    v4: "192.0.2",
    v6: "2001:db8:1b",
};
const EXTERNAL: Networks = Networks {
    v4: "198.51.100",
    v6: "2001:db8:e",
};

impl Networks {
    fn address(&self, v4: bool, number: u16) -> IpAddr {
        let text = if v4 {
            format!("{}.{number}", self.v4)
        } else {
            format!("{}::{number:x}", self.v6)
        };
        text.parse().expect("an address")
    }
}

/// A Service under construction. Its number gives its addresses and node ports.
#[derive(Clone, Debug)]
#[must_use]
pub struct Service {
    /// Name, in the namespace `default`.
    pub name: String,
    number: u16,
    kind: &'static str,
    families: Vec<&'static str>,
    ports: Vec<Port>,
    slices: Vec<Slice>,
    external: bool,
    ingress_mode: Option<&'static str>,
    ingress: bool,
    also_at: Vec<u16>,
    node_ports: bool,
    node_port_base: u16,
    spec: Map<String, Value>,
    labels: Map<String, Value>,
    annotations: Map<String, Value>,
}

impl Service {
    /// A ClusterIP Service of both families without ports.
    pub fn new(name: &str, number: u16) -> Self {
        assert!((1..250).contains(&number), "an address has one byte for it");
        Self {
            name: name.to_owned(),
            number,
            kind: "ClusterIP",
            families: vec!["IPv4", "IPv6"],
            ports: Vec::new(),
            slices: vec![Slice::default()],
            external: false,
            ingress_mode: None,
            ingress: true,
            also_at: Vec::new(),
            node_ports: true,
            node_port_base: 30_000 + number * 10,
            spec: Map::new(),
            labels: Map::new(),
            annotations: Map::new(),
        }
    }

    /// TCP and UDP port 80, both to 8080.
    pub fn web(self) -> Self {
        self.tcp("http", 80, 8080).udp("echo", 80, 8080)
    }

    /// One more TCP port.
    pub fn tcp(self, name: &str, port: u16, target: u16) -> Self {
        self.port(name, port, target, "TCP")
    }

    /// One more UDP port.
    pub fn udp(self, name: &str, port: u16, target: u16) -> Self {
        self.port(name, port, target, "UDP")
    }

    /// One more SCTP port.
    pub fn sctp(self, name: &str, port: u16, target: u16) -> Self {
        self.port(name, port, target, "SCTP")
    }

    fn port(mut self, name: &str, number: u16, target: u16, protocol: &'static str) -> Self {
        self.ports.push(Port {
            name: name.to_owned(),
            number,
            target,
            protocol,
        });
        self
    }

    /// Without the port of this name.
    pub fn without_port(mut self, name: &str) -> Self {
        self.ports.retain(|port| port.name != name);
        self
    }

    /// `spec.type`.
    pub fn kind(mut self, kind: &'static str) -> Self {
        self.kind = kind;
        self
    }

    /// Its families, the first one first.
    pub fn families(mut self, families: &[&'static str]) -> Self {
        self.families = families.to_vec();
        self
    }

    /// With external IPs.
    pub fn external(mut self) -> Self {
        self.external = true;
        self
    }

    /// Without addresses in `status.loadBalancer`.
    pub fn pending(mut self) -> Self {
        self.ingress = false;
        self
    }

    /// `ipMode` of its ingress addresses.
    pub fn ingress_mode(mut self, mode: &'static str) -> Self {
        self.ingress_mode = Some(mode);
        self
    }

    /// With the load-balancer addresses of another number too.
    pub fn also_at(mut self, number: u16) -> Self {
        self.also_at.push(number);
        self
    }

    /// Its first node port, the others follow.
    pub fn node_ports_from(mut self, base: u16) -> Self {
        self.node_port_base = base;
        self
    }

    /// Without node ports.
    pub fn without_node_ports(mut self) -> Self {
        self.node_ports = false;
        self
    }

    /// A field of `spec`.
    pub fn spec(mut self, field: &str, value: impl Into<Value>) -> Self {
        self.spec.insert(field.to_owned(), value.into());
        self
    }

    /// A label.
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.insert(key.to_owned(), value.into());
        self
    }

    /// An annotation.
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.annotations.insert(key.to_owned(), value.into());
        self
    }

    /// `externalTrafficPolicy: Local`.
    pub fn external_local(self) -> Self {
        self.spec("externalTrafficPolicy", "Local")
    }

    /// `internalTrafficPolicy: Local`.
    pub fn internal_local(self) -> Self {
        self.spec("internalTrafficPolicy", "Local")
    }

    /// `sessionAffinity: ClientIP`.
    pub fn sticky(self, seconds: u32) -> Self {
        self.spec("sessionAffinity", "ClientIP").spec(
            "sessionAffinityConfig",
            json!({"clientIP": {"timeoutSeconds": seconds}}),
        )
    }

    /// Ready endpoints: pods such as `a1`, or a node such as `node-a`.
    pub fn on(mut self, names: &[&str]) -> Self {
        for name in names {
            self = self.endpoint(name, State::Ready);
        }
        self
    }

    /// One more endpoint.
    pub fn endpoint(self, name: &str, state: State) -> Self {
        self.hinted(name, state, Value::Null)
    }

    /// One more endpoint with hints, as the API has them.
    pub fn hinted(mut self, name: &str, state: State, hints: Value) -> Self {
        let slice = self.slices.last_mut().expect("a Service has a slice");
        slice.endpoints.push(Endpoint {
            name: name.to_owned(),
            state,
            hints,
        });
        self
    }

    /// Endpoints from here on are in a slice of their own, with these ports: name and number.
    pub fn slice(mut self, targets: &[(&str, u16)]) -> Self {
        let targets = targets
            .iter()
            .map(|(name, port)| ((*name).to_owned(), *port));
        let slice = Slice {
            targets: targets.collect(),
            endpoints: Vec::new(),
        };
        match self.slices.last_mut() {
            Some(last) if last.endpoints.is_empty() => *last = slice,
            _ => self.slices.push(slice),
        }
        self
    }

    /// Forgets its endpoints; empty slices stay.
    pub fn nobody(mut self) -> Self {
        self.slices = vec![Slice::default()];
        self
    }

    /// Without any slice.
    pub fn without_slices(mut self) -> Self {
        self.slices.clear();
        self
    }

    /// Its cluster addresses.
    pub fn cluster(&self) -> Targets {
        self.targets(|v4| CLUSTER.address(v4, self.number))
    }

    /// Its load-balancer addresses.
    pub fn balancer(&self) -> Targets {
        self.balancer_at(self.number)
    }

    /// Its load-balancer addresses of another number.
    pub fn balancer_at(&self, number: u16) -> Targets {
        self.targets(|v4| BALANCER.address(v4, number))
    }

    /// Its external addresses.
    pub fn outer(&self) -> Targets {
        self.targets(|v4| EXTERNAL.address(v4, self.number))
    }

    /// Its ports at any address of a family; nothing in the other family.
    pub fn at(&self, address: IpAddr) -> Targets {
        let any = self.targets(|v4| {
            if v4 == address.is_ipv4() {
                address
            } else {
                EXTERNAL.address(v4, 1)
            }
        });
        any.keep(|target| target.address.ip() == address)
    }

    /// Its node ports on a node's primary addresses.
    pub fn node_port(&self, side: Side) -> Targets {
        self.node_port_at(side, |v4| side.address(v4))
    }

    /// Its node ports on other addresses of a node.
    pub fn node_port_at(&self, side: Side, address: impl Fn(bool) -> IpAddr) -> Targets {
        let mut targets = self.targets(address);
        for (target, port) in targets.0.iter_mut().zip(self.node_port_numbers()) {
            target.address.set_port(port);
            target.node = Some(side);
        }
        targets
    }

    /// Number of the node port of a port of the Service.
    pub fn node_port_number(&self, port: u16) -> u16 {
        let mut numbers: Vec<u16> = self.ports.iter().map(|port| port.number).collect();
        numbers.dedup();
        let place = numbers.iter().position(|number| *number == port);
        let place = u16::try_from(place.expect("a port of the Service")).expect("few ports");
        self.node_port_base + place
    }

    fn node_port_numbers(&self) -> Vec<u16> {
        let ports = || {
            self.balanced()
                .map(|port| self.node_port_number(port.number))
        };
        self.families.iter().flat_map(|_| ports()).collect()
    }

    fn balanced(&self) -> impl Iterator<Item = &Port> {
        self.ports.iter().filter(|port| port.protocol != "SCTP")
    }

    fn targets(&self, address: impl Fn(bool) -> IpAddr) -> Targets {
        let families = self.families.iter().map(|family| *family == "IPv4");
        let targets = families.flat_map(|v4| {
            let address = address(v4);
            self.balanced().map(move |port| Target {
                address: SocketAddr::new(address, port.number),
                transport: if port.protocol == "TCP" {
                    Transport::Tcp
                } else {
                    Transport::Udp
                },
                node: None,
            })
        });
        Targets(targets.collect())
    }

    /// Addresses of one kind in the Service's families.
    fn addresses(&self, networks: &Networks, number: u16) -> Vec<String> {
        let families = self.families.iter().map(|family| *family == "IPv4");
        families
            .map(|v4| networks.address(v4, number).to_string())
            .collect()
    }

    /// The Service and its slices.
    pub fn objects(&self) -> Vec<Value> {
        let mut objects = vec![self.service()];
        for (number, slice) in self.slices.iter().enumerate() {
            for family in &self.families {
                objects.push(self.slice_object(number, slice, family));
            }
        }
        objects
    }

    fn service(&self) -> Value {
        let ports = self.ports.iter().map(|port| {
            let mut value = json!({
                "name": port.name,
                "port": port.number,
                "targetPort": port.target,
                "protocol": port.protocol,
            });
            if self.node_ports && matches!(self.kind, "NodePort" | "LoadBalancer") {
                set(&mut value, "nodePort", self.node_port_number(port.number));
            }
            value
        });
        let mut spec = Map::new();
        spec.insert("type".into(), self.kind.into());
        spec.insert("ports".into(), ports.collect());
        if self.kind != "ExternalName" {
            let ips = self.addresses(&CLUSTER, self.number);
            spec.insert("clusterIP".into(), ips.first().cloned().into());
            spec.insert("clusterIPs".into(), ips.into());
            spec.insert("ipFamilies".into(), self.families.clone().into());
        }
        if self.external {
            let ips = self.addresses(&EXTERNAL, self.number);
            spec.insert("externalIPs".into(), ips.into());
        }
        spec.extend(self.spec.clone());
        let mut service = json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {
                "name": self.name,
                "namespace": "default",
                "labels": self.labels,
                "annotations": self.annotations,
            },
            "spec": spec,
        });
        if self.kind == "LoadBalancer" && self.ingress {
            let numbers = std::iter::once(&self.number).chain(&self.also_at);
            let ips = numbers.flat_map(|number| self.addresses(&BALANCER, *number));
            let ingress = ips.map(|ip| match self.ingress_mode {
                Some(mode) => json!({"ip": ip, "ipMode": mode}),
                None => json!({"ip": ip}),
            });
            let ingress: Vec<Value> = ingress.collect();
            let status = json!({"loadBalancer": {"ingress": ingress}});
            set(&mut service, "status", status);
        }
        service
    }

    fn slice_object(&self, number: usize, slice: &Slice, family: &str) -> Value {
        let v4 = family == "IPv4";
        let target = |port: &Port| {
            let own = slice.targets.iter().find(|(name, _)| *name == port.name);
            match own {
                Some((_, target)) => Some(*target),
                None if slice.targets.is_empty() => Some(port.target),
                None => None,
            }
        };
        let ports = self.ports.iter().filter_map(|port| {
            let target = target(port)?;
            Some(json!({"name": port.name, "port": target, "protocol": port.protocol}))
        });
        let ports: Vec<Value> = ports.collect();
        let endpoints = slice.endpoints.iter().map(|endpoint| {
            let (address, side) = endpoint_address(&endpoint.name, v4);
            let mut value = json!({
                "addresses": [address.to_string()],
                "conditions": endpoint.state.conditions(),
                "nodeName": side.name(),
            });
            if !endpoint.hints.is_null() {
                set(&mut value, "hints", endpoint.hints.clone());
            }
            value
        });
        let endpoints: Vec<Value> = endpoints.collect();
        // The controller copies the Service's labels.
        let mut labels = self.labels.clone();
        labels.insert(
            "kubernetes.io/service-name".into(),
            self.name.clone().into(),
        );
        json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": format!("{}-{}-{number}", self.name, family.to_lowercase()),
                "namespace": "default",
                "labels": labels,
            },
            "addressType": family,
            "ports": ports,
            "endpoints": endpoints,
        })
    }
}

/// Sets a field of an object.
pub fn set(object: &mut Value, field: &str, value: impl Into<Value>) {
    let fields = object.as_object_mut().expect("an object");
    fields.insert(field.to_owned(), value.into());
}
