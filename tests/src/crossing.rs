//! Packets that cross a change of the tables: what each meets before it, in the middle and after it.
//!
//! The change is the one the agent would make: manifests are read, planned and carried out by its own
//! code.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use lb_userspace::{
    config::TableSizes,
    dataplane::TableOp,
    diff::diff,
    manifests::ManifestSource,
    node::NodeConfig,
    plan::{Planner, Quarantine},
    snapshot::Snapshot,
    source::Scope,
    tables::TableSet,
};

use crate::{
    book::{BOOKS, Book},
    netns::manifest::ServiceManifest,
    network::{INSIDE, OUTSIDE, PODS, PORTS, Port, SLIM},
    packet::{Packet, address, describe, endpoint},
    run::{Hook, Lab, Memory, Outcome, Verdict},
};

/// Name of the node the plans are made for.
pub const NODE: &str = "edge";

/// The node of the packet tests, as the plan sees it.
pub fn node(gateway: bool) -> NodeConfig {
    let entries = 1_024;
    let both = |port: Port| <[_; 2]>::from(port.snat()).map(address);
    NodeConfig {
        name: NODE.into(),
        gateway,
        addresses: BOOKS.map(|book| address(book.node_address())).into(),
        snat_addresses: [INSIDE, SLIM, PODS].into_iter().flat_map(both).collect(),
        external_ips: true,
        sizes: TableSizes {
            services: entries,
            backends: entries,
            members: entries,
            slots: entries,
            ..TableSizes::default()
        },
        ..NodeConfig::default()
    }
}

/// What a directory with these manifests holds.
pub fn snapshot(services: &[ServiceManifest]) -> Snapshot {
    let directory = tempfile::tempdir().expect("a temporary directory");
    for (number, service) in services.iter().enumerate() {
        let path = directory.path().join(format!("{number}.yaml"));
        std::fs::write(path, service.yaml()).expect("a temporary file");
    }
    let scope = Scope {
        node_name: NODE.into(),
        ..Scope::default()
    };
    let source = ManifestSource::new(directory.path(), scope).expect("a directory");
    let state = source.state();
    assert_eq!(state.rejections, [], "the manifests are sound");
    state.snapshot.clone()
}

/// Plans one state after the other, as the agent does.
#[derive(Debug)]
pub struct Plans {
    node: NodeConfig,
    planner: Planner,
    tables: TableSet,
}

impl Plans {
    /// From empty tables.
    pub fn new(node: NodeConfig) -> Self {
        Self {
            node,
            planner: Planner::default(),
            tables: TableSet::default(),
        }
    }

    /// The tables of the last state.
    pub const fn tables(&self) -> &TableSet {
        &self.tables
    }

    /// The operations that lead from the last state to this one.
    pub fn next(&mut self, services: &[ServiceManifest]) -> Vec<TableOp> {
        let (snapshot, quarantine) = (snapshot(services), Quarantine::default());
        let Self {
            node,
            planner,
            tables,
        } = self;
        let ops = if let Some(patch) = planner.patch(tables, &snapshot, node, &quarantine) {
            patch.ops
        } else {
            let plan = planner.plan(tables, &snapshot, node, &quarantine);
            let (rejected, deferred) = (plan.rejected, plan.deferred);
            assert_eq!((rejected, deferred), (Vec::new(), Vec::new()));
            diff(tables, &plan.tables)
        };
        for op in &ops {
            lb_userspace::dataplane::model::write(tables, op);
        }
        planner.written();
        ops
    }
}

/// A packet that is sent again and again.
#[derive(Clone, Debug)]
pub struct Probe {
    /// For people.
    pub name: String,
    port: Port,
    frame: Vec<u8>,
    /// It belongs to an established TCP flow, or to something else no change may touch.
    pub holds: bool,
    /// It belongs to an established flow.
    pub goes_on: bool,
}

/// What became of a probe.
#[derive(Clone, Eq, PartialEq)]
pub struct Met {
    verdict: Verdict,
    /// The frame without its MACs, which the neighbour table may write out of a test run's sight.
    frame: Vec<u8>,
    /// Counters that moved, where it was not sent on.
    counted: BTreeSet<&'static str>,
}

impl fmt::Debug for Met {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut frame = vec![0; 12];
        frame.extend(&self.frame);
        let words = describe(&frame);
        write!(f, "{:?} {:?} {words}", self.verdict, self.counted)
    }
}

impl Probe {
    /// A packet that comes in by `port`.
    pub fn new(name: impl Into<String>, port: Port, packet: &Packet) -> Self {
        let mut packet = packet.clone();
        packet.destination_mac = port.mac;
        Self {
            name: name.into(),
            port,
            frame: packet.bytes(),
            holds: false,
            goes_on: false,
        }
    }

    /// Nothing may change for it.
    #[must_use]
    pub const fn holding(mut self) -> Self {
        self.holds = true;
        self
    }

