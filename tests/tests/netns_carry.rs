//! What is in the tables of another layout arrives in ours: every field of every flow, and what changed
//! while the first copy was made.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
};

use lb_common::{
    addr::Be16,
    config::Config,
    conntrack::{Closing4, Entry, Entry4, Entry6, Head, Note, Route, flag, state},
    control::{Control, Gate},
    flow::{Flow as _, Flow4, Flow6, protocol},
    names::{self, flow_use},
    service::affinity::{Affinity, AffinityKey},
    wire::Wire,
};
use lb_tests::{netns::now, require};
use lb_userspace::{
    kernel::{Map, MapTypes},
    migrate::{MigrateError, Migration},
    pins::{
        GateWord, LoadOptions, PinDirectory,
        format::{Conversion, Shape},
        load,
    },
};

/// Flows of each family.
const FLOWS: u16 = 4_000;

/// A pinned data path nothing is attached to, removed on drop.
struct Layout {
    root: PathBuf,
    directory: PinDirectory,
}

impl Layout {
    fn load(name: &str, object: &Path, flows: u32) -> Self {
        let root = PathBuf::from(format!(
            "/sys/fs/bpf/sluice-carry-{}-{name}",
            std::process::id()
        ));
        let entries = [
            (names::FLOWS_V4, flows),
            (names::FLOWS_V6, flows),
            (names::EMBRYONIC_V4, 4_096),
            (names::EMBRYONIC_V6, 4_096),
            (names::SLOTS, 1_024),
        ];
        let options = LoadOptions {
            root: root.clone(),
            config: Config {
                tick_shift: 8,
                ..Config::default()
            },
            entries: BTreeMap::from(entries),
        };
        let object = std::fs::read(object).expect("the object");
        let loaded = load(&object, &options).unwrap_or_else(|error| panic!("{name}: {error:?}"));
        Self {
            root,
            directory: loaded.directory,
        }
    }

