//! Real clients and servers through the agent's data path: who sees whose address, and which
//! program carried the packets.

use std::{io::ErrorKind, time::Duration};

use lb_common::reason::Event;
use lb_tests::{
    netns::{
        Process,
        agent::Node,
        manifest::{ServiceManifest, service},
        poll_until, serial,
        server::{Server, TcpClient, UdpClient, dns, http, tcp_echo, udp_echo},
        text,
        world::{VIP4, VIP6, World, backend4, backend6, vips},
    },
    require,
};

fn web(backends: usize) -> ServiceManifest {
    let mut manifest = service("web")
        .vip(VIP4)
        .vip(VIP6)
        .tcp(80, 8080)
        .udp(53, 5353);
    for number in 0..backends {
        manifest = manifest
            .endpoint(&backend4(number))
            .endpoint(&backend6(number));
    }
    manifest
}

fn serve(world: &World) -> Vec<Server> {
    let backends = world.backends.iter().enumerate();
    backends
        .flat_map(|(number, backend)| {
            let name = format!("b{number}");
            [http(backend, &name, 8080), udp_echo(backend, &name, 5353)]
        })
        .collect()
}

/// One request by curl; the answer names the backend and the address it saw.
fn curl(world: &World, endpoint: &str) -> (String, String) {
    let url = format!("http://{endpoint}/");
    let out = world.client.run("curl", ["-sS", "--max-time", "10", &url]);
    let mut words = out.split_whitespace().map(ToString::to_string);
    (
        words.next().unwrap_or_default(),
        words.next().unwrap_or_default(),
    )
}

/// Sends traffic of both families and transports; what the backends saw must be `seen`.
fn exercise(world: &World, node: &Node<'_>, seen: [&str; 2]) {
    for (family, seen) in seen.into_iter().enumerate() {
        let web = vips(80).into_iter().nth(family).expect("two families");
        let echo = vips(53).into_iter().nth(family).expect("two families");
        // Neighbours are resolved by the first packets, which go by TCX.
        curl(world, &web);
        UdpClient::new(&world.client, &echo).ask("warm up");

        let before = (
            node.event(Event::XdpForwarded),
            node.event(Event::TcxForwarded),
        );
        let mut names = std::collections::BTreeSet::new();
        for _ in 0..40 {
            let (name, client) = curl(world, &web);
            assert_eq!(client, seen, "whom {name} saw");
            names.insert(name);
        }
        expect_xdp(node, before, &web);
        if world.backends.len() > 1 {
            assert!(names.len() > 1, "one backend took all: {names:?}");
        }

        let before = (
            node.event(Event::XdpForwarded),
            node.event(Event::TcxForwarded),
        );
        for number in 0..20 {
            let client = UdpClient::new(&world.client, &echo);
            for _ in 0..5 {
                let question = format!("question {number}");
                let answer = client.ask(&question);
                assert!(answer.ends_with(&question), "{answer}");
            }
        }
        expect_xdp(node, before, &echo);
    }
}

/// XDP carried the packets since `before`; now and then one goes by TCX for the neighbour's sake.
fn expect_xdp(node: &Node<'_>, before: (u64, u64), what: &str) {
    let xdp = node.event(Event::XdpForwarded) - before.0;
    let tcx = node.event(Event::TcxForwarded) - before.1;
    assert!(
        xdp > 100,
        "{what}: {xdp} packets by XDP; {:?}",
        node.counters()
    );
    assert!(
        tcx * 10 < xdp,
        "{what}: {tcx} by TCX, {xdp} by XDP; {:?}",
        node.counters()
    );
}

#[test]
fn full_nat_on_one_arm_is_carried_by_xdp() {
    if !require::kernel_tests() || !require::program("curl") {
        return;
    }
    let _one = serial();
    let world = World::one_armed(3);
    let _servers = serve(&world);
    let mut node = Node::new(&world).snat();
    node.apply("web", &web(3));
    node.start(4);
    exercise(&world, &node, ["10.0.0.100", "2001:db8:a::64"]);
}

