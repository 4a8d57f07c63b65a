//! Deployments, pods and nodes change while clients ask.

use lb_tests::kubernetes::{
    cluster::{Finally, PATIENCE},
    load::Load,
    say,
    space::Space,
    stream::Streams,
};

use crate::take;

/// Ends the load; no request may have failed.
fn unharmed(load: Load, what: &str) {
    load.wait_more(100, PATIENCE);
    let tally = load.end();
    say(&format!("{what}: {tally}"));
    tally.assert_unharmed(what);
}

#[test]
fn a_deployment_is_rolled_and_its_pods_are_deleted() {
    let Some(cluster) = take() else { return };
    let space = Space::new(&cluster, "rolled");
    let vips = space.web("web", 3);
    let load = space.load(vips);

    let before = space.pods("web");
    space.kubectl("rollout restart deployment/web");
    space.wait_rolled_out("web");
    let after = space.pods("web");
    assert!(
        after.iter().all(|pod| !before.contains(pod)),
        "{before:?} {after:?}"
    );
    load.wait_answers(&after, PATIENCE);

    for pod in &after[..2] {
        space.kubectl(&format!("delete pod {pod} --wait=false"));
    }
    space.wait_rolled_out("web");
    load.wait_answers(&space.pods("web"), PATIENCE);
    unharmed(load, "rollout and deleted pods");
}

#[test]
fn a_service_without_pods_refuses_until_there_are_some() {
    let Some(cluster) = take() else { return };
    let space = Space::new(&cluster, "zero");
    let vips = space.web("web", 2);
    space.kubectl("scale deployment/web --replicas=0");
    for server in vips.at(80) {
        space.wait_refused(server);
    }
    // A datagram is refused too, by an ICMP message.
    for server in vips.at(53) {
        let error = cluster
            .client()
            .ask_udp(server)
            .expect_err("nobody is there");
        assert_eq!(
            error.kind(),
            std::io::ErrorKind::ConnectionRefused,
            "{server}"
        );
    }
    space.kubectl("scale deployment/web --replicas=2");
    space.wait_rolled_out("web");
    for server in vips.at(80) {
        space.wait_heard(server, &space.pods("web"));
    }
    let load = space.load(vips);
    unharmed(load, "scaled to 0 and back");
}

#[test]
fn a_node_is_drained() {
    let Some(cluster) = take() else { return };
    let space = Space::new(&cluster, "drained");
    let vips = space.web("web", 4);
    let load = space.load(vips);
    let usable = Finally(|| {
        cluster.kubectl(["uncordon", "worker2"]);
    });
    // Pods of other tests in passing may be there too.
    cluster.kubectl([
        "drain",
        "worker2",
        "--ignore-daemonsets",
        "--force",
        "--timeout=90s",
    ]);
    space.wait_rolled_out("web");
    load.wait_answers(&space.pods("web"), PATIENCE);
    let nodes = space.kubectl("get pods -o jsonpath={.items[*].spec.nodeName}");
    drop(usable);
    assert!(!nodes.contains("worker2"), "{nodes}");
    unharmed(load, "drained node");
}

#[test]
fn readiness_flaps() {
    let Some(cluster) = take() else { return };
    let space = Space::new(&cluster, "flapping");
    let vips = space.web("web", 2);
    let streams = Streams::start(&cluster.client(), &vips.at(80), 16);
    let load = space.load(vips);
    let pods = space.pods("web");
    let [flapping, steady] = pods.as_slice() else {
        panic!("not two pods: {pods:?}");
    };
    for _ in 0..3 {
        space.tell(flapping, "/unready");
        space.kubectl(&format!(
            "wait --for=condition=Ready=false pod/{flapping} --timeout=60s"
        ));
        load.wait_answers(std::slice::from_ref(steady), PATIENCE);
        space.tell(flapping, "/ready");
        space.kubectl(&format!(
            "wait --for=condition=Ready pod/{flapping} --timeout=60s"
        ));
        load.wait_answers(std::slice::from_ref(flapping), PATIENCE);
    }
    streams.assert_alive();
    assert_eq!(streams.pods(), pods, "streams from both");
    unharmed(load, "flapping readiness");
}
