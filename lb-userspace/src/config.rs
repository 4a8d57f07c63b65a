//! The agent's configuration: a YAML file and command-line flags of the same names, checked.
//!
//! [`Config::load`] merges both (flags win) and either returns values that can be used as they are
//! or names every key that cannot.

use std::{
    fmt, fs, io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use ipnet::IpNet;
use serde::Deserialize;

pub use flags::ConfigFlags;
pub use tables::TableSizes;

use crate::node::NodePortAddresses;

mod check;
mod flags;
mod raw;
mod sources;
mod tables;

/// A checked configuration.
#[derive(Clone, Debug, Eq, PartialEq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "switches, each with a key of its own"
)]
pub struct Config {
    /// `manifests`: directory of Kubernetes manifests. It or [`Self::kubernetes`] is there.
    pub manifests: Option<PathBuf>,
    /// `kubernetes`: the cluster to follow.
    pub kubernetes: Option<Kubernetes>,
    /// `serviceProxyName`: value of the label `service.kubernetes.io/service-proxy-name` of the
    /// Services that are ours; without, those that have no such label.
    pub service_proxy_name: Option<String>,
    /// `nodeName`: the name EndpointSlices know this node by.
    pub node_name: String,
    /// `zone`: the node's zone, for topology hints.
    pub zone: Option<String>,
    /// `interfaces`: where clients and remote backends are. At least one.
    pub interfaces: Vec<String>,
    /// `podInterfaces`: where this node's own pods are.
    pub pod_interfaces: PodInterfaces,
    /// `mode`: how to attach.
    pub mode: Mode,
    /// `gateway`: the backends' replies are routed through this node.
    pub gateway: bool,
    /// `snat.addresses`: addresses of this node that no masquerade uses.
    pub snat_addresses: Vec<IpAddr>,
    /// `unknownFlows`: what becomes of SYN-less packets of unknown flows.
    pub unknown_flows: UnknownFlows,
    /// `directBackendAccess`: clients may also reach gateway backends by their own addresses.
    pub direct_backend_access: bool,
    /// `nodePortAddresses`: which of the node's addresses serve node ports.
    pub node_port_addresses: NodePortAddresses,
    /// `externalIPs`: whether `spec.externalIPs` are served.
    pub external_ips: bool,
    /// `podNetworks`: where the addresses of the cluster's pods are from.
    pub pod_networks: Vec<IpNet>,
    /// `dropUnallocated`: drop packets to addresses of the service networks that no Service has.
    /// `auto`: where no kube-proxy does.
    pub drop_unallocated: Switch,
    /// `healthCheckNodePorts`: answer there. `auto`: unless kube-proxy on the node does.
    pub health_check_node_ports: Switch,
    /// `healthAddress`: where `/livez`, `/healthz` and `/readyz` are served; nowhere if empty.
    pub health_addresses: Vec<SocketAddr>,
    /// `metricsAddress`: where `/metrics` is served; nowhere if empty.
    pub metrics_addresses: Vec<SocketAddr>,
    /// `events`: tell of what is not served by Events in the cluster.
    pub events: bool,
    /// `tables`: sizes.
    pub tables: TableSizes,
    /// `timeouts`.
    pub timeouts: Timeouts,
    /// `repliesPerSecond`: resets, unreachables and the like a CPU may send in a second.
    pub replies_per_second: u32,
    /// `pinRoot`: directory on bpffs below which everything is pinned.
    pub pin_root: PathBuf,
    /// `lockFile`: locked while an agent runs.
    pub lock_file: PathBuf,
    /// `object`: compiled data path to load instead of the embedded one.
    pub object: Option<PathBuf>,
    /// `manageSysctls`: set the sysctls we need instead of reporting them.
    pub manage_sysctls: bool,
    /// `log.level`: filter directives, such as `info` or `info,lb_userspace=debug`.
    pub log_level: String,
    /// `log.format`.
    pub log_format: LogFormat,
}

impl Config {
    /// Reads the file the flags name, if any, lets the flags win, and checks the result. A node
    /// without a name is called what the variable `NODE_NAME` says, else as the host.
    ///
    /// # Errors
    ///
    /// If the file cannot be read or is not YAML, or naming every key whose value cannot be used.
    pub fn load(flags: ConfigFlags) -> Result<Self, ConfigError> {
        let text = match &flags.config {
            Some(path) => fs::read_to_string(path).map_err(|source| ConfigError::Read {
                path: path.clone(),
                source,
            })?,
            None => String::new(),
        };
        Self::parse_with(&text, flags, sources::default_node_name())
    }

