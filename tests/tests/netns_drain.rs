//! Backends that leave: what hangs on them stays, until it ends or its Service's drain deadline passes.

use std::{
    io,
    time::{Duration, Instant},
};

use lb_common::{names, reason::Event, service::MemberKey};
use lb_tests::{
    netns::{
        agent::Node,
        manifest::{ServiceManifest, service},
        now, poll_until, serial,
        server::{Server, TcpClient, UdpClient, tcp_echo, udp_echo},
        world::{VIP4, VIP6, World, backend4, backend6, vips},
    },
    require,
};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(15);
/// The deadline of Services whose flows are to be ended.
const DEADLINE: Duration = Duration::from_secs(8);
/// The agent looks at the flows four times in the shortest timeout, so each second.
const CONFIG: &str = "
tables: {flowsV4: 16384, flowsV6: 16384, embryonicV4: 16384, embryonicV6: 16384}
timeouts: {closed: 4s}
";

/// How a backend leaves.
#[derive(Clone, Copy, Debug)]
enum Leaves {
    Terminating,
    Removed,
}

/// A Service of both VIPs and families: TCP on `port`, UDP on the next.
fn echo(name: &str, port: u16, deadline: Option<&str>) -> ServiceManifest {
    let echo = service(name)
        .vip(VIP4)
        .vip(VIP6)
        .tcp(port, 7000)
        .udp(port + 1, 7001);
    match deadline {
        Some(deadline) => echo.annotation("sluice.dev/drain-deadline", deadline),
        None => echo,
    }
}

fn with(manifest: &ServiceManifest, number: usize) -> ServiceManifest {
    manifest
        .clone()
        .endpoint(&backend4(number))
        .endpoint(&backend6(number))
}

/// Backend 1 takes the place of backend 0.
fn replaced(manifest: &ServiceManifest, leaves: Leaves) -> ServiceManifest {
    let manifest = with(manifest, 1);
    match leaves {
        Leaves::Removed => manifest,
        Leaves::Terminating => manifest
            .endpoint(&backend4(0))
            .draining()
            .endpoint(&backend6(0))
            .draining(),
    }
}

fn serve(world: &World) -> Vec<Server> {
    let backends = world.backends.iter().enumerate();
    backends
        .flat_map(|(number, backend)| {
            let name = format!("b{number}");
            [
                tcp_echo(backend, &name, 7000),
                udp_echo(backend, &name, 7001),
            ]
        })
        .collect()
}

/// A connection to a Service on each family, all with the backend that new ones must reach.
fn connect(world: &World, port: u16, backend: &str) -> Vec<TcpClient> {
    let connect = |vip: &String| {
        poll_until(&format!("{vip} to be {backend}'s"), SOON, || {
            let mut client = TcpClient::new(&world.client, vip);
            let answer = client.ask("hello").expect("an answer");
            answer.starts_with(backend).then_some(client)
        })
    };
    vips(port).iter().map(connect).collect()
}

/// All are where they were.
fn expect(clients: &mut [TcpClient], backend: &str) {
    for client in clients {
        let answer = client.ask("still").expect("an answer");
        assert_eq!(answer, format!("{backend} still"));
    }
}

/// Asks until every connection was reset; the time it took.
fn expect_resets(clients: Vec<TcpClient>, backend: &str) -> Duration {
    let begun = now();
    for mut client in clients {
        let error = poll_until("the end of a connection", SOON, || {
            match client.ask("still") {
                Ok(answer) => {
                    assert_eq!(answer, format!("{backend} still"));
                    None
                }
                Err(error) => Some(error),
            }
        });
        let reset = [io::ErrorKind::ConnectionReset, io::ErrorKind::BrokenPipe];
        assert!(reset.contains(&error.kind()), "{error}");
    }
    begun.elapsed()
}

/// Open TCP flows which `lbctl` says drain, and how many of them have a deadline.
fn draining(node: &Node<'_>, service: &str) -> (usize, usize) {
    let flows = node.lbctl_json(["-o", "json", "flows", "--draining", "--service", service]);
    let flows = flows.as_array().expect("a list");
    let text = |flow: &Value, path| {
        flow.pointer(path)
            .and_then(Value::as_str)
            .map(str::to_owned)
    };
    let is = |flow: &Value, path, word| text(flow, path).as_deref() == Some(word);
    let open: Vec<_> = flows
        .iter()
        .filter(|flow| is(flow, "/protocol", "TCP") && is(flow, "/state", "established"))
        .collect();
    let with_deadline = open
        .iter()
        .filter(|flow| text(flow, "/draining/deadline").is_some());
    (open.len(), with_deadline.count())
}

