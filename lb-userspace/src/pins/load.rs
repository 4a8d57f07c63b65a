//! Loading, in two steps: maps are made or adopted, then programs are verified.
//!
//! The kernel takes most of a second for the second step, and nothing but attaching needs it: whoever
//! fills the tables need not wait. With [`programs`] the one place that names aya.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    fmt, fs, io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use aya::{Ebpf, EbpfLoader};
use lb_common::{
    config::Config,
    control::Gate,
    names::{self, LB_CLOCK, LB_EGRESS, LB_EXPIRE, LB_INGRESS, LB_XDP},
};
use tracing::{info, warn};

use super::{
    Candidate, GateWord, Layout, PinDirectory, PinError, Start, decide, require_bpffs,
    step::{Step, killed_after},
};
use crate::kernel::{self, Map};

mod programs;

/// Programs for devices.
const ON_DEVICES: [&str; 3] = [LB_XDP, LB_INGRESS, LB_EGRESS];
/// Programs the agent and lbctl run themselves.
const RUN_BY_US: [&str; 2] = [LB_CLOCK, LB_EXPIRE];

/// What is fixed at load.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Directory of the layouts.
    pub root: PathBuf,
    /// The data path's read-only configuration.
    pub config: Config,
    /// Capacities that differ from the defaults, by map.
    pub entries: BTreeMap<&'static str, u32>,
}

/// A data path ready to be attached: maps pinned and filled in, programs in the kernel.
#[derive(Debug)]
pub struct Loaded {
    /// The directory of its layout.
    pub directory: PinDirectory,
    /// True if the maps were there already: flows of an earlier agent live on.
    pub adopted: bool,
    /// The layout that serves until this one takes over from it. Ours is on standby then.
    pub serving: Option<PinDirectory>,
    programs: BTreeMap<&'static str, OwnedFd>,
}

impl Loaded {
    /// A program by name; `None` for one the object does not have.
    pub fn program(&self, name: &str) -> Option<BorrowedFd<'_>> {
        self.programs.get(name).map(|fd| fd.as_fd())
    }
}

/// The compiled data path: the file named, else the one built into this program.
///
/// # Errors
///
/// If the file cannot be read, or none is named and none built in.
pub fn object(file: Option<&Path>) -> Result<Cow<'static, [u8]>, PinError> {
    if let Some(file) = file {
        let bytes = fs::read(file);
        return bytes
            .map(Cow::Owned)
            .map_err(PinError::io(format!("read object {}", file.display())));
    }
    EMBEDDED.map(Cow::Borrowed).ok_or_else(|| {
        PinError::Object(
            "none is built into this program; name one with --object (cargo xtask build-ebpf)"
                .to_owned(),
        )
    })
}

/// The object built into this program, with feature `bpf`.
#[cfg(all(feature = "bpf", feature = "second-layout"))]
const EMBEDDED: Option<&[u8]> = Some(aya::include_bytes_aligned!(concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../target/second-layout/lb-ebpf"
)));

/// The object built into this program, with feature `bpf`.
#[cfg(all(feature = "bpf", not(feature = "second-layout")))]
const EMBEDDED: Option<&[u8]> = Some(aya::include_bytes_aligned!(concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../target/bpfel-unknown-none/release/lb-ebpf"
)));

/// Without it there is none.
#[cfg(not(feature = "bpf"))]
const EMBEDDED: Option<&[u8]> = None;

/// A data path whose maps are pinned and filled in. The programs that are no device's are pinned too, the
/// others are not verified yet.
pub struct Prepared {
    /// The directory of its layout.
    pub directory: PinDirectory,
    /// As [`Loaded::adopted`].
    pub adopted: bool,
    /// As [`Loaded::serving`].
    pub serving: Option<PinDirectory>,
    ebpf: Ebpf,
}

impl fmt::Debug for Prepared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Prepared")
            .field("directory", &self.directory)
            .field("adopted", &self.adopted)
            .field("serving", &self.serving)
            .finish_non_exhaustive()
    }
}

/// Makes or adopts the maps, loads the programs and pins what must outlive the agent. Attaches
/// nothing that sees packets.
///
/// # Errors
///
/// As [`prepare`] and [`Prepared::verify`].
pub fn load(object: &[u8], options: &LoadOptions) -> Result<Loaded, PinError> {
    prepare(object, options)?.verify()
}

/// Makes or adopts the maps, with the programs the agent runs itself.
///
/// # Errors
///
/// With maps that do not fit ([`PinError::Mismatch`] names every difference), without a BPF file
/// system, or when the kernel refuses. A layout that was being made is then left incomplete and
/// made anew next time; one that was complete is untouched.
pub fn prepare(object: &[u8], options: &LoadOptions) -> Result<Prepared, PinError> {
    require_bpffs(&options.root)?;
    let layout = Layout::of(object, &options.entries)?;
    let directory = PinDirectory::new(&options.root, &layout.hash());
    if has_lost_its_mark(&directory, &layout) {
        let path = directory.path().display();
        warn!(directory = %path, "links without the mark `complete`: marked again");
        directory.mark_complete()?;
    }
    let found = PinDirectory::all(&options.root)?.into_iter();
    let found: Vec<_> = found.map(Candidate::look).collect();
    let start = decide(&found, directory.hash());
    let adopted = start == Start::Adopt;
    let serving = match start {
        Start::TakeOver(serving) => Some(serving),
        Start::Adopt | Start::Anew => None,
    };
    if adopted {
        check(&directory, &layout)?;
    } else {
        if let Some(serving) = &serving {
            info!(
                layout = directory.hash(),
                serving = serving.hash(),
                "another layout serves: this one is made beside it"
            );
            give_back(&directory, serving)?;
        }
        directory.remove()?;
    }
    directory.create()?;
    let mut ebpf = load_object(object, options, &directory)?;
    if adopted {
        open_gate(&directory)?;
    } else {
        check(&directory, &layout)?;
        fill_next_hops(&directory)?;
        if serving.is_some() {
            store_gate(&directory, Gate::STANDBY)?;
        }
        killed_after(Step::Maps);
        directory.mark_complete()?;
    }
    for (name, program) in programs::verify(&mut ebpf, &RUN_BY_US)? {
        replace_pin(program.as_fd(), &directory.program(name))?;
    }
    Ok(Prepared {
        directory,
        adopted,
        serving,
        ebpf,
    })
}

