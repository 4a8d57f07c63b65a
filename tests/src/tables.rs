//! Tables as the tests write them. The result is the [`TableSet`] a plan would give, and production
//! code writes it into the kernel.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    str::FromStr,
    sync::Arc,
};

use lb_common::{
    maglev::{LENGTHS, SLOTS_PER_ELEMENT},
    service::{Selection, address_role, backend_flag, frontend_flag, member_flag, service_flag},
};
use lb_userspace::tables::{
    BackendRecord, Family, FrontendId, FrontendRecord, Protocol, ServiceRecord, TableSet,
};

use crate::packet::{address, endpoint};

/// Starts with no service.
pub fn tables() -> Tables {
    Tables::default()
}

/// Services under construction. Ids count from 1 in the order of writing, unless said otherwise.
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct Tables {
    services: Vec<Service>,
    backends: Vec<(std::net::SocketAddr, u16)>,
    addresses: BTreeMap<IpAddr, u32>,
    ranges: BTreeSet<(u32, String)>,
    classes: Vec<(String, u32)>,
}

#[derive(Clone, Debug, Default)]
struct Service {
    id: Option<u32>,
    frontends: Vec<(FrontendId, u32)>,
    flags: u32,
    ranges: u32,
    affinity_seconds: u32,
    cluster: Vec<u32>,
    local: Vec<u32>,
    serving: BTreeSet<u32>,
}

/// Parses `192.0.2.1:443/tcp`.
pub fn frontend_id(text: &str) -> FrontendId {
    let (endpoint_text, protocol) = text
        .split_once('/')
        .unwrap_or_else(|| panic!("no protocol in {text:?}"));
    let endpoint = endpoint(endpoint_text);
    let protocol = match protocol {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        other => panic!("protocol {other:?}"),
    };
    FrontendId {
        address: endpoint.ip(),
        port: endpoint.port(),
        protocol,
    }
}

impl Tables {
    fn service(&mut self) -> &mut Service {
        self.services.last_mut().expect("a frontend comes first")
    }

    /// A service with one frontend; its address becomes a VIP. Address 0.0.0.0 or `::` makes a
    /// node port.
    pub fn frontend(mut self, text: &str) -> Self {
        self.services.push(Service::default());
        self.also(text)
    }

    /// One more frontend of the last service.
    pub fn also(mut self, text: &str) -> Self {
        let id = frontend_id(text);
        self.service().frontends.push((id, 0));
        if !id.address.is_unspecified() {
            *self.addresses.entry(id.address).or_default() |= address_role::VIP;
        }
        self
    }

    /// The last service's frontends are `ClusterIP`s.
    pub fn internal(mut self) -> Self {
        for (_, flags) in &mut self.service().frontends {
            *flags |= frontend_flag::INTERNAL;
        }
        self
    }

    /// Set `set` of source ranges, which may be empty, for the last service. Its frontends so far are
    /// load-balancer VIPs.
    pub fn source_ranges<const N: usize>(mut self, set: u32, networks: [&str; N]) -> Self {
        let networks = networks.map(|network| (set, network.to_owned()));
        self.ranges.extend(networks);
        let service = self.service();
        service.ranges = set;
        for (_, flags) in &mut service.frontends {
            *flags |= frontend_flag::SOURCE_RANGES;
        }
        self
    }

    /// What the addresses of a network are: bits of [`lb_common::service::source_class`].
    pub fn class(mut self, network: &str, class: u32) -> Self {
        self.classes.push((network.to_owned(), class));
        self
    }

    /// Session affinity of the last service; 0 for none.
    pub fn affinity(mut self, seconds: u32) -> Self {
        self.service().affinity_seconds = seconds;
        self
    }

    /// Node ports are served on this address.
    pub fn node_ports_on(mut self, text: &str) -> Self {
        *self.addresses.entry(address(text)).or_default() |= address_role::NODE_PORT;
        self
    }

    /// Only the frontends on this address are ours: it is not a VIP.
    pub fn shared(mut self, text: &str) -> Self {
        self.addresses
            .insert(address(text), address_role::NODE_PORT);
        self
    }

    /// An address which only SNAT uses.
    pub fn snat(mut self, text: &str) -> Self {
        *self.addresses.entry(address(text)).or_default() |= address_role::SNAT;
        self
    }

    /// Bits of [`service_flag`] for the last service.
    pub fn flags(mut self, flags: u32) -> Self {
        self.service().flags |= flags;
        self
    }

    /// Backends keep the client's address and answer through this node (`gateway: true`).
    pub fn keep_source(self) -> Self {
        self.flags(service_flag::KEEP_SOURCE)
    }

    fn add(&mut self, texts: &[&str], flags: u16) -> Vec<u32> {
        let mut ids = Vec::new();
        for text in texts {
            let endpoint = endpoint(text);
            let known = self
                .backends
                .iter()
                .position(|(other, _)| *other == endpoint);
            let index = known.unwrap_or(self.backends.len());
            if known.is_none() {
                self.backends.push((endpoint, flags));
            }
            ids.push(u32::try_from(index + 1).expect("few backends"));
        }
        ids
    }