    fn map(&self, name: &str) -> Map {
        Map::open_pinned(&self.directory.map(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    fn read<K: Wire + Ord, V: Wire>(&self, name: &str) -> BTreeMap<K, V> {
        let all = self.map(name).read_all().expect(name);
        all.into_iter().collect()
    }

    /// Makes a table of this layout what it is in another, byte for byte in this one's form.
    fn mirror(&self, other: &Self, name: &str) {
        let (from, to) = (other.map(name), self.map(name));
        let shapes = |map: &Map| {
            let MapTypes { btf, key, value } = map.types().expect(name).expect("types");
            let shape = |id| Shape::read(&btf, id).expect(name);
            (shape(key), shape(value))
        };
        let ((from_key, from_value), (to_key, to_value)) = (shapes(&from), shapes(&to));
        let keys = Conversion::of_keys(&from_key, &to_key).expect(name);
        let values = Conversion::between(&from_value, &to_value).expect(name);
        let mut all = (Vec::new(), Vec::new());
        let read = from.for_each_raw(|k, v| {
            for key in k.chunks_exact(keys.from_size()) {
                keys.append(key, &mut all.0);
            }
            for value in v.chunks_exact(values.from_size()) {
                values.append(value, &mut all.1);
            }
        });
        read.expect(name);
        to.update_raw(&all.0, &all.1).expect(name);
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.root) {
            eprintln!("{}: {error}", self.root.display());
        }
    }
}

fn flow4(port: u16, number: u8) -> Flow4 {
    Flow4::new(
        Ipv4Addr::new(198, 51, 100, 7).into(),
        Be16::new(port),
        Ipv4Addr::new(192, 0, 2, 1).into(),
        Be16::new(443),
        number,
    )
}

fn flow6(port: u16, number: u8) -> Flow6 {
    Flow6::new(
        Ipv6Addr::new(0x2001, 0xdb8, 0x100, 0, 0, 0, 0, 7).into(),
        Be16::new(port),
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(),
        Be16::new(443),
        number,
    )
}

/// A half in which no field is what another is.
fn half<E: Entry>(written: &E::Flow, identity: u32, of_state: u8, stamp: u32) -> E {
    let head = Head::new(identity, of_state, stamp);
    let flags = flag::FULL_NAT | flag::LOCAL;
    let mut half = E::new(head, written, flags, identity + 1, identity + 2);
    half.set_route(Route::new(identity, 9, 1_500, 77));
    half.set_note(Note::new(identity, identity ^ 0xffff));
    half
}

fn number(port: u16) -> u8 {
    if port.is_multiple_of(4) {
        protocol::UDP
    } else {
        protocol::TCP
    }
}

fn fill(layout: &Layout) {
    let (v4, v6) = (layout.map(names::FLOWS_V4), layout.map(names::FLOWS_V6));
    for port in 1..=FLOWS {
        let (identity, number) = (u32::from(port), number(port));
        let one: Entry4 = half(&flow4(port + 1, number), identity, state::ESTABLISHED, 5);
        v4.update(&flow4(port, number), &one).expect("room");
        let one: Entry6 = half(&flow6(port + 1, number), identity, state::FIN, 6);
        v6.update(&flow6(port, number), &one).expect("room");
    }
    for (port, stamp) in [(60_001, 30), (60_002, 10), (60_003, 20)] {
        let closed = state::CLOSED | state::QUEUED;
        let one: Entry4 = half(&flow4(port, protocol::TCP), 7, closed, stamp);
        v4.update(&flow4(port, protocol::TCP), &one).expect("room");
    }
    let embryonic = layout.map(names::EMBRYONIC_V4);
    for port in [50_001, 50_002] {
        let one: Entry4 = half(&flow4(port, protocol::TCP), 8, state::REPLIED, 9);
        embryonic
            .update(&flow4(port, protocol::TCP), &one)
            .expect("room");
    }
    let key = AffinityKey {
        service: 3,
        ..AffinityKey::default()
    };
    let value = Affinity {
        backend: 4,
        stamp: 5,
    };
    layout
        .map(names::AFFINITY)
        .update(&key, &value)
        .expect("room");
}

/// What happens to flows while the first copy is made: one changes, one ends, one begins, one is promoted.
fn go_on(layout: &Layout) {
    let (flows, embryonic) = (layout.map(names::FLOWS_V4), layout.map(names::EMBRYONIC_V4));
    let one: Entry4 = half(&flow4(99, number(1)), 1, state::FIN, 11);
    flows.update(&flow4(1, number(1)), &one).expect("room");
    flows.delete(&flow4(2, number(2))).expect("a flow");
    let one: Entry4 = half(&flow4(99, protocol::TCP), 70, state::ESTABLISHED, 12);
    flows
        .update(&flow4(40_000, protocol::TCP), &one)
        .expect("room");
    let promoted = flow4(50_001, protocol::TCP);
    let one: Entry4 = half(&promoted, 8, state::ESTABLISHED, 13);
    flows.update(&promoted, &one).expect("room");
    embryonic.delete(&promoted).expect("a flow");
}

const TABLES: [&str; 5] = [
    names::FLOWS_V4,
    names::FLOWS_V6,
    names::EMBRYONIC_V4,
    names::EMBRYONIC_V6,
    names::AFFINITY,
];

/// Everything but the route, which is looked up anew.
fn without_route<K: Ord, E: Entry>(table: BTreeMap<K, E>) -> BTreeMap<K, E> {
    let strip = |(key, mut half): (K, E)| {
        half.set_route(Route::default());
        (key, half)
    };
    table.into_iter().map(strip).collect()
}

#[test]
fn flows_of_another_layout_arrive_whole() {
    let second = require::second_layout().join("lb-ebpf");
    if !require::kernel_tests() || !require::file(&second) {
        return;
    }
    // What the flows are, in our own form; the same in the other layout; and where they go.
    let told = Layout::load("told", &require::object_path(), 16_384);
    let old = Layout::load("old", &second, 16_384);
    let new = Layout::load("new", &require::object_path(), 8_192);
    fill(&told);
    for name in TABLES {
        old.mirror(&told, name);
    }
    new.map(names::CONTROL)
        .update(
            &0_u32,
            &Control {
                route_generation: 42,
                gate: Gate::STANDBY.0,
            },
        )
        .expect("CONTROL");

    let migration = Migration::begin(old.directory.clone(), new.directory.clone());
    let migration = migration.expect("a copy");
    go_on(&told);
    for name in TABLES {
        old.mirror(&told, name);
    }
    // The mirror adds and changes; what ended is taken out here.
    old.map(names::FLOWS_V4)
        .delete(&flow4(2, number(2)))
        .expect("a flow");
    old.map(names::EMBRYONIC_V4)
        .delete(&flow4(50_001, protocol::TCP))
        .expect("a flow");
    migration.take_over().expect("the second copy");

    let gate = |layout: &Layout| GateWord::open(&layout.directory).expect("a gate").load();
    assert_eq!((gate(&old), gate(&new)), (Gate::STANDBY, Gate::OPEN));
    let arrived: BTreeMap<Flow4, Entry4> = new.read(names::FLOWS_V4);
    assert!(
        arrived
            .values()
            .all(|half| half.route() == Route::new(half.head().identity(), 0, 0, 41)),
        "a route was carried over"
    );
    assert_eq!(
        without_route(arrived.clone()),
        without_route(told.read::<Flow4, Entry4>(names::FLOWS_V4))
    );
    assert_eq!(
        without_route(new.read::<Flow6, Entry6>(names::FLOWS_V6)),
        without_route(told.read::<Flow6, Entry6>(names::FLOWS_V6))
    );
    assert_eq!(
        without_route(new.read::<Flow4, Entry4>(names::EMBRYONIC_V4)),
        without_route(told.read::<Flow4, Entry4>(names::EMBRYONIC_V4))
    );
    assert_eq!(
        new.read::<AffinityKey, Affinity>(names::AFFINITY),
        told.read::<AffinityKey, Affinity>(names::AFFINITY)
    );
    let uses: BTreeMap<u32, u64> = new.read(names::FLOW_USE);
    let udp = |flow: &&Flow4| flow.protocol() == protocol::UDP;
    assert_eq!(uses[&flow_use::V4], arrived.len() as u64);
    assert_eq!(
        uses[&flow_use::UDP_V4],
        arrived.keys().filter(udp).count() as u64
    );
    assert_eq!(uses[&flow_use::V6], u64::from(FLOWS));
    assert_eq!(uses[&flow_use::UDP_V6], u64::from(FLOWS / 4));
    let closing = new.map(names::CLOSING_V4);
    let queued = std::iter::from_fn(|| closing.pop::<Closing4>().expect("a queue"));
    let queued: Vec<_> = queued
        .map(|one| (one.flow.source_port.get(), one.since))
        .collect();
    assert_eq!(queued, [(60_002, 10), (60_003, 20), (60_001, 30)]);
}

#[test]
fn a_table_too_small_is_named_with_its_number() {
    if !require::kernel_tests() {
        return;
    }
    let old = Layout::load("large", &require::object_path(), 16_384);
    let new = Layout::load("small", &require::object_path(), 1_024);
    fill(&old);
    let refused = Migration::begin(old.directory.clone(), new.directory.clone());
    match refused.expect_err("too small") {
        MigrateError::TooSmall {
            table,
            capacity,
            needed,
        } => assert_eq!((table, capacity, needed), (names::FLOWS_V4, 1_024, 4_003)),
        error => panic!("{error}"),
    }
    let gate = GateWord::open(&old.directory).expect("a gate").load();
    assert_eq!(gate, Gate::OPEN, "the old one serves on");
}

/// Run it with `--release -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement: how long no flow can begin while half a million halves are carried over"]
fn how_long_a_freeze_lasts() {
    const HALVES: u32 = 490_000;
    if !require::kernel_tests() {
        return;
    }
    let old = Layout::load("from", &require::object_path(), 524_288);
    let new = Layout::load("to", &require::object_path(), 600_000);
    let flow = |number: u32| Flow4 {
        source: Ipv4Addr::from(0x0a00_0000 + number).into(),
        ..flow4(443, protocol::TCP)
    };
    let flows: Vec<_> = (1..=HALVES).map(flow).collect();
    let one = |identity| half::<Entry4>(&flow(identity), identity, state::ESTABLISHED, 5);
    let halves: Vec<_> = (1..=HALVES).map(one).collect();
    let table = old.map(names::FLOWS_V4);
    table.update_batch(&flows, &halves).expect("room");
    let begun = now();
    let migration = Migration::begin(old.directory.clone(), new.directory.clone());
    let migration = migration.expect("a copy");
    let first = begun.elapsed();
    let begun = now();
    migration.take_over().expect("the second copy");
    println!(
        "{HALVES} halves: first copy {first:?}, the last, frozen, {:?}",
        begun.elapsed()
    );
}
