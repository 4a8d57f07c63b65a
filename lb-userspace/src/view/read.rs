//! The one effect of this module: reading pinned maps. It needs no agent.

use std::{collections::BTreeMap, fs::File, io, os::fd::AsFd as _, path::Path};

use jiff::Timestamp;
use lb_common::{
    conntrack::{Entry4, Entry6},
    control::Control,
    device::{Device, NextHop, NextHopKey, SnatAddress},
    flow::{AddressFilter, Flow4, Flow6},
    names,
    traffic::{ReplyBudget, Tally, Traffic},
    wire::Wire,
};
use nix::fcntl::{Flock, FlockArg};

use crate::{
    dataplane::{Dataplane as _, DataplaneError, bpf::BpfDataplane},
    expire,
    kernel::{self, Link, Map, MapInfo},
    pins::PinDirectory,
    preflight::jiffies_per_second,
    tables::TableSet,
    view::{
        catalog::View,
        contents::{Clock, Contents, tick_ms},
        flows::{Half, Table},
        status::{Attachment, Program, attachment},
    },
};

/// Why the data path could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// A pin could not be opened or read.
    #[error("read {what}")]
    Pin {
        /// The map, program or link.
        what: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The tables of the plan could not be read.
    #[error(transparent)]
    Tables(#[from] DataplaneError),
}

/// Reads the pins of one layout.
#[derive(Clone, Debug)]
pub struct Reader {
    pins: PinDirectory,
}

impl Reader {
    /// A reader of the pins in a layout's directory.
    pub const fn new(pins: PinDirectory) -> Self {
        Self { pins }
    }

    /// Reads what the views need, and the names their rows resolve ids with.
    ///
    /// # Errors
    ///
    /// If a map cannot be read.
    pub fn contents(&self, views: &[View]) -> Result<Contents, ReadError> {
        let mut contents = Contents {
            interfaces: interfaces(),
            clock: self.clock(),
            unix_seconds: u64::try_from(Timestamp::now().as_second()).unwrap_or_default(),
            ..Contents::default()
        };
        if views.iter().any(|view| needs_tables(*view)) {
            contents.tables = self.tables()?;
        }
        for view in views {
            self.fill(*view, &mut contents)?;
        }
        Ok(contents)
    }

    /// The tables a plan decides.
    ///
    /// # Errors
    ///
    /// If they cannot be read.
    pub fn tables(&self) -> Result<TableSet, ReadError> {
        Ok(BpfDataplane::open_pinned(&self.pins)?.dump()?)
    }

    /// The flows in one of the tables, each direction by itself.
    ///
    /// # Errors
    ///
    /// If a map cannot be read.
    pub fn halves(&self, table: Table) -> Result<Vec<Half>, ReadError> {
        let (v4, v6) = match table {
            Table::Established => (names::FLOWS_V4, names::FLOWS_V6),
            Table::Embryonic => (names::EMBRYONIC_V4, names::EMBRYONIC_V6),
        };
        let mut halves = Vec::new();
        self.map(v4, |map| {
            map.for_each_batch::<Flow4, Entry4>(|keys, values| {
                let pairs = keys.iter().zip(values);
                halves.extend(pairs.map(|(key, value)| Half::v4(table, *key, *value)));
            })
        })?;
        self.map(v6, |map| {
            map.for_each_batch::<Flow6, Entry6>(|keys, values| {
                let pairs = keys.iter().zip(values);
                halves.extend(pairs.map(|(key, value)| Half::v6(table, *key, *value)));
            })
        })?;
        Ok(halves)
    }

    /// The counters, summed over CPUs.
    ///
    /// # Errors
    ///
    /// If the map cannot be read.
    pub fn counters(&self) -> Result<Vec<Tally>, ReadError> {
        let mut sums = BTreeMap::new();
        self.map(names::COUNTERS, |map| {
            map.for_each_per_cpu::<Tally>(|index, values| {
                sums.insert(
                    index,
                    values.iter().copied().fold(Tally::default(), add_tally),
                );
            })
        })?;
        Ok(sums.into_values().collect())
    }

    /// What the kernel says each pinned map is.
    ///
    /// # Errors
    ///
    /// If a pin is there and cannot be opened. Missing pins are left out.
    pub fn infos(&self) -> Result<BTreeMap<&'static str, MapInfo>, ReadError> {
        let mut infos = BTreeMap::new();
        for &(name, _) in names::MAPS {
            match Map::open_pinned(&self.pins.map(name)) {
                Ok(map) => {
                    infos.insert(name, map.info().clone());
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => {
                    return Err(ReadError::Pin {
                        what: name.into(),
                        source,
                    });
                }
            }
        }
        Ok(infos)
    }

    /// The programs pinned for the agent and for us.
    pub fn programs(&self) -> Vec<Program> {
        let open = |name: &str| {
            let fd = kernel::open_pinned(&self.pins.program(name)).ok()?;
            let id = kernel::program_id(fd.as_fd()).ok()?;
            Some(Program {
                name: name.into(),
                id,
            })
        };
        [names::LB_CLOCK, names::LB_EXPIRE]
            .into_iter()
            .filter_map(open)
            .collect()
    }

    /// The pinned links.
    pub fn attachments(&self) -> Vec<Attachment> {
        let interfaces = interfaces();
        let open = |name: String| {
            let info = Link::from(kernel::open_pinned(&self.pins.link(&name)).ok()?)
                .info()
                .ok()?;
            Some(attachment(&name, info, &interfaces))
        };
        let mut attachments: Vec<_> = self.pins.links().into_iter().filter_map(open).collect();
        attachments.sort();
        attachments
    }

    fn map<T>(&self, name: &str, read: impl FnOnce(&Map) -> io::Result<T>) -> Result<T, ReadError> {
        let map = Map::open_pinned(&self.pins.map(name));
        map.and_then(|map| read(&map))
            .map_err(|source| ReadError::Pin {
                what: format!("map {name}"),
                source,
            })
    }

    fn all<K: Wire, V: Wire>(&self, name: &str) -> Result<Vec<(K, V)>, ReadError> {
        self.map(name, Map::read_all)
    }

    /// The elements of an array that are not zero.
    fn elements<V: Wire + Default + PartialEq>(
        &self,
        name: &str,
    ) -> Result<BTreeMap<u32, V>, ReadError> {
        let all = self.all::<u32, V>(name)?;
        Ok(all
            .into_iter()
            .filter(|(_, value)| *value != V::default())
            .collect())
    }

    /// The traffic of each id, summed over CPUs, without zeros.
    fn traffic(&self, name: &str) -> Result<BTreeMap<u32, Traffic>, ReadError> {
        let mut sums = BTreeMap::new();
        self.map(name, |map| {
            map.for_each_per_cpu::<Traffic>(|id, values| {
                let sum = values.iter().copied().fold(Traffic::default(), add_traffic);
                if sum != Traffic::default() {
                    sums.insert(id, sum);
                }
            })
        })?;
        Ok(sums)
    }

    /// Runs the pinned program that tells the tick.
    pub fn clock(&self) -> Option<Clock> {
        let program = kernel::open_pinned(&self.pins.program(names::LB_CLOCK)).ok()?;
        Some(Clock {
            now: expire::tick(program.as_fd()).ok()?,
            tick_ms: tick_ms(jiffies_per_second().ok()?),
        })
    }

    /// Reads the maps of one view.
    fn fill(&self, view: View, contents: &mut Contents) -> Result<(), ReadError> {
        match view {
            View::Flows | View::Embryonic => {
                let table = if view == View::Flows {
                    Table::Established
                } else {
                    Table::Embryonic
                };
                contents.halves.append(&mut self.halves(table)?);
                contents.next_hops = self.elements::<NextHop>(names::NEXT_HOPS)?;
            }
            View::Closing => {
                contents.closing4 = self.map(names::CLOSING_V4, Map::peek)?;
                contents.closing6 = self.map(names::CLOSING_V6, Map::peek)?;
            }
            View::FlowUse => {
                let all = self.all::<u32, u64>(names::FLOW_USE)?;
                contents.flow_use = all.into_iter().map(|(_, used)| used).collect();
            }
            View::Affinity => contents.affinity = self.all(names::AFFINITY)?,
            View::SourceRanges => contents.source_ranges = self.all(names::SOURCE_RANGES)?,
            View::SourceClass => contents.source_class = self.all(names::SOURCE_CLASS)?,
            View::AddressFilter => {
                let filter = self.map(names::ADDRESS_FILTER, |map| {
                    map.lookup::<u32, AddressFilter>(&0)
                })?;
                contents.address_filter = filter.map(Vec::from).unwrap_or_default();
            }
            View::NextHops => contents.next_hops = self.elements(names::NEXT_HOPS)?,
            View::NextHopIndex => {
                contents.next_hop_index = self.all::<NextHopKey, u32>(names::NEXT_HOP_INDEX)?;
            }
            View::NextHopFree => {
                contents.next_hop_free = self.map(names::NEXT_HOP_FREE, Map::peek)?;
            }
            View::Devices => contents.devices = self.elements::<Device>(names::DEVICES)?,
            View::DeviceIndex => {
                contents.device_index = self.all(names::DEVICE_INDEX)?.into_iter().collect();
            }
            View::Snat => {
                contents.snat4 = self.elements::<SnatAddress>(names::SNAT_V4)?;
                contents.snat6 = self.elements::<SnatAddress>(names::SNAT_V6)?;
                contents.devices = self.elements::<Device>(names::DEVICES)?;
            }
            View::Fragments => contents.fragments = self.all(names::FRAGMENTS)?,
            View::Control => {
                let control = self.map(names::CONTROL, |map| map.lookup::<u32, Control>(&0))?;
                contents.control = control.unwrap_or_default();
            }
            View::Drains => contents.drains = self.all(names::DRAINS)?.into_iter().collect(),
            View::Counters => contents.counters = self.counters()?,
            View::ServiceTraffic => {
                contents.service_traffic = self.traffic(names::SERVICE_TRAFFIC)?;
            }
            View::BackendTraffic => {
                contents.backend_traffic = self.traffic(names::BACKEND_TRAFFIC)?;
            }
            View::ReplyBudget => {
                let budgets = self.map(names::REPLY_BUDGET, |map| {
                    map.lookup_per_cpu::<u32, ReplyBudget>(&0)
                })?;
                contents.reply_budget = budgets.unwrap_or_default();
            }
            View::Scratch => {
                let bytes = self.map(names::SCRATCH, |map| Ok(map.info().value_size))?;
                contents.scratch_bytes = Some(bytes);
            }
            View::Events => {
                let bytes = self.map(names::EVENTS, |map| Ok(map.info().max_entries))?;
                contents.event_bytes = Some(bytes);
            }
            // In the plan's tables.
            View::Frontends
            | View::GatewayEndpoints
            | View::Services
            | View::ServiceNames
            | View::Backends
            | View::Members
            | View::Slots
            | View::Addresses => {}
        }
        Ok(())
    }
}

/// True if a file is locked: the agent holds its lock as long as it lives.
///
/// # Errors
///
/// If the file is there and cannot be opened.
pub fn is_locked(file: &Path) -> io::Result<bool> {
    let file = match File::open(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        file => file?,
    };
    match Flock::lock(file, FlockArg::LockSharedNonblock) {
        Ok(_) => Ok(false),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(true),
        Err((_, error)) => Err(error.into()),
    }
}

/// Names of this network namespace's interfaces.
fn interfaces() -> BTreeMap<u32, String> {
    let Ok(interfaces) = nix::net::if_::if_nameindex() else {
        return BTreeMap::new();
    };
    let name = |i: &nix::net::if_::Interface| (i.index(), i.name().to_string_lossy().into_owned());
    interfaces.iter().map(name).collect()
}

/// True for views whose rows come from the plan's tables, or name its ids.
const fn needs_tables(view: View) -> bool {
    !matches!(
        view,
        View::Closing
            | View::FlowUse
            | View::SourceRanges
            | View::SourceClass
            | View::AddressFilter
            | View::NextHops
            | View::NextHopIndex
            | View::NextHopFree
            | View::Devices
            | View::DeviceIndex
            | View::Snat
            | View::Fragments
            | View::Control
            | View::Counters
            | View::ReplyBudget
            | View::Scratch
            | View::Events
    )
}

fn add_tally(a: Tally, b: Tally) -> Tally {
    Tally {
        packets: a.packets + b.packets,
        bytes: a.bytes + b.bytes,
    }
}

fn add_traffic(a: Traffic, b: Traffic) -> Traffic {
    Traffic {
        forward: add_tally(a.forward, b.forward),
        reply: add_tally(a.reply, b.reply),
        new_flows: a.new_flows + b.new_flows,
        established: a.established + b.established,
    }
}
