//! Backends: where they are, whom they serve, and their share of it.

use std::{collections::BTreeMap, net::SocketAddr};

use lb_common::service::{Selection, member_flag};
use serde::Serialize;

use crate::view::{contents::Contents, flags};

/// A backend.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Backend {
    /// Backend id.
    pub id: u32,
    /// Address and port.
    pub endpoint: SocketAddr,
    /// `local` for a pod of this node, `host` for the node itself.
    pub flags: Vec<String>,
    /// How often the id was given to another endpoint.
    pub incarnation: u32,
    /// The service ports it belongs to.
    pub services: Vec<Membership>,
    /// Flows created.
    pub new_flows: u64,
    /// Flows established now.
    pub active_flows: u64,
    /// Packets to the backend.
    pub packets: u64,
    /// Bytes to the backend.
    pub bytes: u64,
    /// Packets from the backend.
    pub reply_packets: u64,
    /// Bytes from the backend.
    pub reply_bytes: u64,
}

/// A backend's place in a service port.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Membership {
    /// Name of the service port.
    pub service: String,
    /// Service-port id.
    pub service_id: u32,
    /// `cluster`, `local`: the sets it is in; `serving`: its UDP flows may stay.
    pub flags: Vec<String>,
    /// Slots of the cluster set's Maglev table that name it, in percent; none if not in the set.
    pub cluster_percent: Option<f64>,
    /// The same for the local set.
    pub local_percent: Option<f64>,
}

/// A backend as a table shows it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BackendLine {
    id: u32,
    endpoint: SocketAddr,
    flags: Vec<String>,
    services: Vec<String>,
    new_flows: u64,
    active_flows: u64,
    packets: u64,
    reply_packets: u64,
}

impl From<&Backend> for BackendLine {
    fn from(backend: &Backend) -> Self {
        let service = |membership: &Membership| {
            let Membership {
                service,
                cluster_percent,
                local_percent,
                ..
            } = membership;
            match (cluster_percent, local_percent) {
                (Some(cluster), Some(local)) => {
                    format!("{service} {cluster:.1}% (local {local:.1}%)")
                }
                (Some(cluster), None) => format!("{service} {cluster:.1}%"),
                (None, Some(local)) => format!("{service} (local {local:.1}%)"),
                (None, None) => format!("{service} draining"),
            }
        };
        Self {
            id: backend.id,
            endpoint: backend.endpoint,
            flags: backend.flags.clone(),
            services: backend.services.iter().map(service).collect(),
            new_flows: backend.new_flows,
            active_flows: backend.active_flows,
            packets: backend.packets,
            reply_packets: backend.reply_packets,
        }
    }
}

/// Every backend, by id.
pub fn backends(contents: &Contents) -> Vec<Backend> {
    let tables = &contents.tables;
    let mut traffic = contents.backend_traffic.clone();
    for half in &contents.halves {
        half.add_pending(traffic.entry(half.backend).or_default());
    }
    let mut active: BTreeMap<u32, u64> = BTreeMap::new();
    for half in contents
        .halves
        .iter()
        .filter(|half| crate::view::flows::is_active(half))
    {
        *active.entry(half.backend).or_default() += 1;
    }
    let mut memberships: BTreeMap<u32, Vec<Membership>> = BTreeMap::new();
    let mut shares = Shares {
        contents,
        counted: BTreeMap::new(),
    };
    for (&(service, backend), &bits) in &tables.members {
        let record = tables.services.get(&service);
        let mut percent = |set, selection: Option<Selection>| {
            let share = shares.percent(selection?, backend);
            (bits & set != 0 || share > 0.0).then_some(share)
        };
        memberships.entry(backend).or_default().push(Membership {
            service: contents.service(service),
            service_id: service,
            flags: flags::words(bits, flags::MEMBER),
            cluster_percent: percent(member_flag::CLUSTER, record.map(|r| r.cluster)),
            local_percent: percent(member_flag::LOCAL, record.map(|r| r.local)),
        });
    }
    let backend = |(&id, record): (&u32, &crate::tables::BackendRecord)| {
        let traffic = contents
            .backend_traffic
            .get(&id)
            .copied()
            .unwrap_or_default();
        Backend {
            id,
            endpoint: record.endpoint,
            flags: flags::words(record.flags.into(), flags::BACKEND),
            incarnation: record.incarnation,
            services: memberships.remove(&id).unwrap_or_default(),
            new_flows: traffic.new_flows,
            active_flows: active.get(&id).copied().unwrap_or_default(),
            packets: traffic.forward.packets,
            bytes: traffic.forward.bytes,
            reply_packets: traffic.reply.packets,
            reply_bytes: traffic.reply.bytes,
        }
    };
    tables.backends.iter().map(backend).collect()
}

/// Shares of Maglev tables, each table counted once.
struct Shares<'a> {
    contents: &'a Contents,
    counted: BTreeMap<Selection, BTreeMap<u32, u32>>,
}

impl Shares<'_> {
    fn percent(&mut self, selection: Selection, backend: u32) -> f64 {
        let counted = self.counted.entry(selection).or_insert_with(|| {
            let slots = self.contents.tables.extents.get(&selection.element);
            let length = selection.length as usize;
            let mut counts = BTreeMap::new();
            for &slot in slots.iter().flat_map(|slots| slots.iter()).take(length) {
                *counts.entry(slot).or_default() += 1;
            }
            counts
        });
        let slots = counted.get(&backend).copied().unwrap_or_default();
        if selection.length == 0 {
            0.0
        } else {
            f64::from(slots) * 100.0 / f64::from(selection.length)
        }
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
    fn backends_as_a_table() {
        let backends = backends(&fixture::contents());
        let lines: Vec<_> = backends.iter().map(BackendLine::from).collect();
        insta::assert_snapshot!(text_of(&lines, Output::Table), @r#"
        ID  ENDPOINT              FLAGS  SERVICES                                          NEW FLOWS  ACTIVE FLOWS  PACKETS  REPLY PACKETS
         1  10.0.0.1:8080         -      default/web:http/TCP/IPv4 50.2%                           2             1      601            600
         2  10.0.0.2:8080         -      default/web:http/TCP/IPv4 49.8%                           2             0      401            400
         3  [2001:db8:2::1]:5300  local  kube-system/dns:dns/UDP/IPv6 0.0% (local 100.0%)          0             0        0              0
        "#);
    }

    #[test]
    fn a_backend_as_json() {
        let mut backends = backends(&fixture::contents());
        backends.truncate(1);
        insta::assert_snapshot!(text_of(&backends, Output::Json), @r#"
        [
          {
            "id": 1,
            "endpoint": "10.0.0.1:8080",
            "flags": [],
            "incarnation": 1,
            "services": [
              {
                "service": "default/web:http/TCP/IPv4",
                "serviceId": 1,
                "flags": [
                  "cluster",
                  "serving"
                ],
                "clusterPercent": 50.199203187250994,
                "localPercent": null
              }
            ],
            "newFlows": 2,
            "activeFlows": 1,
            "packets": 601,
            "bytes": 60100,
            "replyPackets": 600,
            "replyBytes": 60000
          }
        ]
        "#);
    }
}
