//! Conformance rows about health: real sockets on loopback, asked by a client of its own.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    sync::{
        atomic::{AtomicU16, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use lb_userspace::{
    health::{Bind, Health, Policy, PortState, Servers, Status, Wanted},
    http::Server,
    plan::HealthCheck,
    snapshot::ObjectName,
};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

/// How long anything here may take.
const DEADLINE: Duration = Duration::from_secs(10);
/// Longer than a test.
const EVER: Duration = Duration::from_hours(1);

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

#[test]
fn conformance_k01_listeners_follow_the_services() {
    let rig = Rig::new(Policy::default(), EVER);
    let [first, second, third] = free_ports();
    assert!(!connects(LOOPBACK, first), "nothing is wanted yet");

    rig.want(&[("a", first, 1), ("b", second, 0)], Bind::All);
    let answer = check(first);
    assert_eq!(answer.code, 200);
    assert_eq!(
        answer.json(),
        json!({
            "service": { "namespace": "default", "name": "a" },
            "localEndpoints": 1,
            "serviceProxyHealthy": true
        })
    );
    assert!(
        answer.body.contains("\n  \"service\": {\n"),
        "{}",
        answer.body
    );
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
    assert_eq!(check(second).code, 503);

    // Counts change without a new listener; Services which have no check are no matter.
    let mut held = TcpStream::connect((LOOPBACK, first)).expect("connect");
    assert_eq!(ask(&mut held, "GET", "/").code, 200);
    rig.want(&[("a", first, 0), ("b", second, 3)], Bind::All);
    until("counts", || {
        let codes = (check(first).code, check(second).code);
        codes == (503, 200)
    });
    assert_eq!(ask(&mut held, "GET", "/").code, 503, "the same connection");

    // Another port: the old one is closed, with its connections.
    rig.want(&[("a", third, 2), ("b", second, 3)], Bind::All);
    until("the new port", || connects(LOOPBACK, third));
    until("the old port is closed", || !connects(LOOPBACK, first));
    assert!(is_closed(&mut held), "connections to the old port end");
    assert_eq!(check(third).code, 200);

    // A port moves to another Service.
    rig.want(&[("c", third, 0)], Bind::All);
    until("the port answers for another Service", || {
        let answer = try_check(third);
        answer.is_some_and(|answer| answer.json()["service"]["name"] == "c")
    });
    until("b is gone", || !connects(LOOPBACK, second));

    // Gone: clients see a connection fail, not an answer.
    rig.want(&[], Bind::All);
    until("everything is closed", || !connects(LOOPBACK, third));
    assert_eq!(rig.told.try_iter().count(), 0, "nothing failed");
}

#[test]
fn conformance_k01_any_path_and_method_gets_the_same_answer() {
    let rig = Rig::new(Policy::default(), EVER);
    let [port] = free_ports();
    rig.want(&[("a", port, 2)], Bind::All);
    for (method, path) in [
        ("GET", "/healthz"),
        ("GET", "/"),
        ("GET", "/any/path?and=query"),
        ("POST", "/"),
        ("PUT", "/healthz"),
        ("DELETE", "/x"),
        ("OPTIONS", "*"),
        ("OPTIONS", "/"),
        ("PATCH", "/"),
    ] {
        let answer = check_with(port, method, path);
        assert_eq!(answer.code, 200, "{method} {path}");
        assert_eq!(answer.json()["localEndpoints"], 2, "{method} {path}");
    }
}

#[test]
fn conformance_k01_one_server_for_both_families() {
    let rig = Rig::new(Policy::default(), EVER);
    let [port] = free_ports();
    rig.want(&[("a", port, 1)], Bind::All);
    assert_eq!(check(port).code, 200);
    if TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok() {
        assert!(connects(Ipv6Addr::LOCALHOST.into(), port), "IPv6");
    }
}

#[test]
fn conformance_k01_a_taken_port_is_told_and_tried_again() {
    let rig = Rig::new(Policy::default(), EVER);
    let [taken, free] = free_ports();
    let other = TcpListener::bind((Ipv4Addr::UNSPECIFIED, taken)).expect("a listener");
    rig.want(&[("a", taken, 1), ("b", free, 1)], Bind::All);
    assert_eq!(check(free).code, 200, "others are not affected");
    let (service, text) = rig.told.recv_timeout(DEADLINE).expect("told");
    assert_eq!(service, name("a"));
    assert!(text.contains(&format!("{taken}")), "{text}");
    rig.until_state("a", PortState::Failed);

    // Not told again by the next sync; taken when it becomes free.
    rig.want(&[("a", taken, 1), ("b", free, 2)], Bind::All);
    until("synced", || check(free).weight() == Some("2"));
    assert_eq!(rig.told.try_iter().count(), 0, "told once");
    drop(other);
    rig.want(&[("a", taken, 1), ("b", free, 3)], Bind::All);
    rig.until_state("a", PortState::Serving);
    assert_eq!(check(taken).code, 200);
}

#[test]
fn conformance_k01_a_port_of_another_proxy_is_left_until_it_is_free() {
    let leave = Policy {
        leave_taken: true,
        wait: Duration::ZERO,
    };
    let rig = Rig::new(leave, EVER);
    let [port] = free_ports();
    let other = TcpListener::bind((LOOPBACK, port)).expect("a listener");
    rig.want(&[("a", port, 1)], Bind::All);
    rig.until_state("a", PortState::Elsewhere);
    assert_eq!(rig.told.try_iter().count(), 0, "that is no failure");
    drop(other);
    // By itself, without a change.
    rig.until_state("a", PortState::Serving);
    assert_eq!(check(port).code, 200);
}

#[test]
fn conformance_k02_an_unhealthy_proxy_fails_the_check() {
    let rig = Rig::new(Policy::default(), Duration::ZERO);
    let [port] = free_ports();
    rig.want(&[("a", port, 1)], Bind::All);
    assert_eq!(check(port).code, 200);
    rig.health.changed();
    until("the change is pending too long", || check(port).code == 503);
    let answer = check(port);
    assert_eq!(answer.json()["serviceProxyHealthy"], false);
    assert_eq!(answer.json()["localEndpoints"], 1);
    assert_eq!(answer.weight(), Some("1"));
    rig.health.applied();
    assert_eq!(check(port).code, 200);
}

#[test]
fn conformance_k03_the_weight_is_the_count() {
    let rig = Rig::new(Policy::default(), EVER);
    let [port] = free_ports();
    for count in [0, 1, 17] {
        rig.want(&[("a", port, count)], Bind::All);
        until("the count", || {
            let answer = check(port);
            answer.weight() == Some(&count.to_string())
                && answer.json()["localEndpoints"] == count
                && answer.code == if count == 0 { 503 } else { 200 }
        });
    }
}

#[test]
fn conformance_k04_only_node_port_addresses_are_bound() {
    let rig = Rig::new(Policy::default(), EVER);
    let [port] = free_ports();
    let [first, second, third] = [1, 2, 3].map(|last| IpAddr::from([127, 0, 0, last]));
    let bind = |addresses: &[IpAddr]| Bind::Addresses(addresses.iter().copied().collect());
    rig.want(&[("a", port, 1)], bind(&[first, second]));
    until("both", || connects(first, port) && connects(second, port));
    assert!(!connects(third, port), "not a node-port address");

    // The node's addresses change: those which stay keep their listener.
    let mut held = TcpStream::connect((second, port)).expect("connect");
    assert_eq!(ask(&mut held, "GET", "/").code, 200);
    rig.want(&[("a", port, 1)], bind(&[second, third]));
    until("the new one", || connects(third, port));
    until("the old one is closed", || !connects(first, port));
    assert_eq!(ask(&mut held, "GET", "/").code, 200);

    rig.want(&[("a", port, 1)], Bind::Addresses(BTreeSet::new()));
    until("no address", || !connects(second, port));
}

#[test]
#[expect(clippy::disallowed_methods, reason = "any instant will do")]
fn conformance_k05_a_change_pending_too_long_is_unhealthy() {
    // By the state: time is an argument.
    let at = |second| jiff::Timestamp::from_second(second).expect("a time");
    let timeout = Duration::from_mins(2);
    let mut status = Status::new(timeout, at(0));
    let start = Instant::now();
    assert!(status.report(start + 10 * timeout, at(1)).live, "at start");
    status.changed(start);
    assert!(status.report(start + timeout, at(2)).live);
    status.changed(start + timeout);
    let late = status.report(start + timeout + Duration::from_secs(1), at(3));
    assert!(!late.live, "the oldest change counts");
    assert_eq!(late.updated, at(0));
    status.applied(at(4));
    let report = status.report(start + 10 * timeout, at(5));
    assert!(report.live);
    assert_eq!(report.updated, at(5), "healthy: up to date now");

    // By the socket.
    let rig = Rig::new(Policy::default(), Duration::ZERO);
    let own = rig.own();
    for path in ["/livez", "/healthz"] {
        let answer = get(own.address(), path);
        assert_eq!(answer.code, 200, "{path}");
        assert_eq!(answer.status_line, "HTTP/1.1 200 OK");
        assert_eq!(answer.header("content-type"), Some("application/json"));
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
        let body = answer.json();
        assert_eq!(body["lastUpdated"], body["currentTime"], "{path}");
    }
    rig.health.changed();
    for path in ["/livez", "/healthz"] {
        until(path, || get(own.address(), path).code == 503);
        let body = get(own.address(), path).json();
        assert_ne!(body["lastUpdated"], body["currentTime"], "{path}");
    }
    rig.health.applied();
    assert_eq!(get(own.address(), "/livez").code, 200);
    assert_eq!(get(own.address(), "/healthz").code, 200);
}

#[test]
fn conformance_k06_an_ineligible_node_fails_healthz_alone() {
    let rig = Rig::new(Policy::default(), EVER);
    let own = rig.own();
    let [port] = free_ports();
    rig.want(&[("a", port, 1)], Bind::All);
    let steps = [
        ("never seen", None, true),
        ("no mark", Some(true), true),
        ("marked, or being deleted", Some(false), false),
        ("unknown", None, false),
        ("mark taken away", Some(true), true),
    ];
    for (what, eligible, healthy) in steps {
        rig.health.node(eligible);
        let healthz = get(own.address(), "/healthz");
        assert_eq!(healthz.code, if healthy { 200 } else { 503 }, "{what}");
        assert_eq!(healthz.json()["nodeEligible"], healthy, "{what}");
        let livez = get(own.address(), "/livez");
        assert_eq!(livez.code, 200, "{what}");
        assert_eq!(livez.json().get("nodeEligible"), None, "{what}");
        assert_eq!(check(port).code, 200, "{what}: node ports");
    }
}

#[test]
fn ready_is_filled_and_attached() {
    let rig = Rig::new(Policy::default(), EVER);
    let own = rig.own();
    assert_eq!(get(own.address(), "/readyz").code, 503);
    rig.health.changed();
    rig.health.applied();
    assert_eq!(get(own.address(), "/readyz").code, 503);
    rig.health.attached();
    assert_eq!(get(own.address(), "/readyz").code, 200);
    assert_eq!(get(own.address(), "/other").code, 404);
}

#[test]
fn a_taken_address_of_ours_is_named() {
    let rig = Rig::new(Policy::default(), EVER);
    let other = TcpListener::bind((LOOPBACK, 0)).expect("a listener");
    let address = other.local_addr().expect("an address");
    let _guard = rig.runtime.enter();
    let error = rig.health.serve(&[address]).expect_err("it is taken");
    assert_eq!(
        error.to_string(),
        format!("healthAddress: listen on {address}")
    );
}

/// Servers in a runtime of their own, and what they told.
struct Rig {
    // Before the runtime: it ends first.
    servers: Servers,
    health: Health,
    told: mpsc::Receiver<(ObjectName, String)>,
    runtime: Runtime,
}

impl Rig {
    fn new(policy: Policy, timeout: Duration) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let health = Health::new(timeout);
        let (tell, told) = mpsc::channel();
        let servers = {
            let _guard = runtime.enter();
            Servers::start(policy, health.clone(), move |service, text| {
                // A test that ends does not listen any more.
                drop(tell.send((service.clone(), text.to_owned())));
            })
        };
        Self {
            servers,
            health,
            told,
            runtime,
        }
    }

    fn want(&self, checks: &[(&str, u16, usize)], bind: Bind) {
        let checks: BTreeMap<_, _> = checks
            .iter()
            .map(|&(service, port, local_ready)| (name(service), HealthCheck { port, local_ready }))
            .collect();
        self.servers.update(Wanted {
            checks: checks.into(),
            bind,
        });
    }

    fn until_state(&self, service: &str, state: PortState) {
        let states = self.servers.states();
        until(&format!("{service} {state:?}"), || {
            states.borrow().get(&name(service)) == Some(&state)
        });
    }

    /// The agent's own endpoints.
    fn own(&self) -> Server {
        let _guard = self.runtime.enter();
        let address = SocketAddr::new(LOOPBACK, 0);
        Server::start(address, self.health.router()).expect("a server")
    }
}

