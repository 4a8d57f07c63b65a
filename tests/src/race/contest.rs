//! A race: what comes before, who meets whom, and what must have come of it.

use lb_common::{
    config::Config,
    reason::{Counter, Event, Reason},
};

use super::{Act, BATCH, Found, Outcomes, check, collide, crowd::Crowd, forget, frame, patience};
use crate::{
    book::{Book, to_client, towards},
    netns,
    network::{INSIDE, OUTSIDE, in_network, words_of},
    packet::Packet,
    run::{CONFIG, Hook, Lab, with_lab},
    tables::Tables,
};

/// A flow's endpoints, by `full-nat` to host 5 behind [`INSIDE`] unless `seen` is the client.
#[derive(Clone, Debug)]
pub struct Line {
    /// Family and transport.
    pub book: Book,
    /// The client.
    pub client: String,
    /// The frontend.
    pub vip: String,
    /// The backend.
    pub backend: String,
    /// Whom the backend sees.
    pub seen: String,
}

impl Line {
    /// Client port 10000 and on, to the VIP's port 443 and the backend's port 8443.
    pub fn by_client(book: Book, number: u16) -> Self {
        Self {
            book,
            client: book.client(10_000 + number),
            vip: book.vip(443),
            backend: book.backend(5, 8443),
            seen: book.snat(10_000 + number),
        }
    }

    /// A frontend and an endpoint of its own, so that all of an SNAT address's ports are its own too.
    pub fn by_service(book: Book, number: u16) -> Self {
        Self {
            book,
            client: book.client(40_000),
            vip: book.vip(1_000 + number),
            backend: book.backend(5, 8_000 + number),
            seen: book.snat(40_000),
        }
    }

    /// The tables of [`Line::by_client`].
    pub fn one_service(book: Book) -> Tables {
        book.service().backends([book.backend(5, 8443).as_str()])
    }

    /// The tables of `number` lines [`Line::by_service`].
    pub fn services(book: Book, number: u16) -> Tables {
        (0..number).fold(book.bare(), |tables, number| {
            let line = Self::by_service(book, number);
            tables
                .frontend(&book.frontend_at(&line.vip))
                .backends([line.backend.as_str()])
        })
    }

    /// The same line for another client.
    #[must_use]
    pub fn of(&self, client: String) -> Self {
        Self {
            client,
            ..self.clone()
        }
    }

    /// What the client says, as the backend gets it.
    pub fn out(&self, packet: &Packet) -> Vec<u8> {
        let packet = packet.clone().from(&self.seen).to(&self.backend);
        towards(INSIDE, 5, &packet).bytes()
    }

    /// What the backend says, as the client gets it.
    pub fn back(&self, packet: &Packet) -> Vec<u8> {
        to_client(&packet.clone().from(&self.vip).to(&self.client)).bytes()
    }

    /// The client's first packet.
    pub fn first(&self) -> Packet {
        self.book.first(&self.client, &self.vip)
    }

    /// The backend's answer.
    pub fn second(&self) -> Packet {
        self.book.second(&self.backend, &self.seen)
    }

    /// What proves the client.
    pub fn third(&self) -> Packet {
        self.book.third(&self.client, &self.vip)
    }

    /// Data of the client.
    pub fn question(&self) -> Packet {
        self.third().payload(b"question")
    }

    /// Data of the backend.
    pub fn answer(&self) -> Packet {
        let packet = self.book.packet(&self.backend, &self.seen);
        if self.book.is_udp() {
            packet
        } else {
            packet.seq(5_000).ack(1_008).payload(b"answer")
        }
    }

    /// First and second packet.
    pub fn open(&self) -> [Act; 2] {
        [asks(&self.first()), tells(&self.second())]
    }

    /// The whole handshake.
    pub fn handshake(&self) -> [Act; 3] {
        let [first, second] = self.open();
        [first, second, asks(&self.third())]
    }

    /// A FIN from each side.
    pub fn fins(&self) -> [Act; 2] {
        [
            asks(&self.question().flags(0x11)),
            tells(&self.answer().flags(0x11)),
        ]
    }
}

/// A packet of a client.
pub fn asks(packet: &Packet) -> Act {
    frame(OUTSIDE, packet)
}

/// A packet of a backend.
pub fn tells(packet: &Packet) -> Act {
    frame(INSIDE, packet)
}

type Prepare = Box<dyn Fn(&mut Lab) -> Vec<[Vec<Act>; 2]> + Send>;
type Judge = Box<dyn Fn(&Lab, &Batch) -> Result<(), String> + Send>;

/// What came of a batch.
#[derive(Debug)]
pub struct Batch {
    /// What the tables hold.
    pub found: Found,
    /// The outcomes of each turn.
    pub outcomes: Vec<Outcomes>,
    /// Packets of service ports and of backends since the batch began, pending ones included.
    pub traffic: [u64; 2],
    /// Packets refused since the batch began because a half could not be inserted.
    pub refused: u64,
    /// Events counted since the batch began.
    events: Vec<(Event, u64)>,
}

impl Batch {
    /// How often an event was counted.
    pub fn count(&self, event: Event) -> u64 {
        let found = self.events.iter().find(|(other, _)| *other == event);
        found.map_or(0, |(_, number)| *number)
    }
}

