//! Sluice comes to a node where kube-proxy serves long connections, and goes again: none of them breaks.

use std::{collections::BTreeSet, net::IpAddr};

use lb_tests::{
    kubernetes::{
        client::Answer,
        cluster::{Cluster, Finally, PATIENCE},
        detach::Detach,
        load::{Load, Protocol, SNAT},
        objects, say,
        sessions::Sessions,
        space::{Pair, Space},
        stream::Streams,
    },
    netns::poll_until,
};

use crate::take;

/// Long connections to each family's VIP, of each kind.
const EACH: usize = 8;
/// The edge node as kube-proxy's masquerade shows it, and the outside client.
const NODE: [&str; 2] = ["10.200.0.11", "2001:db8:200::11"];

/// Connections that began at one time.
struct Connections {
    streams: Streams,
    sessions: Sessions,
}

impl Connections {
    fn start(cluster: &Cluster, vips: Pair) -> Self {
        let client = cluster.client();
        Self {
            streams: Streams::start(&client, &vips.at(80), EACH),
            sessions: Sessions::start(&client, &vips.at(53), EACH),
        }
    }

    fn check(&self, when: &str) {
        self.streams.assert_alive();
        self.sessions.assert_alive(when);
        let (lost, longest) = self.sessions.lost();
        say(&format!(
            "{when}: {} streams and {} UDP conversations, 0 broken; {lost} datagrams lost, slowest answer {} ms",
            self.streams.count(),
            self.sessions.count(),
            longest.as_millis()
        ));
    }

    /// Which balancer they go by, as the pods tell.
    fn assert_by(&self, addresses: [&str; 2], when: &str) {
        let expected: BTreeSet<IpAddr> = addresses
            .iter()
            .map(|it| it.parse().expect("an IP"))
            .collect();
        assert_eq!(self.streams.peers(), expected, "streams, {when}");
        assert_eq!(self.sessions.peers(), expected, "conversations, {when}");
    }
}

/// New requests show who balances now.
fn wait_balanced_by(space: &Space<'_>, vips: Pair, addresses: [&str; 2], when: &str) {
    let is = |answer: &std::io::Result<Answer>, by: &str| {
        answer
            .as_ref()
            .is_ok_and(|it| it.peer.ip().to_string() == by)
    };
    for (server, by) in vips.at(80).into_iter().zip(addresses) {
        poll_until(&format!("{server} by {by}, {when}"), PATIENCE, || {
            let answers = space.cluster.client().ask_times(server, 10);
            answers.iter().all(|answer| is(answer, by)).then_some(())
        });
    }
}

/// Requests on new connections meanwhile, each of which must succeed, whoever serves it.
fn unharmed(load: Load, when: &str) {
    load.wait_more(100, PATIENCE);
    let tally = load.end();
    say(&format!("{when}: {tally}"));
    assert!(tally.failed.is_empty(), "{when}: {tally}");
}

#[test]
fn connections_of_kube_proxy_and_of_sluice_outlive_the_other() {
    let Some(cluster) = take() else { return };
    let agent = cluster.agent();
    let as_it_was = Finally(|| cluster.deploy());
    agent.remove();
    let detach = Detach::start(&cluster);
    detach.wait_done();
    drop(detach);

    let space = Space::new(&cluster, "cutover");
    space.apply(&objects::deployment("web", 3));
    let vips = space.load_balancer("web", &serde_json::json!({}));
    space.wait_rolled_out("web");
    wait_balanced_by(&space, vips, NODE, "before Sluice");
    // kube-proxy hears of each pod in its own time.
    for server in vips.at(80) {
        space.wait_heard(server, &space.pods("web"));
    }
    let old = Connections::start(&cluster, vips);
    old.check("by kube-proxy, before Sluice");
    old.assert_by(NODE, "before Sluice");

    let load = space.load(vips);
    drop(as_it_was);
    wait_balanced_by(&space, vips, SNAT, "with Sluice");
    let new = Connections::start(&cluster, vips);
    new.assert_by(SNAT, "with Sluice");
    old.check("by kube-proxy, with Sluice");
    new.check("by Sluice");
    let flows = agent.lbctl("edge1", "flows");
    let kept = flows
        .lines()
        .filter(|line| line.contains(" stack "))
        .count();
    assert!(kept >= 2 * EACH, "{kept} of the stack's own:\n{flows}");

    let again = Finally(|| cluster.deploy());
    agent.remove();
    old.check("by kube-proxy, without an agent");
    new.check("by Sluice, without an agent");
    let detach = Detach::start(&cluster);
    wait_balanced_by(&space, vips, NODE, "while Sluice leaves");
    let last = Connections::start(&cluster, vips);
    last.assert_by(NODE, "while Sluice leaves");
    old.check("by kube-proxy, while Sluice leaves");
    new.check("by Sluice, while it leaves");
    last.check("by kube-proxy again");
    assert!(!detach.is_done(), "flows are there: {}", detach.log());

    // Its last flows end, and with them its work. A UDP client that came by a port again would keep its flow.
    drop(new);
    unharmed(load, "new connections while Sluice comes and leaves");
    let load = Load::start(
        &cluster.client(),
        &vips.at(80).map(|server| (Protocol::Tcp, server)),
    );
    detach.wait_done();
    say(&format!(
        "lbctl detach said: {}",
        detach.log().trim().replace('\n', "; ")
    ));
    drop(detach);
    old.check("by kube-proxy, Sluice gone");
    last.check("by kube-proxy again, Sluice gone");
    wait_balanced_by(&space, vips, NODE, "Sluice gone");
    unharmed(load, "new connections while it is removed");
    let programs = cluster.node("edge1", &["bpftool", "net"]);
    assert!(!programs.contains("lb_"), "{programs}");
    drop(again);
}
