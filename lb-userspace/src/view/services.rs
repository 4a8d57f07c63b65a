//! Service ports: what they serve, how, and how much.

use std::collections::BTreeMap;

use lb_common::service::{frontend_flag, member_flag, service_flag};
use serde::Serialize;

use crate::{
    tables::{FrontendId, ServiceRecord},
    view::{contents::Contents, flows::active},
};

/// A service port.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Service {
    /// Service-port id.
    pub id: u32,
    /// `namespace/name:port/PROTOCOL/FAMILY`.
    pub name: String,
    /// Its frontends: `address:port`, `nodePort:port` for a node port.
    pub frontends: Vec<String>,
    /// The set external traffic uses: `cluster` or `local`.
    pub policy: &'static str,
    /// How backends on other nodes are reached: `dnat` or `full-nat`.
    pub mode: &'static str,
    /// Backends of the cluster set.
    pub cluster_backends: usize,
    /// Backends of the local set.
    pub local_backends: usize,
    /// Set epoch.
    pub epoch: u32,
    /// Session affinity in seconds; 0 for none.
    pub affinity_seconds: u32,
    /// Flows created.
    pub new_flows: u64,
    /// Flows established now.
    pub active_flows: u64,
    /// Packets from clients.
    pub packets: u64,
    /// Bytes from clients.
    pub bytes: u64,
    /// Packets from backends.
    pub reply_packets: u64,
    /// Bytes from backends.
    pub reply_bytes: u64,
}

/// A service port as a table shows it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceLine<'a> {
    name: &'a str,
    frontends: &'a [String],
    policy: &'a str,
    mode: &'a str,
    backends: usize,
    local: usize,
    new_flows: u64,
    active_flows: u64,
    packets: u64,
    reply_packets: u64,
}

impl<'a> From<&'a Service> for ServiceLine<'a> {
    fn from(service: &'a Service) -> Self {
        Self {
            name: &service.name,
            frontends: &service.frontends,
            policy: service.policy,
            mode: service.mode,
            backends: service.cluster_backends,
            local: service.local_backends,
            new_flows: service.new_flows,
            active_flows: service.active_flows,
            packets: service.packets,
            reply_packets: service.reply_packets,
        }
    }
}

/// Every service port, by name.
pub fn services(contents: &Contents) -> Vec<Service> {
    let tables = &contents.tables;
    let mut frontends: BTreeMap<u32, Vec<String>> = BTreeMap::new();
    for (id, frontend) in &tables.frontends {
        frontends
            .entry(frontend.service)
            .or_default()
            .push(frontend_name(id, frontend.flags));
    }
    let mut members: BTreeMap<u32, [usize; 2]> = BTreeMap::new();
    for (&(service, _), &flags) in &tables.members {
        let [cluster, local] = members.entry(service).or_default();
        *cluster += usize::from(flags & member_flag::CLUSTER != 0);
        *local += usize::from(flags & member_flag::LOCAL != 0);
    }
    let active = active(&contents.halves);
    let mut traffic = contents.service_traffic.clone();
    for half in &contents.halves {
        half.add_pending(traffic.entry(half.service).or_default());
    }
    let mut services: Vec<Service> = tables
        .services
        .iter()
        .map(|(&id, record)| {
            let [cluster_backends, local_backends] = members.get(&id).copied().unwrap_or_default();
            let traffic = traffic.get(&id).copied().unwrap_or_default();
            Service {
                id,
                name: record.name.clone(),
                frontends: frontends.remove(&id).unwrap_or_default(),
                policy: policy(record),
                mode: mode(record),
                cluster_backends,
                local_backends,
                epoch: record.epoch,
                affinity_seconds: record.affinity_seconds,
                new_flows: traffic.new_flows,
                active_flows: active.get(&id).copied().unwrap_or_default(),
                packets: traffic.forward.packets,
                bytes: traffic.forward.bytes,
                reply_packets: traffic.reply.packets,
                reply_bytes: traffic.reply.bytes,
            }
        })
        .collect();
    services.sort_by(|a, b| a.name.cmp(&b.name));
    services
}

/// The set which external traffic uses.
fn policy(record: &ServiceRecord) -> &'static str {
    if record.flags & service_flag::EXTERNAL_LOCAL != 0 {
        "local"
    } else {
        "cluster"
    }
}

/// How external traffic reaches backends. The local set is on this node, where `dnat` is the rule.
fn mode(record: &ServiceRecord) -> &'static str {
    let dnat = service_flag::KEEP_SOURCE | service_flag::EXTERNAL_LOCAL;
    if record.flags & dnat != 0 {
        "dnat"
    } else {
        "full-nat"
    }
}

/// `192.0.2.1:443`, or `nodePort:30080`; a ClusterIP is marked.
fn frontend_name(id: &FrontendId, flags: u32) -> String {
    let internal = if flags & frontend_flag::INTERNAL != 0 {
        " (internal)"
    } else {
        ""
    };
    if id.address.is_unspecified() {
        format!("nodePort:{}{internal}", id.port)
    } else {
        format!(
            "{}{internal}",
            std::net::SocketAddr::new(id.address, id.port)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::{
        fixture,
        render::{Output, text_of},
    };

    #[test]
    fn services_as_a_table() {
        let services = services(&fixture::contents());
        let lines: Vec<_> = services.iter().map(ServiceLine::from).collect();
        insta::assert_snapshot!(text_of(&lines, Output::Table), @r#"
        NAME                          FRONTENDS                    POLICY   MODE      BACKENDS  LOCAL  NEW FLOWS  ACTIVE FLOWS  PACKETS  REPLY PACKETS
        default/web:http/TCP/IPv4     nodePort:30080,192.0.2.1:80  cluster  full-nat         2      0          2             1     1001           1000
        default/web:http/TCP/IPv6     [2001:db8::1]:80 (internal)  cluster  full-nat         0      0          0             0        0              0
        kube-system/dns:dns/UDP/IPv6  [2001:db8::53]:53            local    dnat             1      1          0             0        0              0
        "#);
    }

    #[test]
    fn services_as_json() {
        let mut services = services(&fixture::contents());
        services.truncate(1);
        insta::assert_snapshot!(text_of(&services, Output::Json), @r#"
        [
          {
            "id": 1,
            "name": "default/web:http/TCP/IPv4",
            "frontends": [
              "nodePort:30080",
              "192.0.2.1:80"
            ],
            "policy": "cluster",
            "mode": "full-nat",
            "clusterBackends": 2,
            "localBackends": 0,
            "epoch": 4,
            "affinitySeconds": 10800,
            "newFlows": 2,
            "activeFlows": 1,
            "packets": 1001,
            "bytes": 100100,
            "replyPackets": 1000,
            "replyBytes": 100000
          }
        ]
        "#);
    }

    #[test]
    fn policy_and_mode_follow_the_flags() {
        use service_flag::{EXTERNAL_LOCAL, INTERNAL_LOCAL, KEEP_SOURCE, LIVE};
        let cases = [
            ("plain", 0, "cluster", "full-nat"),
            ("local policy", EXTERNAL_LOCAL, "local", "dnat"),
            ("gateway", KEEP_SOURCE, "cluster", "dnat"),
            (
                "internal policy is another matter",
                INTERNAL_LOCAL,
                "cluster",
                "full-nat",
            ),
        ];
        for (name, flags, expected_policy, expected_mode) in cases {
            let record = ServiceRecord {
                flags: LIVE | flags,
                ..fixture::service("x")
            };
            assert_eq!(
                (policy(&record), mode(&record)),
                (expected_policy, expected_mode),
                "{name}"
            );
        }
    }
}
