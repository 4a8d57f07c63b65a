//! The instrument of `cargo xtask bench wire`: of established flows every frame that is sent arrives, rewritten,
//! with right checksums, and is counted once. Without that a rate says nothing.

use std::time::Duration;

use aya::programs::xdp::XdpMode;
use lb_common::{reason::Event, stream::Arrived};
use lb_tests::{
    netns::{agent::Node, poll_until, serial, world::World},
    require,
    stream::{
        Call, Device, Frames, Programs, Receiver,
        flows::{self, FRONTENDS, Kind, Mode},
        line::line,
    },
};
use lb_userspace::tables::Protocol::{Tcp, Udp};

/// Flows of each kind.
const FLOWS: u32 = 1_024;
/// Frames from each processor.
const FRAMES: u32 = 20_000;
/// Until neighbours know each other.
const PATIENCE: Duration = Duration::from_secs(20);

fn sender<'w>(world: &'w World, frames: &Frames) -> Device<'w> {
    let namespace = if frames.is_reply {
        world.backend()
    } else {
        &world.client
    };
    Device {
        namespace,
        name: "eth0",
    }
}

/// Frames the data path says it sent on, by either program, and those it says were lost.
fn counted(node: &Node<'_>) -> [u64; 2] {
    let events = |all: [Event; 2]| all.map(|event| node.event(event)).iter().sum();
    [
        events([Event::XdpForwarded, Event::TcxForwarded]),
        events([Event::RedirectFailed, Event::TransmitFailed]),
    ]
}

#[test]
fn every_frame_arrives_rewritten_and_is_counted_once() {
    if !require::kernel_tests()
        || !require::program("ethtool")
        || !require::file(&require::bench_object_path())
    {
        return;
    }
    let _one = serial();
    let mut programs = Programs::load(&require::bench_object_path()).expect("the instrument");
    let world = line();
    let mut node = flows::node(&world).with("--mode=native");
    node.start(FRONTENDS);
    for namespace in [&world.client, world.backend()] {
        let device = Device {
            namespace,
            name: "eth0",
        };
        let attached = programs.attach(Receiver::Sink, device, XdpMode::Driver);
        attached.expect("native XDP");
    }

    for (v6, protocol, mode) in [
        (false, Tcp, Mode::Dnat),
        (false, Tcp, Mode::FullNat),
        (false, Udp, Mode::FullNat),
        (true, Tcp, Mode::Dnat),
        (true, Tcp, Mode::FullNat),
        (true, Udp, Mode::Dnat),
    ] {
        let kind = Kind { v6, protocol, mode };
        flows::establish(&node, kind, FLOWS).expect("room");
        for frames in [kind.requests(FLOWS), kind.replies(FLOWS)] {
            let call = Call {
                frames,
                count: 64,
                from: sender(&world, &frames),
                onward: None,
                processors: &[0],
                verify: true,
            };
            poll_until("neighbours to know each other", PATIENCE, || {
                let outcome = programs.run(&call).expect("live frames");
                (outcome.sent == outcome.arrived.frames).then_some(())
            });
            for processors in [&[0][..], &[0, 1][..]] {
                if processors.len() > std::thread::available_parallelism().map_or(1, usize::from) {
                    continue;
                }
                let what = format!("{kind:?}, replies: {}, {processors:?}", frames.is_reply);
                let before = counted(&node);
                let call = Call {
                    count: FRAMES,
                    processors,
                    ..call
                };
                let outcome = programs.run(&call).expect("live frames");
                let after = counted(&node);
                let all = u64::from(FRAMES) * processors.len() as u64;
                let arrived = Arrived {
                    frames: all,
                    wrong: 0,
                };
                assert_eq!((outcome.sent, outcome.arrived), (all, arrived), "{what}");
                let [forwarded, lost] = [0, 1].map(|at| after.get(at).zip(before.get(at)));
                let difference = |pair: Option<(&u64, &u64)>| pair.map(|(now, then)| now - then);
                assert_eq!(difference(forwarded), Some(all), "{what}");
                assert_eq!(difference(lost), Some(0), "{what}");
            }
        }
    }
}
