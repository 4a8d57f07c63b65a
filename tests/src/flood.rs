//! A flood of SYNs from clients nobody ever heard of: `lb_flood` run with live frames, which leave by a device.

use std::{
    net::{IpAddr, SocketAddr},
    os::fd::AsFd as _,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::channel,
    },
    thread::JoinHandle,
    time::Duration,
};

use aya::{
    Ebpf, EbpfLoader,
    maps::Array,
    programs::{Xdp, xdp::XdpMode},
};
use etherparse::PacketBuilder;
use lb_common::{
    flood::{FRAME_WORDS, Flood},
    names,
};
use lb_userspace::kernel::{LIVE_FRAMES, TestRun, test_run};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};

use crate::{
    disruption::preferred,
    netns::{Namespace, enter, now},
    require,
};

/// The programs and their map.
const LB_FLOOD: &str = "lb_flood";
const LB_FLOOD_GUARD: &str = "lb_flood_guard";
const FLOOD: &str = "FLOOD";

/// Between two bursts: after each the kernel waits for a grace period of RCU, tens of milliseconds.
const TICK: Duration = Duration::from_millis(100);
/// Threads of each kind: while one waits for the kernel the others send.
const SENDERS: usize = 3;
/// Frames in a burst at most.
const MOST: u64 = 100_000;
/// Frames the kernel handles at a time: what a NAPI poll takes.
const BATCH: u32 = 64;
/// Entries of the data path's own maps, which come with the object and are not used.
const UNUSED: u32 = 4_096;

/// What the frames look like.
#[derive(Clone, Debug)]
pub struct Syns {
    /// Clients are from here on.
    pub clients: IpAddr,
    /// The last bits of a client's address, which vary.
    pub vary: u32,
    /// The frontend.
    pub server: SocketAddr,
    /// MACs: of the device they leave by, and of the next hop.
    pub macs: [[u8; 6]; 2],
    /// The window, by which they are known.
    pub window: u16,
}

/// A running flood, until dropped.
#[derive(Debug)]
pub struct SynFlood {
    stop: Arc<AtomicBool>,
    frames: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

impl SynFlood {
    /// Sends `rate` frames a second, or as many as the processors can, by a device of `namespace`; each kind
    /// on a processor of its own, so that a device with several queues takes them side by side.
    pub fn start(namespace: &Namespace, device: &str, kinds: Vec<Syns>, rate: u32) -> Self {
        let (stop, frames) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let rate = u64::from(rate) / (kinds.len() * SENDERS) as u64;
        // The kernel checks the programs first, which takes seconds.
        let (loaded, all_loaded) = channel();
        let spawn = |(number, syns): (usize, Syns)| {
            let (stop, frames) = (Arc::clone(&stop), Arc::clone(&frames));
            let loaded = loaded.clone();
            let (namespace, device) = (namespace.name().to_owned(), device.to_owned());
            std::thread::spawn(move || {
                enter(&namespace);
                stay_on(number);
                let device = nix::net::if_::if_nametoindex(device.as_str()).expect("a device");
                let mut generator = Generator::load(&syns.flood(device));
                loaded.send(()).expect("whoever started us waits");
                drop(loaded);
                let (begin, mut sent) = (now(), 0);
                while !stop.load(Ordering::Relaxed) {
                    // Who was late sends more at once, up to a point.
                    let time = u64::try_from((begin.elapsed() + TICK).as_millis());
                    let due = time.expect("it ends within the age of the world") * rate / 1_000;
                    sent = sent.max(due.saturating_sub(MOST));
                    generator.run(due - sent);
                    frames.fetch_add(due - sent, Ordering::Relaxed);
                    sent = due;
                    let next = Duration::from_millis(sent * 1_000 / rate);
                    std::thread::sleep(next.saturating_sub(begin.elapsed()));
                }
            })
        };
        // A flood does not wait for others.
        let threads: Vec<_> = preferred(|| {
            let each = kinds.into_iter().enumerate();
            let all = each.flat_map(|kind| std::iter::repeat_n(kind, SENDERS));
            all.map(spawn).collect()
        });
        drop(loaded);
        let began = all_loaded.iter().count();
        assert_eq!(began, threads.len(), "senders that could not begin");
        Self {
            stop,
            frames,
            threads,
        }
    }

