//! The one effect of this module: reading the pinned maps at a scrape.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use lb_common::{
    config::Config,
    device::{NextHopKey, SnatAddress},
    names,
    reason::Counter,
    service::{
        FragmentKey, FragmentPorts,
        affinity::{Affinity, AffinityKey},
    },
    traffic::{Tally, Traffic},
    wire::Wire,
};
use tracing::warn;

use super::names::Names;
use crate::{
    expire::{FlowCounts, SnatUse},
    health::PortState,
    kernel::Map,
    pins::PinDirectory,
    pressure::{Room, Table},
    tables::Family,
    view::counters::{Count, counters},
    watch::Contacted,
};

/// What a scrape tells of the data path.
#[derive(Clone, Debug, Default)]
pub(super) struct Reading {
    pub(super) services: Vec<Used<Arc<str>>>,
    /// Those which have ever had a flow.
    pub(super) backends: Vec<Used<SocketAddr>>,
    pub(super) counters: Vec<Count>,
    /// By family: IPv4, IPv6.
    pub(super) flows: [FlowTable; 2],
    pub(super) snat: Vec<Snat>,
    pub(super) maps: Vec<MapUse>,
    /// Maps that could not be read.
    pub(super) failures: u64,
    pub(super) health_ports: BTreeMap<PortState, u64>,
    pub(super) dropped_events: u64,
    /// The way to the Kubernetes API, if it is a source.
    pub(super) api: Option<Contacted>,
    /// Memory of the agent.
    pub(super) resident_bytes: u64,
}

/// A service port or backend, and its traffic.
#[derive(Clone, Debug)]
pub(super) struct Used<T> {
    pub(super) what: T,
    pub(super) traffic: Traffic,
    pub(super) active: u64,
}

/// The established flows of a family.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct FlowTable {
    pub(super) entries: u64,
    pub(super) udp_entries: u64,
    /// Beyond it new flows are refused.
    pub(super) limit: u64,
    pub(super) udp_limit: u64,
    pub(super) capacity: u64,
}

/// An SNAT address.
#[derive(Clone, Copy, Debug)]
pub(super) struct Snat {
    pub(super) address: IpAddr,
    pub(super) flows: u64,
    pub(super) most_ports: u64,
    pub(super) ports: u64,
}

/// A map.
#[derive(Clone, Debug)]
pub(super) struct MapUse {
    pub(super) name: String,
    pub(super) entries: Option<u64>,
    pub(super) capacity: u64,
}

/// The pinned maps a scrape reads.
#[derive(Debug)]
pub(super) struct Maps {
    maps: BTreeMap<&'static str, Map>,
    config: Config,
}

impl Maps {
    /// Opens them.
    pub(super) fn open(pins: &PinDirectory, config: &Config) -> io::Result<Self> {
        let open = |&(name, _): &(&'static str, usize)| {
            Map::open_pinned(&pins.map(name)).map(|map| (name, map))
        };
        Ok(Self {
            maps: names::MAPS.iter().map(open).collect::<io::Result<_>>()?,
            config: *config,
        })
    }

    /// Reads everything. What cannot be read is left out and counted.
    pub(super) fn read(&self, names: &Names, flows: &FlowCounts) -> Reading {
        let mut failures = 0;
        let mut reading = Reading {
            services: self
                .services(names, flows)
                .unwrap_or_else(note(&mut failures)),
            backends: self
                .backends(names, flows)
                .unwrap_or_else(note(&mut failures)),
            counters: self.counters().unwrap_or_else(note(&mut failures)),
            flows: self.flows().unwrap_or_else(note(&mut failures)),
            snat: self.snat(flows).unwrap_or_else(note(&mut failures)),
            ..Reading::default()
        };
        let [v4, v6] = reading.flows;
        let [embryonic4, embryonic6] = flows.embryonic;
        for (name, map) in &self.maps {
            let entries = match *name {
                names::FLOWS_V4 => Some(v4.entries),
                names::FLOWS_V6 => Some(v6.entries),
                names::EMBRYONIC_V4 => Some(embryonic4),
                names::EMBRYONIC_V6 => Some(embryonic6),
                names::AFFINITY => self.count::<AffinityKey, Affinity>(name, &mut failures),
                names::FRAGMENTS => self.count::<FragmentKey, FragmentPorts>(name, &mut failures),
                names::NEXT_HOP_INDEX => self.count::<NextHopKey, u32>(name, &mut failures),
                names::DEVICE_INDEX => self.count::<u32, u32>(name, &mut failures),
                name => names.entries(name).map(|entries| entries as u64),
            };
            reading.maps.push(MapUse {
                name: name.to_lowercase(),
                entries,
                capacity: map.info().max_entries.into(),
            });
        }
        reading.failures = failures;
        reading
    }

