//! The compiled programs with tables of production's sizes.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
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
    reason::{Counter, Event},
    traffic::Tally,
};
use lb_userspace::{
    dataplane::{Dataplane as _, bpf::BpfDataplane},
    diff::diff,
    kernel::{Map, TestRun, test_run},
    preflight,
    tables::TableSet,
};

use super::group::{Group, SNAT, SNAT_ADDRESSES, plus};
use crate::network::{INSIDE, OUTSIDE, PORTS, Port};

/// The wrapper program.
const LB_BENCH: &str = "lb_bench";
/// Its map.
pub(super) const BENCH: &str = "BENCH";

/// Programs and maps.
pub(super) struct Kernel {
    ebpf: Ebpf,
    dataplane: BpfDataplane,
    maps: BTreeMap<&'static str, Map>,
    /// The group whose flows are established.
    pub(super) resident: Option<Group>,
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
        tick_millis: 1_000,
    })
}
