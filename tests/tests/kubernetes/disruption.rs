//! Established flows while everything around them changes, in a real cluster: agents are killed, replaced, removed
//! and updated, to tables of another layout and back, and the API server goes away.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fs,
    net::{IpAddr, SocketAddr},
    process::Command,
    thread::sleep,
    time::Duration,
};

use lb_tests::{
    disruption::flows::Flows,
    kubernetes::{
        agent::DAEMON_SET,
        api,
        cluster::{Cluster, Finally, PATIENCE, image},
        objects, say,
        space::{Pair, Space},
    },
    netns::{poll, poll_until, text},
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::{agent::follows, take};

/// Established flows, half of either family.
const FLOWS: usize = 1_000;
/// The port where every message is checked by both sides.
const PORT: u16 = 7001;
/// Images of an agent with the same tables, and with tables of another layout.
const NEXT: &str = "localhost/sluice:next";
const SECOND_LAYOUT: &str = "localhost/sluice:second-layout";
/// Endpoints that come and go beside the flows' own: their Maglev table crosses a step.
const MORE: usize = 40;
const OTHERS: usize = 20;
const EDITS: usize = 2_000;

struct Gate<'c> {
    cluster: &'c Cluster,
    space: &'c Space<'c>,
    flows: Flows,
    done: RefCell<Vec<(&'static str, usize)>>,
}

impl Gate<'_> {
    /// Does something to the flows' surroundings, `times` over, and looks whether they notice.
    fn disturb(&self, what: &'static str, times: usize, act: impl FnOnce()) {
        let clock = || self.flows.start_of_clock().elapsed().as_secs_f64();
        let start = clock();
        act();
        let (done, answers) = (clock(), self.flows.answers());
        let more = poll(Duration::from_secs(20), || {
            (self.flows.answers() > answers + 5 * FLOWS as u64).then_some(())
        });
        if more.is_none() {
            // What is asked for next may fail itself.
            say(&format!(
                "{what}, done at {done:.1} s: {}",
                self.flows.state()
            ));
            panic!("{what}: too few answers in 20 s\n{}", self.surroundings());
        }
        say(&format!(
            "{start:5.1} s  {what} × {times}, {:.1} s; broken: {}",
            clock() - start,
            self.flows.broken()
        ));
        self.done.borrow_mut().push((what, times));
    }

    /// What there is to see of the edge node while flows are silent.
    fn surroundings(&self) -> String {
        let pods = ["get", "pods", "--all-namespaces", "-o", "wide"];
        let events = ["get", "events", "--all-namespaces"];
        let read = |file: &str| fs::read_to_string(file).unwrap_or_default();
        let mut sockets = Command::new("ss");
        sockets.args(["--tcp", "--info", "--numeric", "--oneline"]);
        let sockets = self.cluster.client().inside(|| sockets.output());
        let sockets = sockets.map_or_else(|error| error.to_string(), |it| text(&it.stdout));
        let sockets: Vec<_> = sockets.lines().take(40).collect();
        let parts = [
            sockets.join("\n"),
            read("/proc/loadavg"),
            read("/proc/stat"),
            text(&self.cluster.try_kubectl(pods).stdout),
            text(&self.cluster.try_kubectl(events).stdout),
            self.cluster
                .node("edge1", &["ls", "-R", "/sys/fs/bpf/sluice"]),
            self.cluster.node("edge1", &["ip", "neigh"]),
            self.cluster.node("edge1", &["ip", "-stats", "link"]),
            self.cluster.agent().log(),
            self.cluster.agent().lbctl("edge1", "status"),
            self.cluster.agent().lbctl("edge1", "stats"),
            self.cluster.agent().lbctl("edge1", "stats"),
        ];
        parts.join("\n")
    }

    fn kill(&self) {
        let agent = self.cluster.agent();
        let before = agent.process("edge1").expect("a running agent");
        agent.signal("edge1", Signal::SIGKILL);
        agent.wait_replaced("edge1", before);
    }

    /// Layouts of the tables that are pinned on the edge node.
    fn layouts(&self) -> Vec<String> {
        let names = self.cluster.node("edge1", &["ls", "/sys/fs/bpf/sluice"]);
        names.split_whitespace().map(str::to_owned).collect()
    }

    fn update_image(&self, name: &str) {
        let agent = self.cluster.agent();
        agent.kubectl(&format!("set image {DAEMON_SET} agent={name}"));
        agent.wait_rolled_out();
    }

    /// Other tables, and back; the old ones are gone each time.
    fn change_layout(&self, ordinary: &str) {
        let before = self.layouts();
        assert_eq!(before.len(), 1, "{before:?}");
        self.update_image(SECOND_LAYOUT);
        let between = self.layouts();
        assert_eq!(
            between.len(),
            1,
            "{between:?}\n{}",
            self.cluster.agent().log()
        );
        assert_ne!(between, before, "another layout");
        self.update_image(ordinary);
        assert_eq!(self.layouts(), before, "{}", self.cluster.agent().log());
    }

    fn outage(&self) {
        let back = Finally(|| {
            self.cluster.resume("etcd");
            self.cluster.resume("kube-apiserver");
            self.cluster.wait_api();
        });
        self.cluster.stop("kube-apiserver");
        self.cluster.stop("etcd");
        sleep(Duration::from_secs(5));
        self.kill();
        sleep(Duration::from_secs(5));
        drop(back);
    }

    /// Endpoints of the flows' own Service, many more than they have, come and go.
    fn churn(&self, times: usize) {
        let space = &self.space;
        let kinds = [
            ("more-v4", "IPv4", "10.201.200."),
            ("more-v6", "IPv6", "2001:db8:201:200::"),
        ];
        let endpoints = |prefix: &str, number: usize| -> Value {
            let addresses = (1..=number).map(|n| format!("{prefix}{n}"));
            let all = addresses.map(|it| json!({"addresses": [it], "conditions": {"ready": true}}));
            all.collect()
        };
        for (name, family, prefix) in kinds {
            let mut slice = objects::slice(name, "web", &endpoints(prefix, 1));
            let ports = json!([{"name": "numbered", "protocol": "TCP", "port": PORT}]);
            objects::merge(&mut slice, &json!({"addressType": family, "ports": ports}));
            space.apply(&slice);
        }
        let rounds = (0..times).flat_map(|round| {
            let number = if round % 2 == 0 { MORE } else { 1 };
            kinds.map(|(name, _, prefix)| {
                (
                    name.to_owned(),
                    json!({"endpoints": endpoints(prefix, number)}),
                )
            })
        });
        for patches in rounds.collect::<Vec<_>>().chunks(kinds.len()) {
            api::patch_slices(self.cluster, &space.name, patches);
        }
        for (name, _, _) in kinds {
            space.kubectl(&format!("delete endpointslice {name}"));
        }
    }

    /// Other Services are made, edited and removed.
    fn change_others(&self) {
        let name = |number: usize| format!("other-{number}");
        let endpoint = |last: usize| json!([{"addresses": [format!("10.201.201.{last}")]}]);
        let all = (0..OTHERS).flat_map(|number| {
            let spec =
                json!({"selector": null, "ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv4"]});
            let name = name(number);
            [
                objects::service(&name, "ClusterIP", &spec),
                objects::slice(&name, &name, &endpoint(1)),
            ]
        });
        self.space.apply(&objects::list(&all.collect::<Vec<_>>()));
        let edits = (0..EDITS).map(|number| {
            let patch = json!({"endpoints": endpoint(2 + number % 200)});
            (name(number % OTHERS), patch)
        });
        api::patch_slices(self.cluster, &self.space.name, &edits.collect::<Vec<_>>());
        let services: Vec<_> = (0..OTHERS).map(name).collect();
        let names = services.join(" ");
        self.space
            .kubectl(&format!("delete endpointslices {names}"));
        self.space.kubectl(&format!("delete services {names}"));
    }
}

