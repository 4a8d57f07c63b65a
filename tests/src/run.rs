//! The compiled programs, loaded for one case: run on single packets, with everything they count
//! and keep read back.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    os::fd::{AsFd as _, OwnedFd},
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{PerCpuArray, PerCpuValues},
    programs::{SchedClassifier, Xdp, xdp::XdpMode},
};
use lb_common::{
    addr::Addr6,
    config::{Config, UnknownFlows},
    conntrack::{Closing4, Closing6, Entry4, Entry6},
    device::{Device, NextHop, NextHopKey, SnatAddress, device_flag},
    flow::{Flow4, Flow6},
    names,
    reason::Counter,
    service::{
        FragmentKey, FragmentPorts,
        affinity::{Affinity, AffinityKey},
    },
    traffic::{Tally, Traffic},
    wire::Wire,
};
use lb_userspace::{
    dataplane::{Dataplane as _, bpf::BpfDataplane},
    diff::diff,
    kernel::{Map, TestRun, test_run},
    tables::TableSet,
};

use crate::{
    network::{INSIDE, PODS, PORTS, Port, SLIM},
    packet::address,
    require,
};

/// Which program meets a packet first.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Hook {
    /// `lb_xdp`, and `lb_ingress` for what it passes.
    Xdp,
    /// `lb_ingress` alone.
    Tcx,
    /// `lb_egress`.
    Egress,
}

/// What a program did with a packet.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Outcome {
    /// Its verdict.
    pub verdict: Verdict,
    /// The frame afterwards.
    pub frame: Vec<u8>,
}

/// The verdicts of both program types.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// Goes on: to TCX, or to the stack.
    Pass,
    /// Ends here.
    Drop,
    /// Leaves by a device the program named, or by the one it came in.
    Send,
    /// Something a program must never return.
    Other(u32),
}

/// Everything the data path counts.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Counts {
    /// By counter name.
    pub counters: BTreeMap<&'static str, Tally>,
    /// By service-port id.
    pub services: BTreeMap<u32, Traffic>,
    /// By backend id.
    pub backends: BTreeMap<u32, Traffic>,
}

/// The configuration of the cases: time stands still, and nothing is sent by TCX for the
/// neighbour's sake.
pub const CONFIG: Config = Config {
    flags: 0,
    tick_shift: 28,
    unknown_flows: UnknownFlows::Select as u32,
    replies_per_tick: 1_000,
    flows4_limit: 1_000,
    flows6_limit: 1_000,
    udp4_limit: 500,
    udp6_limit: 500,
    closed_ticks: 60,
    embryonic_ticks: 60,
    neighbour_ticks: 0x00ff_ffff,
    reserved: 0,
};

/// Sizes that load in no time.
const SMALL: u32 = 1_024;

/// The programs over maps of their own.
pub struct Lab {
    ebpf: Ebpf,
    dataplane: BpfDataplane,
    maps: BTreeMap<&'static str, Map>,
    hook: Hook,
}

impl std::fmt::Debug for Lab {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lab")
            .field("hook", &self.hook)
            .finish_non_exhaustive()
    }
}

/// Lends the lab with a configuration, loaded once per thread and forgetful between calls.
pub fn with_lab(config: &Config, hook: Hook, act: impl FnOnce(&mut Lab)) {
    thread_local! {
        static LABS: RefCell<BTreeMap<Config, Lab>> = const { RefCell::new(BTreeMap::new()) };
    }
    LABS.with_borrow_mut(|labs| {
        let first = labs.is_empty();
        let lab = labs.entry(*config).or_insert_with_key(Lab::new);
        if first {
            lab.attach();
        }
        lab.reset(hook);
        act(lab);
    });
}

