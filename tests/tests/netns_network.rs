//! The network changes under running connections: MACs, routes, and a hop with a smaller MTU.

use std::time::Duration;

use lb_common::reason::Event;
use lb_tests::{
    netns::{
        agent::Node,
        manifest::service,
        poll_until, serial,
        server::{Download, Ticks, http, udp_ticker},
        world::{VIP4, VIP6, World, backend4, backend6, vips},
    },
    require,
};

/// How soon the data path must follow while the agent lives.
const WITH_AGENT: Duration = Duration::from_millis(50);
/// And when it is dead.
const ALONE: Duration = Duration::from_secs(2);
/// What a busy machine may add to a measured silence.
const SLACK: Duration = Duration::from_millis(400);

fn ticker() -> lb_tests::netns::manifest::ServiceManifest {
    service("ticker")
        .vip(VIP4)
        .vip(VIP6)
        .tcp(80, 8080)
        .udp(7, 7007)
        .endpoint(&backend4(0))
        .endpoint(&backend6(0))
}

/// Gives the client another MAC; it tells its neighbours, as a virtual machine that moved would.
fn change_mac(world: &World, number: u8) {
    world.client.ip(&format!(
        "link set eth0 address 02:00:00:00:ff:{number:02x}"
    ));
}

fn announce_changes(world: &World) {
    world.client.sysctl("net/ipv4/conf/eth0/arp_notify", "1");
    world.client.sysctl("net/ipv6/conf/eth0/ndisc_notify", "1");
}

/// The shortest of up to three silences, until one is within `limit`: the machine is shared.
fn best(limit: Duration, silence: impl FnMut(u8) -> Duration) -> Duration {
    let mut best = Duration::MAX;
    for silence in (1..=3).map(silence) {
        best = best.min(silence);
        if best < limit {
            break;
        }
    }
    best
}

/// The silence after an act, measured on a stream of one datagram a millisecond.
fn silence(ticks: &Ticks, limit: Duration, act: impl FnOnce()) -> Duration {
    ticks.longest_gap();
    act();
    let received = ticks.received();
    poll_until("the stream to go on", 5 * limit, || {
        (ticks.received() > received + 100).then_some(())
    });
    ticks.longest_gap()
}

#[test]
fn a_new_mac_of_the_next_hop_is_followed() {
    if !require::kernel_tests() {
        return;
    }
    let _one = serial();
    let world = World::two_armed(1);
    announce_changes(&world);
    let _servers = (
        http(world.backend(), "b0", 8080),
        udp_ticker(world.backend(), 7007),
    );
    let mut node = Node::new(&world).snat();
    node.apply("ticker", &ticker());
    node.start(4);
    for (family, vip) in vips(7).iter().enumerate() {
        let web = vips(80).into_iter().nth(family).expect("two families");
        let download = Download::start(&world.client, &web, "/stream/1500");
        let ticks = Ticks::start(&world.client, vip, 60_000);
        let agent = best(WITH_AGENT, |number| {
            silence(&ticks, ALONE, || change_mac(&world, 16 * number))
        });
        assert!(
            agent <= WITH_AGENT,
            "{vip}: followed after {agent:?} with the agent"
        );

        node.kill();
        let alone = best(ALONE + SLACK, |number| {
            silence(&ticks, ALONE, || change_mac(&world, number))
        });
        assert!(
            alone <= ALONE + SLACK,
            "{vip}: followed after {alone:?} without the agent"
        );
        let bytes = download.finish().unwrap_or_else(|e| panic!("{web}: {e}"));
        assert_eq!(bytes, 15_000_000);
        node.start(4);
    }
}

/// Does something to `eth1`, by lines of `ip` commands: its flows stay, and new ones have its address.
fn stays_ours(script: &str) {
    if !require::kernel_tests() || !require::program("curl") {
        return;
    }
    let _one = serial();
    let world = World::two_armed(1);
    let _server = http(world.backend(), "b0", 8080);
    // The SNAT addresses are the devices' own.
    let mut node = Node::new(&world);
    node.apply("ticker", &ticker());
    node.start(4);
    let downloads: Vec<_> = vips(80)
        .iter()
        .map(|web| Download::start(&world.client, web, "/stream/400"))
        .collect();
    world.lb.ip(script);
    for download in downloads {
        assert_eq!(download.finish(), Ok(4_000_000));
    }
    for web in vips(80) {
        world.fetch(&web, 10_000);
    }
}

/// The kernel tells of a port that leaves its bridge as of a device that is gone, in the bridge's own family.
#[test]
fn a_device_that_was_in_a_bridge_is_still_ours() {
    stays_ours(
        "link add br0 type bridge
        link set eth1 master br0
        link set eth1 nomaster",
    );
}

/// To the kernel an address with another prefix is another address.
#[test]
fn an_address_whose_network_changes_is_still_ours() {
    stays_ours(
        "address add 10.0.0.1/23 dev eth1
        address delete 10.0.0.1/24 dev eth1",
    );
}

/// An address that is nowhere is told of: no reply would arrive, and nothing be counted.
#[test]
fn a_given_snat_address_that_no_device_has_is_told() {
    if !require::kernel_tests() {
        return;
    }
    let _one = serial();
    let world = World::two_armed(1);
    let mut node = Node::new(&world).snat();
    node.apply("ticker", &ticker());
    node.start(4);
    let told = |node: &Node<'_>| node.log().matches("has this SNAT address").count();
    assert_eq!(told(&node), 0, "{}", node.log());
    world.lb.ip("address delete 10.0.0.100/24 dev eth1");
    poll_until("a warning", ALONE, || (told(&node) == 1).then_some(()));
}

