//! Where the data path lives when no process does: the directory of pins, and how it is adopted.
//!
//! ```text
//! <pin root>/<layout hash>/maps/NAME       every map
//!                          links/HOOK-IFINDEX   what attaches the programs
//!                          programs/NAME   what the agent and lbctl run themselves
//!                          complete        a directory: the maps are filled in, links may exist
//! ```
//! Invariant: a directory marked complete holds every map of its layout, ready for packets. One
//! without the mark is the rest of an agent that died while it made the maps; nothing is attached
//! to it and it is made anew. Of several complete ones the gates say which serves.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

pub use self::{
    layout::{Layout, MapDefinition},
    load::{LoadOptions, Loaded, Prepared, load, object, prepare},
    serving::{Candidate, GateWord, Start, decide},
};

pub mod format;
mod layout;
mod load;
mod serving;
pub mod step;

/// The pin root unless the configuration names another.
pub const DEFAULT_ROOT: &str = "/sys/fs/bpf/sluice";

const COMPLETE: &str = "complete";

/// Why the data path could not be made ready.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// A pin, map or directory could not be read or written. `what` names operation and object.
    #[error("{what}")]
    Io {
        /// Operation and object.
        what: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The pin root is on another file system.
    #[error(
        "pinRoot {root}: not on a BPF file system; mount one with `mount -t bpf bpf /sys/fs/bpf`"
    )]
    NotBpffs {
        /// The pin root.
        root: PathBuf,
    },
    /// Pinned maps are not what this version would make.
    #[error("pinned maps in {directory} do not fit: {}", differences.join("; "))]
    Mismatch {
        /// The layout's directory.
        directory: PathBuf,
        /// Every difference, map by map.
        differences: Vec<String>,
    },
    /// No data path is pinned below the root.
    #[error("pinRoot {root}: no data path is pinned there; has lb-agent run?")]
    Absent {
        /// The pin root.
        root: PathBuf,
    },
    /// The object file is not the data path.
    #[error("object file: {0}")]
    Object(String),
    /// The kernel refused to load the data path. The cause is the loader's.
    #[error("load the data path")]
    Load(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The kernel refused a program. The cause has the verifier's words.
    #[error("load program {name}")]
    Program {
        /// Name of the program.
        name: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl PinError {
    fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}

/// The directory of one layout.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PinDirectory {
    path: PathBuf,
}

impl PinDirectory {
    /// The directory of the layout with this hash below `root`.
    pub fn new(root: &Path, hash: &str) -> Self {
        Self {
            path: root.join(hash),
        }
    }

    /// Every complete layout below `root`, the one packets meet first.
    ///
    /// # Errors
    ///
    /// If the root cannot be read, or nothing is pinned there.
    pub fn find(root: &Path) -> Result<Vec<Self>, PinError> {
        let found = Self::all(root)?.into_iter().map(Candidate::look);
        let mut complete: Vec<_> = found.filter(|one| one.complete).collect();
        complete.sort_by_cached_key(Candidate::rank);
        if complete.is_empty() {
            return Err(PinError::Absent {
                root: root.to_owned(),
            });
        }
        Ok(complete.into_iter().map(|one| one.directory).collect())
    }

    /// Every layout below `root`, complete or not.
    ///
    /// # Errors
    ///
    /// If the root exists and cannot be read.
    pub fn all(root: &Path) -> Result<Vec<Self>, PinError> {
        let failed = |error| PinError::io(format!("read pinRoot {}", root.display()))(error);
        let entries = match fs::read_dir(root) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(error)),
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry.map_err(failed)?;
            let is_hash = entry.file_name().to_str().is_some_and(layout::is_hash);
            if is_hash {
                found.push(Self { path: entry.path() });
            }
        }
        found.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(found)
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The layout hash.
    pub fn hash(&self) -> &str {
        self.path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default()
    }

    /// Where the maps are pinned.
    pub fn maps(&self) -> PathBuf {
        self.path.join("maps")
    }

    /// Where a map is pinned.
    pub fn map(&self, name: &str) -> PathBuf {
        self.maps().join(name)
    }

    /// Where a program is pinned.
    pub fn program(&self, name: &str) -> PathBuf {
        self.path.join("programs").join(name)
    }

    /// Where a link is pinned; see [`crate::attach::link_name`].
    pub fn link(&self, name: &str) -> PathBuf {
        self.path.join("links").join(name)
    }

    /// Names of the pinned links, in order.
    pub fn links(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.path.join("links")) else {
            return Vec::new();
        };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    }

    /// Whether every map is made and filled in.
    pub fn is_complete(&self) -> bool {
        self.path.join(COMPLETE).is_dir()
    }

    /// Removes every pin and the directory. What no pin and no process holds ceases to exist:
    /// programs are detached, flows forgotten.
    ///
    /// # Errors
    ///
    /// If a pin cannot be removed; a directory that does not exist is success.
    pub fn remove(&self) -> Result<(), PinError> {
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(PinError::io(format!(
                "remove {}",
                self.path.display()
            ))(error)),
            _ => Ok(()),
        }
    }

    fn create(&self) -> Result<(), PinError> {
        for directory in ["maps", "links", "programs"] {
            let path = self.path.join(directory);
            fs::create_dir_all(&path)
                .map_err(PinError::io(format!("create directory {}", path.display())))?;
        }
        Ok(())
    }

    fn mark_complete(&self) -> Result<(), PinError> {
        let path = self.path.join(COMPLETE);
        fs::create_dir(&path).map_err(PinError::io(format!("create directory {}", path.display())))
    }
}

/// Checks that `root` (or the nearest directory above it that exists) is on a BPF file system.
///
/// # Errors
///
/// [`PinError::NotBpffs`] otherwise, with the command that mounts one.
pub fn require_bpffs(root: &Path) -> Result<(), PinError> {
    let existing = root.ancestors().find(|path| path.exists()).unwrap_or(root);
    let not = || PinError::NotBpffs {
        root: root.to_owned(),
    };
    let statistics = nix::sys::statfs::statfs(existing)
        .map_err(|error| PinError::io(format!("statfs {}", existing.display()))(error.into()))?;
    if statistics.filesystem_type() == nix::sys::statfs::BPF_FS_MAGIC {
        return Ok(());
    }
    Err(not())
}
