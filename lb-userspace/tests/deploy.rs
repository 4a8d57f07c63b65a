//! What `deploy/` offers for copying is accepted by the programs it is for.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use lb_userspace::{
    config::{Config, ConfigFlags},
    manifests::ManifestSource,
    node::NodeConfig,
    plan::{Quarantine, plan},
    source::Scope,
    tables::TableSet,
};
use serde_json::{Value, json};

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

/// Directories of `deploy/` with a kustomization.
const KUSTOMIZATIONS: [&str; 6] = [
    "base",
    "components/capabilities",
    "components/monitoring",
    "overlays/example",
    "overlays/gateway",
    "overlays/test",
];

/// Reads the YAML documents of a file, each as JSON.
fn documents(file: &Path) -> Vec<Value> {
    let text = fs::read_to_string(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    text.split("\n---\n")
        .map(|text| {
            serde_saphyr::from_str(text).unwrap_or_else(|e| panic!("{}: {e}", file.display()))
        })
        .collect()
}

fn object(file: &str, kind: &str) -> Value {
    let all = documents(&deploy(file));
    let mut wanted = all.into_iter().filter(|object| object["kind"] == kind);
    wanted
        .next()
        .unwrap_or_else(|| panic!("no {kind} in {file}"))
}

#[test]
fn kustomizations_name_what_is_there_and_nothing_else_is() {
    for name in KUSTOMIZATIONS {
        let directory = deploy(name);
        let kustomization = documents(&directory.join("kustomization.yaml")).remove(0);
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let mut named = BTreeSet::from([directory.join("kustomization.yaml")]);
        let paths = [&kustomization["resources"], &kustomization["components"]];
        let mut paths: Vec<Value> = paths.into_iter().flat_map(list).collect();
        paths.extend(
            list(&kustomization["patches"])
                .iter()
                .map(|it| it["path"].clone()),
        );
        for generator in list(&kustomization["configMapGenerator"]) {
            paths.extend(list(&generator["files"]));
        }
        for path in &paths {
            let path = directory.join(path.as_str().unwrap_or_default());
            assert!(path.exists(), "{name}: {}", path.display());
            named.insert(path);
        }
        for entry in fs::read_dir(&directory).expect("a directory") {
            let path = entry.expect("an entry").path();
            assert!(named.contains(&path), "{} is not used", path.display());
            let is_yaml = path.extension().is_some_and(|it| it == "yaml");
            if is_yaml && !path.ends_with("agent.yaml") {
                for object in documents(&path) {
                    let is_patch = object.is_array();
                    let is_object = object["kind"].is_string();
                    assert!(is_patch || is_object, "{}: {object}", path.display());
                }
            }
        }
    }
}

#[test]
fn the_configurations_for_clusters_are_valid() {
    for name in [
        "base",
        "overlays/example",
        "overlays/gateway",
        "overlays/test",
    ] {
        let file = deploy(name).join("agent.yaml");
        let flags = ConfigFlags {
            config: Some(file.clone()),
            node_name: Some("edge-1".into()),
            ..ConfigFlags::default()
        };
        let config = Config::load(flags).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        assert!(config.kubernetes.is_some(), "{name}");
        assert_eq!(config.gateway, name.ends_with("gateway"), "{name}");
        assert_eq!(
            config.tables,
            self::config().tables,
            "{name}: tables of another size are another layout, and replace each other slowly"
        );
    }
}

#[test]
fn the_daemon_set_asks_where_the_agent_answers() {
    let set = object("base/daemonset.yaml", "DaemonSet");
    let container = &set["spec"]["template"]["spec"]["containers"][0];
    let port = config().health_addresses[0].port();
    assert_eq!(container["ports"][0]["containerPort"], port);
    for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
        assert_eq!(container[probe]["httpGet"]["port"], "health", "{probe}");
    }
    let directories = ["pinRoot", "lockFile"].map(|key| {
        let default = documents(&deploy("agent.yaml")).remove(0)[key].clone();
        PathBuf::from(default.as_str().expect("a path"))
    });
    let mounts = container["volumeMounts"].as_array().expect("mounts");
    for directory in directories {
        let is_mounted = mounts.iter().any(|mount| {
            let path = mount["mountPath"].as_str().expect("a path");
            directory.starts_with(path) && mount["readOnly"] != json!(true)
        });
        assert!(is_mounted, "{} would end with the pod", directory.display());
    }
}

#[test]
fn the_job_that_detaches_finds_what_the_agent_left() {
    let set = object("base/daemonset.yaml", "DaemonSet");
    let job = object("detach.yaml", "Job");
    let pod = |object: &Value| object["spec"]["template"]["spec"].clone();
    let (set, job) = (pod(&set), pod(&job));
    for field in ["nodeSelector", "tolerations", "hostNetwork"] {
        assert_eq!(job[field], set[field], "{field}");
    }
    let (agent, lbctl) = (&set["containers"][0], &job["containers"][0]);
    assert_eq!(lbctl["image"], agent["image"]);
    assert_eq!(lbctl["securityContext"], agent["securityContext"]);
    for (object, field) in [(lbctl, "volumeMounts"), (&job, "volumes")] {
        let of_agent = if field == "volumes" { &set } else { agent };
        let all = of_agent[field].as_array().expect("a list");
        let own = object[field].as_array().expect("a list");
        assert!(own.iter().all(|it| all.contains(it)), "{field}: {own:?}");
        assert_eq!(own.len(), 2, "{field}");
    }
}

#[test]
fn the_role_allows_what_the_agent_does_and_no_more() {
    let role = object("base/rbac.yaml", "ClusterRole");
    let mut allowed = BTreeSet::new();
    for rule in role["rules"].as_array().expect("rules") {
        for group in rule["apiGroups"].as_array().expect("groups") {
            for resource in rule["resources"].as_array().expect("resources") {
                for verb in rule["verbs"].as_array().expect("verbs") {
                    let words = [verb, resource, group].map(|it| it.as_str().expect("a word"));
                    allowed.insert(words.join(" "));
                }
            }
        }
    }
    let mut expected = BTreeSet::from(["get nodes ".to_owned()]);
    for resource in [
        "services ",
        "nodes ",
        "endpointslices discovery.k8s.io",
        "servicecidrs networking.k8s.io",
    ] {
        expected.extend(["list", "watch"].map(|verb| format!("{verb} {resource}")));
    }
    for group in ["", "events.k8s.io"] {
        expected.extend(["create", "patch"].map(|verb| format!("{verb} events {group}")));
    }
    assert_eq!(allowed, expected);
}
