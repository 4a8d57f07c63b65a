//! The Kubernetes API as a source of Services.
//!
//! ```text
//! list, watch ─▶ Received ─convert─▶ Table ─┐
//!   Services, EndpointSlices, Node,         ├─ gather ─▶ SourceState
//!   ServiceCIDRs                            ┘
//! ```
//! Objects are converted as they arrive: nothing of the rest is kept. A list is built aside and takes
//! the old one's place when it is complete. While the API cannot be followed, whatever the reason,
//! what was known stays.

use std::{fmt::Debug, path::PathBuf, sync::Arc, time::Duration};

use futures::{Stream, StreamExt as _, stream::BoxStream};
use k8s_openapi::api::{
    core::v1::{Node, Service},
    discovery::v1::EndpointSlice,
    networking::v1::ServiceCIDR,
};
use kube::{
    Api, Client, Config, Resource,
    client::ClientBuilder,
    config::{KubeConfigOptions, Kubeconfig},
    runtime::watcher::{self, Event, watcher},
};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};
use tracing::{debug, info, warn};

pub use self::contact::{Contact, Contacted};
use self::{
    answers::AnswersLayer,
    objects::{Objects, Seen},
    outage::{Failure, Outages},
    pace::paced,
    received::{Kind, Received},
};
use crate::{
    config::Kubernetes,
    source::{Scope, SourceState},
};

mod answers;
mod contact;
mod objects;
mod outage;
mod pace;
mod received;
mod table;

/// How long events are gathered after others were told of: the first of a burst never waits.
const BURST: Duration = Duration::from_millis(2);
/// Longest time to connect.
const CONNECT: Duration = Duration::from_secs(5);
/// How long a watch lasts, in seconds, before it is asked for anew from where it stood.
const WATCH: u32 = 60;
/// Longest silence of a connection in use: the server ends a watch earlier. A server that is cut off without a
/// word is noticed by nothing else.
const SILENCE: Duration = Duration::from_secs(65);
/// Most objects in an answer.
const PAGE: u32 = 500;
/// Labels of Services that others balance, or nobody.
const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
const HEADLESS: &str = "service.kubernetes.io/headless";

/// Why there is no way to the API server.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The kubeconfig cannot be used.
    #[error("kubernetes.kubeconfig: read {}", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: kube::config::KubeconfigError,
    },
    /// We run in no pod.
    #[error("kubernetes: find the API server; outside a pod a kubeconfig must lead to it")]
    InCluster(#[source] kube::config::InClusterError),
    /// Certificates, keys or addresses are of no use.
    #[error("kubernetes: set up the connection")]
    Client(#[source] Box<kube::Error>),
}

/// A way to a cluster's API server.
pub struct Cluster {
    client: Client,
    answers: mpsc::UnboundedReceiver<What>,
    contact: Contact,
}

impl Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").finish_non_exhaustive()
    }
}

impl Cluster {
    /// Reads how to reach the API server. It need not be there yet.
    ///
    /// # Errors
    ///
    /// If the files that say so cannot be read, or say nothing of use.
    pub async fn connect(kubernetes: &Kubernetes) -> Result<Self, ConnectError> {
        let mut config = match &kubernetes.kubeconfig {
            None => Config::incluster().map_err(ConnectError::InCluster)?,
            Some(path) => {
                let failed = |source| ConnectError::Kubeconfig {
                    path: path.clone(),
                    source,
                };
                let kubeconfig = Kubeconfig::read_from(path).map_err(failed)?;
                let options = KubeConfigOptions {
                    context: kubernetes.context.clone(),
                    ..KubeConfigOptions::default()
                };
                let config = Config::from_custom_kubeconfig(kubeconfig, &options);
                config.await.map_err(failed)?
            }
        };
        config.connect_timeout = Some(CONNECT);
        config.read_timeout = Some(SILENCE);
        config.reset_reader_on_write = true;
        // We wait ourselves, and longer.
        config.default_retry = false;
        info!(server = %config.cluster_url, "Kubernetes API");
        let (sender, answers) = mpsc::unbounded_channel();
        let builder = ClientBuilder::try_from(config)
            .map_err(|error| ConnectError::Client(Box::new(error)))?;
        let client = builder.with_layer(&AnswersLayer(sender)).build();
        Ok(Self {
            client,
            answers,
            contact: Contact::default(),
        })
    }

    /// For others who talk to the same server.
    pub(crate) fn client(&self) -> Client {
        self.client.clone()
    }

    /// Whether the server is reached.
    pub fn contact(&self) -> Contact {
        self.contact.clone()
    }

    /// Follows what is in `scope` until every receiver is gone.
    pub fn follow(self, scope: Scope) -> watch::Receiver<Arc<SourceState>> {
        let (sender, receiver) = watch::channel(Arc::default());
        tokio::spawn(follow(self, scope, sender));
        receiver
    }
}

/// What we follow.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum What {
    Services,
    Slices,
    Node,
    Networks,
}

impl What {
    const ALL: [Self; 4] = [Self::Services, Self::Slices, Self::Node, Self::Networks];

