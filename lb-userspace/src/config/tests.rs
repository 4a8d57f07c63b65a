use std::net::IpAddr;

use super::*;

const LEAST: &str = "manifests: /etc/sluice\nnodeName: edge-1\ninterfaces: [eth0]\n";

fn parse(text: &str) -> Result<Config, String> {
    Config::parse(text, ConfigFlags::default()).map_err(|error| error.to_string())
}

#[test]
fn defaults_are_those_of_the_documentation() {
    let config = parse(LEAST).expect("a configuration");
    assert_eq!(config.mode, Mode::Auto);
    assert_eq!(config.unknown_flows, UnknownFlows::Auto);
    assert_eq!(config.pod_interfaces, PodInterfaces::Auto);
    assert_eq!(config.node_port_addresses, NodePortAddresses::All);
    assert!(config.external_ips && !config.gateway && !config.manage_sysctls);
    assert_eq!(config.timeouts, Timeouts::default());
    assert_eq!(config.tables, TableSizes::default());
    assert_eq!(config.pin_root, Path::new("/sys/fs/bpf/sluice"));
    assert_eq!(config.log_level, "info");
    assert_eq!(config.manifests.as_deref(), Some(Path::new("/etc/sluice")));
    assert_eq!(config.kubernetes, None);
    assert_eq!(config.drop_unallocated, Switch::Auto);
    assert_eq!(config.health_check_node_ports, Switch::Auto);
    let text = |addresses: &[SocketAddr]| addresses.iter().map(SocketAddr::to_string).collect();
    let health: Vec<String> = text(&config.health_addresses);
    assert_eq!(health, ["[::]:10356"]);
    let metrics: Vec<String> = text(&config.metrics_addresses);
    assert_eq!(metrics, ["127.0.0.1:10350"]);
    assert!(config.events && config.pod_networks.is_empty());
}

#[test]
fn every_key_is_read() {
    let text = "
manifests: /m
kubernetes: {enabled: true, kubeconfig: /k, context: c}
serviceProxyName: sluice
nodeName: n
zone: z
interfaces: [eth0, eth1.5]
podInterfaces: [cni0]
mode: tcx
gateway: true
snat: {addresses: [192.0.2.5, '2001:DB8::5']}
unknownFlows: drop
directBackendAccess: true
nodePortAddresses: [192.0.2.0/24]
externalIPs: false
podNetworks: [10.1.0.0/16, '2001:db8:1::/48']
dropUnallocated: true
healthCheckNodePorts: off
healthAddress: ['192.0.2.1:80', '[2001:db8::1]:80']
metricsAddress: off
events: false
tables: {flowsV4: 1024, services: 4096}
timeouts: {tcp: 3h, udp: 60, embryonic: 10s, closed: 1m30s}
repliesPerSecond: 5
pinRoot: /sys/fs/bpf/test
lockFile: /run/x
object: /o
manageSysctls: true
log: {level: 'info,lb_userspace=debug', format: json}
";
    let config = parse(text).expect("a configuration");
    let snat: Vec<IpAddr> = ["192.0.2.5", "2001:db8::5"]
        .map(|a| a.parse().expect("an address"))
        .to_vec();
    assert_eq!(config.snat_addresses, snat);
    assert_eq!(
        config.pod_interfaces,
        PodInterfaces::List(vec!["cni0".to_owned()])
    );
    let kubernetes = Kubernetes {
        kubeconfig: Some("/k".into()),
        context: Some("c".to_owned()),
    };
    assert_eq!(config.kubernetes, Some(kubernetes));
    assert_eq!(config.service_proxy_name.as_deref(), Some("sluice"));
    assert_eq!(config.pod_networks.len(), 2);
    assert_eq!(config.drop_unallocated, Switch::On);
    assert_eq!(config.health_check_node_ports, Switch::Off);
    assert_eq!(config.health_addresses.len(), 2);
    assert!(config.metrics_addresses.is_empty() && !config.events);
    assert_eq!(config.timeouts.closed, Duration::from_secs(90));
    assert_eq!(config.timeouts.udp, Duration::from_mins(1));
    let entries = config.tables.entries();
    assert_eq!(entries["FLOWS_V4"], 1024);
    assert_eq!(entries["CLOSING_V4"], 512);
    assert_eq!(entries["SERVICE_NAMES"], 4096);
    assert_eq!(
        entries.len(),
        lb_common::names::MAPS.len(),
        "no name of a map that is not there"
    );
    assert_eq!(config.log_format, LogFormat::Json);
    assert!(!config.external_ips);
}

