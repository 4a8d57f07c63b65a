use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use proptest::prelude::*;

use crate::{
    config::TableSizes,
    dataplane::model::write,
    diff::{
        diff,
        tests::{any_node, any_snapshot},
    },
    maglev,
    node::NodeConfig,
    plan::{
        Planner, Quarantine,
        fixture::{node, service, slice, snapshot},
        plan,
    },
    snapshot::{ObjectName, ServiceObject, SliceObject, Snapshot, TrafficPolicy},
    tables::TableSet,
};

/// An agent without a kernel: what it plans, it has.
#[derive(Default)]
struct Agent {
    tables: TableSet,
    planner: Planner,
    quarantine: Quarantine,
    patched: usize,
}

impl Agent {
    /// Follows a change. The plan of everything must agree with whatever is planned.
    fn follow(&mut self, state: &Snapshot, node: &NodeConfig) -> Result<(), TestCaseError> {
        for _ in 0..8 {
            let (tables, quarantine) = (&self.tables, &self.quarantine);
            let whole = plan(tables, state, node, quarantine);
            if let Some(patch) = self.planner.patch(tables, state, node, quarantine) {
                self.patched += 1;
                prop_assert_eq!(&whole.deferred, &Vec::<String>::new());
                let mut led_to = tables.clone();
                for op in &patch.ops {
                    write(&mut led_to, op);
                }
                prop_assert_eq!(&led_to, &whole.tables);
                prop_assert_eq!(patch.ops, diff(tables, &whole.tables));
                prop_assert_eq!(&*patch.rejected, &whole.rejected);
                prop_assert_eq!(&*patch.health, &whole.health);
                prop_assert_eq!(patch.without_local, whole.without_local);
            } else {
                let planned = self.planner.plan(tables, state, node, quarantine);
                prop_assert_eq!(&planned, &whole);
            }
            self.planner.written();
            self.remember(&whole.tables);
            self.tables = whole.tables;
            if whole.deferred.is_empty() {
                break;
            }
        }
        Ok(())
    }

    /// Puts what is freed into quarantine.
    fn remember(&mut self, next: &TableSet) {
        for id in self.tables.services.keys() {
            if !next.services.contains_key(id) {
                self.quarantine.services.insert(*id);
            }
        }
        for (element, table) in &self.tables.extents {
            if !next.extents.contains_key(element) {
                let size = maglev::elements(u32::try_from(table.len()).expect("a length"));
                self.quarantine.extents.insert(*element, size);
            }
        }
        let written = |element: &u32| next.extents.contains_key(element);
        // Whoever writes where readers may be waits for all of them.
        if self.quarantine.extents.keys().any(written) {
            self.quarantine.extents.clear();
        }
        for (id, record) in &self.tables.backends {
            let taken_over = next.backends.get(id);
            if taken_over.is_none_or(|new| new.incarnation != record.incarnation) {
                self.quarantine.incarnations.insert(*id, record.incarnation);
            }
            if taken_over.is_none() {
                self.quarantine.backends.insert(*id);
            }
        }
    }

    fn release(&mut self) {
        self.quarantine.services.clear();
        self.quarantine.backends.clear();
        self.quarantine.extents.clear();
    }
}

/// A step from one state to the next.
#[derive(Clone, Debug)]
struct Step {
    /// Where changed objects are taken from.
    other: Snapshot,
    services: Vec<bool>,
    slices: Vec<bool>,
    /// The quarantine ends before it.
    release: bool,
    /// The node changes.
    node: bool,
}

fn any_step() -> impl Strategy<Value = Step> {
    let some = |part: u8| proptest::collection::vec((0..part).prop_map(|n| n == 0), 8);
    let parts = (
        any_snapshot(),
        some(8),
        some(4),
        any::<bool>(),
        (0..12).prop_map(|n| n == 0),
    );
    parts.prop_map(|(other, services, slices, release, node)| Step {
        other,
        services,
        slices,
        release,
        node,
    })
}

/// `to` with some objects as they are in `from`.
fn mix<T: Clone + PartialEq>(
    to: &mut imbl::OrdMap<ObjectName, Arc<T>>,
    from: &imbl::OrdMap<ObjectName, Arc<T>>,
    picks: &[bool],
) {
    let mut names: Vec<_> = to.keys().chain(from.keys()).cloned().collect();
    names.sort();
    names.dedup();
    for (name, _) in names.into_iter().zip(picks).filter(|(_, pick)| **pick) {
        match from.get(&name) {
            Some(object) => drop(to.insert(name, Arc::clone(object))),
            None => drop(to.remove(&name)),
        }
    }
}

