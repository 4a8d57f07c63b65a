//! Which flows have a deadline, and when it is. Pure.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::SocketAddr,
    ops::RangeInclusive,
    time::Duration,
};

use lb_common::service::{MemberKey, member_flag};

use crate::{
    dataplane::TableOp,
    expire::Hanging,
    plan::owner,
    snapshot::{ObjectName, ServiceObject, Snapshot},
    tables::TableSet,
};

/// When flows are ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Deadline {
    /// Seconds since 1970.
    pub(super) at: u64,
    /// The time flows were given when it was set, in seconds; none if an agent before us set it.
    allowed: Option<u64>,
}

impl Deadline {
    /// A deadline that begins to count now.
    pub(super) const fn new(now: u64, allowed: u64) -> Self {
        Self {
            at: now.saturating_add(allowed),
            allowed: Some(allowed),
        }
    }

    /// A deadline an agent before us set.
    pub(super) const fn found(at: u64) -> Self {
        Self { at, allowed: None }
    }

    /// True once it is over. `now` has lost its fraction of a second, hence not at the second itself.
    pub(super) const fn has_passed(self, now: u64) -> bool {
        now > self.at
    }

    /// The same beginning with another time.
    const fn moved(self, allowed: u64) -> Self {
        let old = match self.allowed {
            Some(old) => old,
            None => allowed,
        };
        Self {
            at: self.at.saturating_sub(old).saturating_add(allowed),
            allowed: Some(allowed),
        }
    }
}

/// A time in seconds, rounded up.
const fn whole_seconds(time: Duration) -> u64 {
    let more = time.subsec_nanos() > 0;
    time.as_secs().saturating_add(more as u64)
}

/// The service ports there are, and those that went while flows may name them.
#[derive(Clone, Copy)]
pub(super) struct ServicePorts<'a> {
    pub(super) tables: &'a TableSet,
    /// Their names, by id.
    pub(super) gone: &'a BTreeMap<u32, String>,
}

impl<'a> ServicePorts<'a> {
    fn name(self, id: u32) -> Option<&'a str> {
        let record = self.tables.services.get(&id);
        let name = record.map(|record| &*record.name);
        name.or_else(|| Some(self.gone.get(&id)?.as_str()))
    }

    /// Those whose Service has a drain deadline: the Service's name and the deadline in seconds.
    fn allowed(self, snapshot: &Snapshot) -> BTreeMap<u32, (&'a str, u64)> {
        let services = snapshot.services.values();
        let times: HashMap<String, u64> = services
            .filter_map(|service| {
                let time = whole_seconds(service.drain_deadline?);
                Some((service.name.to_string(), time))
            })
            .collect();
        if times.is_empty() {
            return BTreeMap::new();
        }
        let ids = self.gone.keys().chain(self.tables.services.keys());
        let with_time = ids.filter_map(|&id| {
            let name = owner(self.name(id)?);
            Some((id, (name, *times.get(name)?)))
        });
        with_time.collect()
    }
}

/// The deadlines from now on, which were `old` so far.
///
/// Flows of a service port with a drain deadline have one if their backend takes no new flows of it
/// and is terminating or no longer among its endpoints. One that is not ready for a while only waits.
/// Of a service port whose Service is gone, or cannot be read, deadlines stay as they are. One that went
/// while its Service stayed, or came back, is judged as if it were still there: by an agent that saw it go.
pub(super) fn decide(
    old: &BTreeMap<MemberKey, Deadline>,
    hanging: &BTreeMap<MemberKey, Hanging>,
    ports: ServicePorts<'_>,
    snapshot: &Snapshot,
    now: u64,
) -> BTreeMap<MemberKey, Deadline> {
    let tables = ports.tables;
    let kept = old.iter().filter(|(key, _)| {
        let told = ports.name(key.service);
        told.and_then(|name| object(snapshot, name)).is_none() && !takes_new_flows(tables, **key)
    });
    let mut deadlines: BTreeMap<_, _> = kept.map(|(key, deadline)| (*key, *deadline)).collect();
    let allowed = ports.allowed(snapshot);
    let mut left = Vec::new();
    for (&service, &(name, time)) in &allowed {
        let of_service = hanging.range(of_port(service));
        left.extend(
            of_service
                .filter(|(key, _)| !takes_new_flows(tables, **key))
                .map(|(key, hanging)| (*key, name, hanging.endpoint, time)),
        );
    }
    let names: HashSet<&str> = left.iter().map(|(_, name, ..)| *name).collect();
    let staying = staying(snapshot, &names);
    left.retain(|(_, name, endpoint, _)| !staying.contains(&(*name, *endpoint)));
    deadlines.extend(left.into_iter().map(|(key, _, _, time)| {
        let deadline = old.get(&key).map(|old| old.moved(time));
        (key, deadline.unwrap_or_else(|| Deadline::new(now, time)))
    }));
    deadlines
}

