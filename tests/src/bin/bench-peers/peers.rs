//! The peers: what each is started with, how it learns of a change, and what it takes.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use lb_tests::netns::Process;
use nix::sys::signal::Signal;

use crate::{
    api::Api,
    services::{self, Change, Services},
    world::{self, Router, World},
};

pub(crate) mod direct;
pub(crate) mod haproxy;
pub(crate) mod kube_proxy;
pub(crate) mod nginx;
pub(crate) mod sluice;

/// What one peer does otherwise than the others.
pub(crate) trait Balancer {
    /// Its name, in figures too.
    fn name(&self) -> &'static str;

    /// Where a client asks for a Service.
    fn frontend(&self, number: u32) -> SocketAddr {
        services::frontend(number)
    }

    /// Where clients ask for all of so many Services.
    fn frontends(&self, services: u32) -> Vec<SocketAddr> {
        (0..services).map(|number| self.frontend(number)).collect()
    }

    /// The client as backends see it, which proves who forwarded.
    fn source(&self) -> IpAddr {
        world::INSIDE
    }

    /// Where a client sends datagrams, if that is served.
    fn datagrams(&self) -> Option<SocketAddr> {
        Some(services::datagrams())
    }

    /// What forwards.
    fn router(&self) -> Router {
        Router::Kernel
    }

    /// Writes what it needs; the program that serves the Services, in the foreground, if there is one.
    fn prepare(&self, world: &World, services: &Services) -> Result<Option<Command>>;

    /// Begins to tell of a change that led to `services`; when it began.
    fn begin(&self, process: &Process, change: Change, services: &Services) -> Result<Instant>;

    /// How long it is left alone between two changes.
    fn rest(&self) -> Duration {
        Duration::from_millis(300)
    }

    /// Bytes of kernel memory of its tables, where the kernel tells them.
    fn kernel_memory(&self) -> Result<Option<u64>> {
        Ok(None)
    }
}

/// A peer in a world of its own.
pub(crate) struct Peer<'a> {
    pub(crate) balancer: Box<dyn Balancer + 'a>,
    pub(crate) world: World,
    process: Option<Process>,
}

/// Programs the peers are made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Programs<'a> {
    /// What becomes kube-proxy.
    pub(crate) components: &'a Path,
    /// `lb-agent`.
    pub(crate) agent: &'a Path,
    /// How to reach the API server.
    pub(crate) kubeconfig: &'a Path,
    /// Where files are written.
    pub(crate) directory: &'a Path,
}

/// All peers, direct routing first; not started.
pub(crate) fn all<'a>(
    programs: Programs<'a>,
    api: &'a Api,
    services: u32,
) -> Result<Vec<Peer<'a>>> {
    let directory = |name: &str| -> Result<_> {
        let directory = programs.directory.join(format!("{name}-{services}"));
        std::fs::create_dir_all(&directory)
            .with_context(|| format!("make {}", directory.display()))?;
        Ok(directory)
    };
    let kube_proxy = |mode| kube_proxy::KubeProxy {
        mode,
        programs,
        api,
    };
    let balancers: Vec<Box<dyn Balancer + 'a>> = vec![
        Box::new(direct::Direct),
        Box::new(sluice::Sluice::new(programs, api, directory("sluice")?)),
        Box::new(kube_proxy(kube_proxy::Mode::Nftables)),
        Box::new(kube_proxy(kube_proxy::Mode::Iptables)),
        Box::new(haproxy::Haproxy::new(&directory("haproxy")?)),
        Box::new(nginx::Nginx::new(directory("nginx")?)),
    ];
    balancers
        .into_iter()
        .enumerate()
        .map(|(number, balancer)| {
            Ok(Peer {
                balancer,
                world: World::new(&format!("p{number}"))?,
                process: None,
            })
        })
        .collect()
}

