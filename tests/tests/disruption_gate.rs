//! The first promise as a number: flows lost while everything around them changes.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Mutex,
    time::Duration,
};

use lb_tests::{
    disruption::{
        api::{self, Api},
        disturb::Stage,
        flows::{Flows, Outcome, Tuple},
        newcomers::{Newcomers, Tally},
        others::Others,
        own::{self, Endpoints},
        preferred,
        scene::{self, NODE, Scene, endpoint},
        seconds,
        server::Servers,
        sessions::{self, Sessions},
        tables::Tables,
        upkeep,
    },
    netns::{agent::Node, now, postgres::Postgres, serial},
    require,
};

/// Watched flows, evenly over the frontends.
const FLOWS: usize = 1_000;
/// Flows beside them that do not meet the load balancer.
const CONTROLS: usize = 8;
/// Changes of other Services in a minute, and at least.
const OTHERS: u64 = 10_000;
/// Messages per second of each flow, at least.
const PACE: f64 = 10.0;

/// The programs the gate needs beside the usual ones.
fn programs() -> bool {
    let mut all = ["psql", "postgres", "curl", "websocketd"].into_iter();
    all.all(require::program)
}

fn targets(number: usize) -> Vec<SocketAddr> {
    own::frontends().into_iter().cycle().take(number).collect()
}

fn controls() -> Vec<SocketAddr> {
    let all = scene::controls().into_iter().cycle();
    all.take(CONTROLS).collect()
}

#[test]
fn flows_outlive_everything() {
    if !require::kernel_tests() || !programs() {
        return;
    }
    let _one = serial();
    let time = Duration::from_secs(seconds());
    let scene = Scene::new();
    let servers = Servers::start(&scene.servers());
    let first = scene.backends.first().expect("a backend");
    let _programs = preferred(|| (Postgres::start(first), sessions::websocket_server(first)));
    let files = tempfile::tempdir().expect("a temporary directory");
    let api = Api::start(&scene.lb);
    api.put(api::Kind::Node, NODE, api::node(NODE));
    let kubeconfig = api.kubeconfig(files.path());
    let mut node = scene
        .node()
        .with(&format!("--kubeconfig={}", kubeconfig.display()))
        .with("--events=false");
    Endpoints::Few.publish(&node.manifests());
    for (name, manifest) in sessions::services([false, true].map(|v6| endpoint(0, 1, v6))) {
        own::write(&node.manifests(), name, &manifest);
    }
    let fixed = own::frontends().len() + sessions::FRONTENDS;
    node.start(fixed);

    let flows = Flows::start(&scene.client, &targets(FLOWS), &controls());
    let clock = flows.start_of_clock();
    let own = [false, true].map(|v6| endpoint(0, 1, v6));
    let sessions = Sessions::start(&scene.client, &own, clock);
    let selected = selected(&flows);
    let modes = modes(&node);
    let started = sessions.count();
    let pause = Duration::from_millis(100);
    let patience = Duration::from_secs(10);
    let newcomers = Newcomers::start(&scene.client, &own::frontends(), 4, pause, patience);

    let tables = Tables::new(node.pin_root());
    let stage = Stage::new(&scene, &node.manifests(), tables, clock);
    let mut others = Others::default();
    let api = Mutex::new(api);
    disturb(&mut node, &stage, &api, &mut others, time);
    node.wait_frontends(fixed + others.frontends());

    let newcomers = newcomers.finish();
    let outcome = flows.finish();
    let (mut lost, longest) = sessions.finish();
    lost.extend(outcome.lost());
    lost.extend(servers.complaints());
    for stall in outcome.stalls() {
        let around = stage.counts.around(stall, Duration::from_secs(1));
        lost.push(format!("around {stall}: {around}"));
    }
    let longest = longest.max(outcome.longest());
    println!("flows by family and mode: {modes}");
    println!(
        "sessions beside them: {} PostgreSQL transactions, {} WebSocket streams",
        started[0], started[1]
    );
    tell(&outcome, &newcomers, &selected);
    println!(
        "flows: {FLOWS}  disturbances: {}  longest stall: {} ms  lost: {}",
        stage.counts,
        longest.as_millis(),
        lost.len()
    );
    assert!(lost.is_empty(), "{lost:#?}");
    assert!(newcomers.failed.is_empty(), "{:#?}", newcomers.failed);
    assert!(outcome.slowest() >= PACE, "{}", outcome.slowest());
}

/// Everything at once, for so long.
fn disturb(
    node: &mut Node<'_>,
    stage: &Stage<'_>,
    api: &Mutex<Api<'_>>,
    others: &mut Others,
    time: Duration,
) {
    let changes = OTHERS.max(OTHERS * time.as_secs() / 60);
    std::thread::scope(|scope| {
        // Also when something here panics.
        let _stop = stage.stopper();
        scope.spawn(|| stage.change_others(others, api, changes, time));
        scope.spawn(|| stage.fail_api(api));
        scope.spawn(|| stage.churn(&own::frontends()));
        scope.spawn(|| stage.reroute());
        let begin = now();
        while begin.elapsed() < time {
            upkeep::turn(node, stage);
        }
    });
}