    /// Frames sent.
    pub fn frames(&self) -> u64 {
        self.frames.load(Ordering::Relaxed)
    }
}

impl Drop for SynFlood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            assert!(
                thread.join().is_ok() || std::thread::panicking(),
                "the flood panicked"
            );
        }
    }
}

/// Keeps the calling thread on one processor.
fn stay_on(number: usize) {
    let all = std::thread::available_parallelism().expect("processors");
    let mut set = CpuSet::new();
    set.set(number % all.get()).expect("a processor's number");
    sched_setaffinity(Pid::from_raw(0), &set).expect("the processor is ours");
}

/// A program that drops nearly all SYNs of a flood as they arrive at a device, until dropped: backends would do so
/// themselves, or their network.
pub struct Guard {
    _ebpf: Ebpf,
}

impl Guard {
    /// Protects what is behind a device of a namespace from SYNs with a window.
    pub fn start(namespace: &Namespace, device: &str, window: u16) -> Self {
        let mut ebpf = load(LB_FLOOD_GUARD);
        let flood = Flood {
            window: window.into(),
            frame: [0; FRAME_WORDS],
            is_v6: 0,
            source: 0,
            vary: 0,
            tcp_sum: 0,
            ip_sum: 0,
            ifindex: 0,
            frames: 0,
        };
        describe(&mut ebpf, &flood);
        let program = ebpf.program_mut(LB_FLOOD_GUARD).expect("loaded");
        let program: &mut Xdp = program.try_into().expect("an XDP program");
        namespace.inside(|| program.attach(device, XdpMode::Driver).expect("native XDP"));
        Self { _ebpf: ebpf }
    }
}

/// The generator, loaded.
struct Generator {
    ebpf: Ebpf,
}

fn load(name: &str) -> Ebpf {
    let object = require::bench_object_path();
    let mut loader = EbpfLoader::new();
    loader.btf(None);
    for (name, _) in names::MAPS {
        loader.map_max_entries(name, UNUSED);
    }
    let mut ebpf = loader
        .load_file(&object)
        .unwrap_or_else(|e| panic!("load {}: {e}", object.display()));
    let program = ebpf.program_mut(name);
    let program = program.expect("compiled with the feature `bench`");
    let program: &mut Xdp = program.try_into().expect("an XDP program");
    program.load().expect("the verifier accepts it");
    ebpf
}

fn describe(ebpf: &mut Ebpf, flood: &Flood) {
    let map = ebpf.map_mut(FLOOD).expect("the map is in the object");
    let mut map: Array<_, Flood> = map.try_into().expect("an array");
    map.set(0, flood, 0).expect("an element");
}

impl Generator {
    fn load(flood: &Flood) -> Self {
        let mut ebpf = load(LB_FLOOD);
        describe(&mut ebpf, flood);
        Self { ebpf }
    }

    fn run(&mut self, frames: u64) {
        let program = self.ebpf.program(LB_FLOOD).expect("loaded");
        let input = TestRun {
            data: &[0; FRAME_WORDS * 4],
            repeat: u32::try_from(frames).expect("at most MOST").max(1),
            flags: LIVE_FRAMES,
            batch_size: BATCH,
            ..TestRun::default()
        };
        let program = program.fd().expect("loaded").as_fd();
        test_run(program, &input).expect("live frames leave");
    }
}

