//! Races of a flow's birth and promotion, on two CPUs: one flow comes of it, or two that do not touch.

use lb_common::{
    config::{Config, UnknownFlows},
    reason::Event,
};
use lb_tests::{
    book::{BOOKS, Book, TCP_BOOKS, UDP_BOOKS},
    race::{Act, BATCH, Batch, COUNT, Found, Line, Race, asks, expiry, perform, race, run, tells},
    run::{Lab, Verdict},
};

const ALL: usize = BATCH as usize;

fn lines(book: Book) -> Vec<Line> {
    (0..BATCH).map(|n| Line::by_client(book, n)).collect()
}

/// Every line opened so far by `open`, then one turn each.
fn contest(
    name: &str,
    book: Book,
    open: impl Fn(&Line) -> Vec<Act> + Send + 'static,
    turn: impl Fn(&Line) -> [Vec<Act>; 2] + Send + 'static,
) -> Race {
    let lines = lines(book);
    let before: Vec<Act> = lines.iter().flat_map(&open).collect();
    let turns: Vec<[Vec<Act>; 2]> = lines.iter().map(turn).collect();
    let tables = Line::one_service(book);
    race(format!("{}: {name}", book.name()), tables, move |lab| {
        perform(lab, &before);
        turns.clone()
    })
}

const fn embryonic(number: usize) -> Found {
    Found {
        established: 0,
        closed: 0,
        embryonic: number,
        orphans: 0,
    }
}

const fn established(number: usize) -> Found {
    Found {
        established: number,
        closed: 0,
        embryonic: 0,
        orphans: 0,
    }
}

/// Both sides' last packets were sent, and are or are not the same frame.
fn sent_alike(result: &Batch, alike: bool) -> Result<(), String> {
    for (number, sides) in result.outcomes.iter().enumerate() {
        let [Some(left), Some(right)] = sides.each_ref().map(|side| side.last()) else {
            continue;
        };
        if left.verdict != Verdict::Send || right.verdict != Verdict::Send {
            return Err(format!(
                "turn {number}: {:?}, {:?}",
                left.verdict, right.verdict
            ));
        }
        // TCX leaves the link layer's addresses to the kernel.
        let same = left.frame.get(14..) == right.frame.get(14..);
        if same != alike {
            return Err(format!("turn {number}: frames alike: {}", !alike));
        }
    }
    Ok(())
}

#[test]
fn one_flow_is_born_of_two_first_packets() {
    let races = BOOKS.into_iter().flat_map(|book| {
        let twins = |line: &Line| {
            let first = asks(&line.first());
            [vec![first.clone()], vec![first]]
        };
        let programs = |line: &Line| {
            let first = asks(&line.first());
            [vec![first.clone()], vec![first.by_tcx()]]
        };
        let none = |_: &Line| Vec::new();
        [
            contest("two first packets", book, none, twins),
            contest("two first packets, XDP and TCX", book, none, programs),
        ]
        .map(|race| {
            race.found(embryonic(ALL))
                .counts(Event::FlowCreated, BATCH.into())
                .judge(|_, result| sent_alike(result, true))
        })
    });
    run(races.collect());
}

#[test]
fn a_late_first_packet_makes_no_second_flow() {
    let races = BOOKS.into_iter().map(|book| {
        let turn = |line: &Line| {
            let whole = line.handshake().to_vec();
            [vec![asks(&line.first())], whole]
        };
        contest(
            "first packet beside a handshake",
            book,
            |_| Vec::new(),
            turn,
        )
        .judge(|_, result| {
            let Found { orphans, .. } = result.found;
            let flows = result.found.established + result.found.embryonic;
            // The backend answers the winner: the right side may have answered nobody.
            if flows == ALL && orphans == 0 {
                return Ok(());
            }
            Err(format!("{:?}", result.found))
        })
    });
    run(races.collect());
}

