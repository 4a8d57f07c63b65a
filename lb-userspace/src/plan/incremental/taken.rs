//! Ids in use, as bits.

use std::collections::BTreeSet;

/// Ids something names. Id 0 is never free.
#[derive(Clone, Debug, Default)]
pub(super) struct Taken {
    words: Vec<u64>,
}

impl Taken {
    pub(super) fn insert(&mut self, id: u32) {
        let (word, bit) = position(id);
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        if let Some(word) = self.words.get_mut(word) {
            *word |= bit;
        }
    }

    pub(super) fn remove(&mut self, id: u32) {
        let (word, bit) = position(id);
        if let Some(word) = self.words.get_mut(word) {
            *word &= !bit;
        }
    }

    /// The lowest id from `least` on that is neither taken nor in `quarantine`.
    pub(super) fn free(&self, least: u32, quarantine: &BTreeSet<u32>) -> u32 {
        let mut id = least.max(1);
        loop {
            let (word, bit) = position(id);
            // Ids below the one looked at count as taken.
            let word = self.words.get(word).copied().unwrap_or(0) | (bit - 1);
            let run = (!word).trailing_zeros();
            let found = (id & !63).saturating_add(run);
            if run < 64 && !quarantine.contains(&found) {
                return found;
            }
            id = if run < 64 {
                found + 1
            } else {
                (id | 63).saturating_add(1)
            };
        }
    }
}

impl FromIterator<u32> for Taken {
    fn from_iter<T: IntoIterator<Item = u32>>(ids: T) -> Self {
        let mut taken = Self::default();
        for id in ids {
            taken.insert(id);
        }
        taken
    }
}

fn position(id: u32) -> (usize, u64) {
    let word = usize::try_from(id / 64).unwrap_or(usize::MAX);
    (word, 1 << (id % 64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_free_id_is_found() {
        let quarantine = BTreeSet::from([3, 4, 200]);
        let mut taken: Taken = (1..=2).chain(5..200).collect();
        assert_eq!(Taken::default().free(0, &BTreeSet::new()), 1);
        assert_eq!(taken.free(0, &quarantine), 201);
        assert_eq!(taken.free(300, &quarantine), 300);
        taken.remove(130);
        assert_eq!(taken.free(0, &quarantine), 130);
        assert_eq!(taken.free(131, &quarantine), 201);
        taken.insert(130);
        assert_eq!(taken.free(0, &BTreeSet::from([3])), 4);
    }
}