#[test]
fn an_error_names_the_key() {
    for (line, expected) in [
        (
            "snat: {addresses: [192.0.2.5, 192.0.2.500]}",
            "snat.addresses[1]: `192.0.2.500` is not an IP address",
        ),
        (
            "snat: {addresses: [192.0.2.5, 192.0.2.5]}",
            "snat.addresses[1]: `192.0.2.5` is there twice",
        ),
        (
            "snat: {addresses: 192.0.2.5}",
            "snat.addresses: invalid type",
        ),
        (
            "mode: fast",
            "mode: unknown variant `fast`, expected one of `auto`, `native`, `tcx`, `generic`",
        ),
        ("gateways: true", "gateways: unknown field `gateways`"),
        ("gateway: maybe", "gateway: invalid type"),
        (
            "timeouts: {tcp: 2h}",
            "timeouts.tcp: 7200 s is not between 8100 and",
        ),
        (
            "timeouts: {udp: soon}",
            "timeouts.udp: `soon` is not a duration",
        ),
        (
            "tables: {nextHops: 70000}",
            "tables.nextHops: 70000 is not between 16 and 65536",
        ),
        ("tables: {flows: 1}", "tables.flows: unknown field `flows`"),
        (
            "podInterfaces: eth7",
            "podInterfaces: `eth7` is neither `auto` nor a list",
        ),
        (
            "podInterfaces: {a: b}",
            "podInterfaces: expected a word or a list of strings",
        ),
        (
            "nodePortAddresses: [192.0.2.1]",
            "nodePortAddresses[0]: `192.0.2.1` is not a prefix",
        ),
        ("pinRoot: pins", "pinRoot: `pins` is not an absolute path"),
        (
            "log: {level: 'a=b=c'}",
            "log.level: `a=b=c` is not a log filter",
        ),
        (
            "kubernetes: {context: c}",
            "kubernetes.context: needs kubernetes.kubeconfig",
        ),
        ("kubernetes: yes", "kubernetes: invalid type"),
        (
            "serviceProxyName: a/b",
            "serviceProxyName: `a/b` is not the value of a label",
        ),
        (
            "podNetworks: [10.0.0.0/8, x]",
            "podNetworks[1]: `x` is not a prefix",
        ),
        (
            "dropUnallocated: maybe",
            "dropUnallocated: `maybe` is not `auto`, `on` or `off`",
        ),
        (
            "healthAddress: ['192.0.2.1:80', 10356]",
            "healthAddress: expected a word or a list of strings",
        ),
        (
            "metricsAddress: localhost:80",
            "metricsAddress: `localhost:80` is not an address with a port",
        ),
        ("a: [", "line "),
    ] {
        let error = parse(&format!("{LEAST}{line}")).expect_err(line);
        assert!(
            error.starts_with("configuration: ") && error.contains(expected),
            "{line}: {error}"
        );
    }
    let error = parse("interfaces: [eth0, 'a/b', eth0]").expect_err("three problems and more");
    for part in [
        "manifests: or kubernetes is required (--manifests, --kubernetes or --kubeconfig)",
        "nodeName: is required (or --node-name)",
        "interfaces[1]: `a/b` is not the name of an interface",
        "interfaces[2]: `eth0` is there twice",
    ] {
        assert!(error.contains(part), "{error}");
    }
    assert!(
        parse("")
            .expect_err("nothing")
            .contains("interfaces: is required (or --interface)")
    );
}

#[test]
fn flags_win() {
    #[derive(clap::Parser)]
    struct Arguments {
        #[command(flatten)]
        flags: ConfigFlags,
    }
    let arguments = <Arguments as clap::Parser>::try_parse_from([
        "lb-agent",
        "--node-name",
        "edge-2",
        "--interface",
        "eth5",
        "--interface",
        "eth6",
        "--gateway",
        "--mode",
        "generic",
        "--external-ips=false",
        "--node-port-address",
        "primary",
        "--kubeconfig",
        "/k",
        "--health-address",
        "off",
        "--drop-unallocated",
        "false",
    ]);
    let flags = arguments.map(|a| a.flags).expect("flags");
    let config = Config::parse(&format!("{LEAST}gateway: false\nmode: tcx"), flags);
    let config = config.expect("a configuration");
    assert_eq!(config.node_name, "edge-2");
    assert_eq!(config.interfaces, ["eth5", "eth6"]);
    assert_eq!(config.mode, Mode::Generic);
    assert!(config.gateway && !config.external_ips);
    assert_eq!(config.node_port_addresses, NodePortAddresses::Primary);
    assert!(config.kubernetes.is_some() && config.health_addresses.is_empty());
    assert_eq!(config.drop_unallocated, Switch::Off);
    assert_eq!(
        config.manifests.as_deref(),
        Some(Path::new("/etc/sluice")),
        "the file's value stays"
    );
}
