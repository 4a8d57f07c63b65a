//! Tables smaller than what clients ask for: short connections go on without an agent, those that last
//! stay, and the operator hears of it in time.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use lb_common::{
    names::{self, flow_use},
    reason::{Event, Reason},
};
use lb_tests::{
    netns::{
        Namespace,
        agent::Node,
        manifest::service,
        poll_until, serial,
        server::{Download, Server, http},
        world::{VIP4, VIP6, World, backend4, backend6, vips},
    },
    require,
};

/// Longest wait of a client, on a busy machine.
const SOON: Duration = Duration::from_secs(20);
/// Entries of each established table; a flow has two.
const ENTRIES: u32 = 256;
/// Clients that connect at the same time.
const CLIENTS: usize = 4;

fn node(world: &World) -> (Node<'_>, Server) {
    let server = http(world.backend(), "b0", 8080);
    let mut node = Node::new(world).snat();
    node.configure(&format!(
        "tables: {{flowsV4: {ENTRIES}, flowsV6: {ENTRIES}, embryonicV4: 1024, embryonicV6: 1024}}\n"
    ));
    let web = service("web").vip(VIP4).vip(VIP6).tcp(80, 8080);
    let web = web.endpoint(&backend4(0)).endpoint(&backend6(0));
    node.apply("web", &web);
    node.start(2);
    (node, server)
}

fn connect(vip: &str, limit: Duration) -> std::io::Result<TcpStream> {
    let vip: SocketAddr = vip.parse().expect("an address and a port");
    let stream = TcpStream::connect_timeout(&vip, limit)?;
    stream.set_read_timeout(Some(SOON))?;
    Ok(stream)
}

/// A request, its answer to the end, and the end of the connection.
fn ask(mut stream: TcpStream) -> std::io::Result<String> {
    stream.write_all(b"GET / HTTP/1.1\r\nHost: vip\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// Established entries the data path counts, by family.
fn entries(node: &Node<'_>) -> [u64; 2] {
    let uses = node.map(names::FLOW_USE).expect("FLOW_USE");
    [flow_use::V4, flow_use::V6].map(|element| {
        let entries: Option<u64> = uses.lookup(&element).expect("FLOW_USE");
        entries.unwrap_or_default()
    })
}

/// Short connections by several clients at once; how many broke, and how the first of them did.
fn short_connections(client: &Namespace, vip: &str, number: u32) -> (u32, Option<String>) {
    let left = AtomicU32::new(number);
    let run = || {
        let mut failures = Vec::new();
        while left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1))
            .is_ok()
        {
            match connect(vip, SOON).and_then(ask) {
                Ok(answer) if answer.contains("b0 ") => {}
                Ok(answer) => failures.push(format!("odd answer: {answer:?}")),
                Err(error) => failures.push(error.to_string()),
            }
        }
        failures
    };
    // Threads are born into the namespace of their parent.
    let failures: Vec<String> = client.inside(|| {
        std::thread::scope(|scope| {
            let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(run)).collect();
            let joined = clients.into_iter().map(std::thread::ScopedJoinHandle::join);
            joined
                .flat_map(|failures| failures.expect("a client does not panic"))
                .collect()
        })
    });
    let broken = u32::try_from(failures.len()).expect("few failures");
    (broken, failures.into_iter().next())
}

#[test]
fn ten_times_the_table_in_short_connections_with_the_agent_dead() {
    if !require::kernel_tests() {
        return;
    }
    let _one = serial();
    let world = World::two_armed(1);
    let (mut node, _server) = node(&world);
    let long: Vec<Download> = vips(80)
        .iter()
        .map(|vip| Download::start(&world.client, vip, "/stream/100000"))
        .collect();
    poll_until("the long flows to be established", SOON, || {
        (entries(&node) == [2, 2]).then_some(())
    });
    node.kill();
    for vip in vips(80) {
        let (broken, first) = short_connections(&world.client, &vip, 10 * ENTRIES);
        assert_eq!(broken, 0, "{vip}: {first:?}, of {}", 10 * ENTRIES);
    }
    let refused = node.reason(Reason::FlowTableFull);
    let retired = node.event(Event::FlowRetired);
    let used = entries(&node);
    eprintln!(
        "{} connections, tables of {ENTRIES} entries: {retired} flows retired, \
         {refused} packets refused, {used:?} entries left",
        20 * ENTRIES
    );
    assert!(used.iter().all(|used| *used <= ENTRIES.into()));
    assert!(retired >= u64::from(20 * ENTRIES - ENTRIES));
    for download in &long {
        let bytes = download.bytes();
        poll_until("the long flows to go on", SOON, || {
            (download.bytes() > bytes).then_some(())
        });
    }
}

#[test]
fn a_table_that_fills_is_told_of_and_loses_no_flow() {
    if !require::kernel_tests() {
        return;
    }
    let _one = serial();
    let world = World::two_armed(1);
    let (node, _server) = node(&world);
    // A sixteenth is kept for flows that are on their way.
    let most = ENTRIES as usize / 2 * 15 / 16;
    let [vip, _] = vips(80);
    let hold = |number: usize, limit: Duration| -> Vec<TcpStream> {
        world.client.inside(|| {
            let streams = (0..number).map(|_| connect(&vip, limit));
            streams.filter_map(Result::ok).collect()
        })
    };
    let many = most * 85 / 100;
    let mut streams = hold(many, SOON);
    assert_eq!(streams.len(), many);
    node.wait_log("the table fills");
    assert!(!node.log().contains("the table is full"), "{}", node.log());
    assert_eq!(node.reason(Reason::FlowTableFull), 0);

    streams.extend(hold(most - many, SOON));
    node.wait_log("the table is full");
    // There is no room for them; what is there does not yield.
    let more = hold(3, Duration::from_millis(200));
    assert_eq!(more.len(), 0);
    assert!(node.reason(Reason::FlowTableFull) >= 3);
    poll_until("the refusal in the log", SOON, || {
        node.log().contains("flow_table_full").then_some(())
    });
    assert_eq!(streams.len(), most);
    for stream in streams {
        let answer = ask(stream).expect("an established flow");
        assert!(answer.contains("b0 "), "{answer}");
    }
    // All are closed: whoever comes now takes their place, and the rest go as new ones come.
    let (broken, first) = short_connections(&world.client, &vip, ENTRIES);
    assert_eq!(broken, 0, "{first:?}");
    let metrics = world.lb.run(
        "curl",
        ["-sS", "--max-time", "5", "http://127.0.0.1:10350/metrics"],
    );
    let warned = metrics
        .lines()
        .find(|line| line.starts_with("sluice_table_pressure_warnings_total{table=\"flows_v4\"}"));
    assert!(
        warned.is_some_and(|line| !line.ends_with(" 0")),
        "{warned:?}"
    );
}
