//! Opening what Services come from.

use tokio::sync::watch;

use super::{AgentError, worker::Source};
use crate::{
    config::Config,
    events,
    manifests::ManifestSource,
    source::{self, Named, Scope},
    watch::{Cluster, Contact},
};

/// What sources there are, as one, and what belongs to them.
pub(super) struct Sources {
    /// What they deliver.
    pub(super) state: watch::Receiver<Source>,
    /// Tells the cluster of what is not served.
    pub(super) events: events::Sender,
    /// Whether the cluster is reached, if it is a source.
    pub(super) contact: Option<Contact>,
}

/// Opens every source of the configuration.
pub(super) async fn open(config: &Config) -> Result<Sources, AgentError> {
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
    let contact = cluster.as_ref().map(Cluster::contact);
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
    Ok(Sources {
        state,
        events,
        contact,
    })
}
