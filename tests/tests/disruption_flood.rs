//! A flood of SYNs, and those beside it who want to work.

use std::{net::SocketAddr, time::Duration};

use lb_common::reason::Event;
use lb_tests::{
    disruption::{
        flows::Flows,
        newcomers::Newcomers,
        own,
        scene::{self, FLOODED, REMOTE, Scene, endpoint},
        server::{PORT, Servers},
    },
    flood::{Guard, SynFlood, Syns},
    netns::{manifest::service, now, serial},
    require,
};

/// Established flows beside the flood.
const FLOWS: usize = 200;
/// Frames a second; what is asserted is a little less, since a sender that is late does not catch up.
const RATE: u32 = 220_000;
const AT_LEAST: u64 = 200_000;
/// It is judged by the best of so many windows of this length: the machine is shared.
const WINDOWS: u32 = 3;
const TIME: Duration = Duration::from_secs(10);
/// New connections come at this pace, and wait so long at most.
const PAUSE: Duration = Duration::from_millis(20);
const PATIENCE: Duration = Duration::from_secs(5);
/// The window of the flood's SYNs, by which the guard of the backends knows them.
const WINDOW: u16 = 1_024;

/// The flooded Service and another, with VIPs and the same remote backends.
const SERVICES: [(&str, [&str; 2]); 2] = [
    ("flooded", ["192.0.2.1", "2001:db8::1"]),
    ("calm", ["192.0.2.2", "2001:db8::2"]),
];

fn frontends(services: &[(&str, [&str; 2])]) -> Vec<SocketAddr> {
    let vips = services.iter().flat_map(|(_, vips)| vips);
    vips.map(|vip| SocketAddr::new(vip.parse().expect("an address"), 80))
        .collect()
}

#[test]
fn a_syn_flood_harms_nobody_else() {
    if !require::kernel_tests() {
        return;
    }
    let _one = serial();
    let scene = Scene::new();
    let flooder = scene.flooder();
    let servers = Servers::start(&scene.servers());
    // This is about the load balancer: a backend's TCP would take more of the processors than all the rest.
    let (switch, port) = scene.inside_port();
    let _guard = Guard::start(switch, port, WINDOW);
    let mut node = scene.node().with("--interface").with("eth2");
    // Sizes as shipped.
    node.configure("");
    for (name, [v4, v6]) in SERVICES {
        let mut manifest = service(name).vip(v4).vip(v6).tcp(80, PORT);
        for v6 in [false, true] {
            for (network, host) in (0..REMOTE).flat_map(|network| [(network, 1), (network, 2)]) {
                manifest = manifest.endpoint(&endpoint(network, host, v6).to_string());
            }
        }
        own::write(&node.manifests(), name, &manifest);
    }
    let all = frontends(&SERVICES);
    node.start(all.len());
    let targets: Vec<_> = all.iter().copied().cycle().take(FLOWS).collect();
    let controls: Vec<_> = scene::controls().into_iter().cycle().take(8).collect();
    let flows = Flows::start(&scene.client, &targets, &controls);

    let newcomers = Newcomers::start(&scene.client, &all, 16, PAUSE, PATIENCE);
    let [(_, vips), _] = SERVICES;
    let kinds = ["198.18.0.0", "2001:db8:18::"].into_iter().zip(vips);
    let kinds = kinds.map(|(clients, vip)| Syns {
        clients: clients.parse().expect("an address"),
        vary: 0xffff,
        server: SocketAddr::new(vip.parse().expect("an address"), 80),
        macs: [[2, 0, 0, 0, 0x18, 2], FLOODED],
        window: WINDOW,
    });
    let flood = SynFlood::start(&flooder, "eth0", kinds.collect(), RATE);
    let mut met = false;
    for _ in 0..WINDOWS {
        let (begin, before, sent) = (now(), node.event(Event::FlowCreated), flood.frames());
        std::thread::sleep(TIME);
        let (frames, took) = (flood.frames() - sent, begin.elapsed());
        let created = node.event(Event::FlowCreated) - before;
        let took = u64::try_from(took.as_millis()).expect("seconds");
        let [rate, taken] = [frames, created].map(|number| number * 1_000 / took);
        println!("SYNs: {frames} in {took} ms, {rate}/s  flows begun: {taken}/s");
        met = rate >= AT_LEAST && taken * 10 >= AT_LEAST * 9;
        if met {
            break;
        }
    }
    drop(flood);

    let newcomers = newcomers.finish();
    let outcome = flows.finish();
    let mut lost = outcome.lost();
    lost.extend(servers.complaints());
    let asked = newcomers.served + newcomers.failed.len() as u64;
    println!("counters: {:?}", node.counters());
    println!(
        "control flows past the load balancer: longest silence {} ms",
        outcome.control_longest.as_millis()
    );
    println!(
        "flows: {FLOWS}  longest stall: {} ms  lost: {}  new connections: {} of {asked}",
        outcome.longest().as_millis(),
        lost.len(),
        newcomers.served
    );
    assert!(met, "too few SYNs, or too few flows begun, in each window");
    assert!(lost.is_empty(), "{lost:#?}");
    assert!(
        newcomers.served * 100 >= asked * 95,
        "{} of {asked}: {:#?}",
        newcomers.served,
        newcomers.failed
    );
}