/// Waits until so many deadlines are noted.
fn wait_deadlines(node: &Node<'_>, count: usize) {
    poll_until(&format!("{count} deadlines"), SOON, || {
        let map = node.map(names::DRAINS).expect("DRAINS is pinned");
        let noted = map.read_all::<MemberKey, u64>().expect("a map");
        (noted.len() == count).then_some(())
    });
}

/// All stay where they are until a deadline of five seconds, which began no later than `begun`, is long over.
fn expect_past_deadline(clients: &mut [TcpClient], backend: &str, begun: Instant) {
    poll_until("the deadline to pass", SOON, || {
        expect(clients, backend);
        (begun.elapsed() > Duration::from_secs(8)).then_some(())
    });
}

/// Three Services lose a backend; only the flows of the one whose deadline passes are ended.
fn only_what_is_over_ends(world: &World, mut node: Node<'_>, policy: &str) {
    let _servers = serve(world);
    node.configure(CONFIG);
    let seconds = format!("{}s", DEADLINE.as_secs());
    let services = [
        ("soon", echo("soon", 80, Some(&seconds)).spec(policy)),
        ("late", echo("late", 90, Some("1h")).spec(policy)),
        ("never", echo("never", 100, None).spec(policy)),
    ];
    for (name, service) in &services {
        node.apply(name, &with(service, 0));
    }
    node.start(12);
    for leaves in [Leaves::Terminating, Leaves::Removed] {
        for (name, service) in &services {
            node.apply(name, &with(service, 0));
        }
        let soon = connect(world, 80, "b0");
        let mut late = connect(world, 90, "b0");
        let mut never = connect(world, 100, "b0");
        let udp = vips(81).map(|vip| UdpClient::new(&world.client, &vip));
        // Twice: the client's answer proves it.
        for client in udp.iter().chain(&udp) {
            assert_eq!(client.ask("x"), "b0 x");
        }
        let ended = node.event(Event::FlowEnded);
        let begun = now();
        for (name, service) in &services {
            node.apply(name, &replaced(service, leaves));
        }
        for port in [80, 90, 100] {
            drop(connect(world, port, "b1"));
        }
        let mut open = [(0, 0); 3];
        poll_until("flows with and without a deadline", SOON, || {
            open = ["soon", "late", "never"].map(|name| draining(&node, name));
            (open == [(2, 2), (2, 2), (2, 0)]).then_some(())
        });
        eprintln!("{leaves:?}: open, with a deadline: {open:?}");

        expect_resets(soon, "b0");
        let took = begun.elapsed();
        assert!(took >= DEADLINE, "{leaves:?}: ended after {took:?}");
        eprintln!("{leaves:?}: reset {took:?} after the change, allowed {DEADLINE:?}");
        expect(&mut late, "b0");
        expect(&mut never, "b0");
        // Two connections, two of UDP.
        poll_until("the flows to end", SOON, || {
            (node.event(Event::FlowEnded) - ended >= 4).then_some(())
        });
        for client in &udp {
            assert_eq!(client.ask("x"), "b1 x", "UDP begins anew");
        }
        let ended = node.event(Event::FlowEnded) - ended;
        assert_eq!(ended, 4, "{leaves:?}: flows ended");
        assert_eq!(draining(&node, "soon"), (0, 0));
        assert_eq!(draining(&node, "late"), (2, 2));
        assert_eq!(draining(&node, "never"), (2, 0));
    }
}

#[test]
fn only_the_flows_whose_deadline_passed_end_full_nat() {
    if !require::kernel_tests() {
        return;
    }
    let _one = serial();
    let world = World::two_armed(2);
    let node = Node::new(&world).snat();
    only_what_is_over_ends(&world, node, "externalTrafficPolicy: Cluster");
}

#[test]
fn only_the_flows_whose_deadline_passed_end_dnat() {
    if !require::kernel_tests() {
        return;
    }
    let _one = serial();
    let world = World::two_armed(2);
    let node = Node::new(&world).gateway();
    only_what_is_over_ends(&world, node, "externalTrafficPolicy: Local");
}

