//! Packets no ordinary socket sends, and eyes on the wire.

use std::{
    io::Read as _,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::{
    netns::{Namespace, poll_until},
    packet::Packet,
};

/// Length of the Ethernet header our packets begin with.
const ETHERNET: usize = 14;
/// Protocol of a raw socket whose packets have their IP header already.
const WITH_HEADER: i32 = 255;

/// Sends a packet, whatever its source, by the routes of a namespace.
pub fn send(namespace: &Namespace, to: IpAddr, packet: &Packet) {
    let bytes = packet.bytes();
    let bytes = bytes.get(ETHERNET..).expect("a frame");
    namespace.inside(|| {
        let address = SocketAddr::new(to, 0);
        let domain = Domain::for_address(address);
        let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(WITH_HEADER)));
        let socket = socket.expect("a raw socket");
        let sent = socket.send_to(bytes, &SockAddr::from(address));
        sent.unwrap_or_else(|e| panic!("raw packet to {to}: {e}"));
    });
}

/// What passes through a namespace's devices, both ways, from the moment it is made.
#[derive(Debug)]
pub struct Capture {
    frames: Arc<Mutex<Vec<Vec<u8>>>>,
    stop: Arc<AtomicBool>,
}

impl Capture {
    /// Starts to look.
    pub fn new(namespace: &Namespace) -> Self {
        let every = u16::try_from(libc::ETH_P_ALL).expect("16 bits").to_be();
        let every = Protocol::from(i32::from(every));
        let socket = namespace.inside(|| Socket::new(Domain::PACKET, Type::RAW, Some(every)));
        let mut socket = socket.expect("a packet socket");
        let timeout = Some(Duration::from_millis(20));
        socket.set_read_timeout(timeout).expect("a timeout");
        let this = Self {
            frames: Arc::default(),
            stop: Arc::default(),
        };
        let (frames, stop) = (Arc::clone(&this.frames), Arc::clone(&this.stop));
        std::thread::spawn(move || {
            let mut buffer = [0; 2048];
            while !stop.load(Ordering::Relaxed) {
                let Ok(length) = socket.read(&mut buffer) else {
                    continue;
                };
                let frame = buffer.get(..length).unwrap_or_default().to_vec();
                frames
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(frame);
            }
        });
        this
    }

    /// Waits for a packet.
    pub fn wait(&self, what: &str, wanted: impl Fn(&Seen) -> bool) {
        poll_until(what, Duration::from_secs(5), || {
            self.saw(&wanted).then_some(())
        });
    }

    /// Whether such a packet was seen.
    pub fn saw(&self, wanted: impl Fn(&Seen) -> bool) -> bool {
        self.packets().iter().any(wanted)
    }

    /// The IP packets seen so far.
    pub fn packets(&self) -> Vec<Seen> {
        let frames = self.frames.lock().unwrap_or_else(PoisonError::into_inner);
        frames.iter().filter_map(|frame| Seen::of(frame)).collect()
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// A packet on the wire.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Seen {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// IP protocol.
    pub protocol: u8,
    /// What follows the IP header.
    pub segment: Vec<u8>,
}

impl Seen {
    fn of(frame: &[u8]) -> Option<Self> {
        let packet = frame.get(ETHERNET..)?;
        let octets = |from: usize| packet.get(from..from + 4)?.try_into().ok();
        let long = |from: usize| packet.get(from..from + 16)?.try_into().ok();
        match packet.first()? >> 4 {
            4 => {
                let (source, destination): ([u8; 4], [u8; 4]) = (octets(12)?, octets(16)?);
                Some(Self {
                    source: source.into(),
                    destination: destination.into(),
                    protocol: *packet.get(9)?,
                    segment: packet
                        .get(usize::from(packet.first()? & 15) * 4..)?
                        .to_vec(),
                })
            }
            6 => {
                let (source, destination): ([u8; 16], [u8; 16]) = (long(8)?, long(24)?);
                Some(Self {
                    source: source.into(),
                    destination: destination.into(),
                    protocol: *packet.get(6)?,
                    segment: packet.get(40..)?.to_vec(),
                })
            }
            _ => None,
        }
    }

    /// Source and destination port, for protocols that begin with them.
    pub fn ports(&self) -> (u16, u16) {
        let word = |at: usize| {
            let bytes = self.segment.get(at..at + 2).and_then(|b| b.try_into().ok());
            bytes.map_or(0, u16::from_be_bytes)
        };
        (word(0), word(2))
    }

    /// Whether it is a TCP segment with RST.
    pub fn is_reset(&self) -> bool {
        self.protocol == 6 && self.segment.get(13).is_some_and(|flags| flags & 4 != 0)
    }

    /// Sequence and acknowledgement number of a TCP segment.
    pub fn numbers(&self) -> (u32, u32) {
        let word = |at: usize| {
            let bytes = self.segment.get(at..at + 4).and_then(|b| b.try_into().ok());
            bytes.map_or(0, u32::from_be_bytes)
        };
        (word(4), word(8))
    }
}
