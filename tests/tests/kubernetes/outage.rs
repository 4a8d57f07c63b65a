//! The API server is away, slow, forgetful, busy or unwilling.

use std::{net::IpAddr, thread::sleep, time::Duration};

use lb_tests::{
    kubernetes::{
        agent::{DAEMON_SET, NAMESPACE},
        api,
        cluster::{Finally, PATIENCE},
        objects, say,
        space::{Space, new_vips},
    },
    netns::{now, poll_until, text},
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::{
    agent::{Watch, follows, wait_unserved},
    take,
};

/// How long the API server is away: a minute by hand, `SLUICE_OUTAGE_SECONDS=60`.
fn outage() -> Duration {
    let seconds = std::env::var("SLUICE_OUTAGE_SECONDS").ok();
    Duration::from_secs(seconds.and_then(|it| it.parse().ok()).unwrap_or(20))
}

#[test]
fn pods_answer_while_the_api_server_and_etcd_are_dead() {
    let Some(cluster) = take() else { return };
    let space = Space::new(&cluster, "outage");
    let vips = space.web("web", 2);
    let watch = Watch::start(&space, vips);
    let back = Finally(|| {
        cluster.resume("etcd");
        cluster.resume("kube-apiserver");
        cluster.wait_api();
    });
    cluster.stop("kube-apiserver");
    cluster.stop("etcd");
    sleep(outage() / 2);
    // An agent that starts now finds nobody to ask, and must leave everything as it is.
    let agent = cluster.agent();
    let before = agent.process("edge1").expect("a running agent");
    agent.signal("edge1", Signal::SIGKILL);
    agent.wait_replaced("edge1", before);
    sleep(outage() / 2);
    watch.check(&format!("no API server and etcd for {:?}", outage()));
    drop(back);
    // Without the help of controllers, which take their own time.
    let start = now();
    let more = new_vips();
    let all = [vips.v4, vips.v6, more.v4, more.v6].map(|ip| json!({"ip": ip}));
    space.set_ingress("web", &json!(all));
    space.wait_ours(&more.at(80));
    let took = start.elapsed().as_secs_f64();
    say(&format!(
        "a change shows {took:.1} s after the API server is back"
    ));
    watch.check("API server and etcd are back");
}

#[test]
fn a_watch_that_is_too_old_starts_anew() {
    let Some(cluster) = take() else { return };
    let space = Space::new(&cluster, "expired");
    let vips = space.web("web", 2);
    let gone = space.web("gone", 1);
    let watch = Watch::start(&space, vips);
    // The agent loses its connections and can make none.
    let reachable = Finally(|| {
        cluster.node("edge1", &["nft", "delete table inet test-away"]);
    });
    let rules = [
        "add table inet test-away",
        "add chain inet test-away out { type filter hook output priority 0; }",
        "add rule inet test-away out ip daddr 10.200.0.2 reject with tcp reset",
    ];
    for rule in rules {
        cluster.node("edge1", &["nft", rule]);
    }
    space.kubectl("delete service,deployment gone");
    // A new API server has no history: what the agent saw last is too old for it.
    cluster.stop("kube-apiserver");
    cluster.resume("kube-apiserver");
    cluster.wait_api();
    let new = new_vips();
    space.apply(&objects::service(
        "new",
        "LoadBalancer",
        &json!({"selector": {"app": "web"}}),
    ));
    space.set_ingress("new", &json!([{"ip": new.v4}, {"ip": new.v6}]));
    let revision = space.field("service/new", "{.metadata.resourceVersion}");
    let compact = format!(
        "curl -sf http://127.0.0.1:2379/v3/kv/compaction -d '{{\"revision\": \"{revision}\"}}'"
    );
    cluster.place("control").inside(|| {
        let compacted = std::process::Command::new("sh")
            .args(["-c", &compact])
            .output();
        say(&format!("compaction: {compacted:?}"));
    });
    watch.check("no way to the API server");
    drop(reachable);
    space.wait_ours(&new.at(80));
    for server in gone.at(80) {
        wait_unserved(&space, server);
    }
    cluster.agent().wait_log("answers 410");
    watch.check("watches started anew");
}

#[test]
fn a_slow_api_server_delays_changes_and_nothing_else() {
    let Some(cluster) = take() else { return };
    let space = Space::new(&cluster, "slow");
    let vips = space.web("web", 2);
    let watch = Watch::start(&space, vips);
    let server = cluster.process("kube-apiserver");
    let signal = |signal| nix::sys::signal::kill(server, signal).expect("a signal");
    let _goes_on = Finally(|| signal(Signal::SIGCONT));
    for _ in 0..3 {
        space.kubectl("scale deployment/web --replicas=3");
        signal(Signal::SIGSTOP);
        sleep(Duration::from_secs(4));
        signal(Signal::SIGCONT);
        sleep(Duration::from_millis(500));
    }
    space.wait_rolled_out("web");
    watch.check("slow API server");
    follows(&space, "after");
}

#[test]
fn a_flood_of_updates_harms_nobody() {
    const SLICES: usize = 50;
    const UPDATES: usize = 5_000;
    let Some(cluster) = take() else { return };
    let space = Space::new(&cluster, "flood");
    let vips = space.web("web", 2);
    let watch = Watch::start(&space, vips);
    let names = space.pods("web");
    let pods: Vec<IpAddr> = names.iter().map(|pod| space.pod_ip(pod)).collect();
    let endpoints =
        |address: IpAddr| json!([{"addresses": [address], "conditions": {"ready": true}}]);
    let slices: Vec<_> = (0..SLICES).map(|number| format!("many-{number}")).collect();
    let mut all = vec![objects::service(
        "many",
        "LoadBalancer",
        &json!({
            "selector": null, "ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv4"],
        }),
    )];
    all.extend(
        slices
            .iter()
            .map(|name| objects::slice(name, "many", &endpoints(pods[0]))),
    );
    space.apply(&objects::list(&all));
    let many = new_vips();
    space.set_ingress("many", &json!([{"ip": many.v4}]));
    space.wait_served(&many.at(80)[..1]);

    // Back and forth between two pods; the last round leaves the second.
    let patches: Vec<(String, Value)> = (0..UPDATES)
        .map(|number| {
            let round = number / SLICES;
            let address = pods[(round + 1) % 2];
            (
                slices[number % SLICES].clone(),
                json!({"endpoints": endpoints(address)}),
            )
        })
        .collect();
    let last = (UPDATES / SLICES) % 2;
    // Patches under way at one time are not ordered: the last of each slice wait for all others.
    let (most, last_round) = patches.split_at(UPDATES - SLICES);
    let took: Duration = [most, last_round]
        .map(|part| api::patch_slices(&cluster, &space.name, part))
        .iter()
        .sum();
    let start = now();
    let expected = &names[last];
    poll_until("the last update to show", PATIENCE, || {
        let answers = cluster.client().ask_times(many.at(80)[0], 20);
        let mut answers = answers.iter();
        answers
            .all(|it| it.as_ref().is_ok_and(|it| it.pod == *expected))
            .then_some(())
    });
    say(&format!(
        "{UPDATES} slice updates in {:.1} s; the last one shows after {:.1} s",
        took.as_secs_f64(),
        start.elapsed().as_secs_f64()
    ));
    watch.check("flood of slice updates");
    cluster.agent().check_memory("5,000 slice updates");
}