    fn put(mut self, texts: &[&str], flags: u16) -> Self {
        let ids = self.add(texts, flags);
        let here = flags & backend_flag::LOCAL != 0;
        let service = self.service();
        service.flags |= service_flag::HAS_ENDPOINTS;
        service.serving.extend(&ids);
        service.cluster.extend(&ids);
        if here {
            service.local.extend(&ids);
        }
        self
    }

    /// Backends elsewhere, all ready.
    pub fn backends<const N: usize>(self, texts: [&str; N]) -> Self {
        self.put(&texts, 0)
    }

    /// Pods of this node, all ready.
    pub fn local_backends<const N: usize>(self, texts: [&str; N]) -> Self {
        self.put(&texts, backend_flag::LOCAL)
    }

    /// Backends that are the node itself, all ready.
    pub fn host_backends<const N: usize>(self, texts: [&str; N]) -> Self {
        self.put(&texts, backend_flag::LOCAL | backend_flag::HOST)
    }

    /// Backends which serve on but take no new flow.
    pub fn draining<const N: usize>(mut self, texts: [&str; N]) -> Self {
        let ids = self.add(&texts, 0);
        let service = self.service();
        service.serving.extend(&ids);
        self
    }

    /// Gives the last service this id: it is another than the one the case began with.
    pub fn id(mut self, id: u32) -> Self {
        self.service().id = Some(id);
        self
    }

    /// Backends that are known but no longer members of any service.
    pub fn gone<const N: usize>(mut self, texts: [&str; N]) -> Self {
        self.add(&texts, 0);
        self
    }

    /// The tables, with set epoch `epoch` in every service.
    pub fn build(&self, epoch: u32) -> TableSet {
        let mut set = TableSet {
            addresses: self.addresses.clone(),
            ..TableSet::default()
        };
        for (number, &(endpoint, flags)) in (1_u32..).zip(&self.backends) {
            let flags = flags | backend_flag::LIVE;
            set.backends.insert(
                number,
                BackendRecord {
                    endpoint,
                    flags,
                    incarnation: 1,
                },
            );
        }
        for (number, service) in (1_u32..).zip(&self.services) {
            add_service(&mut set, service.id.unwrap_or(number), service, epoch);
        }
        for (id, text) in &self.ranges {
            set.source_ranges.insert((*id, network(text)));
        }
        for (text, class) in &self.classes {
            set.source_classes.insert(network(text), *class);
        }
        set
    }
}

fn network<N: FromStr<Err: fmt::Display>>(text: &str) -> N {
    text.parse()
        .unwrap_or_else(|e| panic!("network {text:?}: {e}"))
}

fn add_service(set: &mut TableSet, number: u32, service: &Service, epoch: u32) {
    let cluster = extent(set, &service.cluster);
    let local = extent(set, &service.local);
    let first = service
        .frontends
        .first()
        .map(|(id, _)| *id)
        .expect("a frontend");
    let family = Family::of(first.address);
    let name = format!(
        "default/s{number}:p{}/{}/{family}",
        first.port, first.protocol
    );
    let record = ServiceRecord {
        name,
        cluster,
        local,
        epoch,
        flags: service.flags | service_flag::LIVE,
        affinity_seconds: service.affinity_seconds,
        source_ranges: service.ranges,
    };
    set.services.insert(number, record);
    for &(id, flags) in &service.frontends {
        set.frontends.insert(
            id,
            FrontendRecord {
                service: number,
                flags,
            },
        );
    }
    for &backend in &service.serving {
        let mut flags = member_flag::SERVING;
        if service.cluster.contains(&backend) {
            flags |= member_flag::CLUSTER;
        }
        if service.local.contains(&backend) {
            flags |= member_flag::LOCAL;
        }
        set.members.insert((number, backend), flags);
        if service.flags & service_flag::KEEP_SOURCE != 0
            && let Some(record) = set.backends.get(&backend)
        {
            set.gateway_endpoints.insert(FrontendId {
                address: record.endpoint.ip(),
                port: record.endpoint.port(),
                protocol: first.protocol,
            });
        }
    }
}

/// A table in which the backends take turns: the data path does not care how slots were filled.
fn extent(set: &mut TableSet, backends: &[u32]) -> Selection {
    if backends.is_empty() {
        return Selection::default();
    }
    let length = LENGTHS.first().copied().expect("a length");
    let slots: Arc<[u32]> = backends
        .iter()
        .copied()
        .cycle()
        .take(length as usize)
        .collect();
    let elements = length.div_ceil(SLOTS_PER_ELEMENT);
    let element = set
        .extents
        .keys()
        .next_back()
        .map_or(0, |last| last + elements);
    set.extents.insert(element, slots);
    Selection { element, length }
}
