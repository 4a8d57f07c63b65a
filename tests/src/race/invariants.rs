//! What holds of the flow tables whenever no program runs.

use std::{collections::BTreeMap, fmt::Debug};

use lb_common::{
    conntrack::{Closing4, Closing6, Entry, Entry4, Entry6, flag, state},
    flow::{Flow, Flow4, Flow6, protocol},
    names::{self, flow_use},
    wire::Wire,
};

use crate::run::Lab;

/// What the tables of both families hold.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Found {
    /// Established flows, closed ones included.
    pub established: usize,
    /// Those of them that are closed.
    pub closed: usize,
    /// Embryonic flows: both halves are there.
    pub embryonic: usize,
    /// Embryonic halves whose other half is gone or another's.
    pub orphans: usize,
}

/// Looks at every half. `CLOSING_*` is empty afterwards.
///
/// # Errors
///
/// Names the halves that break a rule.
pub fn check(lab: &Lab) -> Result<Found, String> {
    let mut found = Found::default();
    let uses: BTreeMap<u32, u64> = lab
        .map(names::FLOW_USE)
        .read_all()
        .expect("FLOW_USE")
        .into_iter()
        .collect();
    let mut queued = BTreeMap::new();
    while let Some(Closing4 { flow, identity, .. }) =
        lab.map(names::CLOSING_V4).pop().expect("CLOSING_V4")
    {
        *queued.entry((flow, identity)).or_default() += 1;
    }
    let tables = Tables {
        established: lab.flows4(names::FLOWS_V4),
        embryonic: lab.flows4(names::EMBRYONIC_V4),
        queued,
        uses: [uses.get(&flow_use::V4), uses.get(&flow_use::UDP_V4)]
            .map(|n| n.copied().unwrap_or_default()),
    };
    tables.check(&mut found)?;
    let mut queued = BTreeMap::new();
    while let Some(Closing6 { flow, identity, .. }) =
        lab.map(names::CLOSING_V6).pop().expect("CLOSING_V6")
    {
        *queued.entry((flow, identity)).or_default() += 1;
    }
    let tables = Tables {
        established: lab.flows6(names::FLOWS_V6),
        embryonic: lab.flows6(names::EMBRYONIC_V6),
        queued,
        uses: [uses.get(&flow_use::V6), uses.get(&flow_use::UDP_V6)]
            .map(|n| n.copied().unwrap_or_default()),
    };
    tables.check(&mut found)?;
    Ok(found)
}

/// Empties the flow tables.
pub fn forget(lab: &Lab) {
    clear::<Flow4, Entry4>(lab, [names::FLOWS_V4, names::EMBRYONIC_V4]);
    clear::<Flow6, Entry6>(lab, [names::FLOWS_V6, names::EMBRYONIC_V6]);
    while let Some(Closing4 { .. }) = lab.map(names::CLOSING_V4).pop().expect("CLOSING_V4") {}
    while let Some(Closing6 { .. }) = lab.map(names::CLOSING_V6).pop().expect("CLOSING_V6") {}
    let uses = lab.map(names::FLOW_USE);
    for element in 0..uses.info().max_entries {
        uses.update(&element, &0_u64).expect("FLOW_USE");
    }
}

fn clear<K: Wire, V: Wire>(lab: &Lab, tables: [&str; 2]) {
    for name in tables {
        let map = lab.map(name);
        let entries: Vec<(K, V)> = map.read_all().unwrap_or_else(|e| panic!("{name}: {e}"));
        let keys: Vec<K> = entries.into_iter().map(|(key, _)| key).collect();
        map.delete_batch(&keys)
            .unwrap_or_else(|e| panic!("clear {name}: {e}"));
    }
}

/// The tables of one family.
struct Tables<F, E> {
    established: BTreeMap<F, E>,
    embryonic: BTreeMap<F, E>,
    /// Records in `CLOSING_*`, by flow and identity.
    queued: BTreeMap<(F, u32), usize>,
    /// Entries counted, and those of UDP.
    uses: [u64; 2],
}

impl<F: Flow + Ord + Debug, E: Entry<Flow = F> + Debug> Tables<F, E> {
    fn check(&self, found: &mut Found) -> Result<(), String> {
        for (key, entry) in &self.established {
            self.established_half(key, entry)?;
            if entry.flags() & flag::REVERSE == 0 {
                found.established += 1;
                found.closed += usize::from(state::is_closed(entry.head().state()));
            }
        }
        for (key, entry) in &self.embryonic {
            own_words(key, entry)?;
            if self.established.contains_key(key) {
                return Err(format!("in both tables: {key:?}"));
            }
            if !is_whole(&self.embryonic, key, entry) {
                found.orphans += 1;
            } else if entry.flags() & flag::REVERSE == 0 {
                found.embryonic += 1;
            }
        }
        let udp = |key: &&F| key.protocol() == protocol::UDP;
        let counted = [
            self.established.len() as u64,
            self.established.keys().filter(udp).count() as u64,
        ];
        if counted != self.uses {
            return Err(format!(
                "FLOW_USE says {:?} entries (all, UDP), the table holds {counted:?}",
                self.uses
            ));
        }
        if self.queued.values().any(|n| *n != 1) {
            return Err(format!("queued more than once: {:?}", self.queued));
        }
        Ok(())
    }

    fn established_half(&self, key: &F, entry: &E) -> Result<(), String> {
        own_words(key, entry)?;
        if !is_whole(&self.established, key, entry) {
            let peer = entry.written(key.protocol()).reversed();
            return Err(format!(
                "half a flow: {key:?}\n  {entry:x?}\n  where its other half should be: {:x?}",
                self.established.get(&peer)
            ));
        }
        let head = entry.head();
        if !matches!(
            state::base(head.state()),
            state::ESTABLISHED | state::FIN | state::CLOSED | state::RESET
        ) {
            return Err(format!("state {}: {key:?}", head.state()));
        }
        if entry.flags() & flag::REVERSE != 0 {
            return Ok(());
        }
        let is_queued = self.queued.contains_key(&(*key, head.identity()));
        if is_queued != (head.state() & state::QUEUED != 0) {
            let word = if is_queued { "without" } else { "but for" };
            return Err(format!("queued {word} its mark: {key:?}\n  {entry:x?}"));
        }
        if state::is_closed(head.state()) && !is_queued {
            return Err(format!("closed and never to leave: {key:?}\n  {entry:x?}"));
        }
        Ok(())
    }
}

/// Whether the other half is there: same flow, other direction, pointing back.
fn is_whole<F: Flow + Ord, E: Entry<Flow = F>>(table: &BTreeMap<F, E>, key: &F, entry: &E) -> bool {
    let peer = entry.written(key.protocol()).reversed();
    table.get(&peer).is_some_and(|peer| {
        peer.head().identity() == entry.head().identity()
            && peer.written(key.protocol()).reversed() == *key
            && peer.flags() ^ entry.flags() == flag::REVERSE
    })
}

/// The words of an entry carry its identity: no stranger wrote them.
fn own_words<F: Debug, E: Entry + Debug>(key: &F, entry: &E) -> Result<(), String> {
    let identity = entry.head().identity();
    let of_note = entry.note().0 >> 32;
    let of_route = entry.route().0 >> 48;
    if of_note == u64::from(identity) && of_route == u64::from(identity & 0xffff) {
        Ok(())
    } else {
        Err(format!("a stranger's words: {key:?}\n  {entry:x?}"))
    }
}