#[test]
fn two_clients_of_one_port_get_tuples_of_their_own() {
    let races = BOOKS.into_iter().map(|book| {
        let turn = move |line: &Line| {
            let port = line.client.rsplit(':').next().expect("a port");
            let rival = line.of(book.far_client(port.parse().expect("a port")));
            [vec![asks(&line.first())], vec![asks(&rival.first())]]
        };
        contest("one port, two clients", book, |_| Vec::new(), turn)
            .found(embryonic(2 * ALL))
            .counts(Event::FlowCreated, 2 * u64::from(BATCH))
            .judge(|_, result| sent_alike(result, false))
    });
    run(races.collect());
}

/// Lines whose backends see one port of the SNAT address each, held by an embryonic flow.
fn narrow(
    name: &str,
    book: Book,
    before: impl Fn(&Line) -> Vec<Act> + Send + 'static,
    turn: impl Fn(&Line) -> [Vec<Act>; 2] + Send + 'static,
) -> Race {
    let lines: Vec<Line> = (0..BATCH).map(|n| Line::by_service(book, n)).collect();
    let before: Vec<Act> = lines.iter().flat_map(before).collect();
    let turns: Vec<[Vec<Act>; 2]> = lines.iter().map(turn).collect();
    let tables = Line::services(book, BATCH);
    race(format!("{}: {name}", book.name()), tables, move |lab| {
        lab.snat_ports(40_000, 1);
        perform(lab, &before);
        turns.clone()
    })
}

#[test]
fn a_tuple_taken_over_by_two_belongs_to_one() {
    let races = BOOKS.into_iter().map(|book| {
        let turn = move |line: &Line| {
            [book.client(50_000), book.far_client(50_000)]
                .map(|client| vec![asks(&line.of(client).first())])
        };
        let before = |line: &Line| vec![asks(&line.first())];
        narrow("two take over", book, before, turn).judge(|_, result| {
            // The first holder is out, and one of the two, or each after the other.
            if result.found.embryonic == ALL && result.found.orphans <= 2 * ALL {
                return Ok(());
            }
            Err(format!("{:?}", result.found))
        })
    });
    run(races.collect());
}

#[test]
fn who_is_being_promoted_keeps_its_tuple_or_loses_it_whole() {
    let races = BOOKS.into_iter().map(|book| {
        let rival = move |line: &Line| line.of(book.far_client(50_000)).first();
        let turn = move |line: &Line| [vec![asks(&line.third())], vec![asks(&rival(line))]];
        let before = |line: &Line| line.open().to_vec();
        narrow("promotion and take-over", book, before, turn)
            .config(|config| config.unknown_flows = UnknownFlows::Drop as u32)
            .judge(|_, result| {
                let Found {
                    established,
                    embryonic,
                    ..
                } = result.found;
                // Whoever holds the tuple, somebody does, and never two.
                if established + embryonic == ALL {
                    return Ok(());
                }
                Err(format!("{:?}", result.found))
            })
    });
    run(races.collect());
}

#[test]
fn two_packets_promote_a_flow_once() {
    let races = BOOKS.into_iter().flat_map(|book| {
        let open = |line: &Line| line.open().to_vec();
        let client = |line: &Line| [vec![asks(&line.third())], vec![asks(&line.question())]];
        let backend = |line: &Line| [vec![asks(&line.third())], vec![tells(&line.second())]];
        [
            contest("two proofs", book, open, client),
            contest("two proofs, ticks pass", book, open, client).config(passing),
            contest("proof and answer", book, open, backend),
            contest("proof and answer, ticks pass", book, open, backend).config(passing),
        ]
        .map(|race| {
            race.found(established(ALL))
                .counts(Event::FlowPromoted, BATCH.into())
                .counts(Event::PromotionFailed, 0)
                .judge(|_, result| sent_alike(result, false))
        })
    });
    run(races.collect());
}

/// A tick is as short as the kernel's clock allows, four milliseconds here.
fn passing(config: &mut Config) {
    config.tick_shift = 0;
    config.embryonic_ticks = 100_000;
}

