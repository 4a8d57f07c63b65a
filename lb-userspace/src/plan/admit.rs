//! Numbers service ports and backends, and turns Services away that no table has room for.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::{IpAddr, SocketAddr},
};

use lb_common::service::{address_role, backend_flag, service_flag};

use super::{
    Quarantine,
    draft::{PortDraft, ServiceDraft, addresses, owner},
    ids::{IdPool, incarnation},
    ranges::{Networks, RangeAddition, RangeSets},
};
use crate::{
    node::NodeConfig,
    snapshot::{ObjectName, Rejection},
    tables::{BackendRecord, Family, FrontendId, TableSet},
};

/// What will be served, numbered. Older Services come first.
#[derive(Debug, Default)]
pub(super) struct Admitted {
    pub(super) ports: Vec<Numbered>,
    /// Backends by id.
    pub(super) backends: BTreeMap<u32, BackendRecord>,
    /// Ids of backends.
    pub(super) backend_ids: HashMap<SocketAddr, u32>,
    pub(super) addresses: BTreeMap<IpAddr, u32>,
    pub(super) gateway_endpoints: BTreeSet<FrontendId>,
    /// Source-range sets by id.
    pub(super) source_ranges: BTreeMap<u32, Networks>,
}

/// A service port with its id.
#[derive(Debug)]
pub(super) struct Numbered {
    pub(super) service: ObjectName,
    pub(super) id: u32,
    /// Source-range set id.
    pub(super) source_ranges: u32,
    pub(super) draft: PortDraft,
}

/// Admits Services while there is room: the oldest first, those already served before new ones.
pub(super) fn admit(
    mut drafts: Vec<ServiceDraft>,
    previous: &TableSet,
    node: &NodeConfig,
    quarantine: &Quarantine,
    rejected: &mut Vec<Rejection>,
) -> Admitted {
    let served: HashSet<_> = previous
        .services
        .values()
        .map(|record| owner(&record.name))
        .collect();
    drafts.sort_by_cached_key(|draft| {
        let is_new = !served.contains(draft.name.to_string().as_str());
        (
            draft.created.unwrap_or(i64::MAX),
            is_new,
            draft.name.clone(),
        )
    });
    let services = previous
        .services
        .iter()
        .map(|(&id, record)| (id, record.name.as_str()));
    let backends = previous
        .backends
        .iter()
        .map(|(&id, record)| (id, record.endpoint));
    // Names of `drafts` are looked up in a pool of names of `previous`.
    let services = services.map(|(id, name)| (id, name.to_owned()));
    let mut admission = Admission {
        node,
        previous,
        quarantine,
        services: IdPool::new(services, &quarantine.services, node.sizes.services),
        backends: IdPool::new(backends, &quarantine.backends, node.sizes.backends),
        frontends: BTreeMap::new(),
        gateway_endpoints: BTreeMap::new(),
        members: 0,
        source_ranges: RangeSets::new(previous, node.sizes.source_ranges),
        admitted: Admitted {
            addresses: own_roles(node),
            ..Admitted::default()
        },
    };
    for draft in drafts {
        let name = draft.name.clone();
        if let Err(full) = admission.admit(draft) {
            let message = format!(
                "is not served: the table of {} is full ({} in the configuration is {})",
                full.what, full.key, full.capacity
            );
            rejected.push(Rejection::service(&name, "", message));
        }
    }
    let source_ranges = admission.source_ranges.into_sets();
    Admitted {
        source_ranges,
        ..admission.admitted
    }
}

/// What an endpoint is, as far as this node is concerned.
pub(super) fn backend_flags(node: &NodeConfig, endpoint: SocketAddr, on_node: bool) -> u16 {
    let place = match (node.addresses.contains(&endpoint.ip()), on_node) {
        (true, _) => backend_flag::HOST | backend_flag::LOCAL,
        (false, true) => backend_flag::LOCAL,
        (false, false) => 0,
    };
    place | backend_flag::LIVE
}

/// Whether a frontend's address may be a VIP: addresses of the node are its own.
pub(super) fn may_be_vip(node: &NodeConfig, address: IpAddr) -> bool {
    !node.addresses.contains(&address) && !node.snat_addresses.contains(&address)
}

/// Roles which addresses have whatever is served.
pub(super) fn own_roles(node: &NodeConfig) -> BTreeMap<IpAddr, u32> {
    let mut roles: BTreeMap<IpAddr, u32> = BTreeMap::new();
    for &address in &node.node_port_addresses {
        *roles.entry(address).or_default() |= address_role::NODE_PORT;
    }
    for &address in &node.snat_addresses {
        *roles.entry(address).or_default() |= address_role::SNAT;
    }
    roles
}

/// A table without room.
struct Full {
    what: &'static str,
    key: &'static str,
    capacity: u32,
}

struct Admission<'a> {
    node: &'a NodeConfig,
    previous: &'a TableSet,
    quarantine: &'a Quarantine,
    services: IdPool<'a, String>,
    backends: IdPool<'a, SocketAddr>,
    /// Frontends admitted, by family.
    frontends: BTreeMap<Family, usize>,
    /// Gateway endpoints admitted, by family.
    gateway_endpoints: BTreeMap<Family, usize>,
    members: usize,
    source_ranges: RangeSets,
    admitted: Admitted,
}

/// Everything a Service would add. Nothing of it counts until all of it has room.
#[derive(Default)]
struct Addition {
    frontends: BTreeMap<Family, usize>,
    members: usize,
    service_ids: Vec<u32>,
    fresh_services: Vec<u32>,
    backends: Vec<(u32, BackendRecord)>,
    fresh_backends: Vec<u32>,
    pending: HashMap<SocketAddr, u32>,
    vips: BTreeSet<IpAddr>,
    gateway_endpoints: BTreeSet<FrontendId>,
    source_ranges: RangeAddition,
}

