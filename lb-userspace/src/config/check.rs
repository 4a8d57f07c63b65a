//! From the configuration as written to one that can be used.

use std::{collections::BTreeSet, net::IpAddr, path::PathBuf, time::Duration};

use ipnet::IpNet;

use super::{
    Config, PodInterfaces, Problem, TableSizes, Timeouts,
    raw::{RawConfig, RawDuration, RawTimeouts, WordOrList},
    sources,
};
use crate::{
    duration::parse_duration,
    node::NodePortAddresses,
    snapshot::address::{parse_cidr, parse_usable},
};

/// Idle time below which an established TCP flow is never given up: hosts send keepalives after 2 h.
const LEAST_TCP: Duration = Duration::from_mins(135);
/// Stamps of flows have 24 bits of about a second: an idle time must stay well below their wrap.
const MOST: Duration = Duration::from_hours(24 * 90);
/// Longest name of an interface, in bytes.
const INTERFACE_NAME: usize = 15;

/// Checks every value; all problems are found at once.
pub(super) fn check(raw: RawConfig) -> Result<Config, Vec<Problem>> {
    let mut problems = Problems(Vec::new());
    let manifests = raw.manifests.filter(|directory| !directory.is_empty());
    let kubernetes = sources::kubernetes(raw.kubernetes, &mut problems);
    if manifests.is_none() && kubernetes.is_none() {
        let message = "or kubernetes is required (--manifests, --kubernetes or --kubeconfig): \
                       there is nothing to serve";
        problems.push("manifests", message);
    }
    let service_proxy_name = sources::proxy_name(raw.service_proxy_name, &mut problems);
    let node_name = required(raw.node_name, "nodeName", "--node-name", &mut problems);
    if raw.interfaces.is_empty() {
        problems.push("interfaces", "is required (or --interface)");
    }
    let interfaces = interfaces(raw.interfaces, "interfaces", &mut problems);
    let pod_interfaces = pod_interfaces(raw.pod_interfaces, &mut problems);
    let snat_addresses = snat_addresses(&raw.snat.addresses, &mut problems);
    let node_port_addresses = node_port_addresses(raw.node_port_addresses, &mut problems);
    let pod_networks = networks(&raw.pod_networks, "podNetworks", &mut problems);
    let drop_unallocated = sources::switch(raw.drop_unallocated, "dropUnallocated", &mut problems);
    let health_check_node_ports = sources::switch(
        raw.health_check_node_ports,
        "healthCheckNodePorts",
        &mut problems,
    );
    let health_addresses = sources::listen(
        raw.health_address,
        "healthAddress",
        sources::HEALTH,
        &mut problems,
    );
    let metrics_addresses = sources::listen(
        raw.metrics_address,
        "metricsAddress",
        sources::METRICS,
        &mut problems,
    );
    let replies_per_second = raw.replies_per_second.unwrap_or(1_000);
    if replies_per_second > 1_000_000 {
        problems.push("repliesPerSecond", "is more than 1000000");
    }
    let tables = TableSizes::check(&raw.tables, &mut problems.0);
    let timeouts = timeouts(&raw.timeouts, &mut problems);
    let pin_root = absolute(raw.pin_root, "pinRoot", "/sys/fs/bpf/sluice", &mut problems);
    let lock_file = absolute(
        raw.lock_file,
        "lockFile",
        "/run/sluice/agent.lock",
        &mut problems,
    );
    let log_level = raw.log.level.unwrap_or_else(|| "info".to_owned());
    if let Err(error) = tracing_subscriber::EnvFilter::try_new(&log_level) {
        problems.push(
            "log.level",
            format!("`{log_level}` is not a log filter: {error}"),
        );
    }
    if !problems.0.is_empty() {
        return Err(problems.0);
    }
    Ok(Config {
        manifests: manifests.map(PathBuf::from),
        kubernetes,
        service_proxy_name,
        node_name,
        zone: raw.zone.filter(|zone| !zone.is_empty()),
        interfaces,
        pod_interfaces,
        mode: raw.mode.unwrap_or_default(),
        gateway: raw.gateway.unwrap_or(false),
        snat_addresses,
        unknown_flows: raw.unknown_flows.unwrap_or_default(),
        direct_backend_access: raw.direct_backend_access.unwrap_or(false),
        node_port_addresses,
        external_ips: raw.external_ips.unwrap_or(true),
        pod_networks,
        drop_unallocated,
        health_check_node_ports,
        health_addresses,
        metrics_addresses,
        events: raw.events.unwrap_or(true),
        tables,
        timeouts,
        replies_per_second,
        pin_root,
        lock_file,
        object: raw.object.map(PathBuf::from),
        manage_sysctls: raw.manage_sysctls.unwrap_or(false),
        log_level,
        log_format: raw.log.format.unwrap_or_default(),
    })
}

