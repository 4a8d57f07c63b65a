//! What an operator sees: `bpftool` and `lbctl` on a running data path, with and without an agent.

use lb_common::names;
use lb_tests::{
    netns::{
        agent::Node,
        manifest::service,
        serial,
        server::{Download, http},
        succeed, text,
        world::{VIP4, VIP6, World, backend4, backend6, vips},
    },
    require,
};

fn start(world: &World) -> Node<'_> {
    let mut node = Node::new(world).snat();
    let web = service("web").vip(VIP4).vip(VIP6).tcp(80, 8080);
    node.apply("web", &web.endpoint(&backend4(0)).endpoint(&backend6(0)));
    node.start(2);
    node
}

#[test]
fn bpftool_prints_named_structs() {
    if !require::kernel_tests() || !require::program("bpftool") {
        return;
    }
    let _one = serial();
    let world = World::one_armed(1);
    let _server = http(world.backend(), "b0", 8080);
    let node = start(&world);
    let downloads: Vec<Download> = vips(80)
        .iter()
        .map(|vip| Download::start(&world.client, vip, "/stream/200"))
        .collect();
    for (map, words) in [
        (
            names::FRONTENDS_V4,
            ["address", "port", "service"].as_slice(),
        ),
        (names::FRONTENDS_V6, &["address", "port", "service"]),
        (
            names::FLOWS_V4,
            &["source", "destination_port", "head", "route", "backend"],
        ),
        (
            names::FLOWS_V6,
            &["source", "destination_port", "head", "route", "backend"],
        ),
        (names::MEMBERS, &["service", "backend", "flags"]),
        (names::COUNTERS, &["packets", "bytes"]),
        (names::DEVICES, &["ifindex", "mtu", "mac"]),
    ] {
        let path = node.map_path(map);
        let mut command = std::process::Command::new("bpftool");
        command.args(["map", "dump", "pinned"]).arg(&path);
        let output = text(&succeed(&mut command).stdout);
        for word in words {
            let quoted = format!("\"{word}\"");
            let shown: String = output.chars().take(2_000).collect();
            assert!(output.contains(&quoted), "{map}: no {quoted} in\n{shown}");
        }
    }
    drop(downloads);
}

#[test]
fn lbctl_shows_both_directions_of_a_running_connection() {
    if !require::kernel_tests() {
        return;
    }
    let _one = serial();
    let world = World::one_armed(1);
    let _server = http(world.backend(), "b0", 8080);
    let mut node = start(&world);
    let downloads: Vec<Download> = vips(80)
        .iter()
        .map(|vip| Download::start(&world.client, vip, "/stream/1000"))
        .collect();
    for download in &downloads {
        lb_tests::netns::poll_until("the download", std::time::Duration::from_secs(5), || {
            (download.bytes() > 50_000).then_some(())
        });
    }
    for alive in [true, false] {
        if !alive {
            node.kill();
        }
        let dump = node
            .lbctl_json(["map-dump", "flows", "-o", "json"])
            .to_string();
        for address in [
            "198.51.100.7",
            "192.0.2.1",
            "10.0.0.100",
            "10.0.0.11",
            "2001:db8:100::7",
            "2001:db8:a::64",
        ] {
            assert!(
                dump.contains(address),
                "agent alive: {alive}; no {address} in {dump}"
            );
        }
        let forward = dump.matches("\"forward\"").count();
        let reverse = dump.matches("\"reverse\"").count() + dump.matches("\"reply\"").count();
        assert!(
            forward >= 2 && reverse >= 2,
            "{forward} forward, {reverse} reverse: {dump}"
        );
        for view in ["services", "backends", "flows", "stats", "status"] {
            let shown = if view == "status" {
                // Says by its exit status too that no agent runs.
                text(&node.try_lbctl([view]).stdout)
            } else {
                node.lbctl([view])
            };
            assert!(!shown.trim().is_empty(), "{view} shows nothing");
        }
        let services = node.lbctl(["services"]);
        assert!(services.contains("default/web"), "{services}");
        let stats = node.lbctl(["stats"]);
        assert!(stats.contains("xdp_forwarded"), "{stats}");
    }
    for download in downloads {
        assert_eq!(download.finish(), Ok(10_000_000));
    }
}

#[test]
fn every_map_can_be_dumped() {
    if !require::kernel_tests() {
        return;
    }
    let _one = serial();
    let world = World::one_armed(1);
    let node = start(&world);
    for ((map, _), form) in names::MAPS
        .iter()
        .zip(["table", "json"].into_iter().cycle())
    {
        let output = node.try_lbctl(["map-dump", map, "-o", form]);
        let errors = text(&output.stderr);
        assert!(
            output.status.success(),
            "map-dump {map} -o {form}: {errors}"
        );
    }
}

#[test]
fn detach_removes_the_data_path() {
    if !require::kernel_tests() || !require::program("bpftool") {
        return;
    }
    let _one = serial();
    let world = World::one_armed(1);
    let _server = http(world.backend(), "b0", 8080);
    let mut node = start(&world);
    node.stop();
    node.lbctl(["detach", "--force"]);
    let attached = world.lb.run("bpftool", ["net", "show", "-j"]);
    assert!(!attached.contains("lb_"), "{attached}");
    node.start(2);
    let url = format!("http://{VIP4}/");
    let out = world.client.run("curl", ["-sS", "--max-time", "5", &url]);
    assert!(out.starts_with("b0 "), "{out}");
}
