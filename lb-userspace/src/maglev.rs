//! Builds Maglev tables (Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load
//! Balancer", NSDI 2016, section 3.4).
//!
//! Each backend has a permutation of the slots, and the backends take turns at their next free one.
//! Shares are even to one slot, and a change of one backend moves few slots of the others. The
//! permutation depends on the endpoint alone and turns are taken in the order of endpoints, so the
//! same backends give the same table on every node, whatever their ids.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use lb_common::maglev::{LENGTHS, SLOTS_PER_BACKEND, SLOTS_PER_ELEMENT};

/// The length of a table for `backends` backends: the shortest with enough slots for each.
///
/// The lengths are about four apart, so this is also "grow at need, shrink at a quarter", and it
/// does not depend on the past: nodes with different pasts agree.
pub fn length_for(backends: usize) -> u32 {
    let needed = u32::try_from(backends)
        .unwrap_or(u32::MAX)
        .saturating_mul(SLOTS_PER_BACKEND);
    let [.., longest] = LENGTHS;
    LENGTHS
        .into_iter()
        .find(|&length| length >= needed)
        .unwrap_or(longest)
}

/// Elements of `SLOTS` which a table of `length` slots takes.
pub const fn elements(length: u32) -> u32 {
    length.div_ceil(SLOTS_PER_ELEMENT)
}

/// The table over `backends` (endpoint and id), of `length` slots, one of [`LENGTHS`].
///
/// Endpoints are distinct. Without any backend every slot is 0.
pub fn build(backends: &[(SocketAddr, u32)], length: u32) -> Arc<[u32]> {
    let mut backends = backends.to_vec();
    backends.sort_unstable();
    let mut turns: Vec<_> = backends
        .iter()
        .map(|&(endpoint, id)| (Permutation::of(endpoint, length), id))
        .collect();
    let mut table = vec![0_u32; length as usize];
    let mut free = if turns.is_empty() { 0 } else { table.len() };
    while free > 0 {
        for (permutation, id) in &mut turns {
            if free == 0 {
                break;
            }
            // A permutation reaches every slot, and one is free: this ends.
            for position in permutation.by_ref() {
                if let Some(slot @ 0) = table.get_mut(position) {
                    *slot = *id;
                    free -= 1;
                    break;
                }
            }
        }
    }
    table.into()
}

/// The slots in one backend's order of preference, endlessly.
struct Permutation {
    next: u32,
    skip: u32,
    length: u32,
}

impl Permutation {
    fn of(endpoint: SocketAddr, length: u32) -> Self {
        let octets = match endpoint.ip() {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => v6.octets(),
        };
        let address = u128::from_be_bytes(octets);
        // The length is a prime, so any skip from 1 to length - 1 reaches every slot.
        let offset = hash(0x51c3_e1f0_7d2b_a649, address, endpoint.port()) % u64::from(length);
        let skip =
            hash(0x0b5e_9ca7_38d4_16f3, address, endpoint.port()) % u64::from(length - 1) + 1;
        let narrow = |value: u64| u32::try_from(value).unwrap_or(0);
        Self {
            next: narrow(offset),
            skip: narrow(skip),
            length,
        }
    }
}

impl Iterator for Permutation {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        let position = self.next;
        let next = position + self.skip;
        self.next = if next >= self.length {
            next - self.length
        } else {
            next
        };
        usize::try_from(position).ok()
    }
}

