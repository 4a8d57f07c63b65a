//! Races of a flow's life and death, on two CPUs: what ends is gone whole, queued once and counted once,
//! what lives is not touched, and nobody gets another's packets.

use lb_common::{
    config::{Config, UnknownFlows},
    conntrack::state,
    reason::Event,
};
use lb_tests::{
    book::{BOOKS, Book, TCP_BOOKS},
    race::{
        Act, BATCH, Batch, CONDEMN, DELETE, Found, Line, Race, asks, expiry, perform, race, run,
        tells,
    },
    run::Verdict,
};

const ALL: usize = BATCH as usize;

/// A packet that no flow knows makes none.
fn strict(config: &mut Config) {
    config.unknown_flows = UnknownFlows::Drop as u32;
    config.closed_ticks = 0;
}

/// Established lines, after `more`, then one turn each.
fn contest(
    name: &str,
    book: Book,
    more: impl Fn(&Line) -> Vec<Act>,
    turn: impl Fn(&Line) -> [Vec<Act>; 2],
) -> Race {
    let lines: Vec<Line> = (0..BATCH).map(|n| Line::by_client(book, n)).collect();
    let mut before: Vec<Act> = lines.iter().flat_map(Line::handshake).collect();
    before.extend(lines.iter().flat_map(more));
    let turns: Vec<[Vec<Act>; 2]> = lines.iter().map(turn).collect();
    let tables = Line::one_service(book);
    let name = format!("{}: {name}", book.name());
    race(name, tables, move |lab| {
        perform(lab, &before);
        turns.clone()
    })
    .config(strict)
}

fn expect(met: bool, batch: &Batch) -> Result<(), String> {
    if met {
        return Ok(());
    }
    Err(format!("{:?}", batch.found))
}

fn open(_: &Line) -> Vec<Act> {
    Vec::new()
}

#[test]
fn crossing_fins_close_a_flow_once() {
    let races = TCP_BOOKS.into_iter().map(|book| {
        let turn = |line: &Line| line.fins().map(|fin| vec![fin]);
        contest("FIN and FIN", book, open, turn)
            .found(Found {
                established: ALL,
                closed: ALL,
                ..Found::default()
            })
            .counts(Event::FlowClosed, BATCH.into())
    });
    run(races.collect());
}

#[test]
fn resets_fins_and_data_agree_on_one_end() {
    let races = TCP_BOOKS.into_iter().flat_map(|book| {
        let reset = |line: &Line| asks(&line.question().rst());
        let refuse = |line: &Line| tells(&line.answer().rst());
        let closed = |batch: &Batch| batch.found.established == ALL && batch.found.closed == ALL;
        let resets = contest("RST and RST", book, open, move |line| {
            [vec![reset(line)], vec![refuse(line)]]
        });
        let mixed = contest("RST and FIN", book, open, move |line| {
            let [_, fin] = line.fins();
            [vec![reset(line)], vec![fin]]
        });
        let revived = contest("RST and data, again and again", book, open, move |line| {
            let data = tells(&line.answer());
            [vec![reset(line); 4], vec![data; 4]]
        });
        let last = contest("FIN, last ACK and RST", book, open, move |line| {
            let [fin, answer] = line.fins();
            let ack = asks(&line.question());
            [vec![fin, ack], vec![answer, refuse(line)]]
        });
        [
            resets
                .counts(Event::FlowClosed, BATCH.into())
                .judge(move |_, batch| expect(closed(batch), batch)),
            mixed.judge(|_, batch| expect(batch.found.established == ALL, batch)),
            revived.judge(|_, batch| expect(batch.found.established == ALL, batch)),
            last.judge(|_, batch| expect(batch.found.established == ALL, batch)),
        ]
    });
    run(races.collect());
}