    /// What clients can fill. What cannot be read is left out.
    pub(super) fn rooms(&self, flows: &FlowCounts) -> Vec<Room> {
        let mut failures = 0;
        let [v4, v6]: [FlowTable; 2] = self.flows().unwrap_or_else(note(&mut failures));
        let [closed4, closed6] = flows.closed;
        let room = |table, used, limit| Room { table, used, limit };
        // Closed flows rest only while nobody needs their place.
        let (open4, open6) = (
            v4.entries.saturating_sub(closed4),
            v6.entries.saturating_sub(closed6),
        );
        let mut rooms = Vec::from([
            room(Table::Flows(Family::V4), open4, v4.limit),
            room(Table::Flows(Family::V6), open6, v6.limit),
            room(Table::UdpFlows(Family::V4), v4.udp_entries, v4.udp_limit),
            room(Table::UdpFlows(Family::V6), v6.udp_entries, v6.udp_limit),
        ]);
        let snat: Vec<Snat> = self.snat(flows).unwrap_or_else(note(&mut failures));
        rooms.extend(
            snat.iter()
                .map(|snat| room(Table::Snat(snat.address), snat.most_ports, snat.ports)),
        );
        rooms
    }

    fn map(&self, name: &str) -> io::Result<&Map> {
        self.maps
            .get(name)
            .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    }

    fn services(&self, names: &Names, flows: &FlowCounts) -> io::Result<Vec<Used<Arc<str>>>> {
        let traffic = self.traffic(names::SERVICE_TRAFFIC, names.services.keys().copied())?;
        let used = |(id, name): (&u32, &Arc<str>)| Used {
            what: Arc::clone(name),
            traffic: traffic.get(id).copied().unwrap_or_default(),
            active: flows.services.of(*id),
        };
        Ok(names.services.iter().map(used).collect())
    }

    fn backends(&self, names: &Names, flows: &FlowCounts) -> io::Result<Vec<Used<SocketAddr>>> {
        let traffic = self.traffic(names::BACKEND_TRAFFIC, names.backends.keys().copied())?;
        let used = |(id, endpoint): (&u32, &SocketAddr)| {
            Some(Used {
                what: *endpoint,
                traffic: traffic.get(id).copied()?,
                active: flows.backends.of(*id),
            })
        };
        Ok(names.backends.iter().filter_map(used).collect())
    }

    /// The traffic of some ids, summed over CPUs, without zeros.
    fn traffic(
        &self,
        name: &str,
        ids: impl Iterator<Item = u32>,
    ) -> io::Result<BTreeMap<u32, Traffic>> {
        let mut sums = BTreeMap::new();
        self.map(name)?
            .for_some_per_cpu::<Traffic>(ids, |id, values| {
                let sum = values.iter().copied().fold(Traffic::default(), add);
                if sum != Traffic::default() {
                    sums.insert(id, sum);
                }
            })?;
        Ok(sums)
    }

    fn counters(&self) -> io::Result<Vec<Count>> {
        let mut sums = vec![Tally::default(); Counter::CAPACITY as usize];
        self.map(names::COUNTERS)?
            .for_each_per_cpu::<Tally>(|index, values| {
                if let Some(sum) = sums.get_mut(index as usize) {
                    *sum = values.iter().copied().fold(Tally::default(), add_tally);
                }
            })?;
        Ok(counters(&sums))
    }

