//! The compiled programs with tables of production's sizes, and the established flows in them.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use aya::{
    Ebpf, EbpfLoader,
    programs::{SchedClassifier, Xdp, xdp::XdpMode},
};
use lb_common::{
    addr::{Addr4, Addr6, Be16},
    config::{Config, UnknownFlows},
    conntrack::{Entry, Entry4, Entry6, Head, Note, Route, flag, state},
    device::{Device, NextHopKey, SnatAddress, device_flag},
    flow::{AddressFilter, Flow, Flow4, Flow6, filter_position4, filter_position6},
    names::{self, flow_use},
    reason::{Counter, Event},
    traffic::Tally,
};
use lb_userspace::{
    dataplane::{Dataplane as _, bpf::BpfDataplane},
    diff::diff,
    kernel::{Map, TestRun, test_run},
    preflight,
    tables::{Protocol, TableSet},
};

use super::group::{Group, SNAT, SNAT_ADDRESSES, plus};
use crate::network::{INSIDE, OUTSIDE, PORTS, Port};

/// The wrapper program.
const LB_BENCH: &str = "lb_bench";
/// Its map.
pub(super) const BENCH: &str = "BENCH";
/// What the client of an embryonic flow must acknowledge.
pub(super) const ANSWERED: u32 = 5_000;
/// Address families as next-hop keys have them.
const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;

/// Programs and maps.
pub(super) struct Kernel {
    ebpf: Ebpf,
    dataplane: BpfDataplane,
    maps: BTreeMap<&'static str, Map>,
    /// The group whose flows are established.
    resident: Option<Group>,
}

impl Kernel {
    /// Loads the object and describes the test network to it.
    pub(super) fn load(object: &Path) -> Result<Self> {
        let root = PathBuf::from(format!("/sys/fs/bpf/sluice-bench-{}", std::process::id()));
        let loaded = Self::load_into(object, &root.join("maps"));
        // Descriptors hold the maps from here on; nothing is left behind, however this ends.
        let removed = std::fs::remove_dir_all(&root);
        let mut kernel = loaded?;
        removed.with_context(|| format!("remove {}", root.display()))?;
        kernel.load_programs()?;
        kernel.describe_devices()?;
        Ok(kernel)
    }

    fn load_into(object: &Path, directory: &Path) -> Result<Self> {
        std::fs::create_dir_all(directory)
            .with_context(|| format!("create {}", directory.display()))?;
        let config = config()?;
        let mut loader = EbpfLoader::new();
        loader
            .btf(None)
            .override_global(names::CONFIG, &config, true)
            .map_pin_path(BENCH, directory.join(BENCH));
        for &(name, _) in names::MAPS {
            loader.map_pin_path(name, directory.join(name));
        }
        let ebpf = loader
            .load_file(object)
            .with_context(|| format!("load {}", object.display()))?;
        let mut maps = BTreeMap::new();
        for name in names::MAPS.iter().map(|&(name, _)| name).chain([BENCH]) {
            let map = Map::open_pinned(&directory.join(name));
            maps.insert(name, map.with_context(|| format!("open map {name}"))?);
        }
        Ok(Self {
            ebpf,
            dataplane: BpfDataplane::open(directory)?,
            maps,
            resident: None,
        })
    }

    fn load_programs(&mut self) -> Result<()> {
        let program = self.ebpf.program_mut(names::LB_XDP).context("no lb_xdp")?;
        let program: &mut Xdp = program.try_into()?;
        program.load().context("load lb_xdp")?;
        for port in [OUTSIDE, INSIDE] {
            // A test run may name a device as the packet's origin only if it has an XDP program.
            program.attach_to_if_index(port.ifindex, XdpMode::Driver)?;
        }
        let program = self.ebpf.program_mut(LB_BENCH).with_context(|| {
            format!("no {LB_BENCH}: the object was compiled without the feature `bench`")
        })?;
        let program: &mut Xdp = program.try_into()?;
        program.load().context("load lb_bench")?;
        let clock = self
            .ebpf
            .program_mut(names::LB_CLOCK)
            .context("no lb_clock")?;
        let clock: &mut SchedClassifier = clock.try_into()?;
        clock.load().context("load lb_clock")
    }

