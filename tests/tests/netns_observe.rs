//! What the agent tells of itself and of the Services, asked over the network.

use std::time::Duration;

use lb_common::names;
use lb_tests::{
    netns::{
        Namespace,
        agent::Node,
        manifest::{ServiceManifest, service},
        poll, poll_until, serial,
        server::{Download, http},
        text,
        world::{VIP4, VIP6, World, backend4, backend6, vips},
    },
    require,
};

const PATIENCE: Duration = Duration::from_secs(20);
const HEALTH: &str = "http://127.0.0.1:10356";
const METRICS: &str = "http://127.0.0.1:10350";
const CHECK_PORT: u16 = 31_999;

/// What two downloads leave in the metrics: name, labels, and the least their sum may be.
const UNDER_TRAFFIC: &[(&str, &str, f64)] = &[
    (
        "sluice_service_packets_total",
        "family=\"IPv4\",direction=\"forward\"",
        3.0,
    ),
    (
        "sluice_service_packets_total",
        "family=\"IPv6\",direction=\"reply\"",
        3.0,
    ),
    ("sluice_service_bytes_total", "direction=\"reply\"", 1_000.0),
    ("sluice_service_new_flows_total", "port=\"tcp-80\"", 2.0),
    (
        "sluice_backend_packets_total",
        "address=\"10.0.0.11\",port=\"8080\"",
        6.0,
    ),
    (
        "sluice_backend_active_flows",
        "address=\"2001:db8:a::11\"",
        1.0,
    ),
    (
        "sluice_flow_table_entries",
        "family=\"IPv4\",protocol=\"TCP\"",
        2.0,
    ),
    (
        "sluice_flow_table_capacity_entries",
        "family=\"IPv4\"",
        16_384.0,
    ),
    ("sluice_snat_flows", "address=\"10.0.0.100\"", 1.0),
    (
        "sluice_snat_busiest_backend_ports",
        "address=\"2001:db8:a::64\"",
        1.0,
    ),
    (
        "sluice_snat_capacity_ports",
        "address=\"10.0.0.100\"",
        64_512.0,
    ),
    ("sluice_map_entries", "map=\"frontends_v4\"", 1.0),
    ("sluice_map_entries", "map=\"next_hop_index\"", 1.0),
    (
        "sluice_table_operations_total",
        "operation=\"set_service\"",
        2.0,
    ),
    ("sluice_apply_duration_seconds_count", "", 1.0),
    ("sluice_event_packets_total", "event=\"flow_created\"", 2.0),
    ("sluice_agent_resident_memory_bytes", "", 1_000_000.0),
    ("sluice_source_complete", "", 1.0),
];

fn web() -> ServiceManifest {
    service("web").vip(VIP4).vip(VIP6).tcp(80, 8080)
}

/// Status and body; no status if there is no connection.
fn get(namespace: &Namespace, url: &str) -> (Option<u16>, String) {
    let arguments = ["-sS", "-g", "--max-time", "5", "-w", "\n%{http_code}", url];
    let output = namespace.try_run("curl", arguments);
    let answer = text(&output.stdout);
    let (body, code) = answer.rsplit_once('\n').expect("a status");
    let code = code.parse().ok().filter(|code| *code != 0);
    (code, body.to_owned())
}

fn code(namespace: &Namespace, url: &str) -> Option<u16> {
    get(namespace, url).0
}

/// The sum of a metric's samples whose labels contain `labels`.
fn metric(metrics: &str, name: &str, labels: &str) -> Option<f64> {
    let values = metrics.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        let (series, value) = rest.rsplit_once(' ')?;
        let matches = series.is_empty() || series.starts_with('{') && series.contains(labels);
        matches.then(|| value.parse::<f64>().expect("a number"))
    });
    values.reduce(|a, b| a + b)
}

fn scrape(node: &Namespace) -> String {
    let (code, metrics) = get(node, &format!("{METRICS}/metrics"));
    assert_eq!(code, Some(200));
    assert!(
        metrics.ends_with("# EOF\n") || metrics.ends_with("# EOF"),
        "cut off"
    );
    metrics
}