impl Admission<'_> {
    fn admit(&mut self, draft: ServiceDraft) -> Result<(), Full> {
        let mut addition = Addition::default();
        if let Err(full) = self.weigh(&draft, &mut addition) {
            self.services.give_back(addition.fresh_services);
            self.backends.give_back(addition.fresh_backends);
            self.source_ranges.give_back(addition.source_ranges);
            return Err(full);
        }
        for (family, count) in addition.frontends {
            *self.frontends.entry(family).or_default() += count;
        }
        self.members += addition.members;
        let admitted = &mut self.admitted;
        for vip in addition.vips {
            *admitted.addresses.entry(vip).or_default() |= address_role::VIP;
        }
        for endpoint in addition.gateway_endpoints {
            if admitted.gateway_endpoints.insert(endpoint) {
                *self
                    .gateway_endpoints
                    .entry(Family::of(endpoint.address))
                    .or_default() += 1;
            }
        }
        for (id, record) in addition.backends {
            admitted.backend_ids.insert(record.endpoint, id);
            let flags = record.flags;
            admitted.backends.entry(id).or_insert(record).flags |= flags;
        }
        for (id, port) in addition.service_ids.into_iter().zip(draft.ports) {
            admitted.ports.push(Numbered {
                service: draft.name.clone(),
                id,
                source_ranges: addition.source_ranges.id(port.family),
                draft: port,
            });
        }
        self.source_ranges.admit(addition.source_ranges);
        Ok(())
    }

    fn weigh(&mut self, draft: &ServiceDraft, addition: &mut Addition) -> Result<(), Full> {
        let sizes = &self.node.sizes;
        addition
            .vips
            .extend(addresses(&draft.ports).filter(|&address| may_be_vip(self.node, address)));
        let known = |vip: &&IpAddr| self.admitted.addresses.contains_key(*vip);
        let known = addition.vips.iter().filter(known).count();
        room(
            self.admitted.addresses.len() + addition.vips.len() - known,
            ("addresses", "tables.addresses", sizes.addresses),
        )?;
        let ranges = &mut addition.source_ranges;
        if !self.source_ranges.weigh(&draft.source_ranges, ranges) {
            return Err(Full {
                what: "source ranges",
                key: "tables.sourceRanges",
                capacity: sizes.source_ranges,
            });
        }
        for port in &draft.ports {
            let count = addition.frontends.entry(port.family).or_default();
            *count += port.frontends.len();
            let admitted = self.frontends.get(&port.family).copied().unwrap_or(0);
            room(
                *count + admitted,
                ("frontends", "tables.frontends", sizes.frontends),
            )?;

            addition.members += port.sets.members.len();
            let members = self.members + addition.members;
            room(members, ("members", "tables.members", sizes.members))?;

            let id = self.services.known(&port.name).map_or_else(
                || {
                    self.services
                        .fresh()
                        .inspect(|&id| addition.fresh_services.push(id))
                },
                Some,
            );
            let id = id.ok_or(Full {
                what: "service ports",
                key: "tables.services",
                capacity: sizes.services,
            })?;
            addition.service_ids.push(id);
            self.weigh_backends(port, addition)?;
        }
        Ok(())
    }

    fn weigh_backends(&mut self, port: &PortDraft, addition: &mut Addition) -> Result<(), Full> {
        let sizes = &self.node.sizes;
        for member in &port.sets.members {
            let endpoint = member.endpoint;
            let admitted = self.admitted.backend_ids.get(&endpoint).copied();
            let known = admitted
                .or_else(|| self.backends.known(&endpoint))
                .or_else(|| addition.pending.get(&endpoint).copied());
            let id = known.or_else(|| {
                self.backends
                    .fresh()
                    .inspect(|&id| addition.fresh_backends.push(id))
            });
            let id = id.ok_or(Full {
                what: "backends",
                key: "tables.backends",
                capacity: sizes.backends,
            })?;
            addition.pending.insert(endpoint, id);
            let record = BackendRecord {
                endpoint,
                flags: backend_flags(self.node, endpoint, member.on_node),
                incarnation: match self.previous.backends.get(&id) {
                    Some(record) => record.incarnation,
                    None => incarnation(&self.quarantine.incarnations, id),
                },
            };
            addition.backends.push((id, record));
            if port.flags & service_flag::KEEP_SOURCE != 0 {
                addition.gateway_endpoints.insert(FrontendId {
                    address: endpoint.ip(),
                    port: endpoint.port(),
                    protocol: port.protocol,
                });
            }
        }
        if addition.gateway_endpoints.is_empty() {
            return Ok(());
        }
        let of_family = |e: &&FrontendId| Family::of(e.address) == port.family;
        let ours = addition
            .gateway_endpoints
            .difference(&self.admitted.gateway_endpoints);
        let admitted = self
            .gateway_endpoints
            .get(&port.family)
            .copied()
            .unwrap_or(0);
        room(
            ours.filter(of_family).count() + admitted,
            (
                "gateway endpoints",
                "tables.gatewayEndpoints",
                sizes.gateway_endpoints,
            ),
        )
    }
}

fn room(
    needed: usize,
    (what, key, capacity): (&'static str, &'static str, u32),
) -> Result<(), Full> {
    if needed <= usize::try_from(capacity).unwrap_or(usize::MAX) {
        Ok(())
    } else {
        Err(Full {
            what,
            key,
            capacity,
        })
    }
}