#[test]
fn a_udp_flow_that_moves_moves_once() {
    let races = UDP_BOOKS.into_iter().flat_map(|book| {
        let [old, new] = [5, 6].map(|host| book.backend(host, 8443));
        let later = book
            .service()
            .gone([old.as_str()])
            .backends([new.as_str()])
            .build(2);
        [false, true].map(|promoted| {
            let lines = lines(book);
            let before: Vec<Act> = lines
                .iter()
                .flat_map(|line| {
                    let acts = line.handshake();
                    let number = if promoted { 3 } else { 1 };
                    acts.into_iter().take(number)
                })
                .collect();
            let turns: Vec<[Vec<Act>; 2]> = lines
                .iter()
                .map(|line| [vec![asks(&line.question())], vec![asks(&line.question())]])
                .collect();
            let later = later.clone();
            let name = if promoted { "established" } else { "embryonic" };
            let tables = Line::one_service(book);
            race(
                format!("{}: {name} moves", book.name()),
                tables,
                move |lab| {
                    perform(lab, &before);
                    lab.apply(&later);
                    turns.clone()
                },
            )
            .found(embryonic(ALL))
            // The dead half of a CPU that is interrupted there outlasts a few looks: refused, and counted.
            .judge(|_, result| match result.refused {
                0 => sent_alike(result, true),
                _ => Ok(()),
            })
        })
    });
    run(races.collect());
}

#[test]
fn a_full_table_takes_both_halves_or_none() {
    let races = TCP_BOOKS.into_iter().map(|book| {
        let open = |line: &Line| line.open().to_vec();
        let turn = |line: &Line| [vec![asks(&line.third())], vec![asks(&line.question())]];
        contest("promotion without room", book, open, turn)
            .config(|config| {
                (config.flows4_limit, config.flows6_limit) = (u32::MAX, u32::MAX);
            })
            .room(1)
            .judge(|_, result| {
                let Found {
                    established,
                    embryonic,
                    orphans,
                    ..
                } = result.found;
                if established == 0 && embryonic == ALL && orphans == 0 {
                    return Ok(());
                }
                Err(format!("{:?}", result.found))
            })
            .judge(|_, result| sent_alike(result, false))
    });
    run(races.collect());
}

/// Every packet that was sent is counted, once.
fn counted(_: &Lab, batch: &Batch) -> Result<(), String> {
    let sent = batch.count(Event::XdpForwarded) + batch.count(Event::TcxForwarded);
    if batch.traffic == [sent; 2] {
        return Ok(());
    }
    let traffic = batch.traffic;
    Err(format!(
        "{traffic:?} counted for services and backends, {sent} sent"
    ))
}

#[test]
fn packets_of_one_half_on_two_cpus_are_counted_once_each() {
    let races = BOOKS.into_iter().flat_map(|book| {
        let handshake = |line: &Line| line.handshake().to_vec();
        let both = contest("many packets, both ways", book, handshake, |line| {
            let question = vec![asks(&line.question()); 50];
            let answer = vec![tells(&line.answer()); 50];
            let mixed = question.iter().chain(&answer).cloned().collect();
            [mixed, [question, answer].concat()]
        });
        let lines = lines(book);
        let before: Vec<Act> = lines.iter().flat_map(Line::handshake).collect();
        let questions: Vec<Act> = lines.iter().map(|line| asks(&line.question())).collect();
        let name = format!("{}: packets and the agent's count", book.name());
        let counts = race(name, Line::one_service(book), move |lab| {
            perform(lab, &before);
            let mut counts = expiry(lab, COUNT, |head| head);
            let turn = |(number, question): (u16, &Act)| {
                let count = counts.remove(&(10_000 + number)).expect("a flow");
                [vec![count; 50], vec![question.clone(); 50]]
            };
            (0..).zip(&questions).map(turn).collect()
        });
        [both.judge(counted), counts.judge(counted)].map(|race| race.found(established(ALL)))
    });
    run(races.collect());
}
