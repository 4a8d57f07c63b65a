//! Room for Maglev tables in `SLOTS`.

use std::collections::BTreeMap;

/// Free room of the arena, in elements.
///
/// First fit, at multiples of the extent's own size: the sizes are powers of four, so small extents
/// never leave holes that only they could fill.
#[derive(Debug)]
pub(super) struct Arena {
    /// Free runs: first element to length.
    free: BTreeMap<u32, u32>,
    /// By size: below this nothing of the size fits. Room only shrinks, but for [`Arena::give_back`].
    hint: BTreeMap<u32, u32>,
}

impl Arena {
    /// All of `capacity` is free except `occupied` (first element and size, ordered, not overlapping).
    pub(super) fn new(capacity: u32, occupied: impl Iterator<Item = (u32, u32)>) -> Self {
        let mut free = BTreeMap::new();
        let mut start = 0;
        for (element, size) in occupied.chain([(capacity, 0)]) {
            if element > start {
                free.insert(start, element.min(capacity) - start.min(capacity));
            }
            start = start.max(element.saturating_add(size));
        }
        free.retain(|_, length| *length > 0);
        Self {
            free,
            hint: BTreeMap::new(),
        }
    }

    /// Takes `size` elements. `None`: there is no room.
    pub(super) fn take(&mut self, size: u32) -> Option<u32> {
        let hint = self.hint.get(&size).copied().unwrap_or(0);
        let aligned = |start: u32| start.checked_next_multiple_of(size);
        let fits = |(&start, &length): (&u32, &u32)| {
            let element = aligned(start)?;
            (u64::from(element) + u64::from(size) <= u64::from(start) + u64::from(length))
                .then_some((start, length, element))
        };
        let Some((start, length, element)) = self.free.range(hint..).find_map(fits) else {
            self.hint.insert(size, u32::MAX);
            return None;
        };
        // The run before `hint` may have grown shorter but none has grown longer.
        self.hint.insert(size, start);
        self.free.remove(&start);
        if element > start {
            self.free.insert(start, element - start);
        }
        let (end, used) = (start + length, element + size);
        if end > used {
            self.free.insert(used, end - used);
        }
        Some(element)
    }

    /// Takes these very elements, if all of them are free.
    pub(super) fn reserve(&mut self, element: u32, size: u32) -> bool {
        let Some((&start, &length)) = self.free.range(..=element).next_back() else {
            return false;
        };
        let (end, used) = (start + length, element.saturating_add(size));
        if used > end {
            return false;
        }
        self.free.remove(&start);
        if element > start {
            self.free.insert(start, element - start);
        }
        if end > used {
            self.free.insert(used, end - used);
        }
        true
    }

    /// Gives elements back that were taken. They are free from now on.
    pub(super) fn give_back(&mut self, element: u32, size: u32) {
        let (mut start, mut end) = (element, element + size);
        if let Some((&before, &length)) = self.free.range(..start).next_back()
            && before + length == start
        {
            self.free.remove(&before);
            start = before;
        }
        if let Some(length) = self.free.remove(&end) {
            end += length;
        }
        self.free.insert(start, end - start);
        self.hint.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_fit_is_taken_at_a_multiple_of_its_size() {
        let mut arena = Arena::new(100, [(0, 4), (20, 4), (60, 4)].into_iter());
        let taken: Vec<_> = [16, 4, 16, 16, 16, 1, 64]
            .map(|size| arena.take(size))
            .into();
        let expected = [Some(32), Some(4), Some(64), Some(80), None, Some(8), None];
        assert_eq!(taken, expected);
    }

    #[test]
    fn what_is_given_back_joins_the_free_room_beside_it() {
        let used = [(0, 16), (16, 16), (32, 16), (48, 16)];
        let mut arena = Arena::new(64, used.into_iter());
        assert_eq!(arena.take(16), None);
        for element in [16, 48, 32] {
            arena.give_back(element, 16);
        }
        let whole = Arena::new(64, used[..1].iter().copied());
        assert_eq!(arena.free, whole.free);
        assert_eq!((arena.take(32), arena.take(16)), (Some(32), Some(16)));
    }

    #[test]
    fn what_is_reserved_is_not_taken() {
        let mut arena = Arena::new(64, [(0, 16)].into_iter());
        let reserved = [(0, 4), (16, 4), (16, 4), (56, 16), (24, 4), (60, 4)];
        let reserved = reserved.map(|(element, size)| arena.reserve(element, size));
        assert_eq!(reserved, [false, true, false, false, true, true]);
        assert_eq!((arena.take(4), arena.take(16)), (Some(20), Some(32)));
    }

    #[test]
    fn extents_never_overlap_and_fill_the_arena() {
        let mut arena = Arena::new(1_024, [(512, 16)].into_iter());
        let mut used = vec![(512, 16)];
        for size in [64, 16, 256, 16, 64, 16, 256, 64, 64, 16, 16, 16, 16, 64] {
            used.extend(arena.take(size).map(|element| (element, size)));
        }
        while let Some(element) = arena.take(16) {
            used.push((element, 16));
        }
        used.sort_unstable();
        assert!(
            used.windows(2).all(|w| w[0].0 + w[0].1 == w[1].0),
            "{used:?}"
        );
        assert_eq!(used.iter().map(|&(_, size)| size).sum::<u32>(), 1_024);
    }
}
