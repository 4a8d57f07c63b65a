//! Opening what Services come from.

use tokio::sync::watch;

use super::{AgentError, worker::Source};
use crate::{
    config::Config,
    events,
    manifests::ManifestSource,
    source::{self, Named, Scope},
    watch::Cluster,
};

/// Every source of the configuration as one, and who tells the cluster of what is not served.
pub(super) async fn open(
    config: &Config,
) -> Result<(watch::Receiver<Source>, events::Sender), AgentError> {
    let scope = Scope {
        node_name: config.node_name.clone(),
        service_proxy_name: config.service_proxy_name.clone(),
    };
    let cluster = match &config.kubernetes {
        Some(kubernetes) => Some(Cluster::connect(kubernetes).await?),
        None => None,
    };
    // The cluster's objects come first: of duplicates its own are used.
    let client = cluster.as_ref().map(Cluster::client);
    let mut sources = Vec::new();
    if let Some(cluster) = cluster {
        sources.push(Named {
            name: "the Kubernetes API",
            state: cluster.follow(scope.clone()),
        });
    }
    if let Some(directory) = &config.manifests {
        sources.push(Named {
            name: "the manifests",
            state: ManifestSource::watch(directory, scope)?,
        });
    }
    let state = source::merge(sources);
    let events = match client.filter(|_| config.events) {
        Some(client) => events::start(client, &config.node_name, state.clone()),
        None => events::Sender::default(),
    };
    Ok((state, events))
}