/// A race under construction.
#[must_use]
#[expect(missing_debug_implementations, reason = "closures")]
pub struct Race {
    name: String,
    config: Config,
    tables: Tables,
    prepare: Prepare,
    judges: Vec<Judge>,
    room: Option<u16>,
}

/// A race. `prepare` comes before each batch and says who meets whom in it.
pub fn race(
    name: impl Into<String>,
    tables: Tables,
    prepare: impl Fn(&mut Lab) -> Vec<[Vec<Act>; 2]> + Send + 'static,
) -> Race {
    Race {
        name: name.into(),
        config: CONFIG,
        tables,
        prepare: Box::new(prepare),
        judges: Vec::new(),
        room: None,
    }
}

impl Race {
    /// Changes the configuration.
    pub fn config(mut self, change: impl FnOnce(&mut Config)) -> Self {
        change(&mut self.config);
        self
    }

    /// During the turns others' flows leave no more than `room` entries in the established tables.
    pub fn room(mut self, room: u16) -> Self {
        self.room = Some(room);
        self
    }

    /// What must be found after a batch.
    pub fn found(self, wanted: Found) -> Self {
        self.judge(move |_, result| {
            if result.found == wanted {
                return Ok(());
            }
            Err(format!("{:?}, not {wanted:?}", result.found))
        })
    }

    /// How often an event must have been counted in a batch.
    pub fn counts(self, event: Event, wanted: u64) -> Self {
        self.judge(move |_, result| {
            let count = result.count(event);
            if count == wanted {
                return Ok(());
            }
            Err(format!("{}: {count}, not {wanted}", event.name()))
        })
    }

    /// Anything else that must hold after a batch.
    pub fn judge(
        mut self,
        judge: impl Fn(&Lab, &Batch) -> Result<(), String> + Send + 'static,
    ) -> Self {
        self.judges.push(Box::new(judge));
        self
    }

    fn run(&self, lab: &mut Lab) {
        lab.apply(&self.tables.build(1));
        let (mut turns, mut overlapped, mut failures) = (0, 0, Vec::new());
        let began = netns::now();
        while began.elapsed() < patience() || turns == 0 {
            lab.apply(&self.tables.build(1));
            forget(lab);
            let (before, traffic_before) = (counts(lab), traffic(lab));
            let refused_before = refused(lab);
            let batch = (self.prepare)(lab);
            let crowd = self.room.map(|room| Crowd::enter(lab, room));
            let (outcomes, met) = collide(lab.programs(), &batch);
            if let Some(crowd) = crowd {
                crowd.leave(lab);
            }
            turns += batch.len();
            overlapped += met;
            let events = counts(lab);
            let events = events.iter().zip(before);
            let events = events.map(|(&(event, now), (_, then))| (event, now - then));
            let verdict = check(lab).and_then(|found| {
                let [services_now, backends_now] = traffic(lab);
                // An id that is used again begins at zero.
                let [services, backends] = traffic_before;
                let services = services_now.saturating_sub(services);
                let backends = backends_now.saturating_sub(backends);
                let result = Batch {
                    found,
                    outcomes,
                    traffic: [services, backends],
                    refused: refused(lab) - refused_before,
                    events: events.collect(),
                };
                let mut judges = self.judges.iter();
                judges.try_for_each(|judge| judge(lab, &result))
            });
            if let Err(error) = verdict {
                failures.push(error);
            }
        }
        forget(lab);
        eprintln!(
            "{}: {turns} turns, {overlapped} of them at once, {} bad batches",
            self.name,
            failures.len()
        );
        assert!(
            failures.is_empty(),
            "{}: {} of {} batches, first:\n{}",
            self.name,
            failures.len(),
            turns / usize::from(BATCH),
            failures.first().map_or("", String::as_str)
        );
    }
}

fn counts(lab: &Lab) -> Vec<(Event, u64)> {
    let events = Event::ALL.iter();
    events
        .map(|event| (*event, lab.count(Counter::Event(*event))))
        .collect()
}

fn refused(lab: &Lab) -> u64 {
    lab.count(Counter::Reason(Reason::InsertFailed))
}

fn traffic(lab: &Lab) -> [u64; 2] {
    let counts = lab.counts();
    [counts.services, counts.backends].map(|ids| {
        let packets = ids.values().map(|it| it.forward.packets + it.reply.packets);
        packets.sum()
    })
}

/// Runs races one after the other, then tells of all that failed.
pub fn run(races: Vec<Race>) {
    in_network(move || {
        let wanted = std::env::var("SLUICE_CASE").unwrap_or_default();
        let mut failures = Vec::new();
        for race in races.iter().filter(|race| race.name.contains(&wanted)) {
            with_lab(&race.config, Hook::Xdp, |lab| {
                let run = std::panic::AssertUnwindSafe(|| race.run(lab));
                if let Err(panic) = std::panic::catch_unwind(run) {
                    failures.push(format!("{}: {}", race.name, words_of(&*panic)));
                }
            });
        }
        assert!(failures.is_empty(), "{}", failures.join("\n\n"));
    });
}
