//! Attach modes, node ports, backends that are the node itself, fragments, and a flood.

use std::time::Duration;

use lb_common::{names, reason::Event};
use lb_tests::{
    netns::{
        agent::Node,
        any,
        manifest::{ServiceManifest, service},
        poll_until, serial,
        server::{Download, UdpClient, http, udp_echo},
        world::{VIP4, VIP6, World, backend4, backend6, vips},
    },
    require,
};

fn web() -> ServiceManifest {
    service("web")
        .vip(VIP4)
        .vip(VIP6)
        .tcp(80, 8080)
        .udp(53, 5353)
        .endpoint(&backend4(0))
        .endpoint(&backend6(0))
}

/// One request by curl; whom the backend saw.
fn seen(world: &World, endpoint: &str) -> String {
    let url = format!("http://{endpoint}/");
    let out = world.client.run("curl", ["-sS", "--max-time", "10", &url]);
    out.split_whitespace()
        .nth(1)
        .unwrap_or_default()
        .to_string()
}

fn works_in_mode(mode: &str, says: &str, by_xdp: bool) {
    if !require::kernel_tests() || !require::program("curl") {
        return;
    }
    let _one = serial();
    let world = World::one_armed(1);
    let _servers = (
        http(world.backend(), "b0", 8080),
        udp_echo(world.backend(), "b0", 5353),
    );
    let mut node = Node::new(&world).snat().with("--mode").with(mode);
    node.apply("web", &web());
    node.start(4);
    assert!(node.log().contains(says), "{}", node.log());
    for vip in vips(80) {
        for _ in 0..10 {
            assert!(["10.0.0.100", "2001:db8:a::64"].contains(&seen(&world, &vip).as_str()));
        }
        world.fetch(&vip, 5_000_000);
    }
    for vip in vips(53) {
        assert_eq!(UdpClient::new(&world.client, &vip).ask("hello"), "b0 hello");
    }
    let (xdp, tcx) = (
        node.event(Event::XdpForwarded),
        node.event(Event::TcxForwarded),
    );
    assert_eq!(xdp > 0, by_xdp, "{xdp} by XDP, {tcx} by TCX");
}

#[test]
fn tcx_alone_forwards_everything() {
    works_in_mode("tcx", "TCX", false);
}

#[test]
fn generic_xdp_works_on_request() {
    works_in_mode("generic", "generic", true);
}

#[test]
fn auto_takes_native_xdp_and_says_so() {
    works_in_mode("auto", "native XDP + TCX", true);
}

/// veth takes no XDP program as long as its peer sends by more queues than it receives by.
#[test]
fn a_driver_that_refused_is_asked_again_when_the_device_changes() {
    if !require::kernel_tests() || !require::program("curl") || !require::program("ethtool") {
        return;
    }
    let _one = serial();
    let world = World::local_pod();
    let _server = http(world.backend(), "b0", 8080);
    let peer_queues = |number| {
        let arguments = ["-L", "eth0", "tx", number];
        world.client.run("ethtool", arguments);
    };
    peer_queues("2");
    let devices = ["--interface", "eth0", "--pod-interface", "pod0"];
    let mut node = Node::on(&world.lb, devices);
    let manifest = service("web").vip(VIP4).tcp(80, 8080);
    node.apply("web", &manifest.endpoint(&backend4(0)).on_node("edge"));
    node.start(1);
    let [vip, _] = vips(80);
    let says = |what: &str| {
        poll_until(what, Duration::from_secs(10), || {
            node.log().contains(what).then_some(())
        });
        assert_eq!(seen(&world, &vip), "198.51.100.7", "{what}");
    };
    says("eth0: TCX alone: driver refused native XDP");
    peer_queues("1");
    world.lb.ip("link set eth0 mtu 1490");
    says("eth0: native XDP + TCX");
}

