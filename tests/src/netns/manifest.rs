//! Kubernetes manifests as the tests write them.

use std::{fmt::Write as _, net::IpAddr};

/// A Service and the EndpointSlices behind it, under construction.
#[derive(Clone, Debug)]
#[must_use]
pub struct ServiceManifest {
    name: String,
    vips: Vec<String>,
    ports: Vec<Port>,
    endpoints: Vec<Endpoint>,
    annotations: Vec<String>,
    spec: Vec<String>,
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
    address: String,
    node: Option<String>,
    ready: bool,
    serving: bool,
    terminating: bool,
}

/// Starts a Service of type `LoadBalancer` in the namespace `default`.
pub fn service(name: &str) -> ServiceManifest {
    ServiceManifest {
        name: name.into(),
        vips: Vec::new(),
        ports: Vec::new(),
        endpoints: Vec::new(),
        annotations: Vec::new(),
        spec: Vec::new(),
    }
}

impl ServiceManifest {
    /// One more VIP.
    pub fn vip(mut self, address: &str) -> Self {
        self.vips.push(address.into());
        self
    }

    /// One more TCP port.
    pub fn tcp(self, port: u16, target: u16) -> Self {
        self.port(port, target, "TCP")
    }

    /// One more UDP port.
    pub fn udp(self, port: u16, target: u16) -> Self {
        self.port(port, target, "UDP")
    }

    fn port(mut self, port: u16, target: u16, protocol: &'static str) -> Self {
        let name = format!("{}-{port}", protocol.to_lowercase());
        self.ports.push(Port {
            name,
            number: port,
            target,
            protocol,
        });
        self
    }

    /// One more annotation.
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.annotations.push(format!("{key}: \"{value}\""));
        self
    }

    /// A line of `spec`, such as `externalTrafficPolicy: Local`.
    pub fn spec(mut self, line: &str) -> Self {
        self.spec.push(line.into());
        self
    }

    /// One more ready endpoint.
    pub fn endpoint(mut self, address: &str) -> Self {
        self.endpoints.push(Endpoint {
            address: address.into(),
            node: None,
            ready: true,
            serving: true,
            terminating: false,
        });
        self
    }

    /// The last endpoint lies on a node.
    pub fn on_node(mut self, node: &str) -> Self {
        self.endpoints
            .last_mut()
            .expect("an endpoint comes first")
            .node = Some(node.into());
        self
    }

    /// The last endpoint is terminating but serves on.
    pub fn draining(mut self) -> Self {
        let endpoint = self.endpoints.last_mut().expect("an endpoint comes first");
        (endpoint.ready, endpoint.terminating) = (false, true);
        self
    }

    /// The YAML: one Service and one EndpointSlice per family.
    pub fn yaml(&self) -> String {
        let mut out = String::new();
        let mut line = |text: String| writeln!(out, "{text}").expect("a string takes everything");
        line("apiVersion: v1\nkind: Service".into());
        line(format!(
            "metadata: {{name: {}, namespace: default, annotations: {{{}}}}}",
            self.name,
            self.annotations.join(", ")
        ));
        line("spec:\n  type: LoadBalancer\n  ipFamilyPolicy: PreferDualStack".into());
        let families: Vec<&str> = self.families().iter().map(|v6| family(*v6)).collect();
        line(format!("  ipFamilies: [{}]", families.join(", ")));
        for text in &self.spec {
            line(format!("  {text}"));
        }
        line("  ports:".into());
        for Port {
            name,
            number,
            target,
            protocol,
        } in &self.ports
        {
            line(format!(
                "  - {{name: {name}, port: {number}, targetPort: {target}, protocol: {protocol}}}"
            ));
        }
        line("status:\n  loadBalancer:\n    ingress:".into());
        for vip in &self.vips {
            line(format!("    - ip: \"{vip}\""));
        }
        for v6 in [false, true] {
            self.slice(v6, &mut line);
        }
        out
    }

    fn families(&self) -> Vec<bool> {
        let mut families: Vec<bool> = self.vips.iter().map(|vip| is_v6(vip)).collect();
        families.dedup();
        families
    }

    fn slice(&self, v6: bool, line: &mut impl FnMut(String)) {
        if !self.families().contains(&v6) {
            return;
        }
        line("---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:".into());
        let family = family(v6);
        line(format!(
            "  name: {}-{}\n  namespace: default",
            self.name,
            family.to_lowercase()
        ));
        line(format!(
            "  labels: {{kubernetes.io/service-name: {}}}",
            self.name
        ));
        line(format!("addressType: {family}\nports:"));
        for Port {
            name,
            target,
            protocol,
            ..
        } in &self.ports
        {
            line(format!(
                "- {{name: {name}, port: {target}, protocol: {protocol}}}"
            ));
        }
        let mut any = false;
        for endpoint in self
            .endpoints
            .iter()
            .filter(|endpoint| is_v6(&endpoint.address) == v6)
        {
            if !any {
                line("endpoints:".into());
            }
            any = true;
            let Endpoint {
                address,
                node,
                ready,
                serving,
                terminating,
            } = endpoint;
            line(format!("- addresses: [\"{address}\"]"));
            line(format!(
                "  conditions: {{ready: {ready}, serving: {serving}, terminating: {terminating}}}"
            ));
            if let Some(node) = node {
                line(format!("  nodeName: {node}"));
            }
        }
        if !any {
            line("endpoints: []".into());
        }
    }
}

fn is_v6(address: &str) -> bool {
    address
        .parse::<IpAddr>()
        .is_ok_and(|address| address.is_ipv6())
}

const fn family(v6: bool) -> &'static str {
    if v6 { "IPv6" } else { "IPv4" }
}