impl Syns {
    /// The frame without what varies, and the sums over the rest.
    fn flood(&self, ifindex: u32) -> Flood {
        let [from, to] = self.macs;
        let builder = PacketBuilder::ethernet2(from, to);
        let builder = match (self.clients, self.server.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => builder.ipv4(from.octets(), to.octets(), 64),
            (IpAddr::V6(from), IpAddr::V6(to)) => builder.ipv6(from.octets(), to.octets(), 64),
            (from, to) => panic!("{from} and {to} are of different families"),
        };
        let builder = builder.tcp(0, self.server.port(), 0, self.window).syn();
        let mut bytes = Vec::new();
        builder.write(&mut bytes, &[]).expect("a vector takes it");
        let ip = 14;
        let tcp = bytes.len() - 20;
        let (addresses, last) = if tcp - ip == 20 { (12, 12) } else { (8, 20) };
        let source = ip + last;
        let address = word(&bytes, source);
        // What varies, and both checksums.
        for zero in [source..source + 4, tcp + 16..tcp + 18] {
            bytes.get_mut(zero).expect("inside the frame").fill(0);
        }
        if tcp - ip == 20 {
            bytes.get_mut(ip + 10..ip + 12).expect("inside").fill(0);
        }
        // The pseudo-header: addresses, length and protocol.
        let tcp_sum = sum(&bytes, ip + addresses..tcp) + sum(&bytes, tcp..tcp + 20) + 20 + 6;
        let ip_sum = sum(&bytes, ip..tcp);
        bytes.resize(FRAME_WORDS * 4, 0);
        let (words, _) = bytes.as_chunks::<4>();
        let mut frame = [0; FRAME_WORDS];
        for (to, from) in frame.iter_mut().zip(words) {
            *to = u32::from_ne_bytes(*from);
        }
        Flood {
            frame,
            is_v6: u32::from(tcp - ip != 20),
            source: address & !self.vary,
            vary: self.vary,
            tcp_sum,
            ip_sum,
            ifindex,
            window: self.window.into(),
            frames: 0,
        }
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    let bytes = bytes.get(at..at + 4).expect("inside the frame");
    u32::from_be_bytes(bytes.try_into().expect("four bytes"))
}

/// The sum of 16-bit words.
fn sum(bytes: &[u8], range: std::ops::Range<usize>) -> u32 {
    let (words, _) = bytes.get(range).expect("inside").as_chunks::<2>();
    words
        .iter()
        .map(|word| u32::from(u16::from_be_bytes(*word)))
        .sum()
}

#[cfg(test)]
mod tests {
    use lb_common::flood::fold;

    use super::*;

    /// With the source and port the program would choose, both checksums are those of a packet built at once.
    #[test]
    fn sums_lead_to_right_checksums() {
        for (clients, server) in [
            ("198.18.0.0", "192.0.2.5:80"),
            ("2001:db8:18::", "[2001:db8::5]:80"),
        ] {
            let syns = Syns {
                clients: clients.parse().expect("an address"),
                vary: 0xffff,
                server: server.parse().expect("a socket"),
                macs: [[2; 6], [4; 6]],
                window: 1_024,
            };
            let flood = syns.flood(7);
            let (address, port, number) = (flood.source | 0x1234, 0x5678_u16, 0x9abc_def0_u32);
            let halves = |word: u32| (word >> 16) + (word & 0xffff);
            let varying = halves(address) + u32::from(port) + halves(number);
            let builder = PacketBuilder::ethernet2([2; 6], [4; 6]);
            let builder = match (syns.clients, syns.server.ip()) {
                (IpAddr::V4(from), IpAddr::V4(to)) => {
                    let from = u32::from(from) | 0x1234;
                    builder.ipv4(from.to_be_bytes(), to.octets(), 64)
                }
                (IpAddr::V6(from), IpAddr::V6(to)) => {
                    let from = u128::from(from) | 0x1234;
                    builder.ipv6(from.to_be_bytes(), to.octets(), 64)
                }
                _ => panic!("one family"),
            };
            let mut whole = Vec::new();
            let builder = builder.tcp(port, 80, number, 1_024).syn();
            builder.write(&mut whole, &[]).expect("a vector");
            let check = |at: usize| {
                let bytes = whole.get(at..at + 2).expect("inside");
                u16::from_be_bytes(bytes.try_into().expect("two bytes"))
            };
            assert_eq!(
                fold(flood.tcp_sum + varying),
                check(whole.len() - 4),
                "{server}: TCP"
            );
            if flood.is_v6 == 0 {
                assert_eq!(
                    fold(flood.ip_sum + halves(address)),
                    check(24),
                    "{server}: IP"
                );
            }
        }
    }
}
