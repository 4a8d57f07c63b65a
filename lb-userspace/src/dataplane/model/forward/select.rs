//! New flows: which frontend, which backend, and whether the source stays.

use std::net::IpAddr;

use lb_common::{
    config::UnknownFlows,
    conntrack::Segment,
    maglev,
    reason::Reason,
    service::{
        Selection, address_role, backend_flag, frontend_flag, member_flag, service_flag,
        source_class,
    },
};

use super::{Forwarder, ForwardingMode, ModelPacket, NewFlow, Tuple};
use crate::tables::{BackendRecord, Family, FrontendId, Protocol, ServiceRecord, TableSet};

impl Forwarder {
    pub(super) fn select(
        &self,
        tables: &TableSet,
        packet: &ModelPacket,
    ) -> Result<NewFlow, Reason> {
        let (service, frontend_flags) = self.find_frontend(tables, packet)?;
        if packet.tuple.protocol == Protocol::Tcp {
            match (Segment::of(packet.tcp_flags), self.config.unknown_flows) {
                (Segment::Syn, _) | (Segment::Data | Segment::Fin, UnknownFlows::Select) => {}
                (_, UnknownFlows::Stack) => return Err(Reason::UnknownFlowToStack),
                _ => return Err(Reason::UnknownFlow),
            }
        }
        let record = tables.services.get(&service).ok_or(Reason::BrokenTable)?;
        let client = packet.tuple.source.ip();
        if frontend_flags & frontend_flag::SOURCE_RANGES != 0 && !admits(tables, record, client) {
            return Err(Reason::SourceRange);
        }
        let internal = frontend_flags & frontend_flag::INTERNAL != 0;
        let class = class_of(tables, client);
        let of_cluster = class & (source_class::POD | source_class::NODE) != 0;
        let local = if internal {
            record.flags & service_flag::INTERNAL_LOCAL != 0
        } else {
            record.flags & service_flag::EXTERNAL_LOCAL != 0 && !of_cluster
        };
        let selection = choose_set(record, local)?;
        let backend = match self.remembered(tables, packet, service, local) {
            Some(backend) => backend,
            None => by_hash(tables, packet, record, selection)?,
        };
        let found = tables.backends.get(&backend).ok_or(Reason::BrokenTable)?;
        let returns = class & source_class::LOCAL_POD != 0
            && (internal || record.flags & service_flag::EXTERNAL_LOCAL != 0);
        Ok(NewFlow {
            service,
            backend,
            endpoint: found.endpoint,
            mode: mode(record, found, client, returns),
        })
    }

    /// The backend session affinity remembers for a client, if it is in the set that is selected from.
    fn remembered(
        &self,
        tables: &TableSet,
        packet: &ModelPacket,
        service: u32,
        local: bool,
    ) -> Option<u32> {
        let seconds = tables.services.get(&service)?.affinity_seconds;
        let (backend, silent) = self.affinity.get(&(packet.tuple.source.ip(), service))?;
        let set = if local {
            member_flag::LOCAL
        } else {
            member_flag::CLUSTER
        };
        let member = tables.members.get(&(service, *backend)).copied();
        (seconds != 0 && *silent <= seconds && member.unwrap_or(0) & set != 0).then_some(*backend)
    }

    /// The service port a packet is for, with the frontend's flags.
    pub(super) fn find_frontend(
        &self,
        tables: &TableSet,
        packet: &ModelPacket,
    ) -> Result<(u32, u32), Reason> {
        let Tuple {
            source,
            destination,
            protocol,
        } = packet.tuple;
        let frontend = |address: IpAddr| {
            let id = FrontendId {
                address,
                port: destination.port(),
                protocol,
            };
            tables
                .frontends
                .get(&id)
                .map(|record| (record.service, record.flags))
        };
        if let Some(found) = frontend(destination.ip()) {
            return Ok(found);
        }
        let role = tables
            .addresses
            .get(&destination.ip())
            .copied()
            .unwrap_or(0);
        if role & address_role::NODE_PORT != 0
            && let Some(found) = frontend(Family::of(destination.ip()).unspecified())
        {
            return Ok(found);
        }
        if role & address_role::VIP != 0 {
            return Err(Reason::NoFrontend);
        }
        if role & address_role::SNAT != 0 {
            return Err(Reason::SnatMiss);
        }
        let endpoint = FrontendId {
            address: source.ip(),
            port: source.port(),
            protocol,
        };
        let stray = protocol == Protocol::Tcp && Segment::of(packet.tcp_flags) != Segment::Syn;
        if stray
            && !self.config.direct_backend_access
            && tables.gateway_endpoints.contains(&endpoint)
        {
            return Err(Reason::GatewayMiss);
        }
        let class = class_of(tables, destination.ip());
        if self.config.drop_unallocated && class & source_class::SERVICE_NETWORK != 0 {
            return Err(Reason::UnallocatedAddress);
        }
        Err(Reason::NotOurs)
    }
}

/// Whether a service port's source ranges have the address.
fn admits(tables: &TableSet, record: &ServiceRecord, source: IpAddr) -> bool {
    let mut ranges = tables.source_ranges.iter();
    record.source_ranges == 0
        || ranges.any(|(set, range)| *set == record.source_ranges && range.contains(&source))
}

/// What an address is to the cluster: the longest prefix decides.
fn class_of(tables: &TableSet, address: IpAddr) -> u32 {
    let classes = tables.source_classes.iter();
    classes
        .filter(|(network, _)| network.contains(&address))
        .max_by_key(|(network, _)| network.prefix_len())
        .map_or(0, |(_, class)| *class)
}

fn choose_set(record: &ServiceRecord, local: bool) -> Result<Selection, Reason> {
    let selection = if local { record.local } else { record.cluster };
    if selection.length > 0 {
        Ok(selection)
    } else if local && record.flags & service_flag::HAS_ENDPOINTS != 0 {
        Err(Reason::NoLocalEndpoint)
    } else {
        Err(Reason::NoEndpoint)
    }
}

fn by_hash(
    tables: &TableSet,
    packet: &ModelPacket,
    record: &ServiceRecord,
    selection: Selection,
) -> Result<u32, Reason> {
    let hash = if record.affinity_seconds == 0 {
        packet.tuple.hash()
    } else {
        packet.tuple.client_hash()
    };
    let slot = maglev::slot(hash.ok_or(Reason::Malformed)?, selection.length);
    let table = tables.extents.get(&selection.element);
    let backend = table.and_then(|table| table.get(usize::try_from(slot).unwrap_or(usize::MAX)));
    backend.copied().ok_or(Reason::BrokenTable)
}

/// `returns`: a backend elsewhere answers by way of this node.
fn mode(
    record: &ServiceRecord,
    backend: &BackendRecord,
    client: IpAddr,
    returns: bool,
) -> ForwardingMode {
    if backend.endpoint.ip() == client {
        ForwardingMode::FullNat
    } else if backend.flags & backend_flag::HOST != 0 {
        ForwardingMode::Host
    } else if backend.flags & backend_flag::LOCAL != 0 {
        ForwardingMode::Local
    } else if returns || record.flags & service_flag::KEEP_SOURCE != 0 {
        ForwardingMode::Dnat
    } else {
        ForwardingMode::FullNat
    }
}
