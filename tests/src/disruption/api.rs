//! An API server that lists and watches, and can fail: what the agent asks of one, and nothing more.
//!
//! Objects live in memory; a watch replays the log of changes from the version it names. An outage takes
//! every connection away, or answers each request by an error; afterwards the log may be gone, as after a
//! restart of a real server, so that watches are refused as expired and lists follow.

use std::{
    collections::BTreeMap,
    future::ready,
    net::TcpListener,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::{RawQuery, State},
    http::StatusCode,
    response::{IntoResponse as _, Response},
    routing::get,
};
use futures::stream;
use serde_json::{Value, json};
use tokio::{runtime::Runtime, sync::watch};

use crate::netns::{Namespace, poll_until};

/// Where it listens.
const ADDRESS: &str = "127.0.0.1:6443";

/// Longest time for connections to be closed.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is listed and watched.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Kind {
    /// `v1/Service`.
    Service,
    /// `discovery.k8s.io/v1/EndpointSlice`.
    Slice,
    /// `v1/Node`.
    Node,
    /// `networking.k8s.io/v1/ServiceCIDR`.
    Network,
}

/// How an outage looks to the agent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Outage {
    /// Nobody listens.
    Gone,
    /// Every request is answered by 503.
    Failing,
}

/// The server. It stops when dropped.
#[derive(Debug)]
pub struct Api<'s> {
    namespace: &'s Namespace,
    objects: Arc<Objects>,
    /// Runs while it listens.
    runtime: Option<Runtime>,
}

#[derive(Debug)]
struct Objects {
    inner: Mutex<Inner>,
    /// The newest version.
    newest: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Inner {
    version: u64,
    /// Watches from before this version are refused.
    forgotten: u64,
    failing: bool,
    objects: BTreeMap<(Kind, String), Value>,
    log: Vec<Change>,
}

#[derive(Clone, Debug)]
struct Change {
    version: u64,
    kind: Kind,
    line: Arc<str>,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Service, Self::Slice, Self::Node, Self::Network];

    const fn names(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::Service => ("/api/v1/services", "v1", "ServiceList"),
            Self::Node => ("/api/v1/nodes", "v1", "NodeList"),
            Self::Slice => (
                "/apis/discovery.k8s.io/v1/endpointslices",
                "discovery.k8s.io/v1",
                "EndpointSliceList",
            ),
            Self::Network => (
                "/apis/networking.k8s.io/v1/servicecidrs",
                "networking.k8s.io/v1",
                "ServiceCIDRList",
            ),
        }
    }
}

impl<'s> Api<'s> {
    /// Serves inside a namespace, on its loopback device.
    pub fn start(namespace: &'s Namespace) -> Self {
        let (newest, _) = watch::channel(0);
        let mut this = Self {
            namespace,
            objects: Arc::new(Objects {
                inner: Mutex::default(),
                newest,
            }),
            runtime: None,
        };
        this.listen();
        this
    }

    /// Writes the file that leads the agent here.
    pub fn kubeconfig(&self, directory: &Path) -> PathBuf {
        let path = directory.join("kubeconfig");
        let text = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "gate",
            "clusters": [{"name": "gate", "cluster": {"server": format!("http://{ADDRESS}")}}],
            "users": [{"name": "gate", "user": {}}],
            "contexts": [{"name": "gate", "context": {"cluster": "gate", "user": "gate"}}],
        });
        std::fs::write(&path, text.to_string()).expect("a temporary file");
        path
    }

    /// Adds or replaces an object of a namespace's name.
    pub fn put(&self, kind: Kind, name: &str, object: Value) {
        self.objects.change(kind, name, Some(object));
    }

    /// Removes an object, if it is there.
    pub fn remove(&self, kind: Kind, name: &str) {
        self.objects.change(kind, name, None);
    }

    /// Begins an outage.
    pub fn fail(&mut self, how: Outage) {
        // Every connection goes with the runtime.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(PATIENCE);
        }
        if how == Outage::Failing {
            self.objects.lock().failing = true;
            self.listen();
        }
    }

    /// Ends an outage; `forget`: the log of changes is lost.
    pub fn recover(&mut self, forget: bool) {
        let mut inner = self.objects.lock();
        inner.failing = false;
        if forget {
            inner.forgotten = inner.version;
            inner.log.clear();
        }
        drop(inner);
        if self.runtime.is_none() {
            self.listen();
        }
    }

    fn listen(&mut self) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        // A program that another thread starts just now holds our closed sockets too, until it runs.
        let bind = || self.namespace.inside(|| TcpListener::bind(ADDRESS)).ok();
        let listener = poll_until("the API server's port to be free", PATIENCE, bind);
        listener.set_nonblocking(true).expect("a socket");
        let routes = Kind::ALL.into_iter().fold(Router::new(), |router, kind| {
            let answer = move |State(objects), RawQuery(query): RawQuery| {
                ready(answer(kind, &objects, &query.unwrap_or_default()))
            };
            router.route(kind.names().0, get(answer))
        });
        let routes = routes.with_state(Arc::clone(&self.objects));
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).expect("a runtime");
            axum::serve(listener, routes).await
        });
        self.runtime = Some(runtime);
    }
}