    fn describe_devices(&self) -> Result<()> {
        for port in PORTS {
            let inside = port == INSIDE;
            let device = Device {
                ifindex: port.ifindex,
                mtu: port.mtu,
                mac: port.mac,
                flags: device_flag::REDIRECT,
                snat4_first: 0,
                snat4_count: if inside { SNAT_ADDRESSES } else { 0 },
                snat6_first: 0,
                snat6_count: if inside { SNAT_ADDRESSES } else { 0 },
                vlan_parent: 0,
                vlan_id: 0,
                index: port.index,
            };
            let index = u32::from(port.index);
            self.map(names::DEVICES)?.update(&index, &device)?;
            let by_ifindex = self.map(names::DEVICE_INDEX)?;
            by_ifindex.update(&port.ifindex, &index)?;
        }
        for (name, first) in [names::SNAT_V4, names::SNAT_V6].into_iter().zip(SNAT) {
            for number in 0..u32::from(SNAT_ADDRESSES) {
                let snat = SnatAddress {
                    address: words(plus(first.parse()?, number)),
                    first_port: 1_024,
                    port_count: 64_512,
                };
                self.map(name)?.update(&number, &snat)?;
            }
        }
        let free = self.map(names::NEXT_HOP_FREE)?;
        for index in 1..free.info().max_entries {
            free.push(&index)?;
        }
        Ok(())
    }

    /// Writes the tables by the operations of a plan.
    pub(super) fn publish(&mut self, tables: &TableSet) -> Result<()> {
        let actual = self.dataplane.dump()?;
        for operation in diff(&actual, tables) {
            self.dataplane.apply(&operation)?;
        }
        // As the agent's start leaves it.
        self.dataplane.rebuild_filter(tables, [])?;
        Ok(())
    }

    /// Makes the group's flows the only established ones, both halves of each.
    pub(super) fn establish(&mut self, group: &Group, tables: &TableSet) -> Result<()> {
        if self.resident.as_ref() == Some(group) {
            return Ok(());
        }
        if let Some(old) = self.resident.take() {
            self.forget(&old, old.established(), tables)?;
        }
        let flows = group.established();
        if group.is_v6() {
            let halves = self.halves::<Entry6>(group, flows, tables, Birth::ESTABLISHED)?;
            self.insert(names::FLOWS_V6, &halves)?;
        } else {
            let halves = self.halves::<Entry4>(group, flows, tables, Birth::ESTABLISHED)?;
            self.insert(names::FLOWS_V4, &halves)?;
        }
        self.resident = Some(group.clone());
        self.restore_use()
    }