/// For each set of endpoints, how many flows would move if they were selected anew. Our own selection must
/// agree with what the data path did, else the number would mean nothing.
fn selected(flows: &Flows) -> Vec<(Endpoints, usize)> {
    let backends: Vec<(Tuple, IpAddr)> = flows.backends();
    let here = own::would_move(&backends, Endpoints::Few);
    assert_eq!(here, 0, "flows are elsewhere than Maglev says");
    let sets = Endpoints::CHURN.map(|set| (set, own::would_move(&backends, set)));
    for (set, moved) in sets {
        assert!(moved * 10 >= FLOWS * 9, "{set:?} would move {moved} flows");
    }
    sets.into()
}

/// Watched flows by family and mode, as the data path's own tables tell.
fn modes(node: &Node<'_>) -> String {
    let all = node.lbctl_json(["flows", "-o", "json"]);
    let mut modes: BTreeMap<String, usize> = BTreeMap::new();
    for flow in all.as_array().expect("a list of flows") {
        let text = |key: &str| flow.get(key).and_then(|it| it.as_str()).unwrap_or_default();
        let frontend: SocketAddr = text("frontend").parse().expect("a frontend");
        if own::frontends().contains(&frontend) {
            let family = if frontend.is_ipv4() { "IPv4" } else { "IPv6" };
            let place = match text("place") {
                "local" => " to a pod",
                _ => "",
            };
            *modes
                .entry(format!("{family} {}{place}", text("mode")))
                .or_default() += 1;
        }
    }
    let modes = modes
        .iter()
        .map(|(mode, number)| format!("{number} {mode}"));
    modes.collect::<Vec<_>>().join(", ")
}

/// What the last line has no room for.
#[expect(clippy::print_stdout, reason = "the counts are the result")]
fn tell(outcome: &Outcome, newcomers: &Tally, selected: &[(Endpoints, usize)]) {
    for (set, moved) in selected {
        let (length, all) = (set.length(), set.all(false).len());
        println!(
            "{moved} of {FLOWS} flows would move if selected anew from {all} endpoints, {length} slots"
        );
    }
    let [one, other] = Endpoints::CHURN.map(|set| {
        let (gone, all) = set.replaced(other_than(set));
        format!("{gone} of {all}")
    });
    println!("each change of their own services' endpoints replaces {one} or {other} per family");
    println!(
        "each flow exchanged {:.1} messages a second in either direction or more, in {} s",
        outcome.slowest(),
        outcome.watched.as_secs()
    );
    let still: Duration = outcome.machine.iter().map(|it| it.length()).sum();
    let silence = outcome.flows.iter().map(|flow| flow.silence).max();
    println!(
        "control flows past the load balancer: longest silence {} ms; all of them were late for {} ms \
         in sum, which is no stall of a flow (longest silence of a flow with it: {} ms)",
        outcome.control_longest.as_millis(),
        still.as_millis(),
        silence.unwrap_or_default().as_millis()
    );
    println!(
        "new connections beside them: {} served, {} failed",
        newcomers.served,
        newcomers.failed.len()
    );
}

fn other_than(set: Endpoints) -> Endpoints {
    let [one, other] = Endpoints::CHURN;
    if set == one { other } else { one }
}

/// The gate would be worth nothing if it did not see a loss.
#[test]
fn a_gap_of_the_load_balancer_is_a_loss() {
    if !require::kernel_tests() {
        return;
    }
    let _one = serial();
    let scene = Scene::new();
    let _servers = Servers::start(&scene.servers());
    let mut node = scene.node();
    Endpoints::Few.publish(&node.manifests());
    node.start(own::frontends().len());
    let flows = Flows::start(&scene.client, &targets(40), &controls());
    let cut = |length| {
        scene.lb.ip("link set eth1 down");
        std::thread::sleep(Duration::from_millis(length));
        scene.lb.ip("link set eth1 up");
        // What was behind the device's networks.
        scene.restore_inside();
    };
    let broken = flows.broken();
    cut(1_200);
    std::thread::sleep(Duration::from_secs(2));
    let outcome = flows.finish();
    let pods = outcome.flows.iter().filter(|flow| {
        let backend = flow.backend.expect("every flow was answered");
        scene::is_pod(backend)
    });
    let pods = pods.count();
    assert_eq!(broken, 0);
    assert_eq!(
        outcome.lost().len(),
        40 - pods,
        "those by way of eth1: {:#?}",
        outcome.lost()
    );
}