    /// Sends it; twice, if it is not sent on: what is counted then is read.
    pub fn send(&self, lab: &Lab) -> Met {
        let mut outcome = self.run(lab);
        let mut counted = BTreeSet::new();
        if outcome.verdict != Verdict::Send {
            let before = lab.counters();
            outcome = self.run(lab);
            // The tables may have changed meanwhile.
            if outcome.verdict != Verdict::Send {
                let after = lab.counters().into_iter();
                let moved = after.filter(|(name, tally)| before.get(name) != Some(tally));
                counted = moved.map(|(name, _)| name).collect();
            }
        }
        Met {
            verdict: outcome.verdict,
            frame: outcome.frame.get(12..).unwrap_or_default().to_vec(),
            counted,
        }
    }

    fn run(&self, lab: &Lab) -> Outcome {
        // Pods' devices have no XDP program.
        if lab.hook() == Hook::Xdp && self.port != PODS {
            let outcome = lab.xdp(&self.frame, self.port);
            if outcome.verdict != Verdict::Pass {
                return outcome;
            }
        }
        lab.ingress(&self.frame, self.port)
    }
}

/// Sends every probe; then everything is remembered as it was.
pub fn send_all(lab: &Lab, probes: &[Probe], memory: &Memory) -> Vec<Met> {
    let met = probes.iter().map(|probe| probe.send(lab)).collect();
    lab.recall(memory);
    met
}

/// Establishes a flow; the probes that go on with it in both directions. `None` if nobody takes it.
pub fn establish(lab: &Lab, book: Book, client: &str, frontend: &str) -> Option<[Probe; 2]> {
    let what = format!("{} {client}", book.name());
    let first = Probe::new("first", OUTSIDE, &book.first(client, frontend)).run(lab);
    let (seen_client, backend) = endpoints(&first.frame);
    if first.verdict != Verdict::Send || backend.ip() == endpoint(client).ip() {
        return None;
    }
    let inside = PORTS.into_iter().find(|port| port.holds(backend.ip()));
    let inside = inside.unwrap_or_else(|| panic!("{backend} is behind no port"));
    let (seen_client, backend) = (seen_client.to_string(), backend.to_string());
    let second = book.second(&backend, &seen_client);
    let third = book.third(client, frontend);
    for (port, packet) in [(inside, &second), (OUTSIDE, &third)] {
        let met = Probe::new("handshake", port, packet).run(lab);
        assert_eq!(met.verdict, Verdict::Send, "{what}");
    }
    let forward = Probe::new(format!("{what}: on to {backend}"), OUTSIDE, &third);
    let answer = if book.is_udp() {
        second
    } else {
        let answer = book.packet(&backend, &seen_client);
        answer.seq(5_000).ack(1_000)
    };
    let reply = Probe::new(format!("{what}: back from {backend}"), inside, &answer);
    // A UDP flow may go to another backend when its own serves no more.
    Some([forward, reply].map(|probe| Probe {
        holds: !book.is_udp(),
        goes_on: true,
        ..probe
    }))
}

/// Source and destination of a frame without a tag.
fn endpoints(frame: &[u8]) -> (SocketAddr, SocketAddr) {
    let v6 = bytes(frame, 12) == [0x86, 0xdd];
    let ip = |at: usize| -> IpAddr {
        if v6 {
            Ipv6Addr::from(bytes::<16>(frame, at)).into()
        } else {
            Ipv4Addr::from(bytes::<4>(frame, at)).into()
        }
    };
    let (source, destination, ports) = if v6 { (22, 38, 54) } else { (26, 30, 34) };
    let port = |at| u16::from_be_bytes(bytes(frame, at));
    (
        SocketAddr::new(ip(source), port(ports)),
        SocketAddr::new(ip(destination), port(ports + 2)),
    )
}

fn bytes<const N: usize>(frame: &[u8], at: usize) -> [u8; N] {
    let bytes = frame.get(at..).and_then(|rest| rest.first_chunk());
    *bytes.expect("a whole frame")
}

/// What the packets met that is neither the old tables' nor the new ones' answer.
#[derive(Debug, Default)]
pub struct Strays {
    /// Packets looked at.
    pub packets: usize,
    /// In words, one for each place and way.
    found: BTreeMap<String, usize>,
}

impl Strays {
    /// Compares.
    pub fn compare(
        &mut self,
        place: &str,
        probes: &[Probe],
        old: &[Met],
        met: &[Met],
        new: &[Met],
    ) {
        self.packets += met.len();
        let all = probes.iter().zip(old).zip(met).zip(new);
        for (((probe, old), met), new) in
            all.filter(|(((_, old), met), new)| met != old && met != new)
        {
            let name = &probe.name;
            let text =
                format!("{place}: {name}\n    old {old:?}\n    met {met:?}\n    new {new:?}");
            *self.found.entry(text).or_default() += 1;
        }
    }

    /// The first few in words; empty for none.
    pub fn report(&self) -> String {
        let all: usize = self.found.values().sum();
        let mut lines: Vec<_> = self.found.keys().take(4).cloned().collect();
        if all > lines.len() {
            lines.push(format!("and more: {all} in all"));
        }
        lines.join("\n")
    }
}
