//! The configuration's keys as command-line flags.

use std::path::PathBuf;

use super::{
    LogFormat, Mode, UnknownFlows,
    raw::{BoolOrWord, RawConfig, WordOrList},
};

/// Flags of the configuration file's names; a flag wins over the file.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct ConfigFlags {
    /// Configuration file (YAML)
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Directory of Kubernetes manifests
    #[arg(long, value_name = "DIR")]
    pub manifests: Option<String>,
    /// Follow the Services of a cluster: that of the pod the agent runs in, unless --kubeconfig
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub kubernetes: Option<bool>,
    /// Follow the cluster this kubeconfig leads to
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<String>,
    /// Context of the kubeconfig [default: its current one]
    #[arg(long, value_name = "NAME")]
    pub kube_context: Option<String>,
    /// Balance the Services labelled `service.kubernetes.io/service-proxy-name` with this value,
    /// instead of those without the label
    #[arg(long, value_name = "NAME")]
    pub service_proxy_name: Option<String>,
    /// Name of this node in EndpointSlices [default: variable `NODE_NAME`, else the host's name]
    #[arg(long, value_name = "NAME")]
    pub node_name: Option<String>,
    /// Zone of this node, for topology hints
    #[arg(long, value_name = "ZONE")]
    pub zone: Option<String>,
    /// Interface towards clients or remote backends; may be repeated
    #[arg(long = "interface", value_name = "IF")]
    pub interfaces: Vec<String>,
    /// Interface towards this node's own pods; may be repeated [default: auto]
    #[arg(long = "pod-interface", value_name = "IF")]
    pub pod_interfaces: Vec<String>,
    /// How to attach
    #[arg(long, value_enum)]
    pub mode: Option<Mode>,
    /// The backends' replies are routed through this node
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub gateway: Option<bool>,
    /// Address of this node that no masquerade uses; may be repeated
    #[arg(long = "snat-address", value_name = "ADDRESS")]
    pub snat_addresses: Vec<String>,
    /// What becomes of SYN-less packets of unknown flows
    #[arg(long, value_enum)]
    pub unknown_flows: Option<UnknownFlows>,
    /// Clients may also reach gateway backends by their own addresses
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub direct_backend_access: Option<bool>,
    /// Network whose addresses of this node serve node ports, or `all`, `primary` or `none`;
    /// networks may be repeated
    #[arg(long = "node-port-address", value_name = "CIDR")]
    pub node_port_addresses: Vec<String>,
    /// Serve `spec.externalIPs`
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub external_ips: Option<bool>,
    /// Network the addresses of the cluster's pods are from; may be repeated
    #[arg(long = "pod-network", value_name = "CIDR")]
    pub pod_networks: Vec<String>,
    /// Drop packets to addresses of the service networks that no Service has: `true`, `false`, or
    /// `auto`, where no kube-proxy runs on the node [default: auto]
    #[arg(long, value_name = "SWITCH")]
    pub drop_unallocated: Option<String>,
    /// Answer on healthCheckNodePorts: `on`, `off`, or `auto`, unless kube-proxy on the node does
    /// [default: auto]
    #[arg(long, value_name = "SWITCH")]
    pub health_check_node_ports: Option<String>,
    /// Where to serve /livez, /healthz and /readyz, or `off`; may be repeated
    /// [default: [::]:10356, IPv4 too]
    #[arg(long = "health-address", value_name = "ADDRESS:PORT")]
    pub health_addresses: Vec<String>,
    /// Where to serve /metrics, or `off`; may be repeated [default: 127.0.0.1:10350]
    #[arg(long = "metrics-address", value_name = "ADDRESS:PORT")]
    pub metrics_addresses: Vec<String>,
    /// Tell of what is not served by Events in the cluster [default: true]
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub events: Option<bool>,
    /// Directory on bpffs below which everything is pinned
    #[arg(long, value_name = "DIR")]
    pub pin_root: Option<String>,
    /// File to lock while the agent runs
    #[arg(long, value_name = "FILE")]
    pub lock_file: Option<String>,
    /// Compiled data path to load instead of the embedded one
    #[arg(long, value_name = "FILE", env = "SLUICE_OBJECT")]
    pub object: Option<String>,
    /// Set the sysctls we need instead of reporting them
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub manage_sysctls: Option<bool>,
    /// Filter directives for the log, such as `info` or `info,lb_userspace=debug`
    #[arg(long, value_name = "FILTER")]
    pub log_level: Option<String>,
    /// How the log is written
    #[arg(long, value_enum)]
    pub log_format: Option<LogFormat>,
}

impl ConfigFlags {
    /// Puts what was given over the file's values.
    pub(super) fn override_in(self, raw: &mut RawConfig) {
        over(&mut raw.manifests, self.manifests);
        let enabled = self.kubeconfig.is_some().then_some(true);
        over(&mut raw.kubernetes.enabled, self.kubernetes.or(enabled));
        over(&mut raw.kubernetes.kubeconfig, self.kubeconfig);
        over(&mut raw.kubernetes.context, self.kube_context);
        over(&mut raw.service_proxy_name, self.service_proxy_name);
        over(&mut raw.node_name, self.node_name);
        over(&mut raw.zone, self.zone);
        over(&mut raw.mode, self.mode);
        over(&mut raw.gateway, self.gateway);
        over(&mut raw.unknown_flows, self.unknown_flows);
        over(&mut raw.direct_backend_access, self.direct_backend_access);
        over(&mut raw.external_ips, self.external_ips);
        over(
            &mut raw.drop_unallocated,
            self.drop_unallocated.map(BoolOrWord::Word),
        );
        over(
            &mut raw.health_check_node_ports,
            self.health_check_node_ports.map(BoolOrWord::Word),
        );
        over(
            &mut raw.health_address,
            word_or_list(self.health_addresses, &["off"]),
        );
        over(
            &mut raw.metrics_address,
            word_or_list(self.metrics_addresses, &["off"]),
        );
        over(&mut raw.events, self.events);
        over(&mut raw.pin_root, self.pin_root);
        over(&mut raw.lock_file, self.lock_file);
        over(&mut raw.object, self.object);
        over(&mut raw.manage_sysctls, self.manage_sysctls);
        over(&mut raw.log.level, self.log_level);
        over(&mut raw.log.format, self.log_format);
        over(
            &mut raw.pod_interfaces,
            word_or_list(self.pod_interfaces, &["auto"]),
        );
        let words = ["all", "primary", "none"];
        over(
            &mut raw.node_port_addresses,
            word_or_list(self.node_port_addresses, &words),
        );
        if !self.pod_networks.is_empty() {
            raw.pod_networks = self.pod_networks;
        }
        if !self.interfaces.is_empty() {
            raw.interfaces = self.interfaces;
        }
        if !self.snat_addresses.is_empty() {
            raw.snat.addresses = self.snat_addresses;
        }
    }
}

fn over<T>(value: &mut Option<T>, flag: Option<T>) {
    if flag.is_some() {
        *value = flag;
    }
}

fn word_or_list(list: Vec<String>, words: &[&str]) -> Option<WordOrList> {
    match list.as_slice() {
        [] => None,
        [word] if words.contains(&word.as_str()) => Some(WordOrList::Word(word.clone())),
        _ => Some(WordOrList::List(list)),
    }
}