impl Peer<'_> {
    /// Its name.
    pub(crate) fn name(&self) -> &'static str {
        self.balancer.name()
    }

    /// Whether it serves Services at all; direct routing does not.
    pub(crate) fn serves(&self) -> bool {
        self.name() != direct::NAME
    }

    /// Starts its program, if it has one.
    pub(crate) fn start(&mut self, services: &Services) -> Result<()> {
        let command = self.balancer.prepare(&self.world, services)?;
        self.process = command.map(|mut command| Process::spawn(&mut command));
        Ok(())
    }

    /// Fails with what the program printed if it ended.
    pub(crate) fn check(&mut self) -> Result<()> {
        if let Some(process) = &mut self.process
            && let Some(status) = process.ended()
        {
            let output = process.output();
            anyhow::bail!("{} ended ({status}):\n{output}", self.balancer.name());
        }
        Ok(())
    }

    /// What its program printed.
    pub(crate) fn output(&self) -> String {
        self.process
            .as_ref()
            .map(Process::output)
            .unwrap_or_default()
    }

    /// Begins to tell it of a change that led to `services`; when it began.
    pub(crate) fn begin(&self, change: Change, services: &Services) -> Result<Instant> {
        let process = self.process.as_ref().context("a peer without a program")?;
        self.balancer.begin(process, change, services)
    }

    /// Stops its programs where they are: another is measured. What is in the kernel goes on.
    pub(crate) fn freeze(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    /// Lets them go on.
    pub(crate) fn thaw(&self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        for process in self.family()? {
            let id = nix::unistd::Pid::from_raw(process);
            match nix::sys::signal::kill(id, signal) {
                // It ended meanwhile.
                Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
                Err(error) => return Err(error).with_context(|| format!("{signal} to {process}")),
            }
        }
        Ok(())
    }

    /// Bytes of resident memory of all its processes; pages they share count for each.
    pub(crate) fn memory(&self) -> Result<Option<u64>> {
        if self.process.is_none() {
            return Ok(None);
        }
        let mut all = 0;
        for process in self.family()? {
            all += resident(process)?;
        }
        ensure!(all > 0, "{} has no memory", self.name());
        Ok(Some(all))
    }

    /// Its process and all below it.
    fn family(&self) -> Result<Vec<i32>> {
        let Some(process) = &self.process else {
            return Ok(Vec::new());
        };
        let first = i32::try_from(process.id()).context("a process id")?;
        let parents = parents()?;
        let mut family = vec![first];
        let mut at = 0;
        while let Some(&parent) = family.get(at) {
            let children = parents.iter().filter(|(_, of)| *of == parent);
            family.extend(children.map(|(child, _)| *child));
            at += 1;
        }
        Ok(family)
    }
}

/// Every process and its parent.
fn parents() -> Result<Vec<(i32, i32)>> {
    let entries = std::fs::read_dir("/proc").context("read /proc")?;
    let all = entries.filter_map(|entry| {
        let entry = entry.ok()?;
        let id = entry.file_name().to_str()?.parse().ok()?;
        // proc_pid_stat(5): the name, which may hold anything, is in parentheses.
        let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
        let (_, rest) = stat.rsplit_once(')')?;
        Some((id, rest.split_whitespace().nth(1)?.parse().ok()?))
    });
    Ok(all.collect())
}

fn resident(process: i32) -> Result<u64> {
    let path = format!("/proc/{process}/status");
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    // One that just ended has none.
    let kilobytes = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
    Ok(kilobytes.unwrap_or_default() * 1_024)
}

/// Replaces a file of configuration.
fn write(file: &Path, text: &str) -> Result<()> {
    std::fs::write(file, text).with_context(|| format!("write {}", file.display()))
}

/// Makes all addresses of a network the balancer's own, and its ports many: a proxy listens and connects.
fn own_addresses(world: &World, network: &str) {
    let balancer = &world.balancer;
    balancer.ip(&format!("route replace local {network} dev lo"));
    balancer.sysctl("net/ipv4/ip_local_port_range", "1024 65535");
    balancer.sysctl("net/ipv4/tcp_tw_reuse", "1");
}
