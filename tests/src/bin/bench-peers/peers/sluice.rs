//! The load balancer of this workspace.

use std::{net::IpAddr, path::PathBuf, process::Command, time::Instant};

use anyhow::{Context as _, Result, ensure};
use lb_common::names;
use lb_tests::{control::charged, netns::Process};
use lb_userspace::{kernel::Map, pins::PinDirectory};

use super::{Balancer, Programs};
use crate::{
    api::{Api, NODE},
    services::{Change, Services},
    world::{DEVICES, SNAT, World},
};

/// Its name.
pub(crate) const NAME: &str = "Sluice";

/// The real agent, with the defaults of everything but places and addresses.
pub(crate) struct Sluice<'a> {
    programs: Programs<'a>,
    api: &'a Api,
    directory: PathBuf,
    pins: PathBuf,
}

impl<'a> Sluice<'a> {
    /// One whose files are in a directory of its own.
    pub(crate) fn new(programs: Programs<'a>, api: &'a Api, directory: PathBuf) -> Self {
        let name = directory.file_name().unwrap_or_default();
        let pins = PathBuf::from("/sys/fs/bpf").join(name);
        Self {
            programs,
            api,
            directory,
            pins,
        }
    }
}

impl Balancer for Sluice<'_> {
    fn name(&self) -> &'static str {
        NAME
    }

    fn source(&self) -> IpAddr {
        SNAT
    }

    fn prepare(&self, world: &World, _: &Services) -> Result<Option<Command>> {
        let mut command = world.balancer.command(self.programs.agent);
        command
            .args(["run", "--node-name", NODE, "--kubeconfig"])
            .arg(self.programs.kubeconfig)
            .arg("--pin-root")
            .arg(&self.pins)
            .arg("--lock-file")
            .arg(self.directory.join("agent.lock"))
            .args(["--snat-address", &SNAT.to_string()])
            .args(DEVICES.iter().flat_map(|device| ["--interface", device]))
            .env("NO_COLOR", "1");
        Ok(Some(command))
    }

    fn begin(&self, _: &Process, change: Change, _: &Services) -> Result<Instant> {
        Ok(self.api.begin(change))
    }

    fn kernel_memory(&self) -> Result<Option<u64>> {
        let directories = PinDirectory::find(&self.pins)?;
        let directory = directories.first().context("nothing is pinned")?;
        let mut all = 0;
        for (name, _) in names::MAPS {
            let map =
                Map::open_pinned(&directory.map(name)).with_context(|| format!("open {name}"))?;
            all += charged(&map)?;
        }
        ensure!(all > 0, "the maps take no memory");
        Ok(Some(all))
    }
}

impl Drop for Sluice<'_> {
    fn drop(&mut self) {
        // Unlinking the pinned links detaches the programs.
        if self.pins.exists()
            && let Err(error) = std::fs::remove_dir_all(&self.pins)
        {
            eprintln!("peers: {}: {error}", self.pins.display());
        }
    }
}
