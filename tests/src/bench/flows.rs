//! Flows put into the tables as the data path would have left them.

use std::ops::Range;

use anyhow::{Context as _, Result};
use lb_common::{
    bench::{Reference, ReferenceKey},
    conntrack::{Entry, Entry4, Entry6, Head, Note, Route, flag, state},
    device::NextHopKey,
    flow::{Flow as _, Flow4, Flow6},
    names::{self, flow_use},
    wire::Wire,
};
use lb_userspace::tables::{Protocol, TableSet};

use super::{
    case::Row,
    group::Group,
    kernel::{BENCH_REFERENCE, Kernel, Program, words},
};
use crate::flow_key::FromEndpoints;

/// What the client of an embryonic flow must acknowledge.
pub(super) const ANSWERED: u32 = 5_000;
/// Address families as next-hop keys have them.
const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;

impl Kernel {
    /// Makes the group's flows the only established ones, both halves of each.
    pub(super) fn establish(&mut self, group: &Group, tables: &TableSet) -> Result<()> {
        if self.resident.as_ref() == Some(group) {
            return Ok(());
        }
        if let Some(old) = self.resident.take() {
            self.forget(&old, old.shape.flows, tables)?;
        }
        for flows in portions(group.shape.flows) {
            if group.shape.v6 {
                let halves = self.halves::<Entry6>(group, flows, tables, Birth::ESTABLISHED)?;
                self.insert(names::FLOWS_V6, &halves)?;
            } else {
                let halves = self.halves::<Entry4>(group, flows, tables, Birth::ESTABLISHED)?;
                self.insert(names::FLOWS_V4, &halves)?;
            }
        }
        self.resident = Some(group.clone());
        self.restore_use()
    }

    /// Puts embryonic flows whose backend has answered into the LRU table.
    pub(super) fn conceive(&self, group: &Group, flows: u32, tables: &TableSet) -> Result<()> {
        let (_, backend) = group.forwarded(0);
        let key = NextHopKey {
            ifindex: group.port().ifindex,
            family: if group.shape.v6 { AF_INET6 } else { AF_INET },
            gateway: words(backend.ip()),
        };
        let next_hop: u32 = self
            .map(names::NEXT_HOP_INDEX)?
            .lookup(&key)?
            .context("no flow has gone to the backend yet")?;
        let birth = Birth {
            forward: state::EMBRYONIC,
            reply: state::REPLIED,
            age: 0,
            next_hop: u16::try_from(next_hop)?,
            generation: self.route_generation()?,
        };
        if group.shape.v6 {
            let halves = self.halves::<Entry6>(group, 0..flows, tables, birth)?;
            self.insert(names::EMBRYONIC_V6, &halves)
        } else {
            let halves = self.halves::<Entry4>(group, 0..flows, tables, birth)?;
            self.insert(names::EMBRYONIC_V4, &halves)
        }
    }

    /// Takes a group's flows out of the established table again.
    pub(super) fn forget(&self, group: &Group, flows: u32, tables: &TableSet) -> Result<()> {
        for flows in portions(flows) {
            if group.shape.v6 {
                let halves = self.halves::<Entry6>(group, flows, tables, Birth::ESTABLISHED)?;
                let keys: Vec<Flow6> = halves.into_iter().map(|(key, _)| key).collect();
                self.map(names::FLOWS_V6)?.delete_batch(&keys)?;
            } else {
                let halves = self.halves::<Entry4>(group, flows, tables, Birth::ESTABLISHED)?;
                let keys: Vec<Flow4> = halves.into_iter().map(|(key, _)| key).collect();
                self.map(names::FLOWS_V4)?.delete_batch(&keys)?;
            }
        }
        self.restore_use()
    }

    /// Gives the reference program an entry for each flow of its rows: the packet's own tuple, so that what
    /// it writes back changes nothing.
    pub(super) fn fill_reference(&self, rows: &[Row]) -> Result<()> {
        let reference = rows.iter().find(|row| row.program == Program::Reference);
        let Some(row) = reference else {
            return Ok(());
        };
        let entries = (0..super::FLOWS).map(|number| {
            let (client, vip) = row.group.request(number);
            let flow = Flow4::from_endpoints(client, vip, row.group.shape.protocol.number())?;
            let ports = [
                flow.source_port.0.to_ne_bytes(),
                flow.destination_port.0.to_ne_bytes(),
            ];
            let mut ends = [0; 4];
            for (byte, value) in ends.iter_mut().zip(ports.as_flattened()) {
                *byte = *value;
            }
            let words = [
                flow.source.0,
                flow.destination.0,
                u32::from_ne_bytes(ends),
                flow.protocol,
            ];
            let mut value = Reference::default();
            for (word, of_packet) in value.words.iter_mut().zip(words) {
                *word = of_packet;
            }
            Ok((ReferenceKey { words }, value))
        });
        let entries = entries.collect::<Result<Vec<_>>>()?;
        self.insert(BENCH_REFERENCE, &entries)
    }

