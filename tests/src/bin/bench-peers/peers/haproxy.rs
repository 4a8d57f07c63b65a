//! HAProxy: one `listen` a Service, in mode tcp.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use anyhow::Result;
use lb_tests::netns::{Process, now};
use nix::sys::signal::Signal;

use super::Balancer;
use crate::{
    services::{self, Change, NETWORK, PORT, Services, TARGET_PORT},
    world::{Router, World},
};

/// What all Services have in common.
const GLOBAL: &str = "global
  maxconn 2000
  hard-stop-after 2s
defaults
  mode tcp
  balance roundrobin
  timeout connect 5s
  timeout client 60s
  timeout server 60s
";

/// HAProxy under its own master, which reloads.
pub(crate) struct Haproxy {
    file: PathBuf,
}

impl Haproxy {
    /// One whose file is in a directory of its own.
    pub(crate) fn new(directory: &Path) -> Self {
        Self {
            file: directory.join("haproxy.cfg"),
        }
    }

    fn write(&self, services: &Services) -> Result<()> {
        super::write(&self.file, &configuration(services))
    }
}

impl Balancer for Haproxy {
    fn name(&self) -> &'static str {
        "HAProxy"
    }

    /// It has no UDP.
    fn datagrams(&self) -> Option<SocketAddr> {
        None
    }

    fn router(&self) -> Router {
        Router::Program
    }

    fn prepare(&self, world: &World, services: &Services) -> Result<Option<Command>> {
        super::own_addresses(world, NETWORK);
        self.write(services)?;
        let mut command = world.balancer.command("haproxy");
        command.args(["-W", "-f"]).arg(&self.file);
        Ok(Some(command))
    }

    fn begin(&self, process: &Process, _: Change, services: &Services) -> Result<Instant> {
        let begun = now();
        self.write(services)?;
        process.signal(Signal::SIGUSR2);
        Ok(begun)
    }
}

fn configuration(services: &Services) -> String {
    let mut lines = vec![String::from(GLOBAL)];
    for (number, endpoints) in services.iter() {
        let (name, address) = (services::name(number), services::address(number));
        lines.push(format!("listen {name}\n  bind {address}:{PORT}\n"));
        let servers = endpoints.iter().enumerate();
        lines.extend(servers.map(|(at, it)| format!("  server b{at} {it}:{TARGET_PORT}\n")));
    }
    lines.concat()
}
