//! Hints of topology: zones and nodes.

use lb_tests::conformance::{
    agents::Agents,
    cluster::{Cluster, Side},
    objects::{Service, State},
    probe::Peer::Any,
    record::Record,
};
use serde_json::{Value, json};

use crate::Scenario;

pub(crate) const SCENARIO: Scenario = Scenario {
    name: "topology",
    rows: &["F01", "F02", "F03", "F04", "F05", "F06", "F07"],
    run,
};

fn run(record: &Record, cluster: &Cluster, agents: &mut Agents<'_>) {
    let zones = |service: Service| {
        service.hinted("a1", State::Ready, zone("zone-a")).hinted(
            "b1",
            State::Ready,
            zone("zone-b"),
        )
    };
    let base = |name, number| Service::new(name, number).web();
    let close = zones(base("close", 1).spec("trafficDistribution", "PreferClose"));
    let same = zones(base("same", 2).spec("trafficDistribution", "PreferSameZone"));
    let old = zones(base("old", 3).annotation("service.kubernetes.io/topology-mode", "Auto"));
    // Several nodes in zone A: their endpoints are all of it.
    let wide = |service: Service| {
        service
            .hinted("a1", State::Ready, zone("zone-a"))
            .hinted("b1", State::Ready, zone("zone-a"))
            .hinted("b2", State::Ready, zone("zone-c"))
    };
    let wide_close = wide(base("wide-close", 4).spec("trafficDistribution", "PreferClose"));
    let wide_same = wide(base("wide-same", 5).spec("trafficDistribution", "PreferSameZone"));
    agents.put(&[&close, &same, &old, &wide_close, &wide_same]);
    let (near, far) = (cluster.pod("a3"), cluster.pod("b3"));
    let rows = [("F01", &close), ("F03", &same), ("F07", &old)];
    for (row, service) in rows {
        record.row(row, || {
            near.served(&service.cluster(), &["a1"], Any);
            far.served(&service.cluster(), &["b1"], Any);
        });
    }
    for zone in ["zone-x", ""] {
        agents.label(Side::B, zone);
        agents.sync();
        for (row, service) in rows {
            record.row(row, || {
                near.served(&service.cluster(), &["a1"], Any);
                far.served(&service.cluster(), &["a1", "b1"], Any);
            });
        }
    }
    agents.label(Side::B, "zone-a");
    agents.sync();
    for (row, service) in [("F02", &wide_close), ("F04", &wide_same)] {
        record.row(row, || {
            near.served(&service.cluster(), &["a1", "b1"], Any);
            far.served(&service.cluster(), &["a1", "b1"], Any);
        });
    }
    agents.label(Side::B, Side::B.zone());
    nodes(record, cluster, agents);
}

fn nodes(record: &Record, cluster: &Cluster, agents: &Agents<'_>) {
    let (near, far) = (cluster.pod("a3"), cluster.pod("b3"));
    let outside = cluster.outside(Side::A);
    let service = Service::new("nodes", 6).web().kind("LoadBalancer");
    let service = service.spec("trafficDistribution", "PreferSameNode");
    let here = |service: Service| service.hinted("a1", State::Ready, node(Side::A));
    let there = |service: Service| {
        let service = service.hinted("b1", State::Ready, node(Side::B));
        service.hinted("b2", State::Ready, node(Side::B))
    };
    let both = there(here(service.clone()));
    agents.put(&[&both]);
    record.rows(&["F05", "F06"], || {
        near.served(&both.cluster(), &["a1"], Any);
        far.served(&both.cluster(), &["b1", "b2"], Any);
        outside.served(&both.balancer(), &["a1"], Any);
    });
    // Nothing here any more: the zone's endpoint, else all.
    let remote = there(service.clone());
    agents.put(&[&remote]);
    record.rows(&["F05", "F06"], || {
        near.served(&remote.cluster(), &["b1", "b2"], Any);
    });
    let zoned = service
        .clone()
        .hinted(
            "b1",
            State::Ready,
            json!({"forNodes": [{"name": "node-b"}], "forZones": [{"name": "zone-a"}]}),
        )
        .hinted(
            "b2",
            State::Ready,
            json!({"forNodes": [{"name": "node-b"}], "forZones": [{"name": "zone-b"}]}),
        );
    agents.put(&[&zoned]);
    record.row("F05", || near.served(&zoned.cluster(), &["b1"], Any));
    agents.put(&[&both]);
    record.row("F06", || near.served(&both.cluster(), &["a1"], Any));
    // The local one is there but not ready.
    let unready = there(service.hinted("a1", State::Unready, node(Side::A)));
    agents.put(&[&unready]);
    record.row("F06", || {
        near.served(&unready.cluster(), &["b1", "b2"], Any);
    });
}

fn zone(name: &str) -> Value {
    json!({"forZones": [{"name": name}]})
}

fn node(side: Side) -> Value {
    json!({"forNodes": [{"name": side.name()}], "forZones": [{"name": side.zone()}]})
}
