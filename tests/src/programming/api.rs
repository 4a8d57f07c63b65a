//! Objects of a large cluster, written to its API server.

use std::{
    net::Ipv4Addr,
    path::Path,
    pin::pin,
    sync::mpsc::{Receiver, Sender, channel},
    time::Instant,
};

use anyhow::{Context as _, Result, bail};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::api::{
    core::v1::{Namespace, Node, Service},
    discovery::v1::EndpointSlice,
};
use kube::{
    Client,
    api::{Patch, PatchParams, PostParams},
    runtime::watcher,
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use super::{PATIENCE, agent::NODE, plane::reach};
use crate::netns::now;

/// Requests under way at a time.
const AT_A_TIME: usize = 32;
const NAMESPACES: u32 = 50;

/// A Service's slice was seen to change.
pub(super) type Event = (u32, Instant);

/// A way to the API server.
pub(super) struct Api {
    runtime: Runtime,
    client: Client,
}

impl Api {
    /// Waits for the server.
    pub(super) fn connect(kubeconfig: &Path) -> Result<Self> {
        let (runtime, client) = reach(kubeconfig)?;
        Ok(Self { runtime, client })
    }

    /// Writes everything.
    pub(super) fn fill(&self, services: u32, endpoints: u32) -> Result<()> {
        let namespaces = (0..NAMESPACES.min(services)).map(namespace);
        self.create::<Namespace>(namespaces.map(|name| {
            let object =
                json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
            (None, object)
        }))?;
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}});
        self.create::<Node>([(None, node)].into_iter())?;
        self.create::<Service>((0..services).map(|n| (Some(namespace(n)), service(n))))?;
        self.create::<EndpointSlice>(
            (0..services).map(|n| (Some(namespace(n)), slice(n, addresses(n, endpoints)))),
        )
    }

    fn create<K>(&self, objects: impl Iterator<Item = (Option<String>, Value)>) -> Result<()>
    where
        K: DeserializeOwned + Clone + std::fmt::Debug + kube::Resource<DynamicType = ()>,
    {
        let requests = stream::iter(objects)
            .map(|(namespace, object)| async move {
                let path = match &namespace {
                    None => K::url_path(&(), None),
                    Some(namespace) => K::url_path(&(), Some(namespace)),
                };
                let parameters = PostParams::default();
                let body = serde_json::to_vec(&object).context("format an object")?;
                let request = kube::core::Request::new(path).create(&parameters, body)?;
                self.client.request::<Value>(request).await?;
                anyhow::Ok(())
            })
            .buffer_unordered(AT_A_TIME)
            .try_collect::<()>();
        self.runtime
            .block_on(requests)
            .with_context(|| format!("create {}", K::kind(&())))
    }

    /// Puts another endpoint in the place of a Service's last one. Returns when it began to.
    pub(super) fn replace_endpoint(&self, n: u32, endpoints: u32, generation: u32) -> Instant {
        let mut addresses = addresses(n, endpoints);
        addresses.pop();
        addresses.push(Ipv4Addr::from(0x0ac0_0001 + generation));
        let slice = slice(n, addresses);
        let patch = json!({"endpoints": slice.get("endpoints")});
        let api: kube::Api<EndpointSlice> =
            kube::Api::namespaced(self.client.clone(), &namespace(n));
        let name = format!("{}-abcde", name(n));
        let begun = now();
        self.runtime.spawn(async move {
            let patched = api
                .patch(&name, &PatchParams::default(), &Patch::Merge(patch))
                .await;
            if let Err(error) = patched {
                super::say(&format!("change EndpointSlice {name}: {error}"));
            }
        });
        begun
    }

    /// Sees the slices change from now on.
    pub(super) fn watch(&self) -> Result<Receiver<Event>> {
        let (sender, receiver) = channel();
        let (ready, is_ready) = channel();
        let api: kube::Api<EndpointSlice> = kube::Api::all(self.client.clone());
        self.runtime.spawn(follow(api, sender, ready));
        is_ready
            .recv_timeout(PATIENCE)
            .context("wait for the watch")?;
        Ok(receiver)
    }
}

async fn follow(api: kube::Api<EndpointSlice>, sender: Sender<Event>, ready: Sender<()>) {
    let mut events = pin!(watcher(api, watcher::Config::default()));
    while let Some(event) = events.next().await {
        match event {
            Ok(watcher::Event::InitDone) => drop(ready.send(())),
            Ok(watcher::Event::Apply(slice)) => {
                let seen = now();
                let name = slice.metadata.name.unwrap_or_default();
                let number = name.split('-').nth(1).and_then(|n| n.parse().ok());
                if let Some(number) = number
                    && sender.send((number, seen)).is_err()
                {
                    return;
                }
            }
            Ok(_) => {}
            Err(error) => super::say(&format!("watch: {error}")),
        }
    }
}

/// When the Service's slice was seen to change.
pub(super) fn wait_for(events: &Receiver<Event>, service: u32) -> Result<Instant> {
    loop {
        match events.recv_timeout(PATIENCE) {
            Ok((number, seen)) if number == service => return Ok(seen),
            Ok(_) => {}
            Err(error) => bail!("wait for the event of Service {service}: {error}"),
        }
    }
}

fn namespace(n: u32) -> String {
    format!("namespace-{}", n % NAMESPACES)
}

fn name(n: u32) -> String {
    format!("service-{n}")
}

/// The name of the service port, as the tables have it.
pub(super) fn port_name(n: u32) -> String {
    format!("{}/{}:http/TCP/IPv4", namespace(n), name(n))
}

fn service(n: u32) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name(n), "namespace": namespace(n)},
        "spec": {"ports": [{"name": "http", "port": 80, "targetPort": 8080}]},
    })
}

fn addresses(n: u32, endpoints: u32) -> Vec<Ipv4Addr> {
    let first = 0x0a80_0001 + n * endpoints;
    (first..first + endpoints).map(Ipv4Addr::from).collect()
}

fn slice(n: u32, addresses: Vec<Ipv4Addr>) -> Value {
    let endpoints: Vec<_> = addresses
        .into_iter()
        .map(|address| {
            json!({
                "addresses": [address],
                "conditions": {"ready": true, "serving": true, "terminating": false},
                "nodeName": format!("node-{}", u32::from(address) % 100),
            })
        })
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": format!("{}-abcde", name(n)),
            "namespace": namespace(n),
            "labels": {"kubernetes.io/service-name": name(n)},
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": endpoints,
    })
}