#[test]
fn full_nat_with_two_arms_is_carried_by_xdp() {
    if !require::kernel_tests() || !require::program("curl") {
        return;
    }
    let _one = serial();
    let world = World::two_armed(2);
    let _servers = serve(&world);
    let mut node = Node::new(&world).snat();
    node.apply("web", &web(2));
    node.start(4);
    exercise(&world, &node, ["10.0.0.100", "2001:db8:a::64"]);
}

#[test]
fn a_gateway_keeps_the_clients_address_by_xdp() {
    if !require::kernel_tests() || !require::program("curl") {
        return;
    }
    let _one = serial();
    let world = World::two_armed(2);
    let _servers = serve(&world);
    let mut node = Node::new(&world).gateway().snat();
    node.apply("web", &web(2).spec("externalTrafficPolicy: Local"));
    node.start(4);
    exercise(&world, &node, ["198.51.100.7", "2001:db8:100::7"]);
}

/// At the backend both are one tuple: the connection that is there wins, and the other is served once it is over.
#[test]
fn a_direct_connection_from_the_port_of_a_flow_breaks_nothing() {
    if !require::kernel_tests() {
        return;
    }
    let _one = serial();
    let world = World::local_pod();
    let _echo = tcp_echo(world.backend(), "b0", 7000);
    let mut node = Node::on(
        &world.lb,
        ["--interface", "eth0", "--pod-interface", "pod0"],
    );
    let manifest = service("echo").vip(VIP4).vip(VIP6).tcp(7000, 7000);
    let manifest = manifest.endpoint(&backend4(0)).on_node("edge");
    let manifest = manifest.endpoint(&backend6(0)).on_node("edge");
    node.apply("echo", &manifest);
    node.start(2);
    let backends = [backend4(0), format!("[{}]", backend6(0))];
    for (vip, backend) in vips(7000).iter().zip(backends) {
        let direct = format!("{backend}:7000");
        let limit = Duration::from_secs(5);
        let connect = |port, server| TcpClient::from_port(port, &world.client, server, limit);
        let answers = |client: &mut TcpClient| {
            assert_eq!(client.ask("hello").expect("an answer"), "b0 hello");
        };
        let mut flow = connect(1_111, vip).expect("a flow");
        answers(&mut flow);
        answers(&mut connect(1_112, &direct).expect("a direct connection"));
        let refused = connect(1_111, &direct).expect_err("its port is a flow's");
        assert_eq!(refused.kind(), ErrorKind::TimedOut, "{refused}");
        answers(&mut flow);
        drop(flow);
        poll_until("the port to be free", limit, || {
            connect(1_111, &direct).ok()
        });
    }
}

#[test]
fn a_pod_of_this_node_is_reached_by_tcx_with_all_offloads_on() {
    if !require::kernel_tests() || !require::program("curl") {
        return;
    }
    let _one = serial();
    let world = World::local_pod();
    let _servers = serve(&world);
    let mut node = Node::on(
        &world.lb,
        ["--interface", "eth0", "--pod-interface", "pod0"],
    );
    let manifest = service("web")
        .vip(VIP4)
        .vip(VIP6)
        .tcp(80, 8080)
        .udp(53, 5353)
        .endpoint(&backend4(0))
        .on_node("edge")
        .endpoint(&backend6(0))
        .on_node("edge");
    node.apply("web", &manifest);
    node.start(4);
    for (family, seen) in ["198.51.100.7", "2001:db8:100::7"].into_iter().enumerate() {
        let web = vips(80).into_iter().nth(family).expect("two families");
        let echo = vips(53).into_iter().nth(family).expect("two families");
        for _ in 0..10 {
            assert_eq!(curl(&world, &web).1, seen);
        }
        assert_eq!(
            UdpClient::new(&world.client, &echo).ask("hello"),
            "b0 hello"
        );
        world.fetch(&web, 20_000_000);
    }
    let (tcx, xdp) = (
        node.event(Event::TcxForwarded),
        node.event(Event::XdpForwarded),
    );
    assert!(tcx > 100, "{:?}", node.counters());
    // Small packets with full checksums towards the client may go by XDP, nothing else.
    assert!(xdp * 2 < tcx, "{:?}", node.counters());
}

