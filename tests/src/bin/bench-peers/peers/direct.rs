//! No balancer: the client asks a backend, and the node between forwards.

use std::{
    net::{IpAddr, SocketAddr},
    process::Command,
    time::Instant,
};

use anyhow::{Result, bail};
use lb_tests::netns::Process;

use super::Balancer;
use crate::{
    services::{self, BACKENDS, Change, Services, TARGET_PORT},
    world::{CLIENT, World},
};

/// Its name.
pub(crate) const NAME: &str = "direct";

/// Routing alone.
pub(crate) struct Direct;

impl Balancer for Direct {
    fn name(&self) -> &'static str {
        NAME
    }

    fn frontend(&self, _: u32) -> SocketAddr {
        let [first, _] = BACKENDS;
        (first, TARGET_PORT).into()
    }

    fn frontends(&self, _: u32) -> Vec<SocketAddr> {
        BACKENDS.map(|it| (it, TARGET_PORT).into()).into()
    }

    fn datagrams(&self) -> Option<SocketAddr> {
        Some(services::datagram_backend())
    }

    fn source(&self) -> IpAddr {
        CLIENT
    }

    fn prepare(&self, _: &World, _: &Services) -> Result<Option<Command>> {
        Ok(None)
    }

    fn begin(&self, _: &Process, change: Change, _: &Services) -> Result<Instant> {
        bail!("direct routing knows no {change:?}")
    }
}
