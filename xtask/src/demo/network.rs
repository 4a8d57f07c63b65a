//! The network of the demonstration: six namespaces, nothing outside of them.
//!
//! ```text
//!  client ──────── router ──┬── lb        one-armed: the load balancer has one interface
//!  198.51.100.2     │       ├── b1
//!            bridge "lan"   ├── b2
//!            10.77.0.1/24   └── b3
//! ```
//! The router sends the VIPs to the load balancer. Client and backends keep their offloads; on
//! the one port of the bridge that faces the load balancer the kernel segments and sums in
//! software, as a wire would have it, so that native XDP sees whole packets.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result};

use crate::command;

/// The backends' namespaces and names.
pub(super) const BACKENDS: [&str; 3] = ["b1", "b2", "b3"];

/// The load balancer's one interface.
pub(super) const INTERFACE: &str = "eth0";

/// Addresses of the load balancer which only it uses towards backends.
pub(super) const SNAT: [&str; 2] = ["10.77.0.3", "2001:db8:77::3"];

/// Addresses of a backend, IPv4 and IPv6.
pub(super) fn backend(number: usize) -> [String; 2] {
    [
        format!("10.77.0.{}", 10 + number),
        format!("2001:db8:77::{}", 10 + number),
    ]
}

/// Namespaces, pins and files of this run; all are removed when it is dropped or we die.
pub(super) struct Network {
    prefix: String,
    directory: PathBuf,
    janitor: Option<Child>,
}

impl Network {
    /// Makes the namespaces and connects them.
    ///
    /// # Errors
    /// A command fails; what was made until then is removed.
    pub(super) fn new() -> Result<Self> {
        let prefix = format!("sluice-demo-{}", std::process::id());
        let directory = std::env::temp_dir().join(&prefix);
        fs::create_dir_all(directory.join("manifests"))
            .with_context(|| format!("make {}", directory.display()))?;
        let mut network = Self {
            prefix,
            directory,
            janitor: None,
        };
        network.janitor = Some(network.janitor()?);
        network.connect()?;
        Ok(network)
    }

    /// The run's directory for files, made empty.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Where the agent pins its maps and links.
    pub(super) fn pins(&self) -> PathBuf {
        Path::new("/sys/fs/bpf").join(&self.prefix)
    }

    /// A command that runs inside a namespace.
    ///
    /// Not `ip netns exec`: that mounts a /sys of its own, which hides the BPF file system.
    pub(super) fn within(&self, name: &str, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/run/netns/{}", self.namespace(name)))
            .arg(program);
        command
    }

    fn namespace(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    fn namespaces() -> impl Iterator<Item = &'static str> {
        ["client", "router", "lb"].into_iter().chain(BACKENDS)
    }

