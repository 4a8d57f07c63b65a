//! The agent's tables, as anybody who may can see them.

use std::{
    collections::HashMap,
    mem::offset_of,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use lb_common::{
    names,
    service::{Service, ServiceName},
};
use lb_userspace::{
    kernel::{Map, Mapping},
    pins::PinDirectory,
};

use super::{PATIENCE, agent::PIN_ROOT, api::port_name};
use crate::netns::now;

/// The service ports.
pub(super) struct Tables {
    services: Mapping,
    ids: HashMap<String, u32>,
}

/// A service port's epoch as it was.
#[derive(Clone, Copy)]
pub(super) struct Watched {
    offset: usize,
    epoch: u32,
}

impl Tables {
    pub(super) fn open() -> Result<Self> {
        let directories = PinDirectory::find(Path::new(PIN_ROOT))?;
        let directory = directories.first().context("nothing is pinned")?;
        let open = |name: &str| {
            Map::open_pinned(&directory.map(name)).with_context(|| format!("open {name}"))
        };
        let names = open(names::SERVICE_NAMES)?;
        let services = open(names::SERVICES)?;
        let mut ids = HashMap::new();
        for id in 1..services.info().max_entries {
            if let Some(name) = names.lookup::<u32, ServiceName>(&id)? {
                let bytes = name.bytes.as_flattened();
                let bytes = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
                ids.insert(String::from_utf8_lossy(bytes).into_owned(), id);
            }
        }
        Ok(Self {
            services: Mapping::read_only(&services).context("map SERVICES into memory")?,
            ids,
        })
    }

    /// A Service's only port, as it is now.
    pub(super) fn service(&self, n: u32) -> Result<Watched> {
        let name = port_name(n);
        let id = self.ids.get(&name);
        let id = id.with_context(|| format!("{name} is not in the tables"))?;
        let offset = self.services.offset(*id) + offset_of!(Service, epoch);
        Ok(Watched {
            offset,
            epoch: self.epoch(offset)?,
        })
    }

    /// When its members changed.
    pub(super) fn wait_for_change(&self, watched: Watched) -> Result<Instant> {
        let start = now();
        loop {
            if self.epoch(watched.offset)? != watched.epoch {
                return Ok(now());
            }
            if start.elapsed() > PATIENCE {
                bail!("a change did not arrive");
            }
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    fn epoch(&self, offset: usize) -> Result<u32> {
        self.services.load_u32(offset).context("read an epoch")
    }
}