/// Sends everything for the client through one router; the other forwards nothing to it any more.
fn reroute(world: &World, to: u8, wait: Duration) {
    let [first, second] = world.routers.as_slice() else {
        panic!("two routers");
    };
    let (stale, fresh) = if to == 9 {
        (first, second)
    } else {
        (second, first)
    };
    fresh.ip("route replace 203.0.113.7/32 dev eth1
        route replace 2001:db8:203::7/128 dev eth1");
    world.lb.ip(&format!(
        "route replace 203.0.113.0/24 via 198.51.100.{to}
        route replace 2001:db8:203::/64 via 2001:db8:100::{to}"
    ));
    // What has not followed by then is lost.
    std::thread::sleep(wait);
    stale.ip("route replace blackhole 203.0.113.7/32
        route replace blackhole 2001:db8:203::7/128");
}

#[test]
fn a_changed_route_is_followed() {
    if !require::kernel_tests() {
        return;
    }
    let _one = serial();
    let world = World::two_routers();
    let _servers = (
        http(world.backend(), "b0", 8080),
        udp_ticker(world.backend(), 7007),
    );
    let mut node = Node::new(&world).snat();
    node.apply("ticker", &ticker());
    node.start(4);
    let mut next = [9, 8].into_iter().cycle();
    for (family, vip) in vips(7).iter().enumerate() {
        let web = vips(80).into_iter().nth(family).expect("two families");
        let download = Download::start(&world.client, &web, "/stream/1500");
        let ticks = Ticks::start(&world.client, vip, 60_000);
        let mut moved = |wait| {
            let to = next.next().expect("one of two");
            silence(&ticks, ALONE, || reroute(&world, to, wait))
        };
        let agent = best(WITH_AGENT, |_| moved(WITH_AGENT));
        assert!(
            agent < WITH_AGENT,
            "{vip}: silent for {agent:?} with the agent"
        );

        node.kill();
        let alone = best(SLACK, |_| moved(ALONE));
        assert!(
            alone < SLACK,
            "{vip}: silent for {alone:?} without the agent"
        );
        let bytes = download.finish().unwrap_or_else(|e| panic!("{web}: {e}"));
        assert_eq!(bytes, 15_000_000);
        node.start(4);
    }
}

fn narrow_service() -> lb_tests::netns::manifest::ServiceManifest {
    service("narrow")
        .vip(VIP4)
        .vip(VIP6)
        .tcp(80, 8080)
        .endpoint("10.9.0.11")
        .endpoint("2001:db8:9::11")
}

/// Both directions meet a hop of 1300 bytes that only ICMP errors tell of.
fn transfer_through_narrow_hops(world: &World, node: &Node<'_>) {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.as_file().set_len(2_000_000).expect("a sparse file");
    let upload = format!("@{}", file.path().display());
    for web in vips(80) {
        let before = node.event(Event::IcmpTranslated);
        world.fetch(&web, 2_000_000);
        let downloaded = node.event(Event::IcmpTranslated);
        assert!(downloaded > before, "{web}: {:?}", node.counters());
        // What the server has learnt would show in the MSS it offers next.
        for end in [&world.client, world.backend()] {
            end.run("ip", ["-4", "route", "flush", "cache"]);
            end.run("ip", ["-6", "route", "flush", "cache"]);
        }
        let url = format!("http://{web}/");
        let arguments = ["-sS", "--max-time", "20", "--data-binary", &upload, &url];
        let answer = world.client.run("curl", arguments);
        assert!(answer.trim().ends_with(" 2000000"), "{answer}");
        assert!(
            node.event(Event::IcmpTranslated) > downloaded,
            "{web}: {:?}",
            node.counters()
        );
    }
}

#[test]
fn a_narrow_hop_is_told_of_by_translated_errors_in_full_nat() {
    if !require::kernel_tests() || !require::program("curl") {
        return;
    }
    let _one = serial();
    let world = World::narrow();
    let _server = http(world.backend(), "b0", 8080);
    let mut node = Node::new(&world).snat();
    node.apply("narrow", &narrow_service());
    node.start(2);
    transfer_through_narrow_hops(&world, &node);
}

#[test]
fn a_narrow_hop_is_told_of_by_translated_errors_behind_a_gateway() {
    if !require::kernel_tests() || !require::program("curl") {
        return;
    }
    let _one = serial();
    let world = World::narrow();
    let _server = http(world.backend(), "b0", 8080);
    let mut node = Node::new(&world).gateway().snat();
    node.apply(
        "narrow",
        &narrow_service().spec("externalTrafficPolicy: Local"),
    );
    node.start(2);
    transfer_through_narrow_hops(&world, &node);
}

#[test]
fn our_own_too_big_tells_of_a_narrow_device() {
    if !require::kernel_tests() || !require::program("curl") {
        return;
    }
    let _one = serial();
    let world = World::two_armed(1);
    let _server = http(world.backend(), "b0", 8080);
    let mut node = Node::new(&world).snat();
    node.apply("web", &ticker());
    // The way to the backend and to the client is narrow on our own devices' routes.
    world.lb.ip("route add 10.0.0.11/32 dev eth1 mtu lock 1300
        route add 2001:db8:a::11/128 dev eth1 mtu lock 1300
        route add 198.51.100.7/32 dev eth0 mtu lock 1300
        route add 2001:db8:100::7/128 dev eth0 mtu lock 1300");
    node.start(4);
    for web in vips(80) {
        let before = node.event(Event::TooBigSent);
        world.fetch(&web, 2_000_000);
        assert!(
            node.event(Event::TooBigSent) > before,
            "{web}: {:?}",
            node.counters()
        );
    }
}