    /// Like [`Self::load`], of a text instead of the file, and the node's name must be given.
    ///
    /// # Errors
    ///
    /// If the text is not YAML, or naming every key whose value cannot be used.
    pub fn parse(text: &str, flags: ConfigFlags) -> Result<Self, ConfigError> {
        Self::parse_with(text, flags, None)
    }

    fn parse_with(
        text: &str,
        flags: ConfigFlags,
        node_name: Option<String>,
    ) -> Result<Self, ConfigError> {
        let mut raw = raw::RawConfig::parse(text).map_err(|problem| ConfigError::Invalid {
            path: flags.config.clone(),
            problems: vec![problem],
        })?;
        let path = flags.config.clone();
        flags.override_in(&mut raw);
        raw.node_name = raw.node_name.filter(|name| !name.is_empty()).or(node_name);
        check::check(raw).map_err(|problems| ConfigError::Invalid { path, problems })
    }
}

/// How to reach the cluster.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Kubernetes {
    /// `kubernetes.kubeconfig`. Without: as the ServiceAccount of the pod the agent runs in.
    pub kubeconfig: Option<PathBuf>,
    /// `kubernetes.context`: context of the kubeconfig; without, its current one.
    pub context: Option<String>,
}

/// Something that is done, or not, or as the node is.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Switch {
    /// As the node is.
    #[default]
    Auto,
    /// Yes.
    On,
    /// No.
    Off,
}

/// Where this node's own pods are.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum PodInterfaces {
    /// Every device a route to a local endpoint uses.
    Auto,
    /// These.
    List(Vec<String>),
}

/// How programs are attached to an interface.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Native XDP and TCX, or TCX alone where the driver has no XDP.
    #[default]
    Auto,
    /// Native XDP and TCX, or an error.
    Native,
    /// TCX alone.
    Tcx,
    /// Generic XDP and TCX: slower than TCX alone, for tests.
    Generic,
}

/// What becomes of a SYN-less TCP packet to a frontend which no flow knows.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum UnknownFlows {
    /// `stack` where kube-proxy runs on the node, else `select`.
    #[default]
    Auto,
    /// The node's stack gets it.
    Stack,
    /// A backend is selected as for a SYN.
    Select,
    /// It is dropped and counted.
    Drop,
}

/// How the log is written.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Lines for people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// How long flows live.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Timeouts {
    /// `timeouts.tcp`: idle time of an established TCP flow; at least 2 h 15 min, which is above
    /// the 2 h after which hosts send keepalives.
    pub tcp: Duration,
    /// `timeouts.udp`: idle time of an established UDP flow.
    pub udp: Duration,
    /// `timeouts.embryonic`: idle time of a flow that has not proved itself.
    pub embryonic: Duration,
    /// `timeouts.closed`: how long a closed tuple rests; less where a new flow needs it, or its place.
    pub closed: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            tcp: Duration::from_hours(24),
            udp: Duration::from_mins(3),
            embryonic: Duration::from_mins(1),
            closed: Duration::from_mins(1),
        }
    }
}

/// A key whose value cannot be used.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Problem {
    /// Path of the key, such as `snat.addresses[1]`; empty for the file as a whole.
    pub key: String,
    /// What is wrong.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.key.is_empty() {
            f.write_str(&self.message)
        } else {
            write!(f, "{}: {}", self.key, self.message)
        }
    }
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("read configuration {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Values cannot be used.
    #[error("{}", describe(path.as_deref(), problems))]
    Invalid {
        /// The file, if one was named.
        path: Option<PathBuf>,
        /// Every problem found.
        problems: Vec<Problem>,
    },
}

fn describe(path: Option<&Path>, problems: &[Problem]) -> String {
    let problems: Vec<_> = problems.iter().map(ToString::to_string).collect();
    let path = path
        .map(|path| format!(" {}", path.display()))
        .unwrap_or_default();
    format!("configuration{path}: {}", problems.join("; "))
}

#[cfg(test)]
mod tests;
