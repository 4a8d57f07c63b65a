//! Events in the cluster about what is not served, on the object that asks for it.
//!
//! Nobody waits for an Event: what finds no room in the queue, or no API server, is dropped and
//! counted. The same text about the same object is one Event, however often an agent starts.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::{
    api::{core::v1::ObjectReference, events::v1::Event},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};
use kube::{Api, Client, api::PostParams};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use tracing::{debug, warn};

use crate::{
    snapshot::{Rejection, Snapshot, Subject, SubjectKind},
    source::SourceState,
};

/// Who reports.
const CONTROLLER: &str = "sluice.dev/lb-agent";
/// Most Events that wait.
const QUEUE: usize = 1_024;
/// Shortest time between two Events, beyond a first burst.
const PACE: Duration = Duration::from_millis(200);
/// Events that need not wait for each other.
const PACE_BURST: u32 = 25;
/// Longest time to post one.
const POST: Duration = Duration::from_secs(5);
/// Most texts remembered as told.
const TOLD: usize = 16_384;
/// Longest note the API server takes, in bytes.
const NOTE: usize = 1_024;

/// Posts Events. Cheap to copy; without a cluster it does nothing.
#[derive(Clone, Debug, Default)]
pub struct Sender(Option<Arc<Shared>>);

#[derive(Debug)]
struct Shared {
    queue: mpsc::Sender<Note>,
    dropped: Arc<AtomicU64>,
}

/// What to tell whom.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
struct Note {
    subject: Subject,
    reason: &'static str,
    text: String,
}