impl Prepared {
    /// Lets the kernel verify the programs for devices. Attaches nothing that sees packets.
    ///
    /// # Errors
    ///
    /// If the kernel refuses one.
    pub fn verify(mut self) -> Result<Loaded, PinError> {
        let programs = programs::verify(&mut self.ebpf, &ON_DEVICES)?;
        programs::attach_tracepoints(&mut self.ebpf, &self.directory);
        let (layout, adopted) = (self.directory.hash(), self.adopted);
        info!(layout, adopted, "data path loaded");
        killed_after(Step::Complete);
        Ok(Loaded {
            directory: self.directory,
            adopted,
            serving: self.serving,
            programs,
        })
    }
}

/// Ends a freeze of an agent that died before another layout took over.
fn open_gate(directory: &PinDirectory) -> Result<(), PinError> {
    if GateWord::open(directory)?.load() == Gate::OPEN {
        return Ok(());
    }
    store_gate(directory, Gate::OPEN)
}

fn store_gate(directory: &PinDirectory, gate: Gate) -> Result<(), PinError> {
    let written = GateWord::open(directory)?.store(gate);
    written.map_err(PinError::io(format!(
        "write the gate of {}",
        directory.path().display()
    )))
}

/// Hands XDP links in a directory about to be removed to the layout that serves, whose program they may
/// hold: a device's driver may pause when its program goes and comes.
fn give_back(directory: &PinDirectory, serving: &PinDirectory) -> Result<(), PinError> {
    for name in directory
        .links()
        .iter()
        .filter(|name| name.starts_with("xdp"))
    {
        let (from, to) = (directory.link(name), serving.link(name));
        if !to.exists() {
            fs::rename(&from, &to).map_err(PinError::io(format!(
                "move link {} to {}",
                from.display(),
                to.display()
            )))?;
        }
    }
    Ok(())
}

/// Whether everything of a layout is there but the mark. Links are made after it and go before it, so
/// that somebody removed it, and packets are in the maps.
fn has_lost_its_mark(directory: &PinDirectory, layout: &Layout) -> bool {
    let whole = || check(directory, layout).is_ok();
    !directory.is_complete() && !directory.links().is_empty() && whole()
}

/// Compares every pinned map with its definition and names all differences at once.
fn check(directory: &PinDirectory, layout: &Layout) -> Result<(), PinError> {
    let mut differences = Vec::new();
    for (name, definition) in layout.maps() {
        let path = directory.map(name);
        match Map::open_pinned(&path) {
            Ok(map) => {
                let found = definition.differences(map.info());
                differences.extend(found.into_iter().map(|text| format!("{name}: {text}")));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                differences.push(format!("{name}: the pin is missing"));
            }
            Err(error) => {
                return Err(PinError::io(format!("open pinned map {}", path.display()))(
                    error,
                ));
            }
        }
    }
    if differences.is_empty() {
        return Ok(());
    }
    Err(PinError::Mismatch {
        directory: directory.path().to_owned(),
        differences,
    })
}

fn load_object(
    object: &[u8],
    options: &LoadOptions,
    directory: &PinDirectory,
) -> Result<Ebpf, PinError> {
    let mut loader = EbpfLoader::new();
    // There are no relocations against the kernel's types: parsing them would cost 100 ms.
    loader.btf(None);
    loader.override_global(names::CONFIG, &options.config, true);
    for (name, entries) in &options.entries {
        loader.map_max_entries(name, *entries);
    }
    for &(name, _) in names::MAPS {
        loader.map_pin_path(name, directory.map(name));
    }
    loader
        .load(object)
        .map_err(|error| PinError::Load(Box::new(error)))
}

/// Puts every next-hop index but 0 into the queue of free ones. The data path takes from it.
fn fill_next_hops(directory: &PinDirectory) -> Result<(), PinError> {
    let open = |name| {
        Map::open_pinned(&directory.map(name)).map_err(PinError::io(format!("open map {name}")))
    };
    let (hops, free) = (open(names::NEXT_HOPS)?, open(names::NEXT_HOP_FREE)?);
    let last = hops
        .info()
        .max_entries
        .min(free.info().max_entries)
        .min(u32::from(u16::MAX));
    for index in 1..last {
        free.push(&index).map_err(PinError::io(format!(
            "fill {} with {index}",
            names::NEXT_HOP_FREE
        )))?;
    }
    Ok(())
}

/// Pins an object in place of whatever has the name.
fn replace_pin(object: BorrowedFd<'_>, path: &Path) -> Result<(), PinError> {
    let failed = |error| PinError::io(format!("pin {}", path.display()))(error);
    // A dot in a name is refused by bpffs.
    let fresh = path.with_file_name(format!(
        "{}-new",
        path.file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default()
    ));
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    kernel::pin(object, &fresh).map_err(failed)?;
    fs::rename(&fresh, path).map_err(failed)
}
