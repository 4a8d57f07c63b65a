//! The thread that watches a directory of manifests.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::Duration,
};

use notify::{
    Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _,
    event::{AccessKind, AccessMode, CreateKind, ModifyKind},
};
use tokio::sync::watch;

use super::{ManifestError, ManifestSource, is_manifest};
use crate::source::{Scope, SourceState};

/// Changes that follow each other within this time are taken in together.
const SETTLE: Duration = Duration::from_millis(20);
/// Most rounds of [`SETTLE`] to wait for quiet, and for a writer to close its file.
const ROUNDS: (u32, u32) = (5, 25);
/// The directory is looked at anyway this often: events can be lost, and links lead outside.
const RESCAN: Duration = Duration::from_secs(5);

/// Reads the directory and starts to watch it.
pub(super) fn start(
    directory: PathBuf,
    scope: Scope,
) -> Result<watch::Receiver<Arc<SourceState>>, ManifestError> {
    // Watch first: what changes while the first scan runs must not be missed.
    let mut watcher = DirectoryWatcher::new(directory.clone());
    let mut source = ManifestSource::new(directory.clone(), scope)?;
    let (sender, receiver) = watch::channel(source.state());
    let run = move || {
        while let Some(touched) = watcher.wait(&sender) {
            if let Some(state) = source.scan(&touched) {
                sender.send_replace(state);
            }
        }
    };
    let spawned = thread::Builder::new()
        .name("manifests".to_owned())
        .spawn(run);
    match spawned {
        Ok(_detached) => Ok(receiver),
        Err(source) => Err(ManifestError::Thread { directory, source }),
    }
}

/// What happened to one file.
#[derive(Debug)]
enum Change {
    /// Its content may be unfinished until [`Change::Closed`].
    Writing(OsString),
    /// Its content is complete, or gone.
    Closed(OsString),
    /// Something else in the directory, such as the swap of a `ConfigMap`'s link.
    Other,
}

struct DirectoryWatcher {
    directory: PathBuf,
    sender: mpsc::Sender<Change>,
    changes: mpsc::Receiver<Change>,
    /// The watch and the identity of the directory it is on.
    active: Option<(RecommendedWatcher, (u64, u64))>,
}

impl DirectoryWatcher {
    fn new(directory: PathBuf) -> Self {
        let (sender, changes) = mpsc::channel();
        let mut watcher = Self {
            directory,
            sender,
            changes,
            active: None,
        };
        watcher.renew();
        watcher
    }

    /// Waits for changes and for quiet after them. Returns the names of the files touched, or
    /// nothing once nobody listens any more.
    fn wait(&mut self, listeners: &watch::Sender<Arc<SourceState>>) -> Option<BTreeSet<OsString>> {
        let mut touched = BTreeSet::new();
        match self.changes.recv_timeout(RESCAN) {
            Ok(change) => self.settle(change, &mut touched),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
        }
        self.renew();
        (!listeners.is_closed()).then_some(touched)
    }

    fn settle(&self, first: Change, touched: &mut BTreeSet<OsString>) {
        let mut writing = BTreeSet::new();
        let mut note = |change| match change {
            Change::Writing(name) => {
                writing.insert(name.clone());
                touched.insert(name);
                writing.len()
            }
            Change::Closed(name) => {
                writing.remove(&name);
                touched.insert(name);
                writing.len()
            }
            Change::Other => writing.len(),
        };
        let mut open = note(first);
        let (most_quiet, most_open) = ROUNDS;
        for round in 0..most_open {
            thread::sleep(SETTLE);
            let mut quiet = true;
            for change in self.changes.try_iter() {
                quiet = false;
                open = note(change);
            }
            if open == 0 && (quiet || round >= most_quiet) {
                return;
            }
        }
    }

    /// Watches the directory, again if another one has taken its place.
    fn renew(&mut self) {
        let identity = fs::metadata(&self.directory)
            .map(|m| (m.dev(), m.ino()))
            .ok();
        let current = self.active.as_ref().map(|(_, identity)| *identity);
        if identity.is_some() && identity == current {
            return;
        }
        self.active = None;
        let Some(identity) = identity else { return };
        match watch_directory(&self.directory, self.sender.clone()) {
            Ok(watcher) => self.active = Some((watcher, identity)),
            Err(error) => tracing::warn!(
                directory = %self.directory.display(),
                %error,
                "cannot watch for changes; looking every {} s instead",
                RESCAN.as_secs()
            ),
        }
    }
}

fn watch_directory(
    directory: &Path,
    sender: mpsc::Sender<Change>,
) -> notify::Result<RecommendedWatcher> {
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
        for change in event.map_or_else(|_lost| vec![Change::Other], changes) {
            // Nobody receives when the thread has ended: then nobody needs to know.
            drop(sender.send(change));
        }
    })?;
    watcher.watch(directory, RecursiveMode::NonRecursive)?;
    Ok(watcher)
}

fn changes(event: Event) -> Vec<Change> {
    let writing = match event.kind {
        // Our own reading makes these.
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => false,
        EventKind::Access(_) => return Vec::new(),
        EventKind::Create(CreateKind::File | CreateKind::Any)
        | EventKind::Modify(ModifyKind::Data(_)) => true,
        _ => false,
    };
    let change = |path: PathBuf| {
        let Some(name) = path.file_name().filter(|name| is_manifest(name)) else {
            return Change::Other;
        };
        // Only a regular file is written; a link is there at once.
        let regular = || fs::symlink_metadata(&path).is_ok_and(|m| m.is_file());
        let writing = writing && regular();
        if writing {
            Change::Writing(name.into())
        } else {
            Change::Closed(name.into())
        }
    };
    if event.paths.is_empty() {
        return vec![Change::Other];
    }
    event.paths.into_iter().map(change).collect()
}
