//! Datagrams of established flows, from a generator of live frames through the balancer into a program that
//! counts and drops them: all on one processor.
//!
//! The flows are real: each has a socket that asked twice and was answered twice before. nginx's workers run in
//! user space and may use the other processor too.

use std::{net::SocketAddr, path::Path, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use aya::programs::xdp::XdpMode;
use lb_common::bench::client;
use lb_tests::{
    netns::Namespace,
    stream::{Call, Device, Frames, Programs, Receiver},
};
use lb_userspace::tables::Protocol;

use crate::{
    peers::Peer,
    world::{CLIENT, Router},
};

/// Flows.
const FLOWS: u32 = 1_024;
/// Frames of a round: less, and the time the kernel takes to end a call counts.
const FRAMES: u32 = 1_000_000;
/// The processor.
const PROCESSOR: usize = 1;
/// How long a datagram's answer may take, and how often it may be lost.
const LIMIT: Duration = Duration::from_millis(200);
const TRIES: usize = 10;
/// Of so many frames one may be another than expected, or go astray.
const MAY_FAIL: u64 = 100;

/// A peer's flows, and the programs at both ends, until dropped.
pub(crate) struct Stream {
    frames: Frames,
    programs: Programs,
    _sockets: Vec<std::net::UdpSocket>,
}

impl Stream {
    /// Makes the flows and attaches the sink. `None` where datagrams are not served.
    ///
    /// # Errors
    /// A flow is not answered, or the kernel refuses a program.
    pub(crate) fn start(peer: &Peer<'_>, object: &Path) -> Result<Option<Self>> {
        let Some(frontend) = peer.balancer.datagrams() else {
            return Ok(None);
        };
        let world = &peer.world;
        let sockets = world.client.inside(|| establish(frontend));
        let sockets = sockets.with_context(|| format!("flows through {}", peer.name()))?;
        let (port, _) = client(0);
        let from = SocketAddr::new(CLIENT, port);
        let frames = Frames {
            sent: [from, frontend],
            arriving: [
                SocketAddr::new(peer.balancer.source(), port),
                crate::services::datagram_backend(),
            ],
            is_reply: false,
            protocol: Protocol::Udp,
            flows: FLOWS,
            hops: match peer.balancer.router() {
                Router::Kernel => 1,
                Router::Program => 0,
            },
            macs: [mac(&world.client, "eth0")?, mac(&world.balancer, "eth0")?],
        };
        let mut programs = Programs::load(object)?;
        let sink = Device {
            namespace: &world.backend,
            name: "eth0",
        };
        programs.attach(Receiver::Sink, sink, XdpMode::Driver)?;
        Ok(Some(Self {
            frames,
            programs,
            _sockets: sockets,
        }))
    }

    /// Millions of datagrams a second that came through as they should.
    ///
    /// # Errors
    /// The kernel refuses the generator; others arrive than the peer would send; or, where the kernel forwards,
    /// fewer than were sent.
    pub(crate) fn measure(&mut self, peer: &Peer<'_>) -> Result<f64> {
        let call = Call {
            frames: self.frames,
            count: FRAMES,
            from: Device {
                namespace: &peer.world.client,
                name: "eth0",
            },
            onward: None,
            processors: &[PROCESSOR],
            verify: false,
        };
        let outcome = self.programs.run(&call)?;
        let arrived = outcome.arrived;
        let few = outcome.sent / MAY_FAIL;
        ensure!(
            arrived.frames > 0 && arrived.wrong <= few,
            "{}: of {} datagrams {} arrived, and {} with other ends",
            peer.name(),
            outcome.sent,
            arrived.frames,
            arrived.wrong
        );
        if let Router::Kernel = peer.balancer.router() {
            ensure!(
                arrived.frames + few >= outcome.sent,
                "{}: of {} datagrams only {} came through",
                peer.name(),
                outcome.sent,
                arrived.frames
            );
        }
        let lane = outcome.lanes.first().context("one processor sends")?;
        #[expect(clippy::cast_precision_loss, reason = "a million")]
        let frames = arrived.frames as f64;
        Ok(frames / lane.wall.as_secs_f64() / 1e6)
    }
}

/// Sockets whose datagrams are answered, from the namespace of the calling thread.
fn establish(frontend: SocketAddr) -> Result<Vec<std::net::UdpSocket>> {
    (0..FLOWS)
        .map(|number| {
            let (port, _) = client(number);
            let socket = std::net::UdpSocket::bind((CLIENT, port))
                .with_context(|| format!("take port {port}"))?;
            socket.set_read_timeout(Some(LIMIT))?;
            socket.connect(frontend)?;
            // The second time it is established: somebody answered, and the client goes on.
            for _ in 0..2 {
                answered(&socket).with_context(|| format!("from port {port}"))?;
            }
            Ok(socket)
        })
        .collect()
}

fn answered(socket: &std::net::UdpSocket) -> Result<()> {
    let mut answer = [0; 64];
    for _ in 0..TRIES {
        socket.send(b"datagram").context("send a datagram")?;
        if socket.recv(&mut answer).is_ok() {
            return Ok(());
        }
    }
    bail!("no datagram was answered")
}

/// The address of a device.
fn mac(namespace: &Namespace, device: &str) -> Result<[u8; 6]> {
    let found = namespace.inside(|| {
        let mut all = nix::ifaddrs::getifaddrs()?;
        let mac = all.find_map(|it| {
            let is_it = it.interface_name == device;
            it.address.filter(|_| is_it)?.as_link_addr()?.addr()
        });
        nix::Result::Ok(mac)
    });
    found?.with_context(|| format!("{device} has no address"))
}