impl Sender {
    /// Tells something about an object, if there is room. `reason` is one word, as `NotServed`.
    pub fn send(&self, subject: &Subject, reason: &'static str, note: impl Into<String>) {
        let Some(shared) = &self.0 else { return };
        let note = Note {
            subject: subject.clone(),
            reason,
            text: note.into(),
        };
        if shared.queue.try_send(note).is_err() {
            shared.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Tells of a rejection whose object is in the cluster.
    pub fn reject(&self, rejection: &Rejection) {
        let Some(subject) = &rejection.subject else {
            return;
        };
        let text = if rejection.field.is_empty() {
            rejection.message.clone()
        } else {
            format!("{}: {}", rejection.field, rejection.message)
        };
        self.send(subject, reason(rejection), text);
    }

    /// Events that were dropped: no room in the queue, or the API server did not take them.
    pub fn dropped(&self) -> u64 {
        let shared = self.0.as_ref();
        shared.map_or(0, |shared| shared.dropped.load(Ordering::Relaxed))
    }
}

/// The word for a rejection.
fn reason(rejection: &Rejection) -> &'static str {
    if rejection.message.contains("SCTP") {
        "SctpNotBalanced"
    } else if rejection.field.is_empty() {
        "NotServed"
    } else {
        "PartlyServed"
    }
}

/// Starts to post what is sent, in the name of `node`. `state` tells which object is meant.
pub(crate) fn start(
    client: Client,
    node: &str,
    state: watch::Receiver<Arc<SourceState>>,
) -> Sender {
    let (queue, notes) = mpsc::channel(QUEUE);
    let dropped = Arc::new(AtomicU64::new(0));
    let poster = Poster {
        client,
        node: node.to_owned(),
        state,
        told: BTreeSet::new(),
        dropped: Arc::clone(&dropped),
        failing: false,
    };
    tokio::spawn(poster.run(notes));
    Sender(Some(Arc::new(Shared { queue, dropped })))
}

struct Poster {
    client: Client,
    node: String,
    state: watch::Receiver<Arc<SourceState>>,
    /// Names of Events: the same text about the same object has the same.
    told: BTreeSet<u64>,
    dropped: Arc<AtomicU64>,
    failing: bool,
}

impl Poster {
    async fn run(mut self, mut notes: mpsc::Receiver<Note>) {
        let mut pace = interval(PACE);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut burst = Burst::default();
        while let Some(note) = notes.recv().await {
            let state = Arc::clone(&self.state.borrow());
            let regarding = regarding(&note.subject, &state.snapshot);
            let id = identity(&note, &regarding, &self.node);
            if self.told.contains(&id) {
                continue;
            }
            if !burst.spend(Instant::now()) {
                pace.tick().await;
            }
            let posted = self.post(&note, &regarding, id).await;
            if posted {
                if self.told.len() >= TOLD {
                    self.told.clear();
                }
                self.told.insert(id);
            } else {
                self.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    async fn post(&mut self, note: &Note, regarding: &ObjectReference, id: u64) -> bool {
        let event = event(note, regarding, &self.node, id, Timestamp::now());
        let namespace = regarding.namespace.as_deref().unwrap_or("default");
        let api: Api<Event> = Api::namespaced(self.client.clone(), namespace);
        let parameters = PostParams::default();
        let post = timeout(POST, api.create(&parameters, &event));
        let failure = match post.await {
            // It was told before, by the agent before us.
            Ok(Err(kube::Error::Api(status))) if status.code == 409 => None,
            Ok(Ok(_)) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_elapsed) => Some("no answer".to_owned()),
        };
        let Some(failure) = failure else {
            self.failing = false;
            return true;
        };
        if !std::mem::replace(&mut self.failing, true) {
            warn!(failure, "Events are not posted");
        }
        debug!(?note, failure, "Event dropped");
        false
    }
}

/// A few at once, then not so many.
#[derive(Debug)]
struct Burst {
    left: u32,
    full_at: Option<Instant>,
}

impl Default for Burst {
    fn default() -> Self {
        Self {
            left: PACE_BURST,
            full_at: None,
        }
    }
}

impl Burst {
    /// Whether one may go at once.
    fn spend(&mut self, now: Instant) -> bool {
        if self.full_at.is_none_or(|at| now >= at) {
            self.left = PACE_BURST;
        }
        self.full_at = Some(now + PACE * PACE_BURST);
        let free = self.left > 0;
        self.left = self.left.saturating_sub(1);
        free
    }
}

/// The object an Event is about: the Service itself, or that of a slice.
fn regarding(subject: &Subject, snapshot: &Snapshot) -> ObjectReference {
    let mut name = subject.name.clone();
    let mut kind = subject.kind;
    if kind == SubjectKind::EndpointSlice
        && let Some(slice) = snapshot.slices.get(&name)
    {
        kind = SubjectKind::Service;
        name.name = Arc::from(slice.service.as_str());
    }
    let service = (kind == SubjectKind::Service)
        .then(|| snapshot.services.get(&name))
        .flatten();
    let (version, kind) = match kind {
        SubjectKind::Service => ("v1", "Service"),
        SubjectKind::EndpointSlice => ("discovery.k8s.io/v1", "EndpointSlice"),
    };
    ObjectReference {
        api_version: Some(version.to_owned()),
        kind: Some(kind.to_owned()),
        namespace: Some(name.namespace.to_string()),
        name: Some(name.name.to_string()),
        uid: service.and_then(|service| service.uid.clone()),
        ..ObjectReference::default()
    }
}

fn event(
    note: &Note,
    regarding: &ObjectReference,
    reporter: &str,
    id: u64,
    now: Timestamp,
) -> Event {
    let mut text = note.text.clone();
    if text.len() > NOTE {
        let end = (0..=NOTE - '…'.len_utf8()).rfind(|i| text.is_char_boundary(*i));
        text.truncate(end.unwrap_or(0));
        text.push('…');
    }
    let name = regarding.name.as_deref().unwrap_or_default();
    Event {
        metadata: ObjectMeta {
            namespace: regarding.namespace.clone(),
            name: Some(format!("{name}.{id:016x}")),
            ..ObjectMeta::default()
        },
        event_time: Some(MicroTime(now)),
        reporting_controller: Some(CONTROLLER.to_owned()),
        reporting_instance: Some(reporter.to_owned()),
        action: Some("Balance".to_owned()),
        reason: Some(note.reason.to_owned()),
        regarding: Some(regarding.clone()),
        note: Some(text),
        type_: Some("Warning".to_owned()),
        ..Event::default()
    }
}

/// The same for the same text about the same object on the same node, in any run (FNV-1a).
fn identity(note: &Note, regarding: &ObjectReference, reporter: &str) -> u64 {
    let of = |text: &Option<String>| text.clone().unwrap_or_default();
    let parts = [
        of(&regarding.kind),
        of(&regarding.namespace),
        of(&regarding.name),
        of(&regarding.uid),
        note.reason.to_owned(),
        note.text.clone(),
        reporter.to_owned(),
    ];
    let bytes = parts.iter().flat_map(|part| part.bytes().chain([0]));
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests;
