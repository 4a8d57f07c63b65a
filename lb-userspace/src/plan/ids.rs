//! Hands out small numbers that stay what they are.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    hash::Hash,
};

/// Ids of one kind: a name keeps the id it had, a new name gets the lowest one that is free.
///
/// An id of `previous` is never given to another name: until the change is applied, something in
/// the kernel names it. Nor is one in quarantine, nor 0.
pub(super) struct IdPool<'a, K> {
    known: HashMap<K, u32>,
    taken: BTreeSet<u32>,
    quarantine: &'a BTreeSet<u32>,
    next: u32,
    /// Ids below this exist.
    capacity: u32,
    /// Handed out and given back.
    returned: BTreeSet<u32>,
}

impl<'a, K: Eq + Hash> IdPool<'a, K> {
    /// A pool in which `previous` names have their ids. Of two ids for one name the lower counts.
    pub(super) fn new(
        previous: impl Iterator<Item = (u32, K)>,
        quarantine: &'a BTreeSet<u32>,
        capacity: u32,
    ) -> Self {
        let mut known = HashMap::new();
        let mut taken = BTreeSet::new();
        for (id, name) in previous {
            taken.insert(id);
            known
                .entry(name)
                .and_modify(|known: &mut u32| *known = id.min(*known))
                .or_insert(id);
        }
        Self {
            known,
            taken,
            quarantine,
            next: 1,
            capacity,
            returned: BTreeSet::new(),
        }
    }

    /// The id `name` had in `previous`.
    pub(super) fn known(&self, name: &K) -> Option<u32> {
        self.known
            .get(name)
            .copied()
            .filter(|&id| id < self.capacity)
    }

    /// A fresh id. `None`: all are taken.
    pub(super) fn fresh(&mut self) -> Option<u32> {
        if let Some(id) = self.returned.pop_first() {
            return Some(id);
        }
        while self.taken.contains(&self.next) || self.quarantine.contains(&self.next) {
            self.next += 1;
        }
        let id = self.next;
        if id >= self.capacity {
            return None;
        }
        self.next += 1;
        Some(id)
    }

    /// Gives fresh ids back that were not used after all.
    pub(super) fn give_back(&mut self, ids: impl IntoIterator<Item = u32>) {
        self.returned.extend(ids);
    }
}

/// The incarnation of a fresh id.
pub(super) fn incarnation(last: &BTreeMap<u32, u32>, id: u32) -> u32 {
    last.get(&id).map_or(1, |last| last.wrapping_add(1).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_names_keep_their_ids_and_others_get_the_lowest_free_one() {
        let quarantine = BTreeSet::from([3]);
        let previous = [(1, "a"), (2, "b"), (5, "b")].into_iter();
        let mut pool = IdPool::new(previous, &quarantine, 8);
        assert_eq!(
            (pool.known(&"a"), pool.known(&"b"), pool.known(&"c")),
            (Some(1), Some(2), None)
        );
        assert_eq!((pool.fresh(), pool.fresh()), (Some(4), Some(6)));
        pool.give_back([4]);
        assert_eq!(
            (pool.fresh(), pool.fresh(), pool.fresh()),
            (Some(4), Some(7), None)
        );
    }

    #[test]
    fn an_id_beyond_a_smaller_table_is_not_kept() {
        let quarantine = BTreeSet::new();
        let pool = IdPool::new([(9, "a")].into_iter(), &quarantine, 8);
        assert_eq!(pool.known(&"a"), None);
    }
}