    /// Takes every embryonic flow out.
    pub(super) fn clear_embryonic(&self) -> Result<()> {
        self.clear::<Flow4, Entry4>(names::EMBRYONIC_V4)?;
        self.clear::<Flow6, Entry6>(names::EMBRYONIC_V6)
    }

    /// Empties a map.
    pub(super) fn clear<K: Wire, V: Wire>(&self, name: &str) -> Result<()> {
        let map = self.map(name)?;
        let entries: Vec<(K, V)> = map.read_all()?;
        let keys: Vec<K> = entries.into_iter().map(|(key, _)| key).collect();
        map.delete_batch(&keys)
            .with_context(|| format!("clear {name}"))
    }

    fn halves<E>(
        &self,
        group: &Group,
        flows: Range<u32>,
        tables: &TableSet,
        birth: Birth,
    ) -> Result<Vec<(E::Flow, E)>>
    where
        E: Entry,
        E::Flow: FromEndpoints,
    {
        let flags = group.entry_flags();
        let ids = group.ids(tables)?;
        let now = self.tick()?;
        let protocol = group.shape.protocol.number();
        let mut halves = Vec::new();
        for number in flows {
            let (service, backend) = ids
                .get(group.service(number) as usize)
                .copied()
                .context("a flow of no service")?;
            let (client, vip) = group.request(number);
            let (seen, endpoint) = group.forwarded(number);
            let key = E::Flow::from_endpoints(client, vip, protocol)?;
            let written = E::Flow::from_endpoints(seen, endpoint, protocol)?;
            let identity = identity(number);
            let head = |state| Head::new(identity, state, now.wrapping_sub(birth.age));
            // TCP: what the other side acknowledged or must; UDP: the set epoch.
            let note = match group.shape.protocol {
                Protocol::Tcp => ANSWERED,
                Protocol::Udp => 1,
            };
            let mut forward = E::new(head(birth.forward), &written, flags, backend, service);
            forward.set_note(Note::new(identity, note));
            let (reply_key, back) = (written.reversed(), key.reversed());
            let reply_flags = flags | flag::REVERSE;
            let mut reply = E::new(head(birth.reply), &back, reply_flags, backend, service);
            reply.set_note(Note::new(identity, note));
            for half in [&mut forward, &mut reply] {
                half.set_route(Route::new(
                    identity,
                    birth.next_hop,
                    group.port().mtu,
                    birth.generation,
                ));
            }
            halves.push((key, forward));
            halves.push((reply_key, reply));
        }
        Ok(halves)
    }

    fn insert<K: Wire, V: Wire>(&self, name: &str, halves: &[(K, V)]) -> Result<()> {
        let (keys, values): (Vec<K>, Vec<V>) = halves.iter().copied().unzip();
        let map = self.map(name)?;
        map.update_batch(&keys, &values)
            .with_context(|| format!("fill {name}"))
    }

    /// Corrects `FLOW_USE` after the tables were changed from here.
    fn restore_use(&self) -> Result<()> {
        let uses = self.map(names::FLOW_USE)?;
        for (element, v6) in [(flow_use::V4, false), (flow_use::V6, true)] {
            let group = self.resident.as_ref().filter(|group| group.shape.v6 == v6);
            let flows = group.map_or(0, |group| group.shape.flows);
            uses.update(&element, &(2 * u64::from(flows)))?;
        }
        Ok(())
    }
}

/// How a group's flows are when they are put into a table.
#[derive(Clone, Copy)]
struct Birth {
    /// State of the forward half.
    forward: u8,
    /// State of the reply half.
    reply: u8,
    /// Ticks since the last packet.
    age: u32,
    /// Next hop of both; only the forward half's is ever used.
    next_hop: u16,
    /// The route generation at which it was looked up.
    generation: u16,
}

impl Birth {
    /// Without a next hop: the first packet, being the first of a tick, looks it up.
    const ESTABLISHED: Self = Self {
        forward: state::ESTABLISHED,
        reply: state::ESTABLISHED,
        age: 1,
        next_hop: 0,
        generation: 0,
    };
}

/// Flows put in or taken out at once.
const PORTION: u32 = 65_536;

fn portions(flows: u32) -> impl Iterator<Item = Range<u32>> {
    (0..flows.div_ceil(PORTION)).map(move |portion| {
        let start = portion * PORTION;
        start..flows.min(start + PORTION)
    })
}

/// Any number but zero will do: no two flows share a key.
const fn identity(number: u32) -> u32 {
    number.wrapping_mul(0x9e37_79b1) | 1
}
