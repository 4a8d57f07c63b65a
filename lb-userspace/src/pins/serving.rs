//! Which of several pinned layouts serves, and the word that says so.

use std::{cmp::Reverse, io, mem::offset_of};

use lb_common::{
    control::{Control, Gate, gate_mode},
    names,
};

use super::{PinDirectory, PinError, format::Shape};
use crate::kernel::{Map, Mapping};

/// The gate of a layout of any version.
#[derive(Debug)]
pub struct GateWord {
    words: Mapping,
    offset: usize,
}

impl GateWord {
    /// Opens the gate of a layout, for reading and writing.
    ///
    /// # Errors
    ///
    /// If the layout has none, or its place cannot be told.
    pub fn open(directory: &PinDirectory) -> Result<Self, PinError> {
        Self::map(directory, Mapping::new)
    }

    fn map(
        directory: &PinDirectory,
        map: impl FnOnce(&Map) -> io::Result<Mapping>,
    ) -> Result<Self, PinError> {
        let path = directory.map(names::CONTROL);
        let failed = || PinError::io(format!("read the gate of {}", path.display()));
        let control = Map::open_pinned(&path).map_err(failed())?;
        let offset = match control.types() {
            Ok(Some(types)) => {
                let shape = Shape::read(&types.btf, types.value);
                let field = shape.and_then(|shape| shape.field("gate"));
                let field = field.map_err(|error| failed()(io::Error::other(error)))?;
                field.start
            }
            Ok(None) => {
                return Err(failed()(io::Error::other(
                    "the map does not tell its types",
                )));
            }
            // Types are read with CAP_SYS_ADMIN alone. Without it: where every version so far has it.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                offset_of!(Control, gate)
            }
            Err(error) => return Err(failed()(error)),
        };
        let words = map(&control).map_err(failed())?;
        Ok(Self { words, offset })
    }

    /// What the word says now.
    pub fn load(&self) -> Gate {
        Gate(self.words.load_u32(self.offset).unwrap_or_default())
    }

    /// Says something else, by one store.
    ///
    /// # Errors
    ///
    /// If the word cannot be written.
    pub fn store(&self, gate: Gate) -> io::Result<()> {
        self.words.store_u32(self.offset, gate.0)
    }
}

/// What is known of a pinned layout.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Candidate {
    /// Its directory.
    pub directory: PinDirectory,
    /// Its maps are made and filled in.
    pub complete: bool,
    /// Number of pinned links that hold programs on devices.
    pub links: usize,
    /// How far its programs serve.
    pub gate: Gate,
}

impl Candidate {
    /// Looks at a layout. One without a gate is older than gates and serves.
    pub fn look(directory: PinDirectory) -> Self {
        let gate = GateWord::map(&directory, Mapping::read_only).map(|word| word.load());
        // Those of tracepoints have no device in their names.
        let links = directory.links();
        Self {
            complete: directory.is_complete(),
            links: links.iter().filter(|name| name.contains('-')).count(),
            gate: gate.unwrap_or_default(),
            directory,
        }
    }

    /// Packets are for its programs.
    const fn serves(&self) -> bool {
        self.complete && self.links > 0 && !self.gate.is_standby()
    }

    /// The one packets meet comes first.
    pub(super) fn rank(&self) -> impl Ord + use<> {
        // Frozen beside one that is open: flows were carried over, the open one has them.
        let frozen = self.gate.mode() == gate_mode::FROZEN;
        (
            !self.serves(),
            self.gate.is_standby(),
            frozen,
            Reverse(self.links),
            self.directory.path().to_owned(),
        )
    }
}

/// What an agent that starts does with what it finds.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Start {
    /// Goes on with its own layout, which serves, or which nothing else keeps from serving.
    Adopt,
    /// Makes its own layout anew; nothing serves.
    Anew,
    /// Makes its own layout anew and takes over from this one, which serves.
    TakeOver(PinDirectory),
}