    /// Starts the process that removes everything as soon as our end of its pipe is closed.
    ///
    /// The pipe closes however we end, and a process group of its own keeps Ctrl-C from it.
    fn janitor(&self) -> Result<Child> {
        let names: Vec<_> = Self::namespaces()
            .map(|name| self.namespace(name))
            .collect();
        let script = "cat > /dev/null
            for signal in TERM KILL; do
                for name in $NAMES; do
                    ip netns pids $name 2>/dev/null | xargs -r kill -$signal 2>/dev/null
                done
                for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
                    test -n \"$(for name in $NAMES; do ip netns pids $name 2>/dev/null; done)\" || break
                    sleep 0.1
                done
            done
            for name in $NAMES; do ip netns del $name 2>/dev/null; done
            rm -rf \"$PINS\" \"$FILES\"";
        Command::new("sh")
            .args(["-c", script])
            .env("NAMES", names.join(" "))
            .env("PINS", self.pins())
            .env("FILES", &self.directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .process_group(0)
            .spawn()
            .context("start the process that cleans up")
    }

    fn connect(&self) -> Result<()> {
        for name in Self::namespaces() {
            command::output(Command::new("ip").args(["netns", "add", &self.namespace(name)]))?;
            // Addresses are ours alone: waiting for duplicates would only take seconds.
            self.sysctl(name, "ipv6/conf/default/accept_dad", "0")?;
            self.ip(name, "link set lo up")?;
        }
        for name in ["router", "lb"] {
            self.sysctl(name, "ipv4/ip_forward", "1")?;
            self.sysctl(name, "ipv6/conf/all/forwarding", "1")?;
        }

        self.ip("router", "link add lan type bridge")?;
        self.ip("router", "link set lan up")?;
        self.wire("client")?;
        self.address("router", "client", &["198.51.100.1/24", "2001:db8:c::1/64"])?;
        self.address("router", "lan", &["10.77.0.1/24", "2001:db8:77::1/64"])?;
        self.address(
            "client",
            INTERFACE,
            &["198.51.100.2/24", "2001:db8:c::2/64"],
        )?;
        self.gateway("client", ["198.51.100.1", "2001:db8:c::1"])?;

        for name in ["lb"].into_iter().chain(BACKENDS) {
            self.wire(name)?;
            self.ip("router", &format!("link set {name} master lan"))?;
        }
        self.address("lb", INTERFACE, &["10.77.0.2/24", "2001:db8:77::2/64"])?;
        for address in SNAT {
            let bits = if address.contains(':') { 64 } else { 24 };
            self.address("lb", INTERFACE, &[&format!("{address}/{bits}")])?;
        }
        for (name, number) in BACKENDS.into_iter().zip(1..) {
            let [v4, v6] = backend(number);
            self.address(name, INTERFACE, &[&format!("{v4}/24"), &format!("{v6}/64")])?;
        }
        for name in ["lb"].into_iter().chain(BACKENDS) {
            self.gateway(name, ["10.77.0.1", "2001:db8:77::1"])?;
        }
        self.ip("router", "route add 192.0.2.0/24 via 10.77.0.2")?;
        self.ip("router", "route add 2001:db8:f::/64 via 2001:db8:77::2")?;

        let mut ethtool = self.within("router", Path::new("ethtool"));
        command::output(ethtool.args(["-K", "lb", "tx", "off", "gro", "on"]))?;
        Ok(())
    }

    /// Connects a namespace's interface to one in the router that has the namespace's name.
    fn wire(&self, name: &str) -> Result<()> {
        let other = self.namespace(name);
        self.ip(
            "router",
            &format!("link add {name} type veth peer name {INTERFACE} netns {other}"),
        )?;
        self.ip("router", &format!("link set {name} up"))?;
        self.ip(name, &format!("link set {INTERFACE} up"))
    }

    fn address(&self, name: &str, interface: &str, addresses: &[&str]) -> Result<()> {
        addresses
            .iter()
            .try_for_each(|it| self.ip(name, &format!("address add {it} dev {interface}")))
    }

    fn gateway(&self, name: &str, addresses: [&str; 2]) -> Result<()> {
        addresses
            .iter()
            .try_for_each(|it| self.ip(name, &format!("route add default via {it}")))
    }

    fn ip(&self, name: &str, arguments: &str) -> Result<()> {
        let mut ip = Command::new("ip");
        ip.args(["-n", &self.namespace(name)])
            .args(arguments.split(' '));
        command::output(&mut ip)?;
        Ok(())
    }

    fn sysctl(&self, name: &str, key: &str, value: &str) -> Result<()> {
        let mut shell = self.within(name, Path::new("sh"));
        let script = format!("echo {value} > /proc/sys/net/{key}");
        command::output(shell.args(["-c", &script]))?;
        Ok(())
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        if let Some(mut janitor) = self.janitor.take() {
            drop(janitor.stdin.take());
            if let Err(error) = janitor.wait() {
                eprintln!("demo: cleaning up: {error}");
            }
        }
    }
}