/// The deadlines after `ops`, which are about to be carried out on `tables`, made of `before`.
///
/// What takes new flows again has none any more, however soon it leaves again. The Service of a service port
/// that goes may be gone as well by the next look: what it said is noted now.
///
/// So it is for its ports that went before: `hanging` is what flows name.
pub(super) fn expect(
    old: &BTreeMap<MemberKey, Deadline>,
    hanging: &BTreeMap<MemberKey, Hanging>,
    ops: &[TableOp],
    ports: ServicePorts<'_>,
    before: &Snapshot,
    now: u64,
) -> BTreeMap<MemberKey, Deadline> {
    let tables = ports.tables;
    let mut deadlines = old.clone();
    let mut going = HashMap::new();
    for op in ops {
        match *op {
            TableOp::SetMember((service, backend), flags) if selects(flags) => {
                deadlines.remove(&MemberKey { service, backend });
            }
            TableOp::RemoveService(service) => {
                let Some(record) = tables.services.get(&service) else {
                    continue;
                };
                let object = object(before, &record.name);
                let Some(allowed) = object.and_then(|object| object.drain_deadline) else {
                    continue;
                };
                let begun = Deadline::new(now, whole_seconds(allowed));
                let members = tables.members.range((service, 0)..=(service, u32::MAX));
                for (&(service, backend), _) in members {
                    let key = MemberKey { service, backend };
                    deadlines.entry(key).or_insert(begun);
                }
                going.insert(owner(&record.name), begun);
            }
            _ => {}
        }
    }
    if going.is_empty() {
        return deadlines;
    }
    for (&id, name) in ports.gone {
        let Some(begun) = going.get(owner(name)) else {
            continue;
        };
        for (key, _) in hanging.range(of_port(id)) {
            deadlines.entry(*key).or_insert(*begun);
        }
    }
    deadlines
}

/// All keys of a service port.
fn of_port(service: u32) -> RangeInclusive<MemberKey> {
    let key = |backend| MemberKey { service, backend };
    key(0)..=key(u32::MAX)
}

/// The Service a service port's name names.
fn object<'a>(snapshot: &'a Snapshot, name: &str) -> Option<&'a ServiceObject> {
    let (namespace, service) = owner(name).split_once('/')?;
    let object = snapshot
        .services
        .get(&ObjectName::new(namespace, service))?;
    Some(object)
}

fn takes_new_flows(tables: &TableSet, key: MemberKey) -> bool {
    let flags = tables.members.get(&(key.service, key.backend));
    flags.is_some_and(|flags| selects(*flags))
}

/// Whether a member with these flags is in one of the sets.
const fn selects(flags: u32) -> bool {
    flags & member_flag::SELECTED != 0
}

/// Endpoints of some Services that are not terminating, ready or not.
fn staying<'a>(snapshot: &Snapshot, services: &HashSet<&'a str>) -> HashSet<(&'a str, SocketAddr)> {
    let mut staying = HashSet::new();
    if services.is_empty() {
        return staying;
    }
    for (name, slice) in &snapshot.slices {
        let service = format!("{}/{}", name.namespace, slice.service);
        let Some(service) = services.get(service.as_str()) else {
            continue;
        };
        let ports: BTreeSet<u16> = slice.ports.iter().map(|port| port.port).collect();
        for endpoint in slice.endpoints.iter().filter(|e| !e.terminating) {
            let sockets = ports
                .iter()
                .map(|port| SocketAddr::new(endpoint.address, *port));
            staying.extend(sockets.map(|socket| (*service, socket)));
        }
    }
    staying
}

#[cfg(test)]
mod tests;