#[test]
fn a_deadline_outlives_the_agent() {
    if !require::kernel_tests() {
        return;
    }
    let _one = serial();
    let world = World::two_armed(2);
    let _servers = serve(&world);
    let mut node = Node::new(&world).snat();
    node.configure(CONFIG);
    let soon = echo("soon", 80, Some("5s"));
    node.apply("soon", &with(&soon, 0));
    node.start(4);
    let mut clients = connect(&world, 80, "b0");
    let begun = now();
    node.apply("soon", &replaced(&soon, Leaves::Removed));
    wait_deadlines(&node, 2);
    node.kill();
    // Nobody is there who could end them.
    expect_past_deadline(&mut clients, "b0", begun);
    node.start(4);
    let took = expect_resets(clients, "b0");
    // A deadline that began anew would be five seconds away.
    assert!(took < Duration::from_secs(5), "ended after {took:?}");
    wait_deadlines(&node, 0);
}

#[test]
fn a_backend_that_is_back_in_time_keeps_its_flows() {
    if !require::kernel_tests() {
        return;
    }
    let _one = serial();
    let world = World::two_armed(2);
    let _servers = serve(&world);
    let mut node = Node::new(&world).snat();
    node.configure(CONFIG);
    let soon = echo("soon", 80, Some("5s"));
    node.apply("soon", &with(&soon, 0));
    node.start(4);
    let mut clients = connect(&world, 80, "b0");
    node.apply("soon", &replaced(&soon, Leaves::Terminating));
    let begun = now();
    wait_deadlines(&node, 2);
    node.apply("soon", &with(&with(&soon, 0), 1));
    wait_deadlines(&node, 0);
    expect_past_deadline(&mut clients, "b0", begun);
    assert_eq!(node.event(Event::FlowEnded), 0);
}

#[test]
fn a_deleted_service_takes_its_deadline_along() {
    if !require::kernel_tests() {
        return;
    }
    let _one = serial();
    let world = World::two_armed(2);
    let _servers = serve(&world);
    let mut node = Node::new(&world).snat();
    node.configure(CONFIG);
    let seconds = format!("{}s", DEADLINE.as_secs());
    node.apply("soon", &with(&echo("soon", 80, Some(&seconds)), 0));
    // The VIPs stay.
    node.apply("never", &with(&echo("never", 90, None), 0));
    node.start(8);
    let clients = connect(&world, 80, "b0");
    let mut others = connect(&world, 90, "b0");
    let begun = now();
    node.remove("soon.yaml");
    node.wait_frontends(4);
    expect_resets(clients, "b0");
    let took = begun.elapsed();
    assert!(took >= DEADLINE, "ended after {took:?}");
    expect(&mut others, "b0");
    assert_eq!(node.event(Event::FlowEnded), 2);
}

#[test]
fn a_service_that_is_made_again_keeps_its_flows() {
    if !require::kernel_tests() {
        return;
    }
    let _one = serial();
    let world = World::two_armed(2);
    let _servers = serve(&world);
    let mut node = Node::new(&world).snat();
    node.configure(CONFIG);
    let soon = echo("soon", 80, Some("5s"));
    node.apply("soon", &with(&soon, 0));
    // The VIPs stay.
    node.apply("never", &with(&echo("never", 90, None), 0));
    node.start(8);
    let mut clients = connect(&world, 80, "b0");
    node.remove("soon.yaml");
    let begun = now();
    wait_deadlines(&node, 2);
    node.apply("soon", &with(&soon, 0));
    wait_deadlines(&node, 0);
    expect_past_deadline(&mut clients, "b0", begun);
    assert_eq!(node.event(Event::FlowEnded), 0);
    // They still know whose they are.
    let begun = now();
    node.apply("soon", &replaced(&soon, Leaves::Removed));
    expect_resets(clients, "b0");
    let took = begun.elapsed();
    assert!(took >= Duration::from_secs(5), "ended after {took:?}");
    assert_eq!(node.event(Event::FlowEnded), 2);
}

#[test]
fn a_deadline_that_is_none_is_told() {
    if !require::kernel_tests() {
        return;
    }
    let _one = serial();
    let world = World::two_armed(1);
    let mut node = Node::new(&world).snat();
    node.apply("web", &with(&echo("web", 80, Some("soon")), 0));
    node.start(4);
    node.wait_log("`soon` is not a duration");
    assert!(node.log().contains("sluice.dev/drain-deadline"));
}