#[test]
fn health_and_metrics_of_a_running_agent() {
    if !require::kernel_tests() {
        return;
    }
    let _one = serial();
    let world = World::one_armed(1);
    let _server = http(world.backend(), "b0", 8080);
    let mut node = Node::new(&world).snat();
    node.configure(
        "tables: {flowsV4: 16384, flowsV6: 16384, embryonicV4: 16384, embryonicV6: 16384}\n\
         timeouts: {udp: 4s}\n",
    );
    let endpoints = web().endpoint(&backend4(0)).endpoint(&backend6(0));
    node.apply("web", &endpoints);
    node.start(2);
    let lb = &world.lb;
    poll_until("ready", PATIENCE, || {
        (code(lb, &format!("{HEALTH}/readyz")) == Some(200)).then_some(())
    });
    assert_eq!(code(lb, &format!("{HEALTH}/livez")), Some(200));
    let (healthz, body) = get(&world.client, "http://198.51.100.1:10356/healthz");
    assert_eq!(healthz, Some(200), "{body}");
    assert!(body.contains("\"nodeEligible\": true"), "{body}");
    assert_eq!(code(lb, &format!("{METRICS}/proxyMode")), Some(200));
    assert_eq!(
        code(&world.client, "http://198.51.100.1:10350/metrics"),
        None,
        "loopback only"
    );

    let downloads: Vec<Download> = vips(80)
        .iter()
        .map(|vip| Download::start(&world.client, vip, "/stream/100000"))
        .collect();
    // A flow hands its traffic over once a tick.
    let mut missing = String::new();
    let metrics = poll(PATIENCE, || {
        let metrics = scrape(lb);
        let active = metric(&metrics, "sluice_service_active_flows", "service=\"web\"");
        if active != Some(2.0) {
            missing = format!("active flows: {active:?}");
            return None;
        }
        for (name, labels, least) in UNDER_TRAFFIC {
            let value = metric(&metrics, name, labels);
            if value.is_none_or(|value| value < *least) {
                missing = format!("{name}{{{labels}}}: {value:?}");
                return None;
            }
        }
        Some(metrics)
    });
    let metrics = metrics.unwrap_or_else(|| panic!("at last {missing}"));
    for (name, labels) in [
        ("sluice_map_read_failures", ""),
        ("sluice_apply_failures_total", ""),
        ("sluice_rejected_objects", ""),
    ] {
        assert_eq!(metric(&metrics, name, labels), Some(0.0), "{name}");
    }
    drop(downloads);
    // An object that cannot be served shows.
    node.apply("bad", &service("bad").vip("127.0.0.1").tcp(80, 8080));
    poll_until("the rejection", PATIENCE, || {
        let rejected = metric(&scrape(lb), "sluice_rejected_objects", "kind=\"Service\"");
        (rejected == Some(1.0)).then_some(())
    });
}

#[test]
fn conformance_i02_health_check_ports_answer_on_every_node_port_address() {
    if !require::kernel_tests() {
        return;
    }
    let _one = serial();
    let world = World::one_armed(1);
    let mut node = Node::new(&world).snat();
    let local = |ready: ServiceManifest| {
        let line = format!("healthCheckNodePort: {CHECK_PORT}");
        ready.spec("externalTrafficPolicy: Local").spec(&line)
    };
    node.apply("web", &local(web().endpoint(&backend4(0)).on_node("edge")));
    node.start(2);
    let urls = ["198.51.100.1", "10.0.0.1", "[2001:db8:100::1]"]
        .map(|address| format!("http://{address}:{CHECK_PORT}/"));
    for url in &urls {
        poll_until(url, PATIENCE, || {
            (code(&world.client, url) == Some(200)).then_some(())
        });
    }
    // Terminating endpoints do not count, though they are served.
    let draining = web().endpoint(&backend4(0)).on_node("edge").draining();
    node.apply("web", &local(draining));
    let [url, ..] = &urls;
    poll_until("503", PATIENCE, || {
        (code(&world.client, url) == Some(503)).then_some(())
    });
    let (_, body) = get(&world.client, url);
    assert!(body.contains("\"localEndpoints\": 0"), "{body}");
    // The policy changes: nobody listens any more.
    node.apply("web", &web().endpoint(&backend4(0)).on_node("edge"));
    poll_until("a closed port", PATIENCE, || {
        code(&world.client, url).is_none().then_some(())
    });
}

#[test]
fn a_taken_address_ends_the_agent_before_it_touches_anything() {
    if !require::kernel_tests() {
        return;
    }
    let _one = serial();
    let world = World::one_armed(1);
    let _taken = http(&world.lb, "somebody", 10_350);
    let node = Node::new(&world);
    let output = node.command().output().expect("the agent runs");
    assert!(!output.status.success());
    let words = text(&output.stderr);
    assert!(
        words.contains("metricsAddress: listen on 127.0.0.1:10350"),
        "{words}"
    );
    assert!(node.map(names::SERVICES).is_none(), "nothing is pinned");
}
