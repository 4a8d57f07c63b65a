//! The compiled programs, loaded for one case: run on single packets, with everything they count
//! and keep read back.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
};

use aya::{
    Ebpf, EbpfLoader,
    programs::{SchedClassifier, Xdp, xdp::XdpMode},
};
use lb_common::{
    config::{Config, UnknownFlows},
    control::{Control, Gate},
    names,
};
use lb_userspace::{
    dataplane::{Dataplane as _, bpf::BpfDataplane},
    diff::diff,
    kernel::Map,
    refusals::{Refusals, Refused},
    tables::TableSet,
};

pub use self::{memory::Memory, programs::Programs, read::Counts};

use crate::{
    network::{PORTS, Port},
    require,
};

mod memory;
mod programs;
mod read;
mod reset;
#[cfg(debug_assertions)]
mod stepwise;

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
    tick_millis: 1_000,
};

/// Sizes that load in no time.
const SMALL: u32 = 1_024;

/// The programs over maps of their own.
pub struct Lab {
    ebpf: Ebpf,
    programs: Programs,
    dataplane: RefCell<BpfDataplane>,
    maps: BTreeMap<&'static str, Map>,
    refusals: RefCell<Refusals>,
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

/// A directory of pins that goes however its making ends.
struct Pins(PathBuf);

impl Drop for Pins {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            eprintln!("{}: {error}", self.0.display());
        }
    }
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
        let pins = Pins(root);
        let mut loader = EbpfLoader::new();
        loader
            .btf(None)
            .override_global(names::CONFIG, config, true);
        for &(name, entries) in names::MAPS {
            let entries = u32::try_from(entries).expect("a map's size");
            // A ring buffer is measured in bytes, whole pages.
            let least = if name == names::EVENTS { 65_536 } else { SMALL };
            let entries = entries.min(least);
            loader
                .map_max_entries(name, entries)
                .map_pin_path(name, maps.join(name));
        }
        let ebpf = loader
            .load_file(require::object_path())
            .expect("the data path loads");
        let dataplane = BpfDataplane::open(&maps).expect("the maps open");
        let refusals = Refusals::open(&maps.join(names::EVENTS)).expect("the ring buffer opens");
        let opened = names::MAPS.iter().map(|&(name, _)| {
            let map = Map::open_pinned(&maps.join(name));
            (name, map.unwrap_or_else(|e| panic!("map {name}: {e}")))
        });
        let opened = opened.collect();
        // Descriptors hold the maps from here on.
        drop(pins);
        let mut lab = Self {
            ebpf,
            programs: Programs::default(),
            dataplane: RefCell::new(dataplane),
            maps: opened,
            refusals: RefCell::new(refusals),
            hook: Hook::Xdp,
        };
        lab.load_programs();
        lab.programs = Programs::of(&lab.ebpf);
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

    /// The hook under test.
    pub fn hook(&self) -> Hook {
        self.hook
    }

    /// What the data path told of refused packets since the last call.
    pub fn refusals(&self) -> BTreeMap<Refused, u64> {
        self.refusals.borrow_mut().read()
    }

    /// A map.
    pub fn map(&self, name: &str) -> &Map {
        self.maps
            .get(name)
            .unwrap_or_else(|| panic!("no map {name}"))
    }

    /// What the tables hold.
    pub fn dump(&self) -> TableSet {
        let dataplane = self.dataplane.borrow();
        dataplane.dump().expect("the tables can be read")
    }

    /// Brings the tables from what they hold to `wanted`, by the operations of a plan.
    pub fn apply(&mut self, wanted: &TableSet) {
        for operation in diff(&self.dump(), wanted) {
            self.dataplane
                .get_mut()
                .apply(&operation)
                .unwrap_or_else(|e| panic!("{operation:?}: {e}"));
        }
    }

    /// Tells the data path that routes or neighbours moved.
    pub fn routes_changed(&self) {
        let mut control = self.control();
        control.route_generation = control.route_generation.wrapping_add(1);
        self.set_control(control);
    }

    /// Opens or closes the gate of the data path.
    pub fn set_gate(&self, gate: Gate) {
        let mut control = self.control();
        control.gate = gate.0;
        self.set_control(control);
    }

    fn control(&self) -> Control {
        let control = self.map(names::CONTROL).lookup(&0_u32);
        control.expect("CONTROL").expect("its one element")
    }

    fn set_control(&self, control: Control) {
        let map = self.map(names::CONTROL);
        map.update(&0_u32, &control).expect("CONTROL");
    }

    /// The programs, for other threads.
    pub fn programs(&self) -> &Programs {
        &self.programs
    }

    /// Runs `lb_xdp` on a frame that came in by `port`.
    pub fn xdp(&self, frame: &[u8], port: Port) -> Outcome {
        self.programs.xdp(frame, port)
    }

    /// Runs `lb_ingress` on a frame that came in by `port`.
    pub fn ingress(&self, frame: &[u8], port: Port) -> Outcome {
        self.programs.classifier(names::LB_INGRESS, frame, port, 0)
    }

    /// Runs `lb_ingress` on a GSO packet of segments with `size` bytes of payload.
    pub fn ingress_gso(&self, frame: &[u8], port: Port, size: u32) -> Outcome {
        self.programs
            .classifier(names::LB_INGRESS, frame, port, size)
    }

    /// Runs `lb_egress` on a frame about to leave by `port`.
    pub fn egress(&self, frame: &[u8], port: Port) -> Outcome {
        self.programs.classifier(names::LB_EGRESS, frame, port, 0)
    }

    /// The tick the programs see.
    pub fn tick(&self) -> u32 {
        self.programs.run(names::LB_CLOCK, &[0; 14], &[]).0
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
        self.programs.expire(&data)
    }
}
