//! The compiled programs with tables of production's sizes.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context as _, Result};
use aya::{
    Ebpf, EbpfLoader,
    programs::{SchedClassifier, Xdp, xdp::XdpMode},
};
use lb_common::{
    addr::{Addr4, Addr6},
    config::{Config, UnknownFlows},
    control::Control,
    device::{Device, SnatAddress, device_flag},
    flow::{AddressFilter, filter_position4, filter_position6},
    names,
    reason::Counter,
    traffic::Tally,
};
use lb_userspace::{
    dataplane::{Dataplane as _, bpf::BpfDataplane},
    diff::diff,
    kernel::{Map, TestRun, test_run},
    preflight,
    tables::TableSet,
};

use super::group::{Group, SNAT, plus};
use crate::network::{INSIDE, OUTSIDE, PODS, PORTS, Port};

/// The one map every wrapper program reads.
pub(super) const BENCH: &str = "BENCH";
/// The reference program's table.
pub(super) const BENCH_REFERENCE: &str = "BENCH_REFERENCE";
/// The tables of bare inserts.
pub(super) const BENCH_LRU: &str = "BENCH_LRU";
pub(super) const BENCH_HASH: &str = "BENCH_HASH";
const BENCH_MAPS: [&str; 4] = [BENCH, BENCH_REFERENCE, BENCH_LRU, BENCH_HASH];

/// A wrapper program.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Program {
    /// Around `lb_xdp`.
    Xdp,
    /// Around `lb_ingress`.
    Ingress,
    /// Around `lb_egress`.
    Egress,
    /// Steps of a new flow, in XDP.
    Stages,
    /// The yardstick, in XDP.
    Reference,
}

impl Program {
    const ALL: [Self; 5] = [
        Self::Xdp,
        Self::Ingress,
        Self::Egress,
        Self::Stages,
        Self::Reference,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Xdp => "lb_bench",
            Self::Ingress => "lb_bench_ingress",
            Self::Egress => "lb_bench_egress",
            Self::Stages => "lb_bench_stages",
            Self::Reference => "lb_bench_reference",
        }
    }

    /// Whether its packets are skbs.
    pub(super) const fn is_tcx(self) -> bool {
        matches!(self, Self::Ingress | Self::Egress)
    }
}

/// How the tables differ from production's.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sizes {
    /// Entries of maps that are larger or smaller.
    pub(super) maps: &'static [(&'static str, u32)],
    /// A tick lasts so many times longer, as a power of two: every flow of the row must pass in one.
    pub(super) longer_ticks: u32,
    /// SNAT addresses of the backends' device.
    pub(super) snat_addresses: u16,
}

/// Programs and maps.
pub(super) struct Kernel {
    ebpf: Ebpf,
    dataplane: BpfDataplane,
    maps: BTreeMap<&'static str, Map>,
    /// The group whose flows are established.
    pub(super) resident: Option<Group>,
}

