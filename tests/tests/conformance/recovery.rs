//! The agent, its source and its tables fail and come back.

use std::time::Duration;

use lb_common::{
    names,
    service::{Frontend, FrontendKey4},
};
use lb_tests::{
    conformance::{
        agents::Agents,
        cluster::{Cluster, Side},
        objects::Service,
        probe::Peer::{Kept, Masqueraded},
        record::Record,
        targets::Targets,
    },
    netns::poll_until,
};

use crate::Scenario;

pub(crate) const SCENARIO: Scenario = Scenario {
    name: "recovery",
    rows: &["S09", "S10", "D22", "H30", "H31", "H32", "H33"],
    run,
};

/// The agent compares the tables with what it wrote once a minute.
const RESYNC: Duration = Duration::from_secs(90);

fn run(record: &Record, cluster: &Cluster, agents: &mut Agents<'_>) {
    let both = ["a1", "b1"];
    let open = |name, number| {
        Service::new(name, number)
            .web()
            .kind("LoadBalancer")
            .on(&both)
    };
    let (first, second) = (open("first", 1), open("second", 2));
    agents.put(&[&first, &second]);
    let (pod, outside) = (cluster.pod("a3"), cluster.outside(Side::A));
    let serves = |services: &[&Service]| {
        for service in services {
            pod.served(&service.cluster(), &both, Kept);
            outside.served(&service.balancer(), &both, Masqueraded);
        }
    };
    for gently in [true, false] {
        if gently {
            agents.node_mut(Side::A).stop();
        } else {
            agents.node_mut(Side::A).kill();
        }
        record.row("S09", || serves(&[&first, &second]));
        agents.node_mut(Side::A).spawn();
        agents.node_mut(Side::A).wait_attached();
        agents.sync();
        record.row("S09", || serves(&[&first, &second]));
    }
    source_away(record, agents, &serves, &open);
    tables_gone(record, agents, &serves, &first);
    // The last agents have another configuration: nothing of it is for later scenarios.
    node_port_addresses(record, cluster, agents);
}

/// The directory of manifests cannot be read for a while.
fn source_away(
    record: &Record,
    agents: &Agents<'_>,
    serves: &dyn Fn(&[&Service]),
    open: &dyn Fn(&'static str, u16) -> Service,
) {
    let (first, third) = (open("first", 1), open("third", 3));
    let directories = Side::BOTH.map(|side| agents.directory(side));
    let away = |directory: &std::path::Path| directory.with_extension("away");
    for directory in &directories {
        std::fs::rename(directory, away(directory)).expect("one file system");
    }
    record.row("S10", || {
        agents.node(Side::A).wait_log("cannot be read");
        serves(&[&first]);
    });
    for directory in &directories {
        std::fs::rename(away(directory), directory).expect("one file system");
    }
    agents.put(&[&third]);
    record.row("S10", || serves(&[&first, &third]));
    record.remark(
        &["S10"],
        "the directory of manifests is away and returns; the tier `kubernetes` kills the API server",
    );
}

/// Entries of the tables are deleted behind the agent's back.
fn tables_gone(
    record: &Record,
    agents: &Agents<'_>,
    serves: &dyn Fn(&[&Service]),
    service: &Service,
) {
    if !record.wants("D22") {
        return;
    }
    let node = agents.node(Side::A);
    let frontends = node.map(names::FRONTENDS_V4).expect("it is pinned");
    let keys = || {
        let all = frontends.read_all::<FrontendKey4, Frontend>();
        all.expect("it can be read").into_iter().map(|(key, _)| key)
    };
    let before = keys().count();
    for key in keys() {
        frontends.delete(&key).expect("it can be written");
    }
    record.row("D22", || {
        assert_eq!(keys().count(), 0, "nothing is left");
        poll_until("the frontends to be back", RESYNC, || {
            (keys().count() == before).then_some(())
        });
        serves(&[service]);
        node.wait_log("the tables were not as the agent left them");
    });
    record.remark(
        &["D22"],
        "entries of the tables, which are the analogue of rules",
    );
}

/// Which of a node's addresses serve node ports. Node A: its primary ones, which an agent says that
/// takes over from one with another configuration. Node B: those of every network.
fn node_port_addresses(record: &Record, cluster: &Cluster, agents: &mut Agents<'_>) {
    let rows = ["H30", "H31", "H32", "H33"];
    if !record.wants_any(&rows) {
        return;
    }
    for (side, value) in [
        (Side::A, "primary"),
        (Side::B, "[10.0.0.0/16, 2001:db8:a::/64, 2001:db8:b::/48]"),
    ] {
        agents.configure(side, &format!("nodePortAddresses: {value}\n"));
        agents.node_mut(side).stop();
        agents.node_mut(side).spawn();
    }
    for side in Side::BOTH {
        agents.node_mut(side).wait_attached();
    }
    let both = ["a1", "b1"];
    let service = Service::new("ported", 4).web().kind("NodePort").on(&both);
    agents.put(&[&service]);
    let pods = [cluster.pod("a3"), cluster.pod("b3")];
    let outside = cluster.outside(Side::A);
    let [v4, v6]: [fn(Targets) -> Targets; 2] = [Targets::v4, Targets::v6];
    for (row, (side, family)) in
        rows.into_iter()
            .zip([(Side::A, v4), (Side::B, v4), (Side::A, v6), (Side::B, v6)])
    {
        let second = service.node_port_at(side, |v4| side.second_address(v4));
        record.row(row, || {
            for pod in &pods {
                pod.served(&family(service.cluster()), &both, Kept);
            }
            outside.served(&family(service.node_port(side)), &both, Masqueraded);
            if side == Side::A {
                outside.refused(&family(second));
            } else {
                outside.served(&family(second), &both, Masqueraded);
            }
        });
    }
    record.remark(
        &rows,
        "from pods and outside; what the node sends to itself is not ours",
    );
}