    /// Puts embryonic flows whose backend has answered into the LRU table.
    pub(super) fn conceive(&self, group: &Group, flows: u32, tables: &TableSet) -> Result<()> {
        let (_, backend) = group.forwarded(0);
        let key = NextHopKey {
            ifindex: INSIDE.ifindex,
            family: if group.is_v6() { AF_INET6 } else { AF_INET },
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
        if group.is_v6() {
            let halves = self.halves::<Entry6>(group, flows, tables, birth)?;
            self.insert(names::EMBRYONIC_V6, &halves)
        } else {
            let halves = self.halves::<Entry4>(group, flows, tables, birth)?;
            self.insert(names::EMBRYONIC_V4, &halves)
        }
    }

    /// Takes a group's flows out of the established table again.
    pub(super) fn forget(&self, group: &Group, flows: u32, tables: &TableSet) -> Result<()> {
        if group.is_v6() {
            let halves = self.halves::<Entry6>(group, flows, tables, Birth::ESTABLISHED)?;
            let keys: Vec<Flow6> = halves.into_iter().map(|(key, _)| key).collect();
            self.map(names::FLOWS_V6)?.delete_batch(&keys)?;
        } else {
            let halves = self.halves::<Entry4>(group, flows, tables, Birth::ESTABLISHED)?;
            let keys: Vec<Flow4> = halves.into_iter().map(|(key, _)| key).collect();
            self.map(names::FLOWS_V4)?.delete_batch(&keys)?;
        }
        self.restore_use()
    }

    fn halves<E>(
        &self,
        group: &Group,
        flows: u32,
        tables: &TableSet,
        birth: Birth,
    ) -> Result<Vec<(E::Flow, E)>>
    where
        E: Entry,
        E::Flow: FromEndpoints,
    {
        let flags = if group.full_nat { flag::FULL_NAT } else { 0 };
        let now = self.tick()?;
        let protocol = group.protocol.number();
        let mut halves = Vec::new();
        for number in 0..flows {
            let (service, backend) = group
                .ids(number, tables)
                .context("the tables lack a service of the benchmark")?;
            let (client, vip) = group.request(number);
            let (seen, endpoint) = group.forwarded(number);
            let key = E::Flow::from_endpoints(client, vip, protocol)?;
            let written = E::Flow::from_endpoints(seen, endpoint, protocol)?;
            let identity = identity(number);
            let head = |state| Head::new(identity, state, now.wrapping_sub(birth.age));
            // TCP: what the other side acknowledged or must; UDP: the set epoch.
            let note = match group.protocol {
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
                    INSIDE.mtu,
                    birth.generation,
                ));
            }
            halves.push((key, forward));
            halves.push((reply_key, reply));
        }
        Ok(halves)
    }

    fn insert<K: lb_common::wire::Wire, V: lb_common::wire::Wire>(
        &self,
        name: &str,
        halves: &[(K, V)],
    ) -> Result<()> {
        let (keys, values): (Vec<K>, Vec<V>) = halves.iter().copied().unzip();
        let map = self.map(name)?;
        map.update_batch(&keys, &values)
            .with_context(|| format!("fill {name}"))
    }

    /// Corrects `FLOW_USE` after the tables were changed from here.
    fn restore_use(&self) -> Result<()> {
        let uses = self.map(names::FLOW_USE)?;
        for (element, v6) in [(flow_use::V4, false), (flow_use::V6, true)] {
            let group = self.resident.as_ref().filter(|group| group.is_v6() == v6);
            let flows = group.map_or(0, Group::established);
            uses.update(&element, &(2 * u64::from(flows)))?;
        }
        Ok(())
    }

    /// A map.
    pub(super) fn map(&self, name: &str) -> Result<&Map> {
        self.maps
            .get(name)
            .with_context(|| format!("no map {name}"))
    }

    /// The current tick.
    pub(super) fn tick(&self) -> Result<u32> {
        let input = TestRun {
            data: &[0; 64],
            ..TestRun::default()
        };
        let output = test_run(self.program(names::LB_CLOCK)?.as_fd(), &input);
        Ok(output.context("run lb_clock")?.retval)
    }

    /// Runs the wrapper.
    pub(super) fn run(&self, frame: &[u8], port: Port, repeat: u32) -> Result<()> {
        let length = u32::try_from(frame.len()).context("a short frame")?;
        // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let context: Vec<u8> = [0, length, 0, port.ifindex, 0, 0]
            .into_iter()
            .flat_map(u32::to_ne_bytes)
            .collect();
        let input = TestRun {
            data: frame,
            context: &context,
            headroom: 256,
            repeat,
            ..TestRun::default()
        };
        test_run(self.program(LB_BENCH)?.as_fd(), &input).context("run lb_bench")?;
        Ok(())
    }

    fn program(&self, name: &str) -> Result<OwnedFd> {
        let program = self
            .ebpf
            .program(name)
            .with_context(|| format!("no program {name}"))?;
        Ok(program.fd()?.as_fd().try_clone_to_owned()?)
    }

    /// Packets counted for an event, over all CPUs.
    pub(super) fn counted(&self, event: Event) -> Result<u64> {
        let index = Counter::Event(event).index();
        let tallies: Vec<Tally> = self
            .map(names::COUNTERS)?
            .lookup_per_cpu(&index)?
            .context("COUNTERS is too short")?;
        Ok(tallies.iter().map(|tally| tally.packets).sum())
    }

    /// Makes every flow look up its route again.
    pub(super) fn change_routes(&self) -> Result<()> {
        let next = u32::from(self.route_generation()?.wrapping_add(1));
        self.map(names::ROUTE_GENERATION)?.update(&0_u32, &next)?;
        Ok(())
    }

    /// Sixteen bits are all that flows keep of it.
    fn route_generation(&self) -> Result<u16> {
        let map = self.map(names::ROUTE_GENERATION)?;
        let word: u32 = map.lookup(&0_u32)?.context("ROUTE_GENERATION is empty")?;
        Ok(u16::try_from(word & 0xffff)?)
    }

    /// Whether the data path lets packets from and to this address pass at the first look.
    pub(super) fn is_foreign(&self, address: IpAddr) -> Result<bool> {
        let (word, bit) = match address {
            IpAddr::V4(v4) => filter_position4(v4.into()),
            IpAddr::V6(v6) => filter_position6(v6.into()),
        };
        let filter: AddressFilter = self
            .map(names::ADDRESS_FILTER)?
            .lookup(&0_u32)?
            .context("ADDRESS_FILTER is empty")?;
        let word = filter.get(word as usize).context("a short filter")?;
        Ok(word >> bit & 1 == 0)
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

/// The form of an address in tables for both families.
fn words(address: IpAddr) -> Addr6 {
    match address {
        IpAddr::V4(v4) => Addr6([Addr4::from(v4).0, 0, 0, 0]),
        IpAddr::V6(v6) => v6.into(),
    }
}

/// As the agent writes it by default.
fn config() -> Result<Config> {
    let flows4 = u32::try_from(names::entries::FLOWS_V4)?;
    let flows6 = u32::try_from(names::entries::FLOWS_V6)?;
    Ok(Config {
        flags: 0,
        tick_shift: preflight::tick_shift(preflight::jiffies_per_second()?),
        unknown_flows: UnknownFlows::Select as u32,
        replies_per_tick: 1_000,
        flows4_limit: flows4 - flows4 / 16,
        flows6_limit: flows6 - flows6 / 16,
        udp4_limit: flows4 / 2,
        udp6_limit: flows6 / 2,
        closed_ticks: 60,
        embryonic_ticks: 60,
        neighbour_ticks: 5,
        reserved: 0,
    })
}

/// Any number but zero will do: no two flows share a key.
const fn identity(number: u32) -> u32 {
    number.wrapping_mul(0x9e37_79b1) | 1
}

/// Flow keys of either family.
trait FromEndpoints: Flow + lb_common::wire::Wire {
    fn from_endpoints(source: SocketAddr, destination: SocketAddr, protocol: u8) -> Result<Self>;
}

impl FromEndpoints for Flow4 {
    fn from_endpoints(source: SocketAddr, destination: SocketAddr, protocol: u8) -> Result<Self> {
        let (SocketAddr::V4(source), SocketAddr::V4(destination)) = (source, destination) else {
            bail!("{source} to {destination} is not IPv4");
        };
        Ok(Self::new(
            (*source.ip()).into(),
            Be16::new(source.port()),
            (*destination.ip()).into(),
            Be16::new(destination.port()),
            protocol,
        ))
    }
}

impl FromEndpoints for Flow6 {
    fn from_endpoints(source: SocketAddr, destination: SocketAddr, protocol: u8) -> Result<Self> {
        let (SocketAddr::V6(source), SocketAddr::V6(destination)) = (source, destination) else {
            bail!("{source} to {destination} is not IPv6");
        };
        Ok(Self::new(
            (*source.ip()).into(),
            Be16::new(source.port()),
            (*destination.ip()).into(),
            Be16::new(destination.port()),
            protocol,
        ))
    }
}