impl Kernel {
    /// Loads the object and describes the test network to it. `first`: no other was loaded before.
    pub(super) fn load(object: &Path, sizes: &Sizes, first: bool) -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let root = PathBuf::from(format!(
            "/sys/fs/bpf/sluice-bench-{}-{number}",
            std::process::id()
        ));
        let loaded = Self::load_into(object, &root.join("maps"), sizes);
        // Descriptors hold the maps from here on; nothing is left behind, however this ends.
        let removed = std::fs::remove_dir_all(&root);
        let mut kernel = loaded?;
        removed.with_context(|| format!("remove {}", root.display()))?;
        kernel.load_programs(first)?;
        kernel.describe_devices(sizes)?;
        Ok(kernel)
    }

    fn load_into(object: &Path, directory: &Path, sizes: &Sizes) -> Result<Self> {
        std::fs::create_dir_all(directory)
            .with_context(|| format!("create {}", directory.display()))?;
        let config = config(sizes)?;
        let mut loader = EbpfLoader::new();
        loader
            .btf(None)
            .override_global(names::CONFIG, &config, true);
        for &(name, entries) in sizes.maps {
            loader.map_max_entries(name, entries);
        }
        let every = || names::MAPS.iter().map(|&(name, _)| name).chain(BENCH_MAPS);
        for name in every() {
            loader.map_pin_path(name, directory.join(name));
        }
        let ebpf = loader
            .load_file(object)
            .with_context(|| format!("load {}", object.display()))?;
        let mut maps = BTreeMap::new();
        for name in every() {
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

    fn load_programs(&mut self, first: bool) -> Result<()> {
        for wrapper in Program::ALL {
            let name = wrapper.name();
            let program = self.ebpf.program_mut(name).with_context(|| {
                format!("no {name}: the object was compiled without the feature `bench`")
            })?;
            if wrapper.is_tcx() {
                let program: &mut SchedClassifier = program.try_into()?;
                program.load().with_context(|| format!("load {name}"))?;
            } else {
                let program: &mut Xdp = program.try_into()?;
                program.load().with_context(|| format!("load {name}"))?;
            }
        }
        if first {
            let name = Program::Reference.name();
            let program = self.ebpf.program_mut(name).context("loaded above")?;
            let program: &mut Xdp = program.try_into()?;
            for port in [OUTSIDE, INSIDE, PODS] {
                // A test run may name a device as the packet's origin only if it has an XDP program.
                program.attach_to_if_index(port.ifindex, XdpMode::Driver)?;
            }
        }
        let clock = self
            .ebpf
            .program_mut(names::LB_CLOCK)
            .context("no lb_clock")?;
        let clock: &mut SchedClassifier = clock.try_into()?;
        clock.load().context("load lb_clock")
    }

    fn describe_devices(&self, sizes: &Sizes) -> Result<()> {
        let count = sizes.snat_addresses;
        for port in PORTS {
            let inside = port == INSIDE;
            let device = Device {
                ifindex: port.ifindex,
                mtu: port.mtu,
                mac: port.mac,
                flags: if port == PODS {
                    0
                } else {
                    device_flag::REDIRECT
                },
                snat4_first: 0,
                snat4_count: if inside { count } else { 0 },
                snat6_first: 0,
                snat6_count: if inside { count } else { 0 },
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
            for number in 0..u32::from(count) {
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
        let operations = diff(&actual, tables);
        self.dataplane
            .apply_all(&operations)
            .map_err(|(done, error)| {
                anyhow::Error::new(error).context(format!("after {done} operations"))
            })?;
        // As the agent's start leaves it.
        self.dataplane.rebuild_filter(tables, [])?;
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

    /// Runs a wrapper.
    pub(super) fn run(
        &self,
        program: Program,
        frame: &[u8],
        port: Port,
        repeat: u32,
    ) -> Result<()> {
        let length = u32::try_from(frame.len()).context("a short frame")?;
        let fields = if program.is_tcx() {
            // struct __sk_buff, by words: ingress_ifindex and ifindex.
            std::array::from_fn::<u32, 48, _>(|at| match at {
                9 | 10 => port.ifindex,
                _ => 0,
            })
            .to_vec()
        } else {
            // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
            vec![0, length, 0, port.ifindex, 0, 0]
        };
        let context: Vec<u8> = fields.into_iter().flat_map(u32::to_ne_bytes).collect();
        let input = TestRun {
            data: frame,
            context: &context,
            headroom: 256,
            repeat,
            ..TestRun::default()
        };
        test_run(self.program(program.name())?.as_fd(), &input)
            .with_context(|| format!("run {}", program.name()))?;
        Ok(())
    }

    fn program(&self, name: &str) -> Result<OwnedFd> {
        let program = self
            .ebpf
            .program(name)
            .with_context(|| format!("no program {name}"))?;
        Ok(program.fd()?.as_fd().try_clone_to_owned()?)
    }

    /// Packets counted, over all CPUs.
    pub(super) fn counted(&self, counter: Counter) -> Result<u64> {
        let index = counter.index();
        let tallies: Vec<Tally> = self
            .map(names::COUNTERS)?
            .lookup_per_cpu(&index)?
            .context("COUNTERS is too short")?;
        Ok(tallies.iter().map(|tally| tally.packets).sum())
    }

    /// Makes every flow look up its route again.
    pub(super) fn change_routes(&self) -> Result<()> {
        let mut control = self.control()?;
        control.route_generation = control.route_generation.wrapping_add(1);
        self.map(names::CONTROL)?.update(&0_u32, &control)?;
        Ok(())
    }

    /// Sixteen bits are all that flows keep of it.
    pub(super) fn route_generation(&self) -> Result<u16> {
        Ok(u16::try_from(self.control()?.route_generation & 0xffff)?)
    }

    fn control(&self) -> Result<Control> {
        let map = self.map(names::CONTROL)?;
        map.lookup(&0_u32)?.context("CONTROL is empty")
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

/// The form of an address in tables for both families.
pub(super) fn words(address: IpAddr) -> Addr6 {
    match address {
        IpAddr::V4(v4) => Addr6([Addr4::from(v4).0, 0, 0, 0]),
        IpAddr::V6(v6) => v6.into(),
    }
}

/// As the agent writes it by default, but for the budget of replies, which would end within a round.
fn config(sizes: &Sizes) -> Result<Config> {
    let entries = |name: &str, default: usize| -> Result<u32> {
        let larger = sizes.maps.iter().find(|(other, _)| *other == name);
        larger.map_or_else(|| Ok(u32::try_from(default)?), |(_, entries)| Ok(*entries))
    };
    let flows4 = entries(names::FLOWS_V4, names::entries::FLOWS_V4)?;
    let flows6 = entries(names::FLOWS_V6, names::entries::FLOWS_V6)?;
    Ok(Config {
        flags: 0,
        tick_shift: preflight::tick_shift(preflight::jiffies_per_second()?) + sizes.longer_ticks,
        unknown_flows: UnknownFlows::Select as u32,
        replies_per_tick: u32::MAX,
        flows4_limit: flows4 - flows4 / 16,
        flows6_limit: flows6 - flows6 / 16,
        udp4_limit: flows4 / 2,
        udp6_limit: flows6 / 2,
        closed_ticks: 60,
        embryonic_ticks: 60,
        neighbour_ticks: 5,
        tick_millis: 1_000 << sizes.longer_ticks,
    })
}