/// Waits for the listener.
fn check(port: u16) -> Answer {
    check_with(port, "GET", "/healthz")
}

fn check_with(port: u16, method: &str, path: &str) -> Answer {
    until("a listener", || connects(LOOPBACK, port));
    let mut stream = TcpStream::connect((LOOPBACK, port)).expect("connect");
    ask(&mut stream, method, path)
}

/// Nothing, if the listener closes meanwhile.
fn try_check(port: u16) -> Option<Answer> {
    let mut stream = TcpStream::connect((LOOPBACK, port)).ok()?;
    try_ask(&mut stream, "GET", "/healthz").ok()
}

struct Answer {
    code: u16,
    status_line: String,
    headers: BTreeMap<String, String>,
    body: String,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    fn weight(&self) -> Option<&str> {
        self.header("x-load-balancing-endpoint-weight")
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.body).expect("JSON")
    }
}

fn get(address: SocketAddr, path: &str) -> Answer {
    let mut stream = TcpStream::connect(address).expect("connect");
    ask(&mut stream, "GET", path)
}

/// Asks once; the connection stays open.
fn ask(stream: &mut TcpStream, method: &str, path: &str) -> Answer {
    try_ask(stream, method, path).expect("an answer")
}

fn try_ask(stream: &mut TcpStream, method: &str, path: &str) -> std::io::Result<Answer> {
    stream.set_read_timeout(Some(DEADLINE))?;
    write!(stream, "{method} {path} HTTP/1.1\r\nHost: test\r\n\r\n")?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).expect("text");
    let mut lines = head.lines();
    let status_line = lines.next().expect("a status line").to_owned();
    let code = status_line.split(' ').nth(1).expect("a code");
    let headers: BTreeMap<_, _> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
        .collect();
    let length = headers.get("content-length").expect("a length");
    let mut body = vec![0; length.parse().expect("a number")];
    stream.read_exact(&mut body)?;
    Ok(Answer {
        code: code.parse().expect("a number"),
        status_line,
        headers,
        body: String::from_utf8(body).expect("text"),
    })
}

fn name(service: &str) -> ObjectName {
    ObjectName::new("default", service)
}

fn connects(address: IpAddr, port: u16) -> bool {
    let address = SocketAddr::new(address, port);
    TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok()
}

/// Whether the other side closed, at the latest by the deadline.
fn is_closed(stream: &mut TcpStream) -> bool {
    stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    match stream.read(&mut [0; 16]) {
        Ok(read) => read == 0,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

/// Ports nobody listens on, on any address: each is given once, and is none the kernel chooses.
fn free_ports<const N: usize>() -> [u16; N] {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let is_free = |port: &u16| {
        TcpListener::bind((Ipv6Addr::UNSPECIFIED, *port))
            .or_else(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, *port)))
            .is_ok()
    };
    [(); N].map(|()| {
        let first = 20_000 + u16::try_from(std::process::id() % 10_000).expect("below it");
        let ports = std::iter::repeat_with(|| first + NEXT.fetch_add(1, Ordering::Relaxed));
        ports.take(1_000).find(is_free).expect("a free port")
    })
}

#[expect(clippy::disallowed_methods, reason = "a deadline")]
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}: not within {DEADLINE:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
