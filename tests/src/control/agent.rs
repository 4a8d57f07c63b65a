//! What the agent does between its source and the maps.

use std::{collections::BTreeMap, net::IpAddr, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use aya::EbpfLoader;
use lb_common::{maglev::SLOTS_PER_ELEMENT, names};
use lb_userspace::{
    config::TableSizes,
    dataplane::{TableOp, bpf::BpfDataplane, model::write},
    diff::diff,
    kernel::Map,
    maglev,
    node::NodeConfig,
    plan::{Planner, Quarantine},
    snapshot::Snapshot,
    tables::TableSet,
};

use super::{clock, memory, objects::Cluster, scratch};

/// Planner, maps and what the agent knows of them.
pub(super) struct Agent {
    dataplane: BpfDataplane,
    maps: BTreeMap<&'static str, Map>,
    planner: Planner,
    tables: TableSet,
    quarantine: Quarantine,
    node: NodeConfig,
}

/// Times of one change.
#[derive(Clone, Copy, Debug)]
pub(super) struct Took {
    pub(super) plan: Duration,
    pub(super) apply: Duration,
    pub(super) operations: usize,
    /// Everything was planned.
    pub(super) whole: bool,
}

impl Agent {
    /// Makes maps with room for the cluster.
    pub(super) fn start(object: &Path, cluster: &Cluster) -> Result<Self> {
        let sizes = sizes(cluster);
        let root = format!("/sys/fs/bpf/sluice-control-{}", std::process::id());
        let root = Path::new(&root);
        let opened = scratch(root).and_then(|()| open(object, root, &sizes));
        // Descriptors hold the maps from here on; nothing is left behind, however this ends.
        let removed = std::fs::remove_dir_all(root);
        let (dataplane, maps) = opened?;
        removed.with_context(|| format!("remove {}", root.display()))?;
        let node = NodeConfig {
            name: "edge-1".to_owned(),
            addresses: [IpAddr::from([198, 51, 100, 1])].into(),
            external_ips: true,
            sizes,
            ..NodeConfig::default()
        };
        Ok(Self {
            dataplane,
            maps,
            planner: Planner::default(),
            tables: TableSet::default(),
            quarantine: Quarantine::default(),
            node,
        })
    }

    /// Carries a change out.
    pub(super) fn follow(&mut self, snapshot: &Snapshot) -> Result<Took> {
        let start = clock();
        self.quarantine
            .extents
            .clone_from(self.dataplane.unsettled());
        let patch = self
            .planner
            .patch(&self.tables, snapshot, &self.node, &self.quarantine);
        let (ops, rejected, next) = if let Some(patch) = patch {
            (patch.ops, patch.rejected.first().cloned(), None)
        } else {
            let plan = self
                .planner
                .plan(&self.tables, snapshot, &self.node, &self.quarantine);
            ensure!(plan.deferred.is_empty(), "there is too little room");
            let ops = diff(&self.tables, &plan.tables);
            (ops, plan.rejected.first().cloned(), Some(plan.tables))
        };
        let plan = start.elapsed();
        ensure!(rejected.is_none(), "{rejected:?}");
        let start = clock();
        self.dataplane
            .apply_all(&ops)
            .map_err(|(_, error)| error)
            .context("write the tables")?;
        let apply = start.elapsed();
        self.remember(&ops);
        let whole = next.is_some();
        if let Some(next) = next {
            self.tables = next;
        } else {
            for op in &ops {
                write(&mut self.tables, op);
            }
        }
        self.planner.written();
        Ok(Took {
            plan,
            apply,
            operations: ops.len(),
            whole,
        })
    }

    fn remember(&mut self, ops: &[TableOp]) {
        for op in ops {
            match op {
                TableOp::RemoveService(id) => drop(self.quarantine.services.insert(*id)),
                TableOp::RemoveBackend(id) => drop(self.quarantine.backends.insert(*id)),
                _ => {}
            }
        }
    }

    /// No flow names what was freed.
    pub(super) fn release(&mut self) {
        self.quarantine.services.clear();
        self.quarantine.backends.clear();
    }

    /// Reads the tables back, as an agent does aside, and makes sure that they are what was written. How
    /// long reading took, and comparing, for which changes wait.
    pub(super) fn read_back(&self) -> Result<[Duration; 2]> {
        let start = clock();
        let found = self.dataplane.reader().dump().context("read the tables")?;
        let read = start.elapsed();
        let start = clock();
        let same = found == self.tables;
        let compared = start.elapsed();
        ensure!(same, "the kernel's tables are not what was written");
        Ok([read, compared])
    }

    /// What the kernel's tables take.
    pub(super) fn kernel(&self) -> Result<memory::Kernel> {
        memory::Kernel::of(&self.maps, &self.tables)
    }
}

/// Makes the maps, pinned below `directory`, and opens them as the agent does.
fn open(
    object: &Path,
    directory: &Path,
    sizes: &TableSizes,
) -> Result<(BpfDataplane, BTreeMap<&'static str, Map>)> {
    let entries = sizes.entries();
    let mut loader = EbpfLoader::new();
    loader.btf(None);
    for &(name, _) in names::MAPS {
        loader.map_pin_path(name, directory.join(name));
        if let Some(entries) = entries.get(name) {
            loader.map_max_entries(name, *entries);
        }
    }
    let _ebpf = loader
        .load_file(object)
        .with_context(|| format!("load {}", object.display()))?;
    let mut maps = BTreeMap::new();
    for &(name, _) in names::MAPS {
        let map =
            Map::open_pinned(&directory.join(name)).with_context(|| format!("open {name}"))?;
        maps.insert(name, map);
    }
    Ok((BpfDataplane::open(directory)?, maps))
}

/// The default sizes, and larger ones where the cluster needs them.
fn sizes(cluster: &Cluster) -> TableSizes {
    let least = |default: u32, needed: u32| default.max((needed + needed / 4).next_power_of_two());
    let backends = usize::try_from(cluster.endpoints).unwrap_or(usize::MAX);
    let elements = maglev::length_for(backends).div_ceil(SLOTS_PER_ELEMENT);
    let all = cluster.services * cluster.endpoints;
    let sizes = TableSizes::default();
    // Flows are no part of this.
    TableSizes {
        frontends: least(sizes.frontends, 2 * cluster.services),
        services: least(sizes.services, cluster.services),
        backends: least(sizes.backends, all),
        members: least(sizes.members, all),
        addresses: least(sizes.addresses, 2 * cluster.services),
        slots: least(sizes.slots, cluster.services * elements),
        flows_v4: 65_536,
        flows_v6: 65_536,
        ..sizes
    }
}