#[test]
fn a_closed_flow_opens_again_once_while_others_retire() {
    let races = TCP_BOOKS.into_iter().flat_map(|book| {
        let fins = |line: &Line| line.fins().to_vec();
        let again = |line: &Line| asks(&line.first().seq(77_777));
        let other = move |line: &Line| {
            let port = line.client.rsplit(':').next().expect("a port");
            let port: u16 = port.parse().expect("a port");
            asks(&line.of(book.client(20_000 + port)).first())
        };
        [
            contest("two SYNs on a closed flow", book, fins, move |line| {
                [vec![again(line)], vec![again(line)]]
            })
            .judge(|_, batch| {
                let Found {
                    embryonic, orphans, ..
                } = batch.found;
                expect(embryonic == ALL && orphans == 0, batch)
            }),
            contest(
                "SYN on a closed flow, and retirement",
                book,
                fins,
                move |line| [vec![again(line)], vec![other(line)]],
            )
            .judge(|_, batch| {
                let Found {
                    embryonic,
                    orphans,
                    established,
                    ..
                } = batch.found;
                expect(
                    embryonic == 2 * ALL && orphans == 0 && established < ALL,
                    batch,
                )
            }),
            contest("two retire", book, fins, move |line| {
                let next = line.of(line.client.replace("198.51.100.7", "198.51.100.8"));
                let next = next.of(next.client.replace("100::7", "100::8"));
                [vec![other(line)], vec![asks(&next.first())]]
            })
            .judge(|_, batch| {
                let Found {
                    embryonic,
                    orphans,
                    established,
                    ..
                } = batch.found;
                // Each new flow retires up to two; nobody was in their way.
                expect(
                    embryonic == 2 * ALL && orphans == 0 && established == 0,
                    batch,
                )
            }),
        ]
    });
    run(races.collect());
}

#[test]
fn a_packet_saves_its_condemned_flow_whole_or_comes_too_late() {
    let races = BOOKS.into_iter().flat_map(|book| {
        [true, false].map(move |by_client| {
            let lines: Vec<Line> = (0..BATCH).map(|n| Line::by_client(book, n)).collect();
            let before: Vec<Act> = lines.iter().flat_map(Line::handshake).collect();
            let packets: Vec<Act> = lines
                .iter()
                .map(|line| {
                    if by_client {
                        asks(&line.question())
                    } else {
                        tells(&line.answer())
                    }
                })
                .collect();
            let whose = if by_client { "client" } else { "backend" };
            let name = format!("{}: deletion and the {whose}'s packet", book.name());
            race(name, Line::one_service(book), move |lab| {
                perform(lab, &before);
                let condemn: Vec<Act> = expiry(lab, CONDEMN, |head| head).into_values().collect();
                perform(lab, &condemn);
                let mut deletions = expiry(lab, DELETE, |head| head);
                let turn = |(number, packet): (u16, &Act)| {
                    let deletion = deletions.remove(&(10_000 + number));
                    [vec![deletion.expect("a flow")], vec![packet.clone()]]
                };
                (0..).zip(&packets).map(turn).collect()
            })
            .config(strict)
            .judge(move |_, batch| {
                let packets = batch.outcomes.iter().filter_map(|[_, right]| right.first());
                let sent = packets.filter(|outcome| outcome.verdict == Verdict::Send);
                let sent = sent.count();
                let Found {
                    established,
                    embryonic,
                    orphans,
                    ..
                } = batch.found;
                // A datagram that comes too late begins another flow.
                let fresh = book.is_udp() && by_client;
                if established + embryonic == sent && orphans == 0 && (fresh || embryonic == 0) {
                    return Ok(());
                }
                Err(format!("{sent} packets sent, {:?}", batch.found))
            })
        })
    });
    run(races.collect());
}

#[test]
fn a_condemned_flow_is_not_condemned_for_its_next_packet() {
    let races = BOOKS.into_iter().map(|book| {
        let lines: Vec<Line> = (0..BATCH).map(|n| Line::by_client(book, n)).collect();
        let before: Vec<Act> = lines.iter().flat_map(Line::handshake).collect();
        let questions: Vec<Act> = lines.iter().map(|line| asks(&line.question())).collect();
        let name = format!("{}: sentence and packet", book.name());
        race(name, Line::one_service(book), move |lab| {
            perform(lab, &before);
            let mut sentences = expiry(lab, CONDEMN, |head| head);
            // What the agent would hand over had the sentence been carried out.
            let mut deletions = expiry(lab, DELETE, |head| {
                head.touched(head.state() | state::CONDEMNED, head.stamp())
            });
            let turn = |(number, question): (u16, &Act)| {
                let port = 10_000 + number;
                let acts = [sentences.remove(&port), deletions.remove(&port)];
                let acts = acts.map(|act| act.expect("a flow")).to_vec();
                [acts, vec![question.clone()]]
            };
            (0..).zip(&questions).map(turn).collect()
        })
        .config(strict)
        .judge(move |_, batch| {
            // A packet before the sentence does not lift it: the flow may go. But whole.
            let Found {
                embryonic, orphans, ..
            } = batch.found;
            expect((book.is_udp() || embryonic == 0) && orphans == 0, batch)
        })
    });
    run(races.collect());
}