/// A hash that is the same on every node and in every version: it decides where flows go.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the two halves of an address"
)]
fn hash(seed: u64, address: u128, port: u16) -> u64 {
    [(address >> 64) as u64, address as u64, u64::from(port)]
        .into_iter()
        .fold(seed, |hash, word| {
            // Two rounds of multiply-xorshift a word (the finaliser of SplitMix64).
            let mut z = (hash ^ word).wrapping_add(0x9e37_79b9_7f4a_7c15);
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn endpoint(n: u32) -> SocketAddr {
        let address = IpAddr::from(std::net::Ipv4Addr::from(0x0a00_0000 + n));
        SocketAddr::new(address, 8080)
    }

    fn shares(table: &[u32]) -> BTreeMap<u32, usize> {
        let mut shares = BTreeMap::new();
        for &id in table {
            *shares.entry(id).or_default() += 1;
        }
        shares
    }

    #[test]
    fn lengths_grow_at_need_and_shrink_at_a_quarter() {
        for (backends, length) in [
            (1, 251),
            (2, 251),
            (3, 1_021),
            (10, 1_021),
            (11, 4_093),
            (655, 65_521),
            (60_000, 1_048_573),
        ] {
            assert_eq!(length_for(backends), length, "{backends} backends");
        }
        for (shorter, longer) in LENGTHS.into_iter().zip(LENGTHS.into_iter().skip(1)) {
            let quarter = longer / SLOTS_PER_BACKEND / 4;
            assert_eq!(length_for(quarter as usize), shorter);
            assert_eq!(length_for(quarter as usize + 1), longer);
        }
    }

    /// The answers of a node of another version: they must not change, or a rolling upgrade of
    /// several nodes would spread one flow over two backends.
    #[test]
    fn the_table_is_the_same_for_ever() {
        let backends: Vec<_> = (1..=5).map(|i| (endpoint(i), i)).collect();
        let table = build(&backends, 251);
        insta::assert_compact_debug_snapshot!(&table[..32], @"[2, 3, 3, 5, 1, 1, 2, 1, 1, 1, 5, 5, 2, 2, 5, 3, 1, 1, 3, 2, 3, 3, 3, 3, 5, 4, 4, 5, 1, 1, 1, 4]");
    }

    #[test]
    fn one_backend_takes_every_slot_and_none_leaves_them_empty() {
        assert!(build(&[(endpoint(1), 7)], 251).iter().all(|&id| id == 7));
        assert!(build(&[], 251).iter().all(|&id| id == 0));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn shares_differ_by_at_most_one_slot(hosts in proptest::collection::btree_set(0_u32..100_000, 1..80)) {
            let backends: Vec<_> = hosts.iter().map(|&n| (endpoint(n), n + 1)).collect();
            let table = build(&backends, length_for(backends.len()));
            let shares = shares(&table);
            prop_assert_eq!(shares.len(), backends.len());
            let (least, most) = (shares.values().min(), shares.values().max());
            prop_assert!(most.zip(least).is_some_and(|(most, least)| most - least <= 1));
        }

        #[test]
        fn neither_order_nor_ids_matter(
            (hosts, shuffled) in proptest::collection::btree_set(0_u32..100_000, 1..40).prop_flat_map(|hosts| {
                let hosts: Vec<_> = hosts.into_iter().collect();
                (Just(hosts.clone()), Just(hosts).prop_shuffle())
            })
        ) {
            let place = |hosts: &[u32], offset: u32| {
                let backends: Vec<_> = hosts.iter().map(|&n| (endpoint(n), n + offset)).collect();
                build(&backends, 4_093).iter().map(|id| id - offset).collect::<Vec<_>>()
            };
            prop_assert_eq!(place(&hosts, 1), place(&shuffled, 777));
        }

        #[test]
        fn removing_a_backend_moves_few_slots_of_the_others(
            hosts in proptest::collection::btree_set(0_u32..100_000, 5..40), gone in any::<prop::sample::Index>()
        ) {
            let mut backends: Vec<_> = hosts.iter().map(|&n| (endpoint(n), n + 1)).collect();
            let length = length_for(backends.len());
            let before = build(&backends, length);
            let (_, id) = backends.swap_remove(gone.index(backends.len()));
            let after = build(&backends, length);
            let survivors = before.iter().zip(after.iter()).filter(|(old, _)| **old != id);
            let moved = survivors.filter(|(old, new)| old != new).count();
            // The paper finds about 1 to 2 % at 100 slots a backend and more; chance adds to it.
            prop_assert!(moved * 100 <= length as usize * 15, "{moved} of {length}");
        }
    }
}