/// Waits until either family of a Service has so many backends.
fn wait_backends(cluster: &Cluster, service: &str, number: usize) {
    poll_until("the backends", PATIENCE, || {
        let rows = cluster.agent().rows("edge1", "services")?;
        let own: Vec<_> = rows
            .iter()
            .filter(|row| row.to_string().contains(service))
            .collect();
        let all = own
            .iter()
            .all(|row| row["clusterBackends"] == json!(number));
        (own.len() == 2 && all).then_some(())
    });
}

fn start(space: &Space<'_>, vips: Pair, pods: &[IpAddr]) -> Flows {
    let servers: Vec<_> = vips.at(PORT).into_iter().cycle().take(FLOWS).collect();
    // These do not meet the load balancer: they tell when the whole machine stands still.
    let controls = pods.iter().cycle().take(2 * pods.len());
    let controls: Vec<_> = controls.map(|ip| SocketAddr::new(*ip, PORT)).collect();
    space
        .cluster
        .client()
        .inside(|| Flows::start_here(&servers, &controls))
}

#[test]
fn a_thousand_flows_outlive_everything() {
    let Some(cluster) = take() else { return };
    let space = Space::new(&cluster, "gate");
    let agent = cluster.agent();
    let mut local = objects::pod("local", "edge1");
    local["metadata"]["labels"]["app"] = json!("web");
    space.apply(&local);
    space.apply(&objects::deployment("web", 3));
    let ports = json!([{"name": "numbered", "protocol": "TCP", "port": PORT, "targetPort": PORT}]);
    let vips = space.load_balancer("web", &json!({"ports": ports}));
    space.wait_rolled_out("web");
    space.kubectl("wait --for=condition=Ready pod/local --timeout=60s");
    let names = space.pods("web");
    assert_eq!(names.len(), 4, "{names:?}");
    space.let_go_first(&names);
    let addresses = |pod: &str| -> Vec<IpAddr> {
        let all = space.field(&format!("pod/{pod}"), "{.status.podIPs[*].ip}");
        all.split(' ')
            .map(|ip| ip.parse().expect("an IP"))
            .collect()
    };
    let pods: Vec<_> = names.iter().flat_map(|pod| addresses(pod)).collect();
    wait_backends(&cluster, "gate/web", names.len());

    let ordinary = agent.kubectl(&format!("get {DAEMON_SET} -o jsonpath={{..image}}"));
    let ordinary = ordinary.trim();
    cluster.tag("edge1", ordinary, NEXT);
    cluster.load(&image().with_file_name("second-layout").join("sluice.tar"));
    let as_it_was = Finally(|| cluster.deploy());
    let gate = Gate {
        flows: start(&space, vips, &pods),
        cluster: &cluster,
        space: &space,
        done: RefCell::default(),
    };

    gate.disturb("agent killed", 1, || gate.kill());
    gate.disturb("rollout restart", 1, || {
        agent.kubectl(&format!("rollout restart {DAEMON_SET}"));
        agent.wait_rolled_out();
    });
    gate.disturb("image updated", 1, || gate.update_image(NEXT));
    gate.disturb("layout changed", 2, || gate.change_layout(ordinary));
    gate.disturb("other Services changed", EDITS + 2 * OTHERS, || {
        gate.change_others();
    });
    gate.disturb("own endpoints changed", 2 * 20, || gate.churn(20));
    gate.disturb("DaemonSet removed and made again", 1, || {
        agent.remove();
        sleep(Duration::from_secs(3));
        cluster.deploy();
    });
    gate.disturb("API server and etcd away, agent killed", 1, || {
        gate.outage();
    });
    gate.disturb("a Service made and removed", 1, || follows(&space, "after"));

    let outcome = gate.flows.finish();
    drop(as_it_was);
    let lost = outcome.lost();
    let done: Vec<_> = gate.done.take().into_iter().collect();
    let disturbances: Vec<_> = done
        .iter()
        .map(|(what, times)| format!("{times} {what}"))
        .collect();
    let edge = addresses("local");
    let mut backends = BTreeMap::<IpAddr, usize>::new();
    for pod in outcome.flows.iter().filter_map(|flow| flow.backend) {
        *backends.entry(pod).or_default() += 1;
    }
    say(&format!(
        "{:.0} s, {:.1} messages a second each way on the slowest flow; the machine stood still {} times; \
         longest silence of a control flow: {} ms; flows by pod: {backends:?}, of which {edge:?} are on the edge node",
        outcome.watched.as_secs_f64(),
        outcome.slowest(),
        outcome.machine.len(),
        outcome.control_longest.as_millis(),
    ));
    say(&format!(
        "flows: {}  disturbances: {}  longest stall: {} ms  lost: {}",
        outcome.flows.len(),
        disturbances.join(", "),
        outcome.longest().as_millis(),
        lost.len()
    ));
    assert_eq!(lost, <[String; 0]>::default(), "{}", agent.log());
    assert!(outcome.slowest() >= 10.0, "too few messages to tell");
    let on_edge = outcome.flows.iter().filter(|flow| {
        let pod = flow.backend;
        pod.is_some_and(|pod| edge.contains(&pod))
    });
    let on_edge = on_edge.count();
    assert!(
        (1..FLOWS).contains(&on_edge),
        "dnat and full-nat: {backends:?}"
    );
}