/// What was sent of a line is the line's, whatever became of its flow. Where it need not be sent, the flow may be a new
/// one, whose SNAT port is nobody's: the old one's half had not left yet when another was looked for.
fn own_frames(line: &Line, outcomes: &[lb_tests::run::Outcome], must: bool) -> Result<(), String> {
    // TCX leaves the link layer's addresses to the kernel.
    let bare = |frame: &[u8]| frame.get(14..).map(<[u8]>::to_vec);
    let frames = [line.out(&line.question()), line.back(&line.answer())].map(|frame| bare(&frame));
    for (number, outcome) in outcomes.iter().enumerate() {
        let sent = outcome.verdict == Verdict::Send;
        if must && !sent {
            return Err(format!("{}: {:?}", line.client, outcome.verdict));
        }
        let frame = bare(&outcome.frame);
        let anew = || {
            let line = (!must && number % 2 == 0).then(|| of_new_flow(line, frame.as_deref()?));
            line.flatten()
                .and_then(|line| bare(&line.out(&line.question())))
        };
        if sent && frames.get(number % 2) != Some(&frame) && anew() != frame {
            let frame = lb_tests::packet::describe(&outcome.frame);
            return Err(format!("{}: not its packet: {frame}", line.client));
        }
    }
    Ok(())
}

/// The line with the SNAT port of a packet towards its backend, unless the port is another line's.
fn of_new_flow(line: &Line, packet: &[u8]) -> Option<Line> {
    let at = if packet.first()? >> 4 == 4 { 20 } else { 40 };
    let port = packet.get(at..at + 2)?.try_into().ok()?;
    let port = u16::from_be_bytes(port);
    let seen = line.book.snat(port);
    let of_a_line = (0..2 * BATCH).any(|n| Line::by_client(line.book, n).seen == seen);
    (!of_a_line).then(|| Line {
        seen,
        ..line.clone()
    })
}

#[test]
fn nobody_gets_a_packet_of_a_flow_whose_element_was_recycled() {
    let races = TCP_BOOKS.into_iter().map(|book| {
        let (dying, living): (Vec<Line>, Vec<Line>) = (0..2 * BATCH)
            .map(|n| Line::by_client(book, n))
            .partition(|line| (0..BATCH).any(|n| Line::by_client(book, n).client == line.client));
        let before: Vec<Act> = living.iter().flat_map(Line::handshake).collect();
        let packets = |line: &Line| [asks(&line.question()), tells(&line.answer())];
        let pairs = dying.iter().zip(&living);
        let turns: Vec<[Vec<Act>; 2]> = pairs
            .map(|(dying, living)| {
                let mut life = dying.handshake().to_vec();
                life.extend(dying.fins());
                // Its retirement: by two others' first packets, which refuse each other's place.
                life.extend([asks(&living.first()), asks(&dying.first())]);
                let mut others = packets(living).to_vec();
                for _ in 0..3 {
                    others.extend(packets(dying));
                }
                [life, others]
            })
            .collect();
        let tables = Line::one_service(book);
        let name = format!("{}: recycled elements", book.name());
        race(name, tables, move |lab| {
            perform(lab, &before);
            turns.clone()
        })
        .config(strict)
        .judge(move |_, batch| {
            for ((dying, living), [_, right]) in dying.iter().zip(&living).zip(&batch.outcomes) {
                let (own, others) = right.split_at(2);
                own_frames(living, own, true)?;
                own_frames(dying, others, false)?;
            }
            Ok(())
        })
    });
    run(races.collect());
}

#[test]
fn a_flood_evicts_embryonic_flows_and_misdirects_none() {
    let races = BOOKS.into_iter().map(|book| {
        let lines: Vec<Line> = (0..BATCH).map(|n| Line::by_client(book, n)).collect();
        let flood = |number: u16| {
            let ports = 20_000 + number * 40..20_000 + (number + 1) * 40;
            let first = |port| asks(&book.first(&book.far_client(port), &book.vip(443)));
            ports.map(first).collect::<Vec<Act>>()
        };
        let numbered = (0..).zip(&lines);
        let turns: Vec<[Vec<Act>; 2]> = numbered
            .map(|(number, line)| {
                let mut acts = line.handshake().to_vec();
                for _ in 0..4 {
                    acts.extend([asks(&line.question()), tells(&line.answer())]);
                }
                [flood(number), acts]
            })
            .collect();
        let tables = Line::one_service(book);
        let name = format!("{}: flood", book.name());
        race(name, tables, move |_| turns.clone())
            .config(strict)
            .judge(move |_, batch| {
                for (line, [_, right]) in lines.iter().zip(&batch.outcomes) {
                    own_frames(line, right.get(3..).unwrap_or_default(), false)?;
                }
                expect(batch.found.established <= ALL, batch)
            })
    });
    run(races.collect());
}
