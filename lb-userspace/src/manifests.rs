//! A directory of ordinary Kubernetes manifests as a source of [`Snapshot`]s.
//!
//! Every `.yaml`, `.yml` and `.json` file of the directory is read, several documents a file; kinds
//! other than Service, EndpointSlice, ServiceCIDR and Node are ignored, and so is any Node but our
//! own. What is broken is reported and keeps its last good version: an object until it is fixed or
//! its file removed, a whole directory until it can be read again. Files take effect in the order of
//! their names, which decides between duplicates.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::{OsStr, OsString},
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use document::{Entry, Outcome};
use object::Object;

use crate::{
    snapshot::Rejection,
    source::{Scope, SourceState},
};

mod document;
mod object;
mod watcher;

/// Why a directory of manifests cannot be a source.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// The directory cannot be listed.
    #[error("read manifests directory {}", directory.display())]
    Directory {
        /// The directory.
        directory: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// No thread to watch it.
    #[error("start the thread which watches {}", directory.display())]
    Thread {
        /// The directory.
        directory: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// Reads a directory once, and again what changed in it.
#[derive(Debug)]
pub struct ManifestSource {
    directory: PathBuf,
    scope: Scope,
    files: BTreeMap<OsString, File>,
    /// Why the directory could not be listed the last time.
    unreadable: Option<String>,
    state: Arc<SourceState>,
}

impl ManifestSource {
    /// Reads the directory for the first time; [`Self::state`] is complete then.
    ///
    /// # Errors
    ///
    /// If the directory cannot be listed.
    pub fn new(directory: impl Into<PathBuf>, scope: Scope) -> Result<Self, ManifestError> {
        let directory = directory.into();
        let names = match list(&directory) {
            Ok(names) => names,
            Err(source) => return Err(ManifestError::Directory { directory, source }),
        };
        let mut source = Self {
            directory,
            scope,
            files: BTreeMap::new(),
            unreadable: None,
            state: Arc::default(),
        };
        source.refresh(names, &BTreeSet::new());
        source.state = Arc::new(source.assemble());
        Ok(source)
    }

    /// Reads the directory and goes on watching it from a thread of its own. The thread ends when
    /// every receiver is gone.
    ///
    /// # Errors
    ///
    /// If the directory cannot be listed or no thread can be started.
    pub fn watch(
        directory: impl Into<PathBuf>,
        scope: Scope,
    ) -> Result<tokio::sync::watch::Receiver<Arc<SourceState>>, ManifestError> {
        watcher::start(directory.into(), scope)
    }

    /// What the last scan found.
    pub fn state(&self) -> Arc<SourceState> {
        Arc::clone(&self.state)
    }

    /// Looks at every file, reads again those which changed or are among `touched`, and returns the
    /// new state if anything is different.
    ///
    /// A file rewritten with the same length within a clock tick looks unchanged: hence `touched`.
    pub fn scan(&mut self, touched: &BTreeSet<OsString>) -> Option<Arc<SourceState>> {
        match list(&self.directory) {
            Ok(names) => {
                self.unreadable = None;
                self.refresh(names, touched);
            }
            Err(error) => self.unreadable = Some(error.to_string()),
        }
        let state = self.assemble();
        if state == *self.state {
            return None;
        }
        self.state = Arc::new(state);
        Some(self.state())
    }

    fn refresh(&mut self, names: BTreeSet<OsString>, touched: &BTreeSet<OsString>) {
        self.files.retain(|name, _| names.contains(name));
        for name in names {
            let path = self.directory.join(&name);
            let stamp = fs::metadata(&path)
                .map(|metadata| Stamp::of(&metadata))
                .ok();
            let file = self.files.entry(name.clone()).or_default();
            if stamp.is_none() || file.stamp != stamp || touched.contains(&name) {
                file.read(&path, stamp, &self.scope);
            }
        }
    }

    fn assemble(&self) -> SourceState {
        let mut state = SourceState {
            complete: true,
            ..SourceState::default()
        };
        if let Some(why) = &self.unreadable {
            state.rejections.push(Rejection {
                object: format!("manifests directory {}", self.directory.display()),
                field: String::new(),
                message: format!("cannot be read: {why}; its last good state stays in force"),
                subject: None,
            });
        }
        let mut seen = BTreeMap::new();
        for (name, file) in &self.files {
            let name = name.to_string_lossy();
            let place = |place: &str| format!("{name} {place}").trim_end().to_owned();
            state.unread |= !file.broken.is_empty();
            for broken in &file.broken {
                let object = place(&broken.object);
                state.rejections.push(Rejection {
                    object,
                    ..broken.clone()
                });
            }
            for entry in &file.entries {
                if let Some(winner) = seen.get(&entry.key) {
                    state.rejections.push(Rejection {
                        object: place(&format!("{} ({})", entry.place, entry.key)),
                        field: "metadata.name".to_owned(),
                        message: format!("is also defined in {winner}, which is used"),
                        subject: entry.key.subject(),
                    });
                    continue;
                }
                seen.insert(&entry.key, place(&entry.place));
                for rejection in &entry.rejections {
                    let object = place(&format!("{} ({})", entry.place, rejection.object));
                    state.rejections.push(Rejection {
                        object,
                        ..rejection.clone()
                    });
                }
                let name = entry.key.name.clone();
                match &entry.object {
                    Object::Service(object) => {
                        state.snapshot.services.insert(name, Arc::clone(object));
                    }
                    Object::Slice(object) => {
                        state.snapshot.slices.insert(name, Arc::clone(object));
                    }
                    Object::Node(object) => state.node = Some((**object).clone()),
                    Object::ServiceNetworks(networks) => {
                        state.snapshot.service_networks.extend(networks);
                    }
                    Object::Excluded => {}
                }
            }
        }
        state
    }
}

/// What one file holds.
#[derive(Debug, Default)]
struct File {
    stamp: Option<Stamp>,
    /// Its objects, those kept from an older version last.
    entries: Vec<Entry>,
    /// What is broken in it; `object` is the place inside the file.
    broken: Vec<Rejection>,
}

impl File {
    fn read(&mut self, path: &Path, stamp: Option<Stamp>, scope: &Scope) {
        let json = path.extension() == Some(OsStr::new("json"));
        let outcomes = match fs::read(path) {
            // Most likely an editor or a full disk between truncating and writing. To withdraw its
            // objects one removes the file, or leaves a comment in it.
            Ok(bytes) if bytes.is_empty() && !self.entries.is_empty() => {
                vec![Outcome::unknown(
                    "",
                    "is empty; remove the file to withdraw its objects",
                )]
            }
            Ok(bytes) => match String::from_utf8(bytes) {
                Ok(text) => document::parse(&text, json, scope),
                Err(error) => vec![Outcome::unknown("", format!("is not UTF-8: {error}"))],
            },
            Err(error) => vec![Outcome::unknown("", format!("cannot be read: {error}"))],
        };
        self.stamp = stamp;
        self.replace(outcomes);
    }

    /// Takes the new outcomes in and keeps, of the old entries, those a broken document may hold.
    fn replace(&mut self, outcomes: Vec<Outcome>) {
        let old = std::mem::take(&mut self.entries);
        self.broken.clear();
        let mut broken_keys = BTreeSet::new();
        let mut any_unknown = false;
        for outcome in outcomes {
            match outcome {
                Outcome::Good(entry) => self.entries.push(entry),
                Outcome::Broken { key, rejection } => {
                    any_unknown |= key.is_none();
                    broken_keys.extend(key);
                    self.broken.push(rejection);
                }
            }
        }
        let good: BTreeSet<_> = self.entries.iter().map(|entry| entry.key.clone()).collect();
        let is_kept = |entry: &Entry| {
            !good.contains(&entry.key) && (any_unknown || broken_keys.contains(&entry.key))
        };
        let mut kept: Vec<_> = old.into_iter().filter(is_kept).collect();
        for entry in &mut kept {
            "(last good version)".clone_into(&mut entry.place);
            entry.rejections.clear();
        }
        self.entries.append(&mut kept);
    }
}

/// What tells a changed file from an unchanged one without reading it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(metadata: &fs::Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// True for the names we read: a known extension, not hidden (editors' and `ConfigMap`s' own files).
fn is_manifest(name: &OsStr) -> bool {
    let known = Path::new(name)
        .extension()
        .is_some_and(|e| ["yaml", "yml", "json"].iter().any(|known| e == *known));
    known && !name.as_encoded_bytes().starts_with(b".")
}

fn list(directory: &Path) -> io::Result<BTreeSet<OsString>> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name();
        // A dangling link is kept: it is a file that cannot be read, not one that is gone.
        if is_manifest(&name) && !directory.join(&name).is_dir() {
            names.insert(name);
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests;
