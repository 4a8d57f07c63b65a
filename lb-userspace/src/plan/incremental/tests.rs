use std::{net::IpAddr, sync::Arc};

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
    plan::{Planner, Quarantine, plan},
    snapshot::{ObjectName, Snapshot},
    tables::TableSet,
};

mod cases;

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

/// Tables of which some are nearly full.
fn any_sizes() -> impl Strategy<Value = [u32; 6]> {
    let any_size = || prop_oneof![5 => Just(65_536_u32), 1 => 2_u32..16];
    std::array::from_fn(|_| any_size())
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
        node in any_node(), sizes in any_sizes(), start in any_snapshot(),
        meet in any::<bool>(), steps in proptest::collection::vec(any_step(), 1..10)
    ) {
        let [services, backends, members, frontends, addresses, gateway_endpoints] = sizes;
        let sizes = TableSizes {
            frontends, gateway_endpoints, services, backends, members, addresses,
            ..node.sizes.clone()
        };
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
