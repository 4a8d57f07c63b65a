//! A load balancer at work, whose flows nothing in these tests may disturb.

use std::{path::PathBuf, time::Duration};

use lb_common::names;
use lb_tests::netns::{
    agent::Node,
    manifest::service,
    poll_until,
    server::{Download, Server, http},
    world::{VIP4, VIP6, World, backend4, backend6, vips},
};

const SOON: Duration = Duration::from_secs(10);

/// A service with one backend, served, and a flow of each family that goes on all the time.
pub(crate) struct Scene<'w> {
    pub(crate) world: &'w World,
    pub(crate) node: Node<'w>,
    flows: Vec<Download>,
    _server: Server,
}

impl<'w> Scene<'w> {
    /// With the SNAT addresses of the world.
    pub(crate) fn new(world: &'w World) -> Self {
        Self::with(world, Node::new(world).snat())
    }

    /// With another agent.
    pub(crate) fn with(world: &'w World, mut node: Node<'w>) -> Self {
        let server = http(world.backend(), "b0", 8080);
        let web = service("web").vip(VIP4).vip(VIP6).tcp(80, 8080);
        node.apply("web", &web.endpoint(&backend4(0)).endpoint(&backend6(0)));
        node.start(2);
        let start = |vip: &String| Download::start(&world.client, vip, "/stream/100000");
        Self {
            world,
            node,
            flows: vips(80).iter().map(start).collect(),
            _server: server,
        }
    }

    /// The flows go on, and new ones are made.
    pub(crate) fn serves(&self, while_: &str) {
        for (vip, flow) in vips(80).iter().zip(&self.flows) {
            let before = flow.bytes();
            poll_until(
                &format!("the flow to {vip} to go on: {while_}"),
                SOON,
                || (flow.bytes() > before + 100_000).then_some(()),
            );
            let url = format!("http://{vip}/");
            let curl = ["-sS", "--max-time", "5", &url];
            let out = self.world.client.run("curl", curl);
            assert!(out.starts_with("b0 "), "{while_}: {out}");
        }
    }

    /// An agent that starts now gives up, with these words, and nobody notices.
    pub(crate) fn refuses(&self, what: &str, words: &[&str]) {
        let output = Node::refused(self.node.command());
        expect_words(what, &output, words);
        self.serves(what);
    }

    /// The directory of the layout that serves.
    pub(crate) fn layout(&self) -> PathBuf {
        let map = self.node.map_path(names::MEMBERS);
        let layout = map.ancestors().nth(2).expect("a map lies two levels deep");
        layout.to_owned()
    }
}

/// What was printed has these words.
pub(crate) fn expect_words(what: &str, output: &str, words: &[&str]) {
    for word in words {
        assert!(output.contains(word), "{what}: no {word:?} in:\n{output}");
    }
}
