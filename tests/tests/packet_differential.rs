//! The reference forwarder of `lb-userspace` and the kernel, given the same packets and the same
//! tables in the same order, must do the same.

use std::{
    cell::Cell,
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use lb_common::{
    config::{Config, UnknownFlows, config_flag},
    conntrack::TICK_MASK,
    names,
    reason::{Counter, Reason, Verdict as Fate},
    service::affinity::{Affinity, AffinityKey},
};
use lb_tests::{
    book::{BOOKS, Book},
    network::{INSIDE, OUTSIDE, PODS, SLIM, in_network},
    packet::{Packet, describe},
    run::{CONFIG, Hook, Lab, Outcome, Verdict, with_lab},
};
use lb_userspace::{
    dataplane::model::forward::{
        Forwarder, ForwarderConfig, ForwardingMode, ModelPacket, Outcome as Wanted, Tuple,
    },
    tables::{Protocol, TableSet},
};
use proptest::{
    prelude::*,
    test_runner::{Config as Cases, RngAlgorithm, TestCaseError, TestRng, TestRunner},
};

use world::{client, destination, tables, tuple_of};

#[path = "differential/world.rs"]
mod world;

/// One thing that happens.
#[derive(Clone, Copy, Debug)]
enum Act {
    /// The client sends to a destination.
    Request {
        client: u8,
        destination: u8,
        kind: Kind,
    },
    /// The backend of that flow, if there is one, sends back.
    Reply {
        client: u8,
        destination: u8,
        kind: Kind,
    },
    /// The tables change.
    Publish(u8),
    /// Time goes by for session affinity.
    Wait(u8),
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Kind {
    Syn,
    Data,
    Fin,
    Reset,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let kind = prop_oneof![
        4 => Just(Kind::Syn),
        4 => Just(Kind::Data),
        2 => Just(Kind::Fin),
        1 => Just(Kind::Reset)
    ];
    let act = prop_oneof![
        8 => (0_u8..7, 0_u8..9, kind.clone())
            .prop_map(|(client, destination, kind)| Act::Request { client, destination, kind }),
        4 => (0_u8..7, 0_u8..6, kind)
            .prop_map(|(client, destination, kind)| Act::Reply { client, destination, kind }),
        1 => (0_u8..7).prop_map(Act::Publish),
        1 => (0_u8..80).prop_map(Act::Wait),
    ];
    prop::collection::vec(act, 1..40)
}

/// Both sides, and what must be known to keep them in step.
struct Pair<'l> {
    lab: &'l mut Lab,
    book: Book,
    model: Forwarder,
    tables: TableSet,
    epoch: u32,
    /// The backend that is a pod of this node.
    pod: SocketAddr,
    /// Flows whose end the model follows less closely than the kernel.
    over: BTreeSet<Tuple>,
    /// Packets by what the model said: known, new, refused.
    said: [u32; 3],
}

type Checked<T> = Result<T, TestCaseError>;

impl<'l> Pair<'l> {
    fn new(lab: &'l mut Lab, book: Book) -> Self {
        let config = ForwarderConfig {
            unknown_flows: UnknownFlows::Select,
            direct_backend_access: false,
            drop_unallocated: true,
        };
        let mut pair = Self {
            lab,
            book,
            model: Forwarder::new(config),
            tables: TableSet::default(),
            epoch: 0,
            pod: book.pod(5, 8443).parse().expect("an endpoint"),
            over: BTreeSet::new(),
            said: [0; 3],
        };
        pair.publish(0);
        pair
    }

    fn publish(&mut self, variant: u8) {
        self.epoch += 1;
        self.tables = tables(self.book, variant).build(self.epoch);
        self.lab.apply(&self.tables);
    }

    /// A tick is a second here, and stands still: what is remembered grows older instead.
    fn wait(&mut self, seconds: u32) {
        self.model.wait(seconds);
        let map = self.lab.map(names::AFFINITY);
        let found: Vec<(AffinityKey, Affinity)> = map.read_all().expect("AFFINITY");
        for (key, mut value) in found {
            value.stamp = value.stamp.wrapping_sub(seconds) & TICK_MASK;
            map.update(&key, &value).expect("AFFINITY");
        }
    }

    fn tuple(&self, source: &str, destination: &str) -> Tuple {
        Tuple {
            source: source.parse().expect("an endpoint"),
            destination: destination.parse().expect("an endpoint"),
            protocol: if self.book.is_udp() {
                Protocol::Udp
            } else {
                Protocol::Tcp
            },
        }
    }

    fn act(&mut self, act: Act) -> Checked<()> {
        match act {
            Act::Publish(variant) => self.publish(variant),
            Act::Wait(seconds) => self.wait(u32::from(seconds)),
            Act::Request {
                client: number,
                destination: to,
                kind,
            } => {
                let (source, to) = (client(self.book, number), destination(self.book, to));
                self.request(&source, &to, kind)?;
            }
            Act::Reply {
                client: number,
                destination: to,
                kind,
            } => {
                let tuple = self.tuple(&client(self.book, number), &destination(self.book, to));
                let probe = ModelPacket {
                    tuple,
                    tcp_flags: flags(self.book, Kind::Data),
                };
                let known = self.model.forward(&self.tables, &probe);
                if let Wanted::Known(written) = known
                    && !self.over.contains(&tuple)
                {
                    self.reply(written, kind)?;
                }
            }
        }
        Ok(())
    }

    /// A client's packet. A flow it makes is proven at once: the model knows no embryonic ones.
    fn request(&mut self, source: &str, destination: &str, kind: Kind) -> Checked<()> {
        let tuple = self.tuple(source, destination);
        if self.over.contains(&tuple) {
            return Ok(());
        }
        let wanted = self.exchange(source, destination, kind, (1_010, 5_000))?;
        match wanted {
            Wanted::New(_) => {
                let probe = ModelPacket {
                    tuple,
                    tcp_flags: flags(self.book, Kind::Data),
                };
                let Wanted::Known(written) = self.model.forward(&self.tables, &probe) else {
                    return Err(TestCaseError::fail("the model forgot its new flow"));
                };
                self.backend_sends(written, None, (4_999, 1_011))?;
                self.exchange(source, destination, Kind::Data, (1_010, 5_000))?;
            }
            Wanted::Known(_) if kind == Kind::Syn && !self.book.is_udp() => {
                // A SYN on a closed flow begins a connection the model does not follow.
                self.over.insert(tuple);
            }
            Wanted::Known(_) | Wanted::Refused(_) => {}
        }
        Ok(())
    }

    fn reply(&mut self, written: Tuple, kind: Kind) -> Checked<()> {
        // A backend's SYN on a known flow means nothing to either.
        let kind = if kind == Kind::Syn { Kind::Data } else { kind };
        self.backend_sends(written, Some(kind), (5_000, 1_010))
    }

    /// A packet of the backend of a flow; without a kind a SYN-ACK.
    fn backend_sends(
        &mut self,
        written: Tuple,
        kind: Option<Kind>,
        (seq, ack): (u32, u32),
    ) -> Checked<()> {
        let (source, destination) = (written.destination.to_string(), written.source.to_string());
        let tcp_flags = match kind {
            _ if self.book.is_udp() => 0,
            None => 0x12,
            Some(kind) => flags(self.book, kind),
        };
        let packet = self.packet(&source, &destination, tcp_flags, (seq, ack));
        self.compare(
            &packet,
            ModelPacket {
                tuple: written.reversed(),
                tcp_flags,
            },
        )
        .map(drop)
    }

    fn exchange(
        &mut self,
        source: &str,
        destination: &str,
        kind: Kind,
        numbers: (u32, u32),
    ) -> Checked<Wanted> {
        let tcp_flags = flags(self.book, kind);
        let packet = self.packet(source, destination, tcp_flags, numbers);
        let tuple = self.tuple(source, destination);
        self.compare(&packet, ModelPacket { tuple, tcp_flags })
    }

    fn packet(
        &self,
        source: &str,
        destination: &str,
        tcp_flags: u8,
        numbers: (u32, u32),
    ) -> Packet {
        let packet = self.book.packet(source, destination);
        if self.book.is_udp() {
            packet
        } else {
            packet.flags(tcp_flags).seq(numbers.0).ack(numbers.1)
        }
    }

    /// Gives the packet to both and holds their answers against each other.
    fn compare(&mut self, packet: &Packet, model_packet: ModelPacket) -> Checked<Wanted> {
        let wanted = self.model.forward(&self.tables, &model_packet);
        let reason = match wanted {
            Wanted::Refused(reason) => Some(reason),
            Wanted::Known(_) | Wanted::New(_) => None,
        };
        let before = reason.map(|reason| self.lab.count(Counter::Reason(reason)));
        let frame = packet.bytes();
        let found = self.run(&frame, model_packet.tuple.source.ip());
        let text = format!(
            "{wanted:?}\n  in  {}\n  out {}",
            describe(&frame),
            describe(&found.frame)
        );
        let mut source = model_packet.tuple.source;
        match wanted {
            Wanted::Known(written) => {
                prop_assert_eq!(found.verdict, Verdict::Send, "{}", text);
                let tuple = tuple_of(&found.frame);
                prop_assert_eq!(tuple, (written.source, written.destination), "{}", text);
            }
            Wanted::New(new) => {
                prop_assert_eq!(found.verdict, Verdict::Send, "{}", text);
                let (from, to) = tuple_of(&found.frame);
                prop_assert_eq!(to, new.endpoint, "{}", text);
                let address = match new.mode {
                    ForwardingMode::FullNat if new.endpoint == self.pod => {
                        host(&self.book.snat_at(PODS, 1))
                    }
                    ForwardingMode::FullNat => host(&self.book.snat(1)),
                    _ => source.ip(),
                };
                prop_assert_eq!(from.ip(), address, "{}", text);
                source = from;
            }
            Wanted::Refused(reason) => {
                let after = self.lab.count(Counter::Reason(reason));
                prop_assert_eq!(
                    Some(after - 1),
                    before,
                    "{:?} is counted once; {}",
                    reason,
                    text
                );
                Self::expect_refused(reason, &found, &frame, &text)?;
            }
        }
        let [known, new, refused] = &mut self.said;
        *match wanted {
            Wanted::Known(_) => known,
            Wanted::New(_) => new,
            Wanted::Refused(_) => refused,
        } += 1;
        self.model
            .commit(&self.tables, &model_packet, &wanted, source);
        Ok(wanted)
    }

    fn expect_refused(reason: Reason, found: &Outcome, frame: &[u8], text: &str) -> Checked<()> {
        match (reason.verdict(), found.verdict) {
            (Fate::Pass, verdict) => {
                prop_assert_eq!(verdict, Verdict::Pass, "{}", text);
                prop_assert_eq!(found.frame.as_slice(), frame, "{}", text);
            }
            // Answered by an RST or an ICMP error.
            (Fate::Drop, Verdict::Send) => {
                let rejects = matches!(reason, Reason::NoFrontend | Reason::NoEndpoint);
                prop_assert!(rejects, "{:?}: {}", reason, text);
            }
            (Fate::Drop, verdict) => prop_assert_eq!(verdict, Verdict::Drop, "{}", text),
        }
        Ok(())
    }

    fn run(&self, frame: &[u8], source: IpAddr) -> Outcome {
        let text = source.to_string();
        let port = if text.starts_with("10.1.0.") || text.starts_with("2001:db8:b:") {
            PODS
        } else if text.starts_with("10.2.0.") || text.starts_with("2001:db8:c:") {
            SLIM
        } else if text.starts_with("10.0.0.") || text.starts_with("2001:db8:a:") {
            INSIDE
        } else {
            OUTSIDE
        };
        let mut frame = frame.to_vec();
        frame.splice(..6, port.mac);
        if self.lab.hook() == Hook::Xdp && port != PODS {
            let outcome = self.lab.xdp(&frame, port);
            if outcome.verdict != Verdict::Pass {
                return outcome;
            }
        }
        self.lab.ingress(&frame, port)
    }
}

fn flags(book: Book, kind: Kind) -> u8 {
    match kind {
        _ if book.is_udp() => 0,
        Kind::Syn => 0x02,
        Kind::Data => 0x10,
        Kind::Fin => 0x11,
        Kind::Reset => 0x14,
    }
}

fn host(endpoint: &str) -> IpAddr {
    endpoint.parse::<SocketAddr>().expect("an endpoint").ip()
}

#[test]
fn model_and_kernel_do_the_same() {
    in_network(|| {
        let lab_config = Config {
            flags: config_flag::DROP_UNALLOCATED,
            ..CONFIG
        };
        for book in BOOKS {
            for hook in [Hook::Xdp, Hook::Tcx] {
                let config = Cases {
                    cases: 40,
                    failure_persistence: None,
                    ..Cases::default()
                };
                let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
                let mut runner = TestRunner::new_with_rng(config, rng);
                let said = Cell::new([0; 3]);
                let outcome = runner.run(&acts(), |acts| {
                    let mut result = Ok(());
                    with_lab(&lab_config, hook, |lab| {
                        let mut pair = Pair::new(lab, book);
                        result = acts.into_iter().try_for_each(|act| pair.act(act));
                        let (sum, more) = (said.get(), pair.said);
                        said.set(std::array::from_fn(|at| {
                            sum.get(at).unwrap_or(&0) + more.get(at).unwrap_or(&0)
                        }));
                    });
                    result
                });
                outcome.unwrap_or_else(|error| panic!("{} {hook:?}: {error}", book.name()));
                let said = said.get();
                assert!(
                    said.iter().all(|&times| times > 50),
                    "too little was tried: {said:?}"
                );
            }
        }
    });
}