#[test]
fn a_download_and_an_upload_keep_every_byte() {
    if !require::kernel_tests() || !require::program("curl") {
        return;
    }
    let _one = serial();
    let world = World::one_armed(1);
    let _servers = serve(&world);
    let mut node = Node::new(&world).snat();
    node.apply("web", &web(1));
    node.start(4);
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.as_file().set_len(5_000_000).expect("a sparse file");
    let upload = format!("@{}", file.path().display());
    for web in vips(80) {
        world.fetch(&web, 20_000_000);
        let url = format!("http://{web}/");
        let answer = world.client.run(
            "curl",
            ["-sS", "--max-time", "20", "--data-binary", &upload, &url],
        );
        assert!(answer.trim().ends_with(" 5000000"), "{answer}");
    }
}

#[test]
fn iperf3_and_dig_work_through_a_vip() {
    if !require::kernel_tests() || !require::program("iperf3") || !require::program("dig") {
        return;
    }
    let _one = serial();
    let world = World::two_armed(1);
    let mut iperf = Process::spawn(world.backend().command("iperf3").args([
        "-s",
        "-p",
        "5201",
        "--forceflush",
    ]));
    let names = dns(world.backend(), 5353);
    let mut node = Node::new(&world).snat();
    let manifest = service("tools")
        .vip(VIP4)
        .vip(VIP6)
        .tcp(5201, 5201)
        .udp(5201, 5201)
        .udp(53, 5353)
        .endpoint(&backend4(0))
        .endpoint(&backend6(0));
    node.apply("tools", &manifest);
    node.start(6);
    for vip in [VIP4, VIP6] {
        poll_until("iperf3 to listen", Duration::from_secs(5), || {
            iperf.output().contains("listening").then_some(())
        });
        for extra in ["-Z", "-R", "-u"] {
            let arguments = [
                "-c",
                vip,
                "-t",
                "1",
                "--connect-timeout",
                "3000",
                "-J",
                extra,
            ];
            // It serves one client at a time, and is not ready for the next as soon as one has left.
            let report = poll_until("iperf3 to serve", Duration::from_secs(10), || {
                let output = world.client.try_run("iperf3", arguments);
                output.status.success().then(|| text(&output.stdout))
            });
            let report: serde_json::Value = serde_json::from_str(&report).expect("JSON");
            let end = report.get("end").expect("an end");
            let sum = end
                .get("sum_received")
                .or_else(|| end.get("sum"))
                .expect("a sum");
            let bytes = sum
                .get("bytes")
                .and_then(serde_json::Value::as_f64)
                .expect("bytes");
            assert!(bytes > 100_000.0, "iperf3 {extra} to {vip}: {sum}");
        }
        let server = format!("@{vip}");
        let answer = world.client.run(
            "dig",
            [&server, "example.org", "+tries=2", "+time=2", "+noedns"],
        );
        assert!(answer.contains("status: NOERROR"), "{answer}");
    }
    assert!(names.served() >= 2);
    assert!(iperf.ended().is_none());
    assert!(
        node.event(Event::XdpForwarded) > 1_000,
        "{:?}",
        node.counters()
    );
}

#[test]
fn a_vip_answers_pings_and_refuses_closed_ports() {
    if !require::kernel_tests() || !require::program("ping") || !require::program("curl") {
        return;
    }
    let _one = serial();
    let world = World::one_armed(1);
    let mut node = Node::new(&world).snat();
    node.apply("web", &web(1));
    node.start(4);
    for vip in [VIP4, VIP6] {
        let out = world
            .client
            .run("ping", ["-c", "3", "-i", "0.2", "-W", "2", vip]);
        assert!(out.contains(" 0% packet loss"), "{out}");
    }
    assert!(node.event(Event::EchoReply) >= 6);
    for endpoint in vips(81) {
        let url = format!("http://{endpoint}/");
        let output = world
            .client
            .try_run("curl", ["-sS", "--max-time", "3", &url]);
        // 7: connection refused, at once; 28 would be a timeout.
        assert_eq!(output.status.code(), Some(7), "{output:?}");
    }
    assert!(node.event(Event::ResetSent) >= 2);
}