#[test]
fn a_backend_that_is_the_node_itself_keeps_the_client() {
    if !require::kernel_tests() || !require::program("curl") {
        return;
    }
    let _one = serial();
    let world = World::two_armed(1);
    let _servers = (
        http(&world.lb, "node", 8080),
        udp_echo(&world.lb, "node", 5353),
    );
    let mut node = Node::new(&world).snat();
    let manifest = service("web")
        .vip(VIP4)
        .vip(VIP6)
        .tcp(80, 8080)
        .udp(53, 5353)
        .endpoint("198.51.100.1")
        .on_node("edge")
        .endpoint("2001:db8:100::1")
        .on_node("edge");
    node.apply("web", &manifest);
    node.start(4);
    for (vip, client) in vips(80).iter().zip(["198.51.100.7", "2001:db8:100::7"]) {
        assert_eq!(seen(&world, vip), client);
        world.fetch(vip, 5_000_000);
    }
    for vip in vips(53) {
        assert_eq!(
            UdpClient::new(&world.client, &vip).ask("hello"),
            "node hello"
        );
    }
    assert!(node.event(Event::Delivered) > 10, "{:?}", node.counters());
    assert!(
        node.event(Event::EgressForwarded) > 10,
        "{:?}",
        node.counters()
    );
}

#[test]
fn node_ports_are_served_beside_the_nodes_own_listeners() {
    if !require::kernel_tests() || !require::program("curl") {
        return;
    }
    let _one = serial();
    let world = World::two_armed(1);
    let _servers = (
        http(world.backend(), "b0", 8080),
        http(&world.lb, "node", 9090),
    );
    let mut node = Node::new(&world).snat();
    let yaml = web().yaml();
    node.manifest(
        "web.yaml",
        &yaml.replace(
            "{name: tcp-80, port: 80,",
            "{name: tcp-80, port: 80, nodePort: 30080,",
        ),
    );
    node.start(6);
    for address in ["198.51.100.1", "[2001:db8:100::1]"] {
        for (port, name) in [(30_080, "b0"), (9_090, "node")] {
            let url = format!("http://{address}:{port}/");
            let out = world.client.run("curl", ["-sS", "--max-time", "10", &url]);
            assert!(out.starts_with(name), "{url}: {out}");
        }
    }
}

#[test]
fn long_datagrams_go_through_in_fragments() {
    if !require::kernel_tests() {
        return;
    }
    let _one = serial();
    for gateway in [false, true] {
        let world = World::two_armed(1);
        let _server = udp_echo(world.backend(), "b0", 5353);
        let mut node = Node::new(&world).snat();
        if gateway {
            node = node.gateway();
            node.apply("web", &web().spec("externalTrafficPolicy: Local"));
        } else {
            node.apply("web", &web());
        }
        node.start(4);
        for vip in vips(53) {
            let client = UdpClient::new(&world.client, &vip);
            for length in [1_400, 1_473, 4_000, 9_000] {
                let question = "x".repeat(length);
                let answer = client.ask(&question);
                assert_eq!(answer, format!("b0 {question}"), "{vip}: {length} bytes");
            }
        }
    }
}

#[test]
fn a_flood_of_datagrams_leaves_established_connections_alone() {
    if !require::kernel_tests() {
        return;
    }
    let _one = serial();
    let world = World::two_armed(1);
    let _servers = (
        http(world.backend(), "b0", 8080),
        udp_echo(world.backend(), "b0", 5353),
    );
    let mut node = Node::new(&world).snat();
    node.apply("web", &web());
    node.start(4);
    let downloads: Vec<Download> = vips(80)
        .iter()
        .map(|vip| Download::start(&world.client, vip, "/stream/600"))
        .collect();
    for download in &downloads {
        poll_until("the download", Duration::from_secs(5), || {
            (download.bytes() > 50_000).then_some(())
        });
    }
    // More strangers than the embryonic table has room for.
    let flood = |vip: &str| {
        let vip: std::net::SocketAddr = vip.parse().expect("an endpoint");
        world.client.inside(|| {
            for _ in 0..20_000 {
                let socket = std::net::UdpSocket::bind(any(vip.ip())).expect("a socket");
                // Refusals reported late are no matter.
                drop(socket.send_to(b"flood", vip));
            }
        });
    };
    for vip in vips(53) {
        flood(&vip);
    }
    let created = node.event(Event::FlowCreated);
    assert!(created > 20_000, "{:?}", node.counters());
    assert!(node.map(names::EMBRYONIC_V4).is_some());
    for download in downloads {
        assert_eq!(download.finish(), Ok(6_000_000));
    }
}