    fn flows(&self) -> io::Result<[FlowTable; 2]> {
        use names::flow_use::{UDP_V4, UDP_V6, V4, V6};
        let used = self.map(names::FLOW_USE)?;
        let config = &self.config;
        let table = |map, all: u32, udp: u32, limit: u32, udp_limit: u32| {
            Ok::<_, io::Error>(FlowTable {
                entries: used.lookup(&all)?.unwrap_or_default(),
                udp_entries: used.lookup(&udp)?.unwrap_or_default(),
                limit: limit.into(),
                udp_limit: udp_limit.into(),
                capacity: self.map(map)?.info().max_entries.into(),
            })
        };
        let (limit4, limit6) = (config.flows4_limit, config.flows6_limit);
        Ok([
            table(names::FLOWS_V4, V4, UDP_V4, limit4, config.udp4_limit)?,
            table(names::FLOWS_V6, V6, UDP_V6, limit6, config.udp6_limit)?,
        ])
    }

    fn snat(&self, flows: &FlowCounts) -> io::Result<Vec<Snat>> {
        let v4 = self.map(names::SNAT_V4)?.read_all::<u32, SnatAddress>()?;
        let v6 = self.map(names::SNAT_V6)?.read_all::<u32, SnatAddress>()?;
        // Two devices may share an address, by an element each.
        let mut ports: BTreeMap<IpAddr, u64> = BTreeMap::new();
        let (v4, v6) = (v4.into_iter(), v6.into_iter());
        let elements = v4
            .map(|(_, element)| (IpAddr::V4(first_word(element)), element))
            .chain(v6.map(|(_, element)| (Ipv6Addr::from(element.address).into(), element)));
        for (address, element) in elements.filter(|(_, element)| element.port_count != 0) {
            let most = ports.entry(address).or_default();
            *most = (*most).max(element.port_count.into());
        }
        let snat = |(address, ports)| {
            let used = flows.snat.get(&address);
            Snat {
                address,
                flows: used.map_or(0, SnatUse::flows),
                most_ports: used.map_or(0, SnatUse::most_ports),
                ports,
            }
        };
        Ok(ports.into_iter().map(snat).collect())
    }

    fn count<K: Wire, V: Wire>(&self, name: &str, failures: &mut u64) -> Option<u64> {
        let mut entries = 0;
        let counted = self.map(name).and_then(|map| {
            map.for_each_batch::<K, V>(|keys, _| {
                entries += keys.len() as u64;
            })
        });
        counted.map_or_else(note(failures), |()| Some(entries))
    }
}

/// Memory this process keeps in RAM; 0 if the kernel does not say.
pub(super) fn resident_bytes() -> u64 {
    let pages = || {
        let text = std::fs::read_to_string("/proc/self/statm").ok()?;
        text.split(' ').nth(1)?.parse::<u64>().ok()
    };
    let size = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE);
    let size = size
        .ok()
        .flatten()
        .and_then(|size| u64::try_from(size).ok());
    pages().unwrap_or_default() * size.unwrap_or(4096)
}

/// Counts and logs a failure; nothing is told instead.
fn note<T: Default>(failures: &mut u64) -> impl FnOnce(io::Error) -> T {
    move |error| {
        *failures += 1;
        warn!(%error, "a map could not be read for the metrics");
        T::default()
    }
}

/// IPv4 addresses lie in the first word.
fn first_word(element: SnatAddress) -> Ipv4Addr {
    let [first, ..] = element.address.0;
    lb_common::addr::Addr4(first).into()
}

fn add_tally(a: Tally, b: Tally) -> Tally {
    Tally {
        packets: a.packets + b.packets,
        bytes: a.bytes + b.bytes,
    }
}

fn add(a: Traffic, b: Traffic) -> Traffic {
    Traffic {
        forward: add_tally(a.forward, b.forward),
        reply: add_tally(a.reply, b.reply),
        new_flows: a.new_flows + b.new_flows,
        established: a.established + b.established,
    }
}
