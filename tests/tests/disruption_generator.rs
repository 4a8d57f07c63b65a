//! The generator of SYN floods itself: what leaves the device, and how fast.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    os::fd::{AsRawFd as _, OwnedFd},
    time::Duration,
};

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use lb_tests::{
    flood::{SynFlood, Syns},
    netns::{Namespace, now, serial, world::cable},
    require,
};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, socket};

/// SYNs a second that must leave the device.
const LEAST: u64 = 200_000;
/// What is asked for.
const RATE: u32 = 300_000;
/// Measured at a time. A busy machine gets several chances.
const WINDOW: Duration = Duration::from_secs(1);
const CHANCES: u32 = 5;
/// SYNs of each family looked at.
const SAMPLE: usize = 10_000;
/// Marks them.
const MARK: u16 = 0x5107;

const MACS: [[u8; 6]; 2] = [[2, 0, 0, 0, 0xf1, 1], [2, 0, 0, 0, 0xf1, 2]];

fn syns(clients: &str, server: &str) -> Syns {
    Syns {
        clients: clients.parse().expect("an address"),
        vary: 0xffff,
        server: server.parse().expect("a socket"),
        macs: MACS,
        window: MARK,
    }
}

/// Frames that arrived at a device.
fn received(namespace: &Namespace, device: &str) -> u64 {
    let text = namespace.inside(|| std::fs::read_to_string("/proc/thread-self/net/dev"));
    let text = text.expect("the devices of a namespace");
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    let (_, numbers) = lines
        .into_iter()
        .find(|(name, _)| name.trim() == device)
        .expect("a device");
    // Bytes, then frames.
    let frames = numbers.split_whitespace().nth(1).expect("two numbers");
    frames.parse().expect("a number")
}

/// Client address, port and sequence number of a frame of the flood, whose checksums are right.
fn client(frame: &[u8]) -> Option<(IpAddr, u16, u32)> {
    let packet = SlicedPacket::from_ethernet(frame).ok()?;
    let (Some(net), Some(TransportSlice::Tcp(tcp))) = (packet.net, packet.transport) else {
        return None;
    };
    if tcp.window_size() != MARK {
        return None;
    }
    assert!(tcp.syn() && !tcp.ack() && tcp.payload().is_empty());
    let (source, sum) = match &net {
        NetSlice::Ipv4(ip) => {
            let header = ip.header();
            let whole = header.to_header().calc_header_checksum();
            assert_eq!(header.header_checksum(), whole, "the IPv4 header's");
            let sum = tcp.calc_checksum_ipv4(header.source(), header.destination());
            (IpAddr::V4(header.source_addr()), sum)
        }
        NetSlice::Ipv6(ip) => {
            let header = ip.header();
            let sum = tcp.calc_checksum_ipv6(header.source(), header.destination());
            (IpAddr::V6(header.source_addr()), sum)
        }
        NetSlice::Arp(_) => return None,
    };
    assert_eq!(Ok(tcp.checksum()), sum, "TCP's, from {source}");
    Some((source, tcp.source_port(), tcp.sequence_number()))
}

/// Looks at some of the frames that arrive, of each family as many.
fn sample(tap: &OwnedFd) -> [Vec<(IpAddr, u16, u32)>; 2] {
    let mut frame = [0; 256];
    let mut clients = [Vec::new(), Vec::new()];
    while clients.iter().any(|family| family.len() < SAMPLE) {
        let length = recv(tap.as_raw_fd(), &mut frame, MsgFlags::empty()).expect("a frame");
        let Some(client) = frame.get(..length).and_then(client) else {
            continue;
        };
        let [v4, v6] = &mut clients;
        let family = if client.0.is_ipv6() { v6 } else { v4 };
        if family.len() < SAMPLE {
            family.push(client);
        }
    }
    clients
}

#[test]
fn a_flood_leaves_at_its_rate_and_no_client_is_like_another() {
    if !require::kernel_tests()
        || !require::program("ethtool")
        || !require::file(&require::bench_object_path())
    {
        return;
    }
    let _one = serial();
    let (source, sink) = (Namespace::new("flood"), Namespace::new("sink"));
    cable(&source, "out0", &sink, "in0");
    // A veth takes redirected frames only where the other end polls: with GRO or an XDP program.
    sink.ethtool("in0", &["gro", "on"]);
    let tap = sink.inside(|| {
        let all = SockProtocol::EthAll;
        socket(AddressFamily::Packet, SockType::Raw, SockFlag::empty(), all).expect("a socket")
    });

    let kinds = vec![
        syns("198.18.0.0", "192.0.2.5:80"),
        syns("2001:db8:18::", "[2001:db8::5]:80"),
    ];
    let flood = SynFlood::start(&source, "out0", kinds, RATE);
    let families = sample(&tap);
    drop(tap);
    for (clients, prefix) in families.iter().zip(["198.18.", "2001:db8:18:"]) {
        let sources: BTreeSet<IpAddr> = clients.iter().map(|(source, ..)| *source).collect();
        let numbers: BTreeSet<u32> = clients.iter().map(|(.., number)| *number).collect();
        // Random ones repeat: 10,000 of 65,536 addresses are about 9,300 different ones.
        assert!(sources.len() * 10 > SAMPLE * 9, "{}", sources.len());
        assert!(numbers.len() * 100 > SAMPLE * 99, "{}", numbers.len());
        let is_inside = |source: &IpAddr| source.to_string().starts_with(prefix);
        assert!(sources.iter().all(is_inside), "all of {prefix}");
        assert!(clients.iter().all(|(_, port, _)| *port >= 1_024));
    }

    let mut best = 0;
    for _ in 0..CHANCES {
        let (before, start) = (received(&sink, "in0"), now());
        std::thread::sleep(WINDOW);
        let frames = received(&sink, "in0") - before;
        let rate = u128::from(frames) * 1_000_000 / start.elapsed().as_micros();
        best = best.max(u64::try_from(rate).expect("a rate"));
        if best >= LEAST {
            break;
        }
    }
    println!("flood: {best} SYN/s left the device");
    assert!(best >= LEAST, "{best} SYN/s");
    assert!(flood.frames() > 0);
}