impl Lab {
    /// Loads the object into fresh maps and describes the devices of [`crate::network`] to it.
    ///
    /// Loading is slow, most of it the verifier's work.
    fn new(config: &Config) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let root = PathBuf::from(format!(
            "/sys/fs/bpf/sluice-packet-{}-{number}",
            std::process::id()
        ));
        let maps = root.join("maps");
        std::fs::create_dir_all(&maps).expect("a directory on the BPF file system");
        let mut loader = EbpfLoader::new();
        loader
            .btf(None)
            .override_global(names::CONFIG, config, true);
        for &(name, entries) in names::MAPS {
            let entries = u32::try_from(entries).expect("a map's size").min(SMALL);
            loader
                .map_max_entries(name, entries)
                .map_pin_path(name, maps.join(name));
        }
        let ebpf = loader
            .load_file(require::object_path())
            .expect("the data path loads");
        let dataplane = BpfDataplane::open(&maps).expect("the maps open");
        let opened = names::MAPS.iter().map(|&(name, _)| {
            let map = Map::open_pinned(&maps.join(name));
            (name, map.unwrap_or_else(|e| panic!("map {name}: {e}")))
        });
        let opened = opened.collect();
        // Descriptors hold the maps from here on; nothing is left behind, however this ends.
        std::fs::remove_dir_all(&root).expect("the pins go");
        let mut lab = Self {
            ebpf,
            dataplane,
            maps: opened,
            hook: Hook::Xdp,
        };
        lab.load_programs();
        lab.reset(Hook::Xdp);
        lab
    }

    /// Attaches `lb_xdp`: a test run may name a device as the packet's origin only if the device has
    /// an XDP program, whichever.
    fn attach(&mut self) {
        let xdp: &mut Xdp = self
            .ebpf
            .program_mut(names::LB_XDP)
            .expect("lb_xdp")
            .try_into()
            .expect("an XDP program");
        for port in PORTS {
            xdp.attach_to_if_index(port.ifindex, XdpMode::Driver)
                .expect("lb_xdp attaches");
        }
    }

    fn load_programs(&mut self) {
        let xdp: &mut Xdp = self
            .ebpf
            .program_mut(names::LB_XDP)
            .expect("lb_xdp")
            .try_into()
            .expect("an XDP program");
        xdp.load().expect("the verifier accepts lb_xdp");
        for name in [
            names::LB_INGRESS,
            names::LB_EGRESS,
            names::LB_EXPIRE,
            names::LB_CLOCK,
        ] {
            let program: &mut SchedClassifier = self
                .ebpf
                .program_mut(name)
                .unwrap_or_else(|| panic!("no program {name}"))
                .try_into()
                .expect("a classifier");
            program
                .load()
                .unwrap_or_else(|e| panic!("the verifier rejects {name}: {e}"));
        }
    }

    /// Forgets every table, flow and next hop. Counters count on.
    fn reset(&mut self, hook: Hook) {
        self.hook = hook;
        self.apply(&TableSet::default());
        self.dataplane
            .rebuild_filter(&TableSet::default(), [])
            .expect("ADDRESS_FILTER");
        for name in [names::FLOWS_V4, names::EMBRYONIC_V4] {
            self.clear::<Flow4, Entry4>(name);
        }
        for name in [names::FLOWS_V6, names::EMBRYONIC_V6] {
            self.clear::<Flow6, Entry6>(name);
        }
        self.clear::<FragmentKey, FragmentPorts>(names::FRAGMENTS);
        self.clear::<AffinityKey, Affinity>(names::AFFINITY);
        self.clear::<NextHopKey, u32>(names::NEXT_HOP_INDEX);
        while let Some(Closing4 { .. }) = self.map(names::CLOSING_V4).pop().expect("CLOSING_V4") {}
        while let Some(Closing6 { .. }) = self.map(names::CLOSING_V6).pop().expect("CLOSING_V6") {}
        let uses = self.map(names::FLOW_USE);
        for element in 0..uses.info().max_entries {
            uses.update(&element, &0_u64).expect("FLOW_USE");
        }
        let budget = self
            .ebpf
            .map_mut(names::REPLY_BUDGET)
            .expect("REPLY_BUDGET");
        let mut budget = PerCpuArray::<_, [u64; 2]>::try_from(budget).expect("two words a CPU");
        let cpus = aya::util::nr_cpus().expect("CPUs");
        let zero = PerCpuValues::try_from(vec![[0; 2]; cpus]).expect("one value a CPU");
        budget.set(0, zero, 0).expect("REPLY_BUDGET");
        let free = self.map(names::NEXT_HOP_FREE);
        while free.pop::<u32>().expect("NEXT_HOP_FREE").is_some() {}
        let hops = self.map(names::NEXT_HOPS);
        let numbers: Vec<u32> = (0..SMALL).collect();
        hops.update_batch(&numbers, &vec![NextHop::default(); numbers.len()])
            .expect("NEXT_HOPS");
        for number in 1..SMALL {
            free.push(&number).expect("NEXT_HOP_FREE");
        }
        self.describe_devices();
    }

    fn clear<K: Wire, V: Wire>(&self, name: &str) {
        let map = self.map(name);
        let entries: Vec<(K, V)> = map
            .read_all()
            .unwrap_or_else(|e| panic!("read {name}: {e}"));
        let keys: Vec<K> = entries.into_iter().map(|(key, _)| key).collect();
        map.delete_batch(&keys)
            .unwrap_or_else(|e| panic!("clear {name}: {e}"));
    }

    fn describe_devices(&self) {
        let snat = self.map(names::SNAT_V4);
        let snat6 = self.map(names::SNAT_V6);
        let (devices, index) = (self.map(names::DEVICES), self.map(names::DEVICE_INDEX));
        for port in PORTS {
            let owns = port == INSIDE || port == SLIM;
            let redirect = if port == PODS {
                0
            } else {
                device_flag::REDIRECT
            };
            let device = Device {
                ifindex: port.ifindex,
                mtu: port.mtu,
                mac: port.mac,
                flags: redirect,
                snat4_first: port.index,
                snat4_count: u16::from(owns),
                snat6_first: port.index,
                snat6_count: u16::from(owns),
                vlan_parent: 0,
                vlan_id: 0,
                index: port.index,
            };
            devices
                .update(&u32::from(port.index), &device)
                .expect("DEVICES");
            index
                .update(&port.ifindex, &u32::from(port.index))
                .expect("DEVICE_INDEX");
            if owns {
                let (v4, v6) = port.snat();
                let element = u32::from(port.index);
                snat.update(&element, &snat_address(v4, 1024, 64_512))
                    .expect("SNAT_V4");
                snat6
                    .update(&element, &snat_address(v6, 1024, 64_512))
                    .expect("SNAT_V6");
            }
        }
    }

    /// Narrows the SNAT ports behind [`INSIDE`].
    pub fn snat_ports(&self, first: u32, count: u32) {
        let (v4, v6) = INSIDE.snat();
        let element = u32::from(INSIDE.index);
        let map = self.map(names::SNAT_V4);
        map.update(&element, &snat_address(v4, first, count))
            .expect("SNAT_V4");
        let map = self.map(names::SNAT_V6);
        map.update(&element, &snat_address(v6, first, count))
            .expect("SNAT_V6");
    }

    /// The hook under test.
    pub fn hook(&self) -> Hook {
        self.hook
    }

    /// A map.
    pub fn map(&self, name: &str) -> &Map {
        self.maps
            .get(name)
            .unwrap_or_else(|| panic!("no map {name}"))
    }

    /// Brings the tables from what they hold to `wanted`, by the operations of a plan.
    pub fn apply(&mut self, wanted: &TableSet) {
        let actual = self.dataplane.dump().expect("the tables can be read");
        for operation in diff(&actual, wanted) {
            self.dataplane
                .apply(&operation)
                .unwrap_or_else(|e| panic!("{operation:?}: {e}"));
        }
    }

    /// Tells the data path that routes or neighbours moved.
    pub fn routes_changed(&self) {
        let map = self.map(names::ROUTE_GENERATION);
        let now: u32 = map.lookup(&0_u32).expect("a read").expect("an element");
        map.update(&0_u32, &now.wrapping_add(1))
            .expect("ROUTE_GENERATION");
    }

    fn program(&self, name: &str) -> OwnedFd {
        let program = self
            .ebpf
            .program(name)
            .unwrap_or_else(|| panic!("no program {name}"));
        program
            .fd()
            .expect("loaded")
            .as_fd()
            .try_clone_to_owned()
            .expect("a descriptor")
    }

    /// Runs `lb_xdp` on a frame that came in by `port`.
    pub fn xdp(&self, frame: &[u8], port: Port) -> Outcome {
        let length = u32::try_from(frame.len()).expect("a short frame");
        // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let context = words(&[0, length, 0, port.ifindex, 0, 0]);
        let (verdict, frame) = self.run(names::LB_XDP, frame, &context);
        let verdict = match verdict {
            1 => Verdict::Drop,
            2 => Verdict::Pass,
            3 | 4 => Verdict::Send,
            other => Verdict::Other(other),
        };
        Outcome { verdict, frame }
    }

    /// Runs `lb_ingress` on a frame that came in by `port`.
    pub fn ingress(&self, frame: &[u8], port: Port) -> Outcome {
        self.classifier(names::LB_INGRESS, frame, port)
    }

    /// Runs `lb_egress` on a frame about to leave by `port`.
    pub fn egress(&self, frame: &[u8], port: Port) -> Outcome {
        self.classifier(names::LB_EGRESS, frame, port)
    }

    fn classifier(&self, program: &str, frame: &[u8], port: Port) -> Outcome {
        // struct __sk_buff; ingress_ifindex is its tenth word, ifindex its eleventh.
        let mut fields = [0_u32; 48];
        for (at, field) in fields.iter_mut().enumerate() {
            if at == 9 || at == 10 {
                *field = port.ifindex;
            }
        }
        let (verdict, frame) = self.run(program, frame, &words(&fields));
        let verdict = match verdict {
            0 | u32::MAX => Verdict::Pass,
            2 => Verdict::Drop,
            7 => Verdict::Send,
            other => Verdict::Other(other),
        };
        Outcome { verdict, frame }
    }

    fn run(&self, program: &str, frame: &[u8], context: &[u8]) -> (u32, Vec<u8>) {
        let input = TestRun {
            data: frame,
            context,
            headroom: 256,
            ..TestRun::default()
        };
        let output = test_run(self.program(program).as_fd(), &input)
            .unwrap_or_else(|e| panic!("test run of {program}, {} bytes: {e}", frame.len()));
        (output.retval, output.data)
    }

    /// Runs the expiry program on records of [`lb_common::conntrack::Idle4`] or `Idle6`.
    pub fn expire(&self, operation: u8, family: u8, records: &[&[u8]]) -> u32 {
        let mut data = vec![0; 14];
        data.splice(
            ..3,
            [
                operation,
                family,
                u8::try_from(records.len()).expect("few records"),
            ],
        );
        data.extend(records.concat());
        self.run(names::LB_EXPIRE, &data, &[]).0
    }

    /// Packets counted so far under one counter.
    pub fn count(&self, counter: Counter) -> u64 {
        let values: Option<Vec<Tally>> = self
            .map(names::COUNTERS)
            .lookup_per_cpu(&counter.index())
            .expect("COUNTERS");
        values
            .unwrap_or_default()
            .iter()
            .map(|tally| tally.packets)
            .sum()
    }

    /// Everything counted so far, summed over the CPUs; what is zero is left out.
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        let counters = self.map(names::COUNTERS);
        let mut tallies = BTreeMap::new();
        counters
            .for_each_per_cpu(|index, values: &[Tally]| {
                tallies.insert(
                    index,
                    values.iter().fold(Tally::default(), |a, b| sum(a, *b)),
                );
            })
            .expect("COUNTERS");
        for counter in Counter::all() {
            let tally = tallies.remove(&counter.index()).unwrap_or_default();
            if tally.packets != 0 {
                counts.counters.insert(counter.name(), tally);
            }
        }
        counts.services = self.traffic(names::SERVICE_TRAFFIC);
        counts.backends = self.traffic(names::BACKEND_TRAFFIC);
        counts
    }

    fn traffic(&self, name: &str) -> BTreeMap<u32, Traffic> {
        let mut out = BTreeMap::new();
        self.map(name)
            .for_each_per_cpu(|index, values: &[Traffic]| {
                let total = values.iter().fold(Traffic::default(), |a, b| Traffic {
                    forward: sum(a.forward, b.forward),
                    reply: sum(a.reply, b.reply),
                    new_flows: a.new_flows + b.new_flows,
                    established: a.established + b.established,
                });
                if total != Traffic::default() {
                    out.insert(index, total);
                }
            })
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        out
    }

    /// The flows of one IPv4 table.
    pub fn flows4(&self, name: &str) -> BTreeMap<Flow4, Entry4> {
        self.map(name)
            .read_all()
            .expect("a flow table")
            .into_iter()
            .collect()
    }

    /// The flows of one IPv6 table.
    pub fn flows6(&self, name: &str) -> BTreeMap<Flow6, Entry6> {
        self.map(name)
            .read_all()
            .expect("a flow table")
            .into_iter()
            .collect()
    }

    /// Entries in (established, embryonic) tables, both families.
    pub fn flow_entries(&self) -> (usize, usize) {
        (
            self.flows4(names::FLOWS_V4).len() + self.flows6(names::FLOWS_V6).len(),
            self.flows4(names::EMBRYONIC_V4).len() + self.flows6(names::EMBRYONIC_V6).len(),
        )
    }

    /// All flows in words, for the reader of a failed test.
    pub fn describe_flows(&self) -> String {
        use std::fmt::Write as _;
        let mut out = String::new();
        for name in [names::FLOWS_V4, names::EMBRYONIC_V4] {
            for (key, entry) in self.flows4(name) {
                writeln!(out, "    {name} {key:?}\n      {entry:x?}").expect("a string");
            }
        }
        for name in [names::FLOWS_V6, names::EMBRYONIC_V6] {
            for (key, entry) in self.flows6(name) {
                writeln!(out, "    {name} {key:?}\n      {entry:x?}").expect("a string");
            }
        }
        out
    }
}

fn sum(a: Tally, b: Tally) -> Tally {
    Tally {
        packets: a.packets + b.packets,
        bytes: a.bytes + b.bytes,
    }
}

fn words(fields: &[u32]) -> Vec<u8> {
    fields
        .iter()
        .flat_map(|field| field.to_ne_bytes())
        .collect()
}

/// An SNAT address and its ports.
fn snat_address(text: &str, first_port: u32, port_count: u32) -> SnatAddress {
    let address = match address(text) {
        std::net::IpAddr::V4(v4) => Addr6([lb_common::addr::Addr4::from(v4).0, 0, 0, 0]),
        std::net::IpAddr::V6(v6) => v6.into(),
    };
    SnatAddress {
        address,
        first_port,
        port_count,
    }
}