pub(super) struct Problems(Vec<Problem>);

impl Problems {
    pub(super) fn push(&mut self, key: impl Into<String>, message: impl Into<String>) {
        self.0.push(Problem {
            key: key.into(),
            message: message.into(),
        });
    }
}

fn required(value: Option<String>, key: &str, flag: &str, problems: &mut Problems) -> String {
    let value = value.unwrap_or_default();
    if value.is_empty() {
        problems.push(key, format!("is required (or {flag})"));
    }
    value
}

fn interfaces(names: Vec<String>, key: &str, problems: &mut Problems) -> Vec<String> {
    let mut seen = BTreeSet::new();
    for (i, name) in names.iter().enumerate() {
        let key = || format!("{key}[{i}]");
        let is_name = (1..=INTERFACE_NAME).contains(&name.len())
            && !matches!(name.as_str(), "." | "..")
            && !name
                .contains(|c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control());
        if !is_name {
            problems.push(key(), format!("`{name}` is not the name of an interface"));
        }
        if !seen.insert(name) {
            problems.push(key(), format!("`{name}` is there twice"));
        }
    }
    names
}

fn pod_interfaces(value: Option<WordOrList>, problems: &mut Problems) -> PodInterfaces {
    match value {
        None => PodInterfaces::Auto,
        Some(WordOrList::Word(word)) => {
            if word != "auto" {
                let message = format!("`{word}` is neither `auto` nor a list");
                problems.push("podInterfaces", message);
            }
            PodInterfaces::Auto
        }
        Some(WordOrList::List(list)) => {
            PodInterfaces::List(interfaces(list, "podInterfaces", problems))
        }
    }
}

fn snat_addresses(list: &[String], problems: &mut Problems) -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    for (i, text) in list.iter().enumerate() {
        let key = format!("snat.addresses[{i}]");
        match parse_usable(text) {
            Ok(address) if addresses.contains(&address) => {
                problems.push(key, format!("`{text}` is there twice"));
            }
            Ok(address) => addresses.push(address),
            Err(why) => problems.push(key, why),
        }
    }
    addresses
}

fn node_port_addresses(value: Option<WordOrList>, problems: &mut Problems) -> NodePortAddresses {
    let list = match value {
        None => return NodePortAddresses::All,
        Some(WordOrList::Word(word)) => match word.as_str() {
            "all" => return NodePortAddresses::All,
            "primary" => return NodePortAddresses::Primary,
            "none" => return NodePortAddresses::Networks(Vec::new()),
            _ => {
                let message = format!("`{word}` is not `all`, `primary`, `none` or a list");
                problems.push("nodePortAddresses", message);
                return NodePortAddresses::All;
            }
        },
        Some(WordOrList::List(list)) => list,
    };
    NodePortAddresses::Networks(networks(&list, "nodePortAddresses", problems))
}

fn networks(list: &[String], key: &str, problems: &mut Problems) -> Vec<IpNet> {
    let networks = list.iter().enumerate().filter_map(|(i, text)| {
        parse_cidr(text)
            .map_err(|why| problems.push(format!("{key}[{i}]"), why))
            .ok()
    });
    networks.collect()
}

fn absolute(value: Option<String>, key: &str, default: &str, problems: &mut Problems) -> PathBuf {
    let path = PathBuf::from(value.unwrap_or_else(|| default.to_owned()));
    if !path.is_absolute() {
        problems.push(key, format!("`{}` is not an absolute path", path.display()));
    }
    path
}

fn timeouts(raw: &RawTimeouts, problems: &mut Problems) -> Timeouts {
    let default = Timeouts::default();
    let second = Duration::from_secs(1);
    let mut read = |key: &str, value: &Option<RawDuration>, default: Duration, least: Duration| {
        let Some(value) = value else { return default };
        let parsed = match value {
            RawDuration::Seconds(seconds) => Ok(Duration::from_secs(*seconds)),
            RawDuration::Text(text) => parse_duration(text.trim()),
        };
        match parsed {
            Ok(duration) if (least..=MOST).contains(&duration) => return duration,
            Ok(duration) => problems.push(
                format!("timeouts.{key}"),
                format!(
                    "{} s is not between {} and {} s",
                    duration.as_secs_f64(),
                    least.as_secs(),
                    MOST.as_secs()
                ),
            ),
            Err(why) => problems.push(format!("timeouts.{key}"), why),
        }
        default
    };
    Timeouts {
        tcp: read("tcp", &raw.tcp, default.tcp, LEAST_TCP),
        udp: read("udp", &raw.udp, default.udp, second),
        embryonic: read("embryonic", &raw.embryonic, default.embryonic, second),
        closed: read("closed", &raw.closed, default.closed, second),
    }
}
