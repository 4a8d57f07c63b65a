//! nginx with its module `stream`.

use std::{net::SocketAddr, path::PathBuf, process::Command, time::Instant};

use anyhow::Result;
use lb_tests::netns::{Process, now};
use nix::sys::signal::Signal;

use super::Balancer;
use crate::{
    services::{self, Change, NETWORK, PORT, Services, TARGET_PORT},
    world::{Router, World},
};

/// Where Debian has the module.
const MODULE: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

/// nginx with two workers.
pub(crate) struct Nginx {
    directory: PathBuf,
}

impl Nginx {
    /// One whose files are in a directory of its own.
    pub(crate) fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    fn write(&self, services: &Services) -> Result<()> {
        super::write(
            &self.directory.join("nginx.conf"),
            &self.configuration(services),
        )
    }

    fn configuration(&self, services: &Services) -> String {
        let head = format!(
            "load_module {MODULE};
user root;
daemon off;
worker_processes 2;
worker_shutdown_timeout 2s;
worker_rlimit_nofile 20000;
pid {directory}/pid;
error_log stderr error;
# A listener takes one of these, too.
events {{ worker_connections {connections}; }}
stream {{
  access_log off;
",
            directory = self.directory.display(),
            connections = services.count() + 8_192,
        );
        let mut lines = vec![head];
        for (number, endpoints) in services.iter() {
            let (name, address) = (services::name(number), services::address(number));
            let servers = endpoints.iter().map(|it| (*it, TARGET_PORT).into());
            lines.push(server(&name, &format!("{address}:{PORT}"), servers));
        }
        let datagrams = format!("{} udp", services::datagrams());
        let backend = [services::datagram_backend()].into_iter();
        lines.push(server("datagrams", &datagrams, backend));
        lines.push("}\n".into());
        lines.concat()
    }
}

fn server(name: &str, listen: &str, servers: impl Iterator<Item = SocketAddr>) -> String {
    let servers: Vec<_> = servers.map(|it| format!(" server {it};")).collect();
    let servers = servers.concat();
    format!(
        "  upstream {name} {{{servers} }}
  server {{ listen {listen}; proxy_pass {name}; }}
"
    )
}

impl Balancer for Nginx {
    fn name(&self) -> &'static str {
        "nginx stream"
    }

    fn router(&self) -> Router {
        Router::Program
    }

    fn prepare(&self, world: &World, services: &Services) -> Result<Option<Command>> {
        super::own_addresses(world, NETWORK);
        self.write(services)?;
        let mut command = world.balancer.command("nginx");
        command
            .args(["-e", "stderr", "-p"])
            .arg(&self.directory)
            .arg("-c")
            .arg(self.directory.join("nginx.conf"));
        Ok(Some(command))
    }

    fn begin(&self, process: &Process, _: Change, services: &Services) -> Result<Instant> {
        let begun = now();
        self.write(services)?;
        process.signal(Signal::SIGHUP);
        Ok(begun)
    }
}
