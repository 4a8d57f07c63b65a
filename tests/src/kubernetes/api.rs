//! Many requests to the API server in a short time; kubectl is made for few.

use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::{
    Api, Client, Config,
    api::{Patch, PatchParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::Value;

use super::cluster::Cluster;
use crate::netns::now;

/// Requests under way at a time.
const AT_A_TIME: usize = 32;

/// Merges each patch into the EndpointSlice it is for, about in this order; returns how long it
/// took. Sent from the control plane's network.
pub fn patch_slices(cluster: &Cluster, namespace: &str, patches: &[(String, Value)]) -> Duration {
    let kubeconfig = Kubeconfig::read_from(&cluster.kubeconfig).expect("the admin's kubeconfig");
    cluster.place("control").inside(|| {
        // Its sockets must be made by this thread, which alone is in that network.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let start = now();
        let all = async {
            let options = KubeConfigOptions::default();
            let config = Config::from_custom_kubeconfig(kubeconfig, &options).await;
            let client = Client::try_from(config.expect("a configuration")).expect("a client");
            let slices: Api<EndpointSlice> = Api::namespaced(client, namespace);
            let parameters = PatchParams::default();
            stream::iter(patches)
                .map(|(name, patch)| {
                    let (slices, parameters) = (&slices, &parameters);
                    async move {
                        let patch = Patch::Merge(patch);
                        slices.patch(name, parameters, &patch).await.map(drop)
                    }
                })
                .buffer_unordered(AT_A_TIME)
                .try_collect::<()>()
                .await
        };
        if let Err(error) = runtime.block_on(all) {
            panic!("patch {} slices: {error}", patches.len());
        }
        start.elapsed()
    })
}
