//! Kubernetes objects in few words, and what becomes of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
};

use lb_common::service::{Selection, member_flag, service_flag};
use lb_userspace::{
    dataplane::model::violations,
    node::NodeConfig,
    plan::{Plan, Quarantine, plan},
    snapshot::{Snapshot, convert},
    tables::{ServiceRecord, TableSet},
};
use serde_json::{Value, from_value, json};

/// The node `edge-1`, which serves node ports on all its addresses.
pub(crate) fn node() -> NodeConfig {
    let addresses: BTreeSet<_> = ["198.51.100.1", "2001:db8:1::1"]
        .map(|text| text.parse().expect("an address"))
        .into();
    NodeConfig {
        name: "edge-1".to_owned(),
        node_port_addresses: addresses.clone(),
        addresses,
        external_ips: true,
        ..NodeConfig::default()
    }
}

/// A Service `default/NAME`, as the API server would complete it.
pub(crate) fn service(name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": "default"},
        "spec": spec,
    })
}

/// The same with load-balancer addresses.
pub(crate) fn with_ingress(mut service: Value, addresses: &[&str]) -> Value {
    let ingress: Vec<_> = addresses.iter().map(|ip| json!({"ip": ip})).collect();
    service["status"]["loadBalancer"]["ingress"] = ingress.into();
    service
}

/// The same with a label or an annotation (`kind` says which).
pub(crate) fn with_metadata(mut object: Value, kind: &str, key: &str, value: &str) -> Value {
    object["metadata"][kind][key] = value.into();
    object
}

/// A slice `default/NAME` of the Service its name begins with (up to `_`).
///
/// `ports` are such as `http:8080` and `dns:53/UDP`, `:80` for an empty name; `endpoints` are an
/// address and words: `unready`, `deaf` (not serving), `terminating`, `on=NODE`, `zone=ZONE`,
/// `fornode=NODE`. Conditions that are not named are left out.
pub(crate) fn slice(name: &str, ports: &[&str], endpoints: &[&str]) -> Value {
    let v6 = endpoints.first().is_some_and(|e| e.contains(':'));
    let ports: Vec<_> = ports.iter().map(|text| port(text)).collect();
    let endpoints: Vec<_> = endpoints.iter().map(|text| endpoint(text)).collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": name, "namespace": "default",
            "labels": {"kubernetes.io/service-name": name.split('_').next()},
        },
        "addressType": if v6 { "IPv6" } else { "IPv4" },
        "ports": ports,
        "endpoints": endpoints,
    })
}

fn port(text: &str) -> Value {
    let (text, protocol) = text.split_once('/').unwrap_or((text, "TCP"));
    let (name, number) = text.split_once(':').expect("a name and a number");
    let number: i32 = number.parse().expect("a port");
    json!({"name": name, "protocol": protocol, "port": number})
}

fn endpoint(text: &str) -> Value {
    let mut words = text.split(' ');
    let mut endpoint = json!({"addresses": [words.next()]});
    let (mut zones, mut nodes) = (Vec::new(), Vec::new());
    for word in words {
        match word.split_once('=').unwrap_or((word, "")) {
            ("unready", _) => endpoint["conditions"]["ready"] = false.into(),
            ("deaf", _) => endpoint["conditions"]["serving"] = false.into(),
            ("terminating", _) => endpoint["conditions"]["terminating"] = true.into(),
            ("on", node) => endpoint["nodeName"] = node.into(),
            ("zone", zone) => zones.push(json!({"name": zone})),
            ("fornode", node) => nodes.push(json!({"name": node})),
            _ => panic!("not a word for an endpoint: {word}"),
        }
    }
    if !zones.is_empty() {
        endpoint["hints"]["forZones"] = zones.into();
    }
    if !nodes.is_empty() {
        endpoint["hints"]["forNodes"] = nodes.into();
    }
    endpoint
}

/// Reads objects; also tells what was wrong with them.
pub(crate) fn read(objects: &[Value]) -> (Snapshot, Vec<String>) {
    let mut snapshot = Snapshot::default();
    let mut rejected = Vec::new();
    for object in objects {
        let typed = object.clone();
        match object["kind"].as_str() {
            Some("Service") => {
                let (service, said) = convert::service(&from_value(typed).expect("typed"), None);
                let services = service.map(|service| (service.name.clone(), Arc::new(service)));
                snapshot.services.extend(services);
                rejected.extend(said);
            }
            Some("EndpointSlice") => {
                let (slice, said) = convert::slice(&from_value(typed).expect("typed"), None);
                let slices = slice.map(|slice| (slice.name.clone(), Arc::new(slice)));
                snapshot.slices.extend(slices);
                rejected.extend(said);
            }
            Some("ServiceCIDR") => {
                let (networks, said) =
                    convert::service_networks(&from_value(typed).expect("typed"));
                snapshot.service_networks.extend(networks);
                rejected.extend(said);
            }
            kind => panic!("not a kind we read: {kind:?}"),
        }
    }
    (snapshot, rejected.iter().map(ToString::to_string).collect())
}

