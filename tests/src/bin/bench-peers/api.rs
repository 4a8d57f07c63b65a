//! The objects, written to a real API server.

use std::{cell::RefCell, path::Path, time::Instant};

use anyhow::{Context as _, Result};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::api::{
    core::v1::{Namespace, Node, Service},
    discovery::v1::EndpointSlice,
};
use kube::{
    Client,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use lb_tests::{netns::now, programming::plane::reach};
use serde_json::{Value, json};
use tokio::{runtime::Runtime, task::JoinHandle};

use crate::{
    services::{self, Change, NAMESPACE},
    world,
};

/// Requests under way at a time.
const AT_A_TIME: usize = 32;
/// The node every peer serves.
pub(crate) const NODE: &str = "edge-1";

/// A way to the API server.
pub(crate) struct Api {
    runtime: Runtime,
    client: Client,
    under_way: RefCell<Vec<JoinHandle<Result<()>>>>,
}

impl Api {
    /// Waits for the server and writes what all Services need.
    pub(crate) fn connect(kubeconfig: &Path) -> Result<Self> {
        let (runtime, client) = reach(kubeconfig)?;
        let this = Self {
            runtime,
            client,
            under_way: RefCell::default(),
        };
        this.prepare()?;
        Ok(this)
    }

    fn prepare(&self) -> Result<()> {
        let namespace = json!({
            "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE},
        });
        let node = json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE},
            "status": {"addresses": [
                {"type": "InternalIP", "address": world::INSIDE},
                {"type": "Hostname", "address": NODE},
            ]},
        });
        self.runtime.block_on(async {
            create::<Namespace>(&self.client, false, &namespace).await?;
            create::<Node>(&self.client, false, &node).await?;
            add(self.client.clone(), services::datagram_objects()).await
        })
    }

    /// Writes the Services of these numbers, with all endpoints.
    pub(crate) fn fill(&self, numbers: std::ops::Range<u32>) -> Result<()> {
        let requests = stream::iter(numbers)
            .map(|number| add(self.client.clone(), services::objects(number)))
            .buffer_unordered(AT_A_TIME)
            .try_collect::<()>();
        self.runtime.block_on(requests).context("write Services")
    }

    /// Begins to write a change; when it began to. [`Self::settle`] waits for it.
    pub(crate) fn begin(&self, change: Change) -> Instant {
        let client = self.client.clone();
        let begun = now();
        let task = match change {
            Change::Endpoint(number, address) => self.runtime.spawn(async move {
                let patch = json!({"endpoints": services::endpoints_value(&[address])});
                let api: kube::Api<EndpointSlice> = kube::Api::namespaced(client, NAMESPACE);
                let name = services::slice_name(number);
                api.patch(&name, &PatchParams::default(), &Patch::Merge(patch))
                    .await?;
                Ok(())
            }),
            Change::Add(number) => self.runtime.spawn(add(client, services::objects(number))),
            Change::Remove(number) => self.runtime.spawn(async move {
                let slices: kube::Api<EndpointSlice> =
                    kube::Api::namespaced(client.clone(), NAMESPACE);
                let services: kube::Api<Service> = kube::Api::namespaced(client, NAMESPACE);
                let parameters = DeleteParams::default();
                services
                    .delete(&services::name(number), &parameters)
                    .await?;
                slices
                    .delete(&services::slice_name(number), &parameters)
                    .await?;
                Ok(())
            }),
        };
        self.under_way.borrow_mut().push(task);
        begun
    }

    /// Waits until everything begun was written.
    pub(crate) fn settle(&self) -> Result<()> {
        for task in self.under_way.take() {
            self.runtime
                .block_on(task)
                .context("a request panicked")?
                .context("write a change")?;
        }
        Ok(())
    }
}

/// Writes a Service and its slice, both at once.
async fn add(client: Client, [service, slice]: [Value; 2]) -> Result<()> {
    let service = create::<Service>(&client, true, &service);
    let slice = create::<EndpointSlice>(&client, true, &slice);
    futures::try_join!(service, slice)?;
    Ok(())
}

async fn create<K>(client: &Client, namespaced: bool, object: &Value) -> Result<()>
where
    K: kube::Resource<DynamicType = ()>,
{
    let path = K::url_path(&(), namespaced.then_some(NAMESPACE));
    let body = serde_json::to_vec(object).context("format an object")?;
    let request = kube::core::Request::new(path).create(&PostParams::default(), body)?;
    client
        .request::<Value>(request)
        .await
        .with_context(|| format!("create a {}", K::kind(&())))?;
    Ok(())
}