/// Decides from every layout below the root, `own` being the hash of the agent's. Pure.
pub fn decide(found: &[Candidate], own: &str) -> Start {
    let serving = found.iter().filter(|one| one.serves());
    if let Some(serving) = serving.min_by_key(|one| one.rank()) {
        return if serving.directory.hash() == own {
            Start::Adopt
        } else {
            Start::TakeOver(serving.directory.clone())
        };
    }
    let own = found.iter().find(|one| one.directory.hash() == own);
    if own.is_some_and(|own| own.complete && !own.gate.is_standby()) {
        Start::Adopt
    } else {
        Start::Anew
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const OWN: &str = "1111111111111111";
    const OTHER: &str = "2222222222222222";
    const FROZEN: Gate = Gate::frozen(7);

    fn candidate(hash: &str, complete: bool, links: usize, gate: Gate) -> Candidate {
        Candidate {
            directory: PinDirectory::new(Path::new("/pins"), hash),
            complete,
            links,
            gate,
        }
    }

    #[test]
    fn the_gates_tell_whose_turn_it_is() {
        let own = |complete, links, gate| candidate(OWN, complete, links, gate);
        let other = |complete, links, gate| candidate(OTHER, complete, links, gate);
        let take_over = || Start::TakeOver(PinDirectory::new(Path::new("/pins"), OTHER));
        for (name, found, expected) in [
            ("nothing", vec![], Start::Anew),
            ("ours", vec![own(true, 2, Gate::OPEN)], Start::Adopt),
            (
                "ours, died before it attached",
                vec![own(true, 0, Gate::OPEN)],
                Start::Adopt,
            ),
            (
                "ours, died while it made the maps",
                vec![own(false, 0, Gate::OPEN)],
                Start::Anew,
            ),
            ("another", vec![other(true, 2, Gate::OPEN)], take_over()),
            (
                "another that never attached",
                vec![other(true, 0, Gate::OPEN)],
                Start::Anew,
            ),
            (
                "died before it attached, another serves",
                vec![own(true, 0, Gate::STANDBY), other(true, 2, Gate::OPEN)],
                take_over(),
            ),
            (
                "died attached, another serves",
                vec![own(true, 3, Gate::STANDBY), other(true, 2, Gate::OPEN)],
                take_over(),
            ),
            (
                "died while the other was frozen",
                vec![own(true, 3, Gate::STANDBY), other(true, 2, FROZEN)],
                take_over(),
            ),
            (
                "the same, seen by the other's agent",
                vec![other(true, 3, Gate::STANDBY), own(true, 2, FROZEN)],
                Start::Adopt,
            ),
            (
                "died when it had opened",
                vec![own(true, 2, Gate::OPEN), other(true, 3, FROZEN)],
                Start::Adopt,
            ),
            (
                "the same, seen by the other's agent",
                vec![other(true, 2, Gate::OPEN), own(true, 3, FROZEN)],
                take_over(),
            ),
            (
                "died before it removed the other",
                vec![own(true, 2, Gate::OPEN), other(true, 3, Gate::STANDBY)],
                Start::Adopt,
            ),
            (
                "the other was removed by hand",
                vec![own(true, 2, Gate::STANDBY)],
                Start::Anew,
            ),
        ] {
            assert_eq!(decide(&found, OWN), expected, "{name}");
        }
    }

    #[test]
    fn the_layout_in_use_comes_first() {
        let mut all = [
            candidate(OTHER, true, 5, Gate::STANDBY),
            candidate("3333333333333333", true, 4, FROZEN),
            candidate(OWN, true, 2, Gate::OPEN),
            candidate("4444444444444444", true, 0, Gate::OPEN),
        ];
        all.sort_by_key(Candidate::rank);
        let first: Vec<_> = all.iter().map(|one| one.links).collect();
        assert_eq!(first, [2, 4, 0, 5]);
    }
}