/// Services whose frontends do not meet: each has addresses and node ports of its own.
fn apart(mut state: Snapshot) -> Snapshot {
    let objects: Vec<_> = state.services.values().cloned().collect();
    for object in objects {
        let number = object.name.name.as_bytes().last().map_or(0, |c| c - b'0');
        let mut object = (*object).clone();
        for ingress in &mut object.ingress_ips {
            ingress.address = match ingress.address {
                IpAddr::V4(v4) => {
                    let [.., last] = v4.octets();
                    IpAddr::from([203, 0, 113, number * 20 + last % 20])
                }
                IpAddr::V6(v6) => {
                    let mut segments = v6.segments();
                    segments[6] = u16::from(number);
                    IpAddr::from(segments)
                }
            };
        }
        for port in &mut object.ports {
            if port.node_port != 0 {
                port.node_port += u16::from(number) * 10;
            }
        }
        state.services.insert(object.name.clone(), Arc::new(object));
    }
    state
}

fn sizes() -> impl Strategy<Value = (u32, u32)> {
    let any_size = || prop_oneof![Just(65_536_u32), Just(65_536), 2_u32..12];
    (any_size(), any_size())
}

fn follow_all(
    node: &NodeConfig,
    states: impl Iterator<Item = (Snapshot, bool, bool)>,
) -> Result<usize, TestCaseError> {
    let mut agent = Agent::default();
    let mut node = node.clone();
    for (state, release, moves) in states {
        if release {
            agent.release();
        }
        if moves {
            node.gateway = !node.gateway;
        }
        agent.follow(&state, &node)?;
    }
    Ok(agent.patched)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn a_patch_is_what_the_whole_plan_would_be(
        node in any_node(), (backends, services) in sizes(), start in any_snapshot(),
        meet in any::<bool>(), steps in proptest::collection::vec(any_step(), 1..10)
    ) {
        let sizes = TableSizes { services, backends, ..node.sizes.clone() };
        let node = NodeConfig { sizes, ..node };
        let mut state = start;
        let states = steps.into_iter().map(|step| {
            mix(&mut state.services, &step.other.services, &step.services);
            mix(&mut state.slices, &step.other.slices, &step.slices);
            let seen = if meet { state.clone() } else { apart(state.clone()) };
            (seen, step.release, step.node)
        });
        follow_all(&node, states)?;
    }
}

fn web(name: &str, vip: &str) -> ServiceObject {
    service(name, &[vip], &["a:80", "b:81"])
}

fn endpoints(name: &str, endpoints: &[&str]) -> SliceObject {
    slice(name, &["a:80", "b:8081"], endpoints)
}

/// Three Services, two of which have the same endpoints.
fn three() -> Snapshot {
    snapshot(
        [
            web("s1", "192.0.2.1"),
            web("s2", "192.0.2.2"),
            web("s3", "192.0.2.3"),
        ],
        [
            endpoints("s1_1", &["10.1.0.1", "10.1.0.2 on=edge-1"]),
            endpoints("s2_1", &["10.1.0.1", "10.1.0.2 on=edge-1"]),
            endpoints("s3_1", &["10.1.0.3"]),
        ],
    )
}

