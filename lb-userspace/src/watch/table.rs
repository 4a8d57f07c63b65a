//! The objects of one kind, as a watch tells of them.
//!
//! ```text
//! Init ─▶ InitApply… ─▶ InitDone      a list, built aside; what was there before stays until its end
//!            Apply, Delete            one object at a time
//! ```

use std::{collections::BTreeMap, sync::Arc};

use imbl::OrdMap;
use kube::runtime::watcher::Event;

use super::received::{Kind, Received};
use crate::{
    snapshot::{ObjectName, Rejection},
    source::Scope,
};

/// What was made of an object.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Read<V> {
    /// This is kept of it.
    Good(V, Vec<Rejection>),
    /// It is none of ours.
    NotOurs(Vec<Rejection>),
    /// Its last good version stays.
    Broken(Vec<Rejection>),
}

/// Objects by name, and what is wrong with some of them.
#[derive(Clone, Debug, Eq, PartialEq)]
struct List<V: Eq> {
    objects: OrdMap<ObjectName, Arc<V>>,
    problems: BTreeMap<ObjectName, Problem>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
struct Problem {
    rejections: Vec<Rejection>,
    /// Its object may be missing, or old.
    broken: bool,
}

impl<V: Eq> Default for List<V> {
    fn default() -> Self {
        Self {
            objects: OrdMap::new(),
            problems: BTreeMap::new(),
        }
    }
}

impl<V: Eq> List<V> {
    /// Takes an object in; `before` has its last good version. Returns whether anything changed.
    fn put(&mut self, name: ObjectName, read: Read<V>, before: Option<&Arc<V>>) -> bool {
        let current = self.objects.get(&name);
        let (object, rejections, broken) = match read {
            Read::Good(object, rejections) => {
                // An equal object stays the same one: then comparing costs nothing.
                let same = before.filter(|old| ***old == object).cloned();
                (
                    Some(same.unwrap_or_else(|| Arc::new(object))),
                    rejections,
                    false,
                )
            }
            Read::NotOurs(rejections) => (None, rejections, false),
            Read::Broken(rejections) => (before.cloned(), rejections, true),
        };
        let mut changed = current != object.as_ref();
        match object {
            Some(object) if changed => drop(self.objects.insert(name.clone(), object)),
            None if changed => drop(self.objects.remove(&name)),
            _ => {}
        }
        let problem = (broken || !rejections.is_empty()).then_some(Problem { rejections, broken });
        if self.problems.get(&name) != problem.as_ref() {
            changed = true;
            match problem {
                Some(problem) => drop(self.problems.insert(name, problem)),
                None => drop(self.problems.remove(&name)),
            }
        }
        changed
    }

    fn remove(&mut self, name: &ObjectName) -> bool {
        let object = self.objects.remove(name).is_some();
        self.problems.remove(name).is_some() || object
    }
}

/// The state of one kind.
#[derive(Clone, Debug)]
pub(super) struct Table<V: Eq> {
    now: List<V>,
    /// A list that is not complete yet.
    next: Option<List<V>>,
    /// A list was complete once.
    listed: bool,
}

impl<V: Eq> Default for Table<V> {
    fn default() -> Self {
        Self {
            now: List::default(),
            next: None,
            listed: false,
        }
    }
}

impl<V: Eq> Table<V> {
    /// Takes an event in. Returns whether anything that can be seen changed.
    pub(super) fn apply<K: Kind<Kept = V>>(
        &mut self,
        event: Event<Received<K>>,
        scope: &Scope,
    ) -> bool {
        match event {
            Event::Init => {
                self.next = Some(List::default());
                false
            }
            Event::InitApply(object) => {
                let (name, read) = object.read(scope);
                let before = self.now.objects.get(&name);
                let next = self.next.get_or_insert_default();
                next.put(name, read, before);
                false
            }
            Event::InitDone => {
                let next = self.next.take().unwrap_or_default();
                let changed = !self.listed || next != self.now;
                self.listed = true;
                if changed {
                    self.now = next;
                }
                changed
            }
            Event::Apply(object) => {
                let (name, read) = object.read(scope);
                let before = self.now.objects.get(&name).cloned();
                self.now.put(name, read, before.as_ref())
            }
            Event::Delete(object) => {
                let (name, _) = object.read(scope);
                self.now.remove(&name)
            }
        }
    }

    /// The objects of the last complete list, and what changed since.
    pub(super) const fn objects(&self) -> &OrdMap<ObjectName, Arc<V>> {
        &self.now.objects
    }

    /// Whether a list was complete once.
    pub(super) const fn is_listed(&self) -> bool {
        self.listed
    }

    /// Whether an object cannot be read: it may be missing, or old.
    pub(super) fn is_unread(&self) -> bool {
        self.now.problems.values().any(|problem| problem.broken)
    }

    /// What is wrong with the objects.
    pub(super) fn rejections(&self) -> impl Iterator<Item = &Rejection> {
        self.now.problems.values().flat_map(|p| &p.rejections)
    }
}