/// The first plan for some objects.
pub(crate) fn plan_of(objects: &[Value], node: &NodeConfig) -> Plan {
    plan_after(&TableSet::default(), objects, node)
}

/// The plan that follows `previous`.
pub(crate) fn plan_after(previous: &TableSet, objects: &[Value], node: &NodeConfig) -> Plan {
    plan_beside(previous, objects, node, &Quarantine::default())
}

/// The plan that follows `previous` while flows name ids which `previous` does not.
pub(crate) fn plan_beside(
    previous: &TableSet,
    objects: &[Value],
    node: &NodeConfig,
    quarantine: &Quarantine,
) -> Plan {
    let (snapshot, _) = read(objects);
    let plan = plan(previous, &snapshot, node, quarantine);
    assert_eq!(violations(&plan.tables), Vec::<String>::new());
    plan
}

/// What is not served, by the objects and by the plan.
pub(crate) fn rejections(objects: &[Value], node: &NodeConfig) -> Vec<String> {
    let (_, mut said) = read(objects);
    let plan = plan_of(objects, node);
    said.extend(plan.rejected.iter().map(ToString::to_string));
    said
}

/// The sets of one service port, as lists of endpoints with a blank between them.
#[derive(Debug, Default, Eq, PartialEq)]
pub(crate) struct Sets {
    /// Takes new flows under `Cluster`.
    pub(crate) cluster: String,
    /// Takes new flows under `Local`.
    pub(crate) local: String,
    /// May keep flows.
    pub(crate) members: String,
    /// Somewhere is something usable.
    pub(crate) any: bool,
}

/// Looks a service port up by its name, such as `web:http/TCP/IPv4` in namespace `default`.
pub(crate) fn record<'a>(tables: &'a TableSet, port: &str) -> Option<(u32, &'a ServiceRecord)> {
    let name = format!("default/{port}");
    let mut services = tables.services.iter();
    let (id, record) = services.find(|(_, record)| record.name == name)?;
    Some((*id, record))
}

/// The sets of a service port; empty ones if it is not served.
pub(crate) fn sets(tables: &TableSet, port: &str) -> Sets {
    let Some((id, record)) = record(tables, port) else {
        return Sets::default();
    };
    let members = tables.members.range((id, 0)..=(id, u32::MAX));
    let members = members.map(|((_, backend), _)| *backend);
    let sets = Sets {
        cluster: endpoints(tables, slots(tables, record.cluster)),
        local: endpoints(tables, slots(tables, record.local)),
        members: endpoints(tables, members.collect()),
        any: record.flags & service_flag::HAS_ENDPOINTS != 0,
    };
    // Members and tables tell the same.
    for (flag, set) in [
        (member_flag::CLUSTER, &sets.cluster),
        (member_flag::LOCAL, &sets.local),
    ] {
        let members = tables.members.range((id, 0)..=(id, u32::MAX));
        let with_flag = members.filter(|(_, flags)| **flags & flag != 0);
        let of_set = endpoints(
            tables,
            with_flag.map(|((_, backend), _)| *backend).collect(),
        );
        assert_eq!(&of_set, set, "{port}");
    }
    sets
}

fn slots(tables: &TableSet, selection: Selection) -> BTreeSet<u32> {
    if selection.length == 0 {
        return BTreeSet::new();
    }
    tables.extents[&selection.element].iter().copied().collect()
}

fn endpoints(tables: &TableSet, backends: BTreeSet<u32>) -> String {
    let endpoints: BTreeSet<SocketAddr> = backends
        .iter()
        .map(|id| tables.backends[id].endpoint)
        .collect();
    let texts: Vec<_> = endpoints.iter().map(ToString::to_string).collect();
    texts.join(" ")
}

/// Every frontend with the service port behind it, `default/` left out.
pub(crate) fn frontends(tables: &TableSet) -> BTreeMap<String, String> {
    let text = |(frontend, record): (
        &lb_userspace::tables::FrontendId,
        &lb_userspace::tables::FrontendRecord,
    )| {
        let service = &tables.services[&record.service].name;
        let service = service.trim_start_matches("default/").to_owned();
        (frontend.to_string(), service)
    };
    tables.frontends.iter().map(text).collect()
}

/// The names of the frontends.
pub(crate) fn frontend_names(tables: &TableSet) -> Vec<String> {
    frontends(tables).into_keys().collect()
}