#[test]
fn which_changes_are_planned_apart() {
    let with_slice = |name: &str, list: &[&str]| {
        let mut state = three();
        let slice = endpoints(name, list);
        state.slices.insert(slice.name.clone(), Arc::new(slice));
        state
    };
    let with_service = |object: ServiceObject| {
        let mut state = three();
        state.services.insert(object.name.clone(), Arc::new(object));
        state
    };
    let without = |name: &str| {
        let mut state = three();
        state.services.remove(&ObjectName::new("default", name));
        state
    };
    let ranges = |mut object: ServiceObject| {
        object.restricts_sources = true;
        object.source_ranges = vec!["10.0.0.0/8".parse().expect("a network")];
        object
    };
    let cases: [(&str, Snapshot, bool); 14] = [
        ("nothing", three(), true),
        (
            "an endpoint more",
            with_slice("s3_1", &["10.1.0.3", "10.1.0.4"]),
            true,
        ),
        (
            "an endpoint another Service has",
            with_slice("s3_1", &["10.1.0.1"]),
            true,
        ),
        ("no endpoint any more", with_slice("s1_1", &[]), true),
        ("a slice more", with_slice("s1_2", &["10.1.0.7"]), true),
        (
            "a slice of no Service",
            with_slice("s9_1", &["10.1.0.7"]),
            true,
        ),
        ("a Service more", with_service(web("s4", "192.0.2.4")), true),
        ("a Service less", without("s1"), true),
        (
            "another address",
            with_service(web("s1", "192.0.2.9")),
            true,
        ),
        (
            "another policy",
            with_service(ServiceObject {
                external_policy: TrafficPolicy::Local,
                ..web("s1", "192.0.2.1")
            }),
            true,
        ),
        (
            "another's address, other ports",
            {
                let other = service("s4", &["192.0.2.1"], &["c:82"]);
                with_service(other)
            },
            true,
        ),
        (
            "a frontend another has",
            with_service(web("s4", "192.0.2.1")),
            false,
        ),
        (
            "source ranges",
            with_service(ranges(web("s1", "192.0.2.1"))),
            false,
        ),
        (
            "the cluster's networks",
            {
                let networks = ["10.96.0.0/12".parse().expect("a network")].into();
                Snapshot {
                    service_networks: networks,
                    ..three()
                }
            },
            false,
        ),
    ];
    for (name, state, expected) in cases {
        let mut agent = Agent::default();
        agent.follow(&three(), &node()).expect("a plan");
        assert_eq!(agent.patched, 0);
        agent.follow(&state, &node()).expect(name);
        assert_eq!(agent.patched == 1, expected, "{name}");
        agent.follow(&three(), &node()).expect(name);
        assert_eq!(agent.patched == 2, expected, "{name}, and back");
    }
}

type Prepare = fn(&mut Planner);

#[test]
fn a_patch_is_only_made_from_tables_that_were_written() {
    let changed = {
        let mut state = three();
        let slice = endpoints("s3_1", &["10.1.0.9"]);
        state.slices.insert(slice.name.clone(), Arc::new(slice));
        state
    };
    let quarantine = Quarantine::default();
    let empty = TableSet::default();
    let cases: [(&str, Prepare, bool); 5] = [
        ("written", Planner::written, true),
        ("not written", |_| {}, false),
        (
            "forgotten",
            |planner| {
                planner.written();
                planner.forget();
            },
            false,
        ),
        (
            "epochs to be raised",
            |planner| {
                planner.written();
                planner.raise_epochs();
            },
            false,
        ),
        (
            "planned twice",
            |planner| {
                planner.written();
                let tables = plan(
                    &TableSet::default(),
                    &three(),
                    &node(),
                    &Quarantine::default(),
                )
                .tables;
                let patch = planner.patch(&tables, &three(), &node(), &Quarantine::default());
                assert!(patch.is_some());
            },
            false,
        ),
    ];
    for (name, prepare, expected) in cases {
        let mut planner = Planner::default();
        let tables = planner.plan(&empty, &three(), &node(), &quarantine).tables;
        prepare(&mut planner);
        let patch = planner.patch(&tables, &changed, &node(), &quarantine);
        assert_eq!(patch.is_some(), expected, "{name}");
    }
}

/// One endpoint changes in one of many Services.
#[test]
fn a_change_of_many_is_small() {
    let count = 200;
    let vip = |i: usize| format!("192.0.2.{i}");
    let services: Vec<_> = (0..count).map(|i| web(&format!("s{i}"), &vip(i))).collect();
    let slices = (0..count).map(|i| {
        let list: Vec<_> = (1..=5).map(|n| format!("10.1.{i}.{n}")).collect();
        let list: Vec<_> = list.iter().map(String::as_str).collect();
        endpoints(&format!("s{i}_1"), &list)
    });
    let mut state = snapshot(services, slices);
    let mut agent = Agent::default();
    agent.follow(&state, &node()).expect("a plan");
    let changed = endpoints("s100_1", &["10.1.100.1", "10.1.100.2"]);
    state.slices.insert(changed.name.clone(), Arc::new(changed));
    let patch = agent
        .planner
        .patch(&agent.tables, &state, &node(), &agent.quarantine);
    let ops = patch.expect("a patch").ops;
    let kind = |op| format!("{op:?}").split('(').next().map(str::to_owned);
    let mut kinds = BTreeMap::<_, usize>::new();
    for kind in ops.iter().filter_map(kind) {
        *kinds.entry(kind).or_default() += 1;
    }
    // Two service ports lose three backends each, and are published before and after.
    insta::assert_compact_debug_snapshot!(kinds, @r#"{"FreeExtent": 2, "RemoveBackend": 6, "RemoveMember": 6, "SetService": 4, "WriteExtent": 2}"#);
}
