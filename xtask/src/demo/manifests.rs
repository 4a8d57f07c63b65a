//! The Kubernetes manifests of the demonstration.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::{network, server};

/// The services of the demonstration, as they are at its start.
pub(super) fn services() -> [Service; 4] {
    let service = |name, number, protocol, port, backends: &[usize]| Service {
        name,
        number,
        protocol,
        port,
        target: if protocol == "TCP" {
            server::HTTP
        } else {
            server::ECHO
        },
        backends: backends.to_vec(),
        draining: Vec::new(),
    };
    [
        service("web", 10, "TCP", 80, &[1, 2]),
        service("echo", 11, "UDP", 53, &[1, 2]),
        service("legacy", 12, "TCP", 80, &[2]),
        service("admin", 13, "TCP", 8000, &[3]),
    ]
}

/// Addresses at which the services are offered, IPv4 and IPv6.
pub(super) fn vips(service: &Service) -> [String; 2] {
    [
        format!("192.0.2.{}", service.number),
        format!("2001:db8:f::{}", service.number),
    ]
}

/// A Service and its EndpointSlices, as far as they differ here.
#[derive(Clone, Debug)]
pub(super) struct Service {
    /// The object's name.
    pub(super) name: &'static str,
    /// Last part of its addresses.
    pub(super) number: u8,
    /// `TCP` or `UDP`.
    pub(super) protocol: &'static str,
    /// The port clients use.
    pub(super) port: u16,
    /// The port backends listen on.
    pub(super) target: u16,
    /// Numbers of its backends, counted from 1.
    pub(super) backends: Vec<usize>,
    /// Those of them that are going away: they serve what they have, and get nothing new.
    pub(super) draining: Vec<usize>,
}

impl Service {
    /// Writes the manifest into `directory`, at once: a reader never sees a part of it.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(super) fn write(&self, directory: &Path) -> Result<()> {
        let path = directory.join(format!("{}.yaml", self.name));
        let draft = directory.join(format!(".{}.draft", self.name));
        fs::write(&draft, self.manifest())
            .and_then(|()| fs::rename(&draft, &path))
            .with_context(|| format!("write {}", path.display()))
    }

    /// Deletes the manifest.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub(super) fn delete(&self, directory: &Path) -> Result<()> {
        let path = directory.join(format!("{}.yaml", self.name));
        fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))
    }

    fn manifest(&self) -> String {
        let Self {
            name,
            protocol,
            port,
            target,
            ..
        } = self;
        let [v4, v6] = vips(self);
        let mut text = format!(
            "apiVersion: v1
kind: Service
metadata:
  name: {name}
  namespace: demo
spec:
  type: LoadBalancer
  ipFamilyPolicy: RequireDualStack
  ipFamilies: [IPv4, IPv6]
  ports:
  - name: main
    protocol: {protocol}
    port: {port}
    targetPort: {target}
status:
  loadBalancer:
    ingress:
    - ip: {v4}
    - ip: {v6}
"
        );
        for (family, index) in [("IPv4", 0), ("IPv6", 1)] {
            text += &self.endpoint_slice(family, index);
        }
        text
    }

    fn endpoint_slice(&self, family: &str, index: usize) -> String {
        let Self {
            name,
            protocol,
            target,
            ..
        } = self;
        let endpoints: String = self
            .backends
            .iter()
            .map(|number| self.endpoint(*number, index))
            .collect();
        format!(
            "---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: {name}-{}
  namespace: demo
  labels:
    kubernetes.io/service-name: {name}
addressType: {family}
ports:
- name: main
  protocol: {protocol}
  port: {target}
endpoints:
{endpoints}",
            family.to_lowercase()
        )
    }

    fn endpoint(&self, number: usize, index: usize) -> String {
        let addresses = network::backend(number);
        let address = addresses.get(index).map_or("", String::as_str);
        let draining = self.draining.contains(&number);
        let ready = !draining;
        format!(
            "- addresses: [\"{address}\"]
  nodeName: b{number}
  conditions: {{ready: {ready}, serving: true, terminating: {draining}}}
"
        )
    }
}