impl Drop for Api<'_> {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Objects {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, kind: Kind, name: &str, object: Option<Value>) {
        let mut inner = self.lock();
        inner.version += 1;
        let version = inner.version;
        let key = (kind, name.to_owned());
        let (what, mut object) = match object {
            Some(object) if inner.objects.contains_key(&key) => ("MODIFIED", object),
            Some(object) => ("ADDED", object),
            None => match inner.objects.remove(&key) {
                Some(object) => ("DELETED", object),
                None => return,
            },
        };
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.insert("resourceVersion".into(), version.to_string().into());
        }
        let line = format!("{}\n", json!({"type": what, "object": object}));
        if what != "DELETED" {
            inner.objects.insert(key, object);
        }
        inner.log.push(Change {
            version,
            kind,
            line: line.into(),
        });
        drop(inner);
        self.newest.send_replace(version);
    }

    fn list(&self, kind: Kind) -> Value {
        let inner = self.lock();
        let (_, version, list) = kind.names();
        let objects = inner.objects.iter().filter(|((of, _), _)| *of == kind);
        json!({
            "apiVersion": version, "kind": list,
            "metadata": {"resourceVersion": inner.version.to_string()},
            "items": objects.map(|(_, object)| object).collect::<Vec<_>>(),
        })
    }

    /// The lines of a kind's changes after a version, and the version they lead to.
    fn after(&self, kind: Kind, version: u64) -> (String, u64) {
        let inner = self.lock();
        let begin = inner
            .log
            .partition_point(|change| change.version <= version);
        let changes = inner.log.iter().skip(begin);
        let lines = changes.filter(|change| change.kind == kind);
        (
            lines.map(|change| &*change.line).collect(),
            inner.version.max(version),
        )
    }
}

fn answer(kind: Kind, objects: &Arc<Objects>, query: &str) -> Response {
    let query: BTreeMap<&str, &str> = query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .collect();
    let (failing, forgotten) = {
        let inner = objects.lock();
        (inner.failing, inner.forgotten)
    };
    if failing {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    let json = [("content-type", "application/json")];
    if query.get("watch") != Some(&"true") {
        return (json, objects.list(kind).to_string()).into_response();
    }
    let from = query.get("resourceVersion");
    let from: u64 = from.and_then(|text| text.parse().ok()).unwrap_or(0);
    if from < forgotten {
        let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "code": 410,
            "status": "Failure", "reason": "Expired", "message": "too old resource version"});
        let line = format!("{}\n", json!({"type": "ERROR", "object": status}));
        return (json, line).into_response();
    }
    let newest = objects.newest.subscribe();
    let lines = stream::unfold(
        (Arc::clone(objects), newest, from),
        move |(objects, mut newest, from)| async move {
            let mut from = from;
            loop {
                newest.mark_unchanged();
                let (lines, to) = objects.after(kind, from);
                from = to;
                if !lines.is_empty() {
                    let item: Result<String, std::convert::Infallible> = Ok(lines);
                    return Some((item, (objects, newest, from)));
                }
                newest.changed().await.ok()?;
            }
        },
    );
    (json, Body::from_stream(lines)).into_response()
}

/// A node of the cluster, without an address of its own.
pub fn node(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
}
