//! What `deploy/` offers for copying is accepted by the programs it is for.

use std::{collections::BTreeSet, fs, path::PathBuf};

use lb_userspace::{
    config::{Config, ConfigFlags},
    manifests::ManifestSource,
    node::NodeConfig,
    plan::{Quarantine, plan},
    source::Scope,
    tables::TableSet,
};

fn deploy(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../deploy")
        .join(path)
}

fn config() -> Config {
    let flags = ConfigFlags {
        config: Some(deploy("agent.yaml")),
        ..ConfigFlags::default()
    };
    Config::load(flags).unwrap_or_else(|error| panic!("deploy/agent.yaml: {error}"))
}

#[test]
fn the_configuration_states_the_defaults() {
    let required = "{manifests: /etc/sluice/manifests, nodeName: edge-1, interfaces: [eth0]}";
    let defaults = Config::parse(required, ConfigFlags::default()).expect("what is required");
    assert_eq!(config(), defaults);
}

#[test]
fn the_unit_runs_the_agent_with_that_configuration() {
    let unit = fs::read_to_string(deploy("sluice.service")).expect("the unit");
    let command = unit
        .lines()
        .find_map(|line| line.strip_prefix("ExecStart="));
    assert_eq!(
        command,
        Some("/usr/local/bin/lb-agent run --config /etc/sluice/agent.yaml")
    );
}

#[test]
fn the_example_is_served_as_a_whole() {
    let source = ManifestSource::new(deploy("example"), Scope::default());
    let source = source.expect("the example directory");
    let state = source.state();
    assert!(state.complete);
    let said = |rejections: &[lb_userspace::snapshot::Rejection]| {
        rejections
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
    };
    assert_eq!(said(&state.rejections), <[&str; 0]>::default());

    let config = config();
    let node = NodeConfig {
        name: config.node_name.clone(),
        external_ips: config.external_ips,
        sizes: config.tables.clone(),
        ..NodeConfig::default()
    };
    let plan = plan(
        &TableSet::default(),
        &state.snapshot,
        &node,
        &Quarantine::default(),
    );
    assert_eq!(said(&plan.rejected), <[&str; 0]>::default());
    let frontends: BTreeSet<String> = plan
        .tables
        .frontends
        .keys()
        .map(ToString::to_string)
        .collect();
    let expected = [
        "192.0.2.10:80/TCP",
        "192.0.2.11:53/UDP",
        "[2001:db8:f::10]:80/TCP",
        "[2001:db8:f::11]:53/UDP",
    ];
    assert_eq!(frontends, expected.map(String::from).into());
    let idle = plan
        .tables
        .services
        .values()
        .filter(|service| service.cluster.length == 0);
    assert_eq!(
        idle.map(|service| service.name.as_str())
            .collect::<Vec<_>>(),
        <[&str; 0]>::default()
    );
}
