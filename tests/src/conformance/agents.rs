//! The agents of both nodes, fed with files that change during a scenario.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
};

use lb_common::{
    addr::{Addr4, Be16},
    names,
    service::{Frontend, FrontendKey4},
};
use serde_json::{Value, json};

use super::{
    cluster::{Cluster, PATIENCE, PODS, Side},
    objects::Service,
};
use crate::netns::{agent::Node, poll_until};

/// The agents of both nodes and the objects they are given.
#[derive(Debug)]
pub struct Agents<'c> {
    nodes: [Node<'c>; 2],
    objects: Mutex<Objects>,
}

#[derive(Debug, Default)]
struct Objects {
    /// By name: Services with their slices, and others.
    all: BTreeMap<String, Vec<Value>>,
    revision: u16,
}

impl<'c> Agents<'c> {
    /// Agents with the tier's configuration, not yet started.
    pub fn new(cluster: &'c Cluster) -> Self {
        let nodes = Side::BOTH.map(|side| {
            let pods: Vec<String> = PODS
                .iter()
                .map(|number| format!("pod-{}{number}", side.letter()))
                .collect();
            let mut node = Node::on(cluster.node(side), ["--interface", "eth0"]);
            for pod in pods {
                node = node.with("--pod-interface").with(&pod);
            }
            for v4 in [true, false] {
                node = node.with(&format!("--snat-address={}", side.snat_address(v4)));
            }
            node = node.named(side.name());
            node.configure(&configuration(side));
            node
        });
        let this = Self {
            nodes,
            objects: Mutex::default(),
        };
        this.begin();
        this
    }

    /// The objects there are before any Service.
    fn begin(&self) {
        self.objects().all.clear();
        for side in Side::BOTH {
            self.label(side, side.zone());
        }
        self.object(
            "networks",
            vec![json!({
                "apiVersion": "networking.k8s.io/v1",
                "kind": "ServiceCIDR",
                "metadata": {"name": "kubernetes"},
                "spec": {"cidrs": ["10.96.0.0/16", "2001:db8:96::/112"]},
            })],
        );
    }

    /// Removes every object of a scenario and waits.
    pub fn clear(&self) {
        self.begin();
        self.sync();
    }

    /// Adds lines to the configuration of a node's agents to come.
    pub fn configure(&self, side: Side, more: &str) {
        self.node(side).configure(&(configuration(side) + more));
    }

    /// Starts both agents with the objects there are.
    #[must_use]
    pub fn start(mut self) -> Self {
        let text = self.text();
        for node in &mut self.nodes {
            node.manifest("all.json", &text);
            node.spawn();
        }
        for node in &mut self.nodes {
            node.wait_attached();
        }
        self.sync();
        self
    }

    /// A node's agent.
    pub fn node(&self, side: Side) -> &Node<'c> {
        let [a, b] = &self.nodes;
        match side {
            Side::A => a,
            Side::B => b,
        }
    }

    /// A node's agent, to start or stop it.
    pub fn node_mut(&mut self, side: Side) -> &mut Node<'c> {
        self.nodes
            .get_mut(side.index())
            .unwrap_or_else(|| unreachable!("two nodes"))
    }

    fn objects(&self) -> MutexGuard<'_, Objects> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes any objects under a name; they take effect with [`Self::sync`].
    pub fn object(&self, name: &str, objects: Vec<Value>) {
        self.objects().all.insert(name.to_owned(), objects);
    }

    /// Gives a node's object a zone; none if it is empty.
    pub fn label(&self, side: Side, zone: &str) {
        let number = side.number();
        let labels = if zone.is_empty() {
            json!({})
        } else {
            json!({"topology.kubernetes.io/zone": zone})
        };
        let networks = [
            format!("10.244.{number}.0/24"),
            format!("2001:db8:f4:{number}::/64"),
        ];
        let node = json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": side.name(), "labels": labels},
            "spec": {"podCIDRs": networks},
            "status": {"addresses": [{"type": "InternalIP", "address": side.address(true)}]},
        });
        self.object(side.name(), vec![node]);
    }

    /// Writes Services and waits until both nodes serve exactly what they say.
    pub fn put(&self, services: &[&Service]) {
        for service in services {
            self.object(&service.name, service.objects());
        }
        self.sync();
    }

    /// Removes Services and waits.
    pub fn delete(&self, names: &[&str]) {
        for name in names {
            let gone = self.objects().all.remove(*name);
            assert!(gone.is_some(), "there is no {name}");
        }
        self.sync();
    }

    /// Waits until both nodes serve what the objects say.
    ///
    /// A Service of the rig's own gets another port twice: an agent applies one plan after the other,
    /// so when the second port is there the first plan is complete.
    pub fn sync(&self) {
        for _ in 0..2 {
            self.objects().revision += 1;
            let text = self.text();
            for node in &self.nodes {
                node.manifest("all.json", &text);
            }
            let port = self.objects().revision;
            for node in &self.nodes {
                poll_until("the objects to be in the tables", PATIENCE, || {
                    knows(node, port).then_some(())
                });
            }
        }
    }

    fn text(&self) -> String {
        let objects = self.objects();
        let mut lines: Vec<String> = objects
            .all
            .values()
            .flatten()
            .map(Value::to_string)
            .collect();
        let sync = json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "sync", "namespace": "rig"},
            "spec": {
                "type": "LoadBalancer",
                "ipFamilies": ["IPv4"],
                "ports": [{"port": objects.revision.max(1), "protocol": "UDP"}],
            },
            "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.254"}]}},
        });
        lines.push(sync.to_string());
        lines.join("\n")
    }

    /// The directory an agent reads.
    pub fn directory(&self, side: Side) -> PathBuf {
        self.node(side).manifests()
    }
}

fn knows(node: &Node<'_>, port: u16) -> bool {
    let key = FrontendKey4 {
        address: Addr4::from(std::net::Ipv4Addr::new(192, 0, 2, 254)),
        port: Be16::new(port),
        protocol: 17,
    };
    let frontends = node.map(names::FRONTENDS_V4);
    frontends.is_some_and(|map| matches!(map.lookup::<_, Frontend>(&key), Ok(Some(_))))
}

/// The agents' file: small tables, for several agents share the machine; yet closed flows rest for a
/// minute, and thousands are made in one.
fn configuration(side: Side) -> String {
    let (v4, v6) = (side.address(true), side.address(false));
    format!(
        "tables: {{flowsV4: 65536, flowsV6: 65536, embryonicV4: 16384, embryonicV6: 16384}}
podNetworks: [10.244.0.0/16, 2001:db8:f4::/48]
externalIPs: true
healthCheckNodePorts: on
healthAddress: [\"{v4}:10356\", \"[{v6}]:10356\"]
metricsAddress: \"{v4}:10350\"
"
    )
}
