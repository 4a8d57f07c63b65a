//! The real kube-proxy.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use anyhow::Result;
use lb_tests::netns::Process;

use super::{Balancer, Programs};
use crate::{
    api::{Api, NODE},
    services::{Change, Services},
    world::World,
};

/// What writes its rules.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Mode {
    Iptables,
    Nftables,
}

/// kube-proxy in one of its modes; all else is its default.
pub(crate) struct KubeProxy<'a> {
    pub(crate) mode: Mode,
    pub(crate) programs: Programs<'a>,
    pub(crate) api: &'a Api,
}

impl Balancer for KubeProxy<'_> {
    fn name(&self) -> &'static str {
        match self.mode {
            Mode::Iptables => "kube-proxy iptables",
            Mode::Nftables => "kube-proxy nftables",
        }
    }

    fn prepare(&self, world: &World, _: &Services) -> Result<Option<Command>> {
        let mode = match self.mode {
            Mode::Iptables => "iptables",
            Mode::Nftables => "nftables",
        };
        let mut command = world.balancer.command(self.programs.components);
        command
            .arg("kube-proxy")
            .arg("--kubeconfig")
            .arg(self.programs.kubeconfig)
            .arg(format!("--hostname-override={NODE}"))
            .arg(format!("--proxy-mode={mode}"))
            // These cannot be set in a namespace.
            .args(["--conntrack-max-per-core=0"])
            .args(["--conntrack-tcp-timeout-established=0"])
            .args(["--conntrack-tcp-timeout-close-wait=0"]);
        Ok(Some(command))
    }

    /// It writes rules once a second at most, and a change within that second waits for its end. What one change
    /// takes that comes alone is measured; a new Service, of two objects, waits nevertheless.
    fn rest(&self) -> Duration {
        Duration::from_secs(2)
    }

    fn begin(&self, _: &Process, change: Change, _: &Services) -> Result<Instant> {
        Ok(self.api.begin(change))
    }
}
