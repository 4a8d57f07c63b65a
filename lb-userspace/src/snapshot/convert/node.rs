//! From a Node and a ServiceCIDR.

use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::{core::v1::Node, networking::v1::ServiceCIDR};

use super::label;
use crate::snapshot::{
    NodeObject, Rejection,
    address::{parse_cidr, parse_ip, parse_usable},
};

/// Label of a Node: its zone.
const ZONE: &str = "topology.kubernetes.io/zone";
/// Annotation of a Node: its addresses that no masquerade uses.
const SNAT_ADDRESSES: &str = "sluice.dev/snat-addresses";
/// Key of the taint by which the autoscaler takes a node out of service.
const MARKED: &str = "ToBeDeletedByClusterAutoscaler";

/// Reduces a Node to what balancing needs.
pub fn node(node: &Node) -> (NodeObject, Vec<Rejection>) {
    let name = node.metadata.name.clone().unwrap_or_default();
    let mut rejections = Vec::new();
    let mut reject = |field: String, message: String| {
        rejections.push(Rejection {
            object: format!("Node {name}"),
            field,
            message,
            subject: None,
        });
    };
    let spec = node.spec.as_ref();
    let mut networks: Vec<&String> = spec.iter().flat_map(|s| &s.pod_cidrs).flatten().collect();
    if networks.is_empty() {
        networks.extend(spec.and_then(|s| s.pod_cidr.as_ref()));
    }
    let pod_networks = networks.iter().enumerate().filter_map(|(i, text)| {
        parse_cidr(text)
            .map_err(|why| reject(format!("spec.podCIDRs[{i}]"), why))
            .ok()
    });
    let pod_networks: Vec<IpNet> = pod_networks.collect();
    // Host names are among them.
    let addresses = node.status.iter().flat_map(|s| &s.addresses).flatten();
    let addresses = addresses.filter_map(|a| parse_ip(&a.address).ok());
    let annotations = node.metadata.annotations.as_ref();
    let snat = annotations
        .and_then(|a| a.get(SNAT_ADDRESSES))
        .map_or("", String::as_str);
    let mut snat_addresses: Vec<IpAddr> = Vec::new();
    for text in snat.split(',').map(str::trim).filter(|t| !t.is_empty()) {
        match parse_usable(text) {
            Ok(address) if snat_addresses.contains(&address) => {}
            Ok(address) => snat_addresses.push(address),
            Err(why) => reject(format!("metadata.annotations[{SNAT_ADDRESSES}]"), why),
        }
    }
    let mut taints = spec.iter().flat_map(|s| &s.taints).flatten();
    let object = NodeObject {
        zone: label(&node.metadata, ZONE)
            .filter(|zone| !zone.is_empty())
            .map(str::to_owned),
        pod_networks,
        addresses: addresses.collect(),
        deleting: node.metadata.deletion_timestamp.is_some(),
        marked_for_deletion: taints.any(|taint| taint.key == MARKED),
        snat_addresses,
        name: name.clone(),
    };
    (object, rejections)
}

/// The networks of a ServiceCIDR.
pub fn service_networks(object: &ServiceCIDR) -> (Vec<IpNet>, Vec<Rejection>) {
    let name = object.metadata.name.as_deref().unwrap_or_default();
    let mut rejections = Vec::new();
    let texts = object.spec.iter().flat_map(|s| &s.cidrs).flatten();
    let networks = texts.enumerate().filter_map(|(i, text)| {
        let reject = |message| Rejection {
            object: format!("ServiceCIDR {name}"),
            field: format!("spec.cidrs[{i}]"),
            message,
            subject: None,
        };
        parse_cidr(text)
            .map_err(|why| rejections.push(reject(why)))
            .ok()
    });
    (networks.collect(), rejections)
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json};

    use super::*;

    #[test]
    fn a_node_tells_its_zone_networks_and_snat_addresses() {
        let value = json!({
            "metadata": {
                "name": "edge-1",
                "labels": {"topology.kubernetes.io/zone": "a"},
                "annotations": {"sluice.dev/snat-addresses": " 192.0.2.5,2001:DB8::5, none,192.0.2.5,"},
            },
            "spec": {
                "podCIDR": "10.1.0.0/24",
                "podCIDRs": ["10.1.0.0/24", "2001:db8:1::/64", "x"],
                "taints": [{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}],
            },
            "status": {"addresses": [
                {"type": "InternalIP", "address": "192.0.2.1"},
                {"type": "Hostname", "address": "edge-1"},
            ]},
        });
        let (object, rejections) = node(&from_value(value).expect("a Node"));
        let networks: Vec<_> = object.pod_networks.iter().map(IpNet::to_string).collect();
        assert_eq!(networks, ["10.1.0.0/24", "2001:db8:1::/64"]);
        let snat: Vec<_> = object
            .snat_addresses
            .iter()
            .map(IpAddr::to_string)
            .collect();
        assert_eq!(snat, ["192.0.2.5", "2001:db8::5"]);
        assert_eq!(object.zone.as_deref(), Some("a"));
        assert!(object.marked_for_deletion && !object.deleting);
        assert_eq!(object.addresses.len(), 1);
        let rejections: Vec<_> = rejections.iter().map(ToString::to_string).collect();
        assert_eq!(
            rejections,
            [
                "Node edge-1: spec.podCIDRs[2]: `x` is not a prefix in CIDR notation",
                "Node edge-1: metadata.annotations[sluice.dev/snat-addresses]: `none` is not an IP address",
            ]
        );
    }

    #[test]
    fn a_service_cidr_tells_its_networks() {
        let value = json!({"metadata": {"name": "kubernetes"}, "spec": {"cidrs": ["10.0.0.0/16", "10.0.0.0"]}});
        let (networks, rejections) = service_networks(&from_value(value).expect("a ServiceCIDR"));
        assert_eq!(networks.len(), 1);
        assert_eq!(
            rejections.first().map(ToString::to_string).as_deref(),
            Some(
                "ServiceCIDR kubernetes: spec.cidrs[1]: `10.0.0.0` is not a prefix in CIDR notation"
            )
        );
    }
}
