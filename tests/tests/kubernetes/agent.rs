//! Agents are restarted, updated, killed and removed; no connection notices.

use std::net::SocketAddr;

use lb_tests::kubernetes::{
    agent::DAEMON_SET,
    cluster::{Cluster, Finally, PATIENCE, deploy},
    load::Load,
    say,
    space::{Pair, Space},
    stream::Streams,
};
use nix::sys::signal::Signal;

use crate::take;

/// The image under another name, as a newer one would have.
const NEXT: &str = "localhost/sluice:next";

/// Requests and streams that nothing may disturb.
pub(crate) struct Watch {
    load: Load,
    streams: Streams,
}

impl Watch {
    pub(crate) fn start(space: &Space<'_>, vips: Pair) -> Self {
        let client = space.cluster.client();
        Self {
            streams: Streams::start(&client, &vips.at(80), 6),
            load: space.load(vips),
        }
    }

    /// Everything goes on now, and did until now.
    pub(crate) fn check(&self, what: &str) {
        self.load.wait_more(200, PATIENCE);
        self.streams.assert_alive();
        let tally = self.load.tally();
        say(&format!(
            "{what}: {tally}, {} streams, 0 broken",
            self.streams.count()
        ));
        tally.assert_unharmed(what);
    }
}

/// A change made now must show: the agent follows the API again.
pub(crate) fn follows(space: &Space<'_>, name: &str) {
    let vips = space.web(name, 1);
    space.kubectl(&format!("delete service,deployment {name} --wait=false"));
    wait_unserved(space, vips.at(80)[0]);
}

pub(crate) fn wait_unserved(space: &Space<'_>, server: SocketAddr) {
    space.wait_answer(server, Result::is_err);
}

fn pod_changed(cluster: &Cluster, before: &str) {
    assert_ne!(cluster.agent().pod("edge1"), before, "another pod");
}

#[test]
fn agents_are_restarted_and_updated_under_streams() {
    let Some(cluster) = take() else { return };
    let space = Space::new(&cluster, "restarts");
    let vips = space.web("web", 2);
    let watch = Watch::start(&space, vips);
    let agent = cluster.agent();
    let as_it_was = Finally(|| cluster.deploy());

    let before = agent.pod("edge1");
    agent.kubectl(&format!("rollout restart {DAEMON_SET}"));
    agent.wait_rolled_out();
    pod_changed(&cluster, &before);
    watch.check("rollout restart");

    let name = agent.kubectl(&format!("get {DAEMON_SET} -o jsonpath={{..image}}"));
    cluster.tag("edge1", name.trim(), NEXT);
    let before = agent.pod("edge1");
    agent.kubectl(&format!("set image {DAEMON_SET} agent={NEXT}"));
    agent.wait_rolled_out();
    pod_changed(&cluster, &before);
    watch.check("image update");

    // Fewer privileges: the component for that is in this overlay.
    let before = agent.pod("edge1");
    cluster.apply_directory(&deploy().join("overlays/example"));
    agent.wait_rolled_out();
    pod_changed(&cluster, &before);
    let privileged = agent.kubectl(&format!("get {DAEMON_SET} -o jsonpath={{..privileged}}"));
    assert_eq!(privileged, "false");
    watch.check("capabilities instead of privileges");
    follows(&space, "with-capabilities");

    drop(as_it_was);
    watch.check("privileges again");
    follows(&space, "with-privileges");
}

#[test]
fn a_killed_agent_comes_back() {
    let Some(cluster) = take() else { return };
    let space = Space::new(&cluster, "killed");
    let vips = space.web("web", 2);
    let watch = Watch::start(&space, vips);
    let agent = cluster.agent();
    let before = agent.process("edge1").expect("a running agent");
    agent.signal("edge1", Signal::SIGKILL);
    agent.wait_replaced("edge1", before);
    follows(&space, "after");
    watch.check("kill -9");
}

#[test]
fn the_data_path_outlives_the_daemon_set() {
    let Some(cluster) = take() else { return };
    let space = Space::new(&cluster, "removed");
    let vips = space.web("web", 2);
    let gone = space.web("gone", 1);
    let watch = Watch::start(&space, vips);
    let agent = cluster.agent();

    let there = Finally(|| cluster.deploy());
    agent.kubectl(&format!("delete {DAEMON_SET}"));
    agent.wait_gone("edge1");
    watch.check("no DaemonSet");
    // Nobody hears of this now.
    space.kubectl("delete service,deployment gone");
    space.kubectl("scale deployment/web --replicas=4");
    space.wait_rolled_out("web");
    watch.check("changes without an agent");

    drop(there);
    for server in gone.at(80) {
        wait_unserved(&space, server);
    }
    let services = agent.lbctl("edge1", "services");
    assert!(!services.contains("removed/gone"), "{services}");
    watch.load.wait_answers(&space.pods("web"), PATIENCE);
    watch.check("DaemonSet created again");
}