#[test]
fn missing_permissions_are_named() {
    let Some(cluster) = take() else { return };
    let space = Space::new(&cluster, "denied");
    let vips = space.web("web", 2);
    let watch = Watch::start(&space, vips);
    let agent = cluster.agent();
    let allowed = Finally(|| cluster.deploy());
    let rules = cluster.kubectl(["get", "clusterrole", "sluice-agent", "-o", "json"]);
    let mut role: Value = serde_json::from_str(&rules).expect("JSON");
    let rules = role["rules"].as_array_mut().expect("rules");
    rules.retain(|rule| !rule["resources"].to_string().contains("endpointslices"));
    for field in ["resourceVersion", "uid", "managedFields"] {
        role["metadata"]
            .as_object_mut()
            .expect("metadata")
            .remove(field);
    }
    let output = cluster.kubectl_with(["replace", "-f", "-"], &role.to_string());
    assert!(output.status.success(), "{}", text(&output.stderr));

    let before = agent.pod("edge1");
    cluster.kubectl(["-n", NAMESPACE, "delete", "pod", &before, "--wait=true"]);
    let line = poll_until("an error that names verb and resource", PATIENCE, || {
        let log = agent.log();
        let words = ["list", "endpointslices", "discovery.k8s.io", "forbidden"];
        let line = log
            .lines()
            .find(|line| words.iter().all(|word| line.contains(word)));
        line.map(str::to_owned)
    });
    say(&format!("the agent says: {line}"));
    watch.check("no permission to list EndpointSlices");
    let ready = agent.kubectl(&format!(
        "get {DAEMON_SET} -o jsonpath={{.status.numberReady}}"
    ));
    assert_eq!(ready, "0", "an agent that cannot list is not ready");

    drop(allowed);
    follows(&space, "after");
    watch.check("permission restored");
}
