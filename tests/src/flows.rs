//! Whole connections as steps: what the cases of many files begin with.

use lb_common::reason::{Event, Reason};

use crate::{
    book::{Book, to_client, towards},
    case::{Step, from},
    network::{CLIENT, INSIDE, OUTSIDE, PODS, Port},
    packet::{Packet, endpoint, packet},
    tables::Tables,
};

/// A first packet by `port` that is answered as a closed port would, for a reason.
pub fn rejected(book: Book, port: Port, client: &str, frontend: &str, reason: Reason) -> Step {
    let first = book.first(client, frontend).next_hop(CLIENT, port.mac);
    let (answer, event) = if book.is_udp() {
        let host = |text| endpoint(text).ip().to_string();
        let header = if book.is_v6() { 48 } else { 28 };
        let answer = packet()
            .port_unreachable(&host(frontend), &host(client))
            .quoting(&first, header);
        (answer, Event::UnreachableSent)
    } else {
        let answer = packet().tcp(frontend, client).flags(0x14);
        (answer.seq(0).ack(1_000).window(0), Event::ResetSent)
    };
    // How every answer of ours leaves: TTL 64, no identification, back to the sender's MAC.
    let answer = answer.id(0).ttl(64).next_hop(port.mac, CLIENT);
    from(port, &first).answers(&answer, event).reason(reason)
}

/// How a flow is forwarded.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Mode {
    /// Backend elsewhere; the client's address is replaced.
    FullNat,
    /// Backend elsewhere that answers through this node; the client's address is kept.
    Gateway,
    /// Pod of this node; the client's address is kept.
    Pod,
}

/// The three modes.
pub const MODES: [Mode; 3] = [Mode::FullNat, Mode::Gateway, Mode::Pod];

/// One flow: client port 40000 to the VIP's port 443, backend host 5 port 8443.
#[derive(Clone, Copy, Debug)]
pub struct Conversation {
    /// Family and transport.
    pub book: Book,
    /// Mode.
    pub mode: Mode,
    /// The client's port, also towards the backend.
    pub client_port: u16,
}

impl Conversation {
    /// A conversation with client port 40000.
    pub const fn new(book: Book, mode: Mode) -> Self {
        Self {
            book,
            mode,
            client_port: 40_000,
        }
    }

    /// `IPv4/TCP full-nat`.
    pub fn name(self) -> String {
        let mode = match self.mode {
            Mode::FullNat => "full-nat",
            Mode::Gateway => "dnat by gateway",
            Mode::Pod => "dnat to a pod",
        };
        format!("{} {mode}", self.book.name())
    }

    /// Tables with one service and the one backend.
    pub fn tables(self) -> Tables {
        let service = self.book.service();
        match self.mode {
            Mode::FullNat => service.backends([self.backend().as_str()]),
            Mode::Gateway => service.backends([self.backend().as_str()]).keep_source(),
            Mode::Pod => service.local_backends([self.backend().as_str()]),
        }
    }

    /// The device towards the backend.
    pub const fn inside(self) -> Port {
        match self.mode {
            Mode::FullNat | Mode::Gateway => INSIDE,
            Mode::Pod => PODS,
        }
    }

    /// The client's endpoint.
    pub fn client(self) -> String {
        self.book.client(self.client_port)
    }

    /// The frontend's endpoint.
    pub fn vip(self) -> String {
        self.book.vip(443)
    }

    /// The backend's endpoint.
    pub fn backend(self) -> String {
        self.book.at(&self.book.host(self.inside(), 5), 8443)
    }

    /// Whom the backend sees.
    pub fn seen(self) -> String {
        match self.mode {
            Mode::FullNat => self.book.snat(self.client_port),
            Mode::Gateway | Mode::Pod => self.client(),
        }
    }

    /// A packet of the client as it leaves towards the backend.
    pub fn out(self, packet: &Packet) -> Packet {
        let rewritten = packet.clone().from(&self.seen()).to(&self.backend());
        towards(self.inside(), 5, &rewritten)
    }

    /// A packet of the backend as it leaves towards the client.
    pub fn back(self, packet: &Packet) -> Packet {
        to_client(&packet.clone().from(&self.vip()).to(&self.client()))
    }

    /// A client's packet that is forwarded.
    pub fn request(self, packet: &Packet) -> Step {
        let step = from(OUTSIDE, packet).forwards(&self.out(packet));
        if self.mode == Mode::Pod {
            step.by_tcx()
        } else {
            step
        }
    }

    /// A backend's packet that is forwarded.
    pub fn reply(self, packet: &Packet) -> Step {
        from(self.inside(), packet).replies(&self.back(packet))
    }

    /// The first packet.
    pub fn first(self) -> Packet {
        self.book.first(&self.client(), &self.vip())
    }

    /// The backend's answer to it.
    pub fn second(self) -> Packet {
        self.book.second(&self.backend(), &self.seen())
    }

    /// What proves the client.
    pub fn third(self) -> Packet {
        self.book.third(&self.client(), &self.vip())
    }

    /// Data of the client: TCP sequence number 1000, acknowledging 5000.
    pub fn question(self) -> Packet {
        let packet = self.book.third(&self.client(), &self.vip());
        packet.payload(b"a question of odd length!")
    }

    /// Data of the backend: TCP sequence number 5000, acknowledging 1025.
    pub fn answer(self) -> Packet {
        let packet = self
            .book
            .packet(&self.backend(), &self.seen())
            .payload(b"an answer");
        if self.book.is_udp() {
            packet
        } else {
            packet.seq(5_000).ack(1_025)
        }
    }

    /// The first packet makes a flow, the second comes back, the third proves the client.
    pub fn handshake(self) -> [Step; 3] {
        [
            self.request(&self.first()).creates(),
            self.reply(&self.second()),
            self.request(&self.third()).promotes(),
        ]
    }
}