    const fn resource(self) -> &'static str {
        match self {
            Self::Services => "services",
            Self::Slices => "endpointslices.discovery.k8s.io",
            Self::Node => "nodes",
            Self::Networks => "servicecidrs.networking.k8s.io",
        }
    }

    const fn path(self) -> &'static str {
        match self {
            Self::Services => "/api/v1/services",
            Self::Slices => "/apis/discovery.k8s.io/v1/endpointslices",
            Self::Node => "/api/v1/nodes",
            Self::Networks => "/apis/networking.k8s.io/v1/servicecidrs",
        }
    }
}

type Events = BoxStream<'static, (What, Result<Seen, Failure>)>;

/// The four watches as one stream.
fn events(
    client: &Client,
    scope: &Scope,
) -> impl Stream<Item = (What, Result<Seen, Failure>)> + use<> {
    let ours = match &scope.service_proxy_name {
        None => format!("!{PROXY_NAME},!{HEADLESS}"),
        Some(name) => format!("{PROXY_NAME}={name},!{HEADLESS}"),
    };
    let all = watcher::Config::default().page_size(PAGE).timeout(WATCH);
    let labelled = all.clone().labels(&ours);
    let named = format!("metadata.name={}", scope.node_name);
    let streams: [Events; 4] = [
        stream::<Service>(client, labelled.clone(), What::Services, Seen::Service),
        stream::<EndpointSlice>(client, labelled, What::Slices, Seen::Slice),
        stream::<Node>(client, all.clone().fields(&named), What::Node, Seen::Node),
        stream::<ServiceCIDR>(client, all, What::Networks, Seen::Networks),
    ];
    futures::stream::select_all(streams)
}

fn stream<K>(
    client: &Client,
    config: watcher::Config,
    what: What,
    seen: fn(Event<Received<K>>) -> Seen,
) -> Events
where
    K: Kind + Resource<DynamicType = ()> + Debug + Send + Sync + 'static,
{
    let api: Api<Received<K>> = Api::all(client.clone());
    let start = move || watcher(api.clone(), config.clone()).boxed();
    paced(start, what == What::Networks)
        .map(move |item| (what, item.map(seen)))
        .boxed()
}

async fn follow(cluster: Cluster, scope: Scope, sender: watch::Sender<Arc<SourceState>>) {
    let Cluster {
        client,
        mut answers,
        contact,
    } = cluster;
    let mut events = events(&client, &scope);
    let node_name = scope.node_name.clone();
    let mut follower = Follower {
        objects: Objects::new(scope),
        outages: Outages::default(),
        contact,
        node_name,
        missed: false,
    };
    let mut due: Option<Instant> = None;
    let mut quiet_from = Instant::now();
    loop {
        let publish = async {
            match due {
                // The timer's next tick may be a millisecond away.
                Some(at) if at <= Instant::now() => {}
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = sender.closed() => return,
            () = publish => {
                due = None;
                follower.publish(&sender);
                quiet_from = Instant::now() + BURST;
            }
            Some(what) = answers.recv() => follower.answered(what),
            Some((what, item)) = events.next() => {
                let changed = match item {
                    Ok(seen) => {
                        follower.contact.heard();
                        follower.objects.apply(seen)
                    }
                    Err(failure) => follower.failed(what, &failure),
                };
                if changed {
                    due.get_or_insert_with(|| quiet_from.max(Instant::now()));
                }
            }
        }
    }
}

struct Follower {
    objects: Objects,
    outages: Outages,
    contact: Contact,
    node_name: String,
    /// It was said that there is no Node of our name.
    missed: bool,
}

impl Follower {
    /// Tells of everything, once all of it is known.
    fn publish(&mut self, sender: &watch::Sender<Arc<SourceState>>) {
        if self.objects.lacks_node() && !std::mem::replace(&mut self.missed, true) {
            warn!(
                node = self.node_name,
                "there is no Node of this name; waiting for it (nodeName, or variable NODE_NAME)"
            );
        }
        if !self.objects.is_complete() {
            return;
        }
        let state = self.objects.state();
        if !sender.borrow().complete {
            info!(
                services = state.snapshot.services.len(),
                slices = state.snapshot.slices.len(),
                service_networks = state.snapshot.service_networks.len(),
                "the Kubernetes API's lists are complete"
            );
        }
        sender.send_replace(Arc::new(state));
    }

    fn answered(&mut self, what: What) {
        if self.outages.answered(what) {
            self.contact.found();
            info!("the Kubernetes API is followed again");
        }
    }

    /// Says why, once. Returns whether anything that can be seen changed.
    fn failed(&mut self, what: What, failure: &Failure) -> bool {
        let cause = failure.explain(what);
        if failure.is_interruption() {
            debug!(?what, cause, "a watch broke off");
            return false;
        }
        if what == What::Networks && failure.is_refusal() {
            self.answered(what);
            let news = self.objects.without_networks();
            if news {
                warn!(
                    cause,
                    "going on without the cluster's service networks: packets to addresses there \
                     that no Service has are not recognized"
                );
            }
            return news;
        }
        self.contact.lost();
        if self.outages.failed(what, &cause) {
            let served = self.objects.is_complete();
            warn!(
                resource = what.resource(),
                cause, served, "the Kubernetes API cannot be followed; what is in the tables stays"
            );
        }
        false
    }
}
