//! Between any two map writes of a change every packet meets the old tables or the new ones, and an
//! established flow meets no change at all.

use lb_tests::{
    book::{BOOKS, Book},
    crossing::{Met, Plans, Probe, Strays, establish, node, send_all},
    network::{OUTSIDE, in_network},
    run::{CONFIG, Hook, Lab, Memory, with_lab},
};

use changes::{Change, changes};

#[path = "atomic/changes.rs"]
mod changes;

/// Clients of each book that come anew.
const CLIENTS: u16 = 24;

/// No two of them share a port, so that each keeps its own whatever backend it meets.
fn client(book: Book, base: u16, number: u16) -> String {
    let host = 3 + number * 10;
    let address = if book.is_v6() {
        format!("2001:db8:ffff::{host:x}")
    } else {
        format!("203.0.113.{host}")
    };
    book.at(&address, base + number)
}

/// The old tables with everything in them, and the packets that will be sent.
fn prepare(lab: &mut Lab, plans: &mut Plans, change: &Change, back: bool) -> (Vec<Probe>, Memory) {
    let old = if back { &change.there } else { &change.here };
    let newcomer = |book: Book, number, port| {
        let base = if port == 443 { 40_000 } else { 41_000 };
        let client = client(book, base, number);
        let packet = book.first(&client, &book.vip(port));
        Probe::new(
            format!("{} {client} to port {port}", book.name()),
            OUTSIDE,
            &packet,
        )
    };
    if let Some(past) = &change.past {
        let _ops = plans.next(past);
        lab.apply(plans.tables());
        for book in BOOKS {
            for number in (1..CLIENTS).step_by(2) {
                newcomer(book, number, 443).send(lab);
            }
        }
        lab.recall(&lab.remember().without_flows());
    }
    let _ops = plans.next(old);
    lab.apply(plans.tables());
    let mut probes = Vec::new();
    for book in BOOKS {
        let other = book.at(book.pick("192.0.2.2", "2001:db8::2"), 80);
        for number in 0..4 {
            // Not the addresses of those that come anew: affinity goes by them.
            let elsewhere = |base| {
                let client = client(book, base, number);
                let client = client.replace("203.0.113", "203.0.114");
                client.replace("db8:ffff", "db8:fffe")
            };
            probes.extend(
                establish(lab, book, &elsewhere(42_000), &book.vip(443))
                    .into_iter()
                    .flatten(),
            );
            let flow = establish(lab, book, &elsewhere(43_000), &other);
            probes.extend(flow.expect("the bystander serves").map(Probe::holding));
        }
    }
    for book in BOOKS {
        probes.extend((0..CLIENTS).map(|number| newcomer(book, number, 443)));
        probes.extend((0..4).map(|number| newcomer(book, number, 444)));
        let other = book.at(book.pick("192.0.2.2", "2001:db8::2"), 80);
        probes.extend((0..4).map(|number| {
            let packet = book.first(&client(book, 44_000, number), &other);
            Probe::new("a client of the bystander", OUTSIDE, &packet).holding()
        }));
    }
    (probes, lab.remember())
}

/// What holds met the same before and after.
fn held(probes: &[Probe], old: &[Met], new: &[Met]) {
    let all = probes.iter().zip(old).zip(new);
    for ((probe, old), new) in all.filter(|((probe, _), _)| probe.holds) {
        assert_eq!(old, new, "{}", probe.name);
    }
}

/// Runs every case there and back by both programs.
fn each(act: impl Fn(&mut Lab, &Change, bool) -> String + Send + 'static) {
    let wanted = std::env::var("SLUICE_CASE").unwrap_or_default();
    in_network(move || {
        let mut config = CONFIG;
        config.replies_per_tick = u32::MAX;
        let mut failures = Vec::new();
        for change in changes()
            .iter()
            .filter(|change| change.name.contains(&wanted))
        {
            for (back, hook) in [
                (false, Hook::Xdp),
                (true, Hook::Xdp),
                (false, Hook::Tcx),
                (true, Hook::Tcx),
            ] {
                with_lab(&config, hook, |lab| {
                    let report = act(lab, change, back);
                    if !report.is_empty() {
                        let way = if back { ", back" } else { "" };
                        failures.push(format!("{}{way} [{hook:?}]\n  {report}", change.name));
                    }
                });
            }
        }
        assert!(failures.is_empty(), "{}", failures.join("\n\n"));
    });
}

#[test]
fn after_each_write_a_packet_meets_the_old_tables_or_the_new_ones() {
    each(|lab, change, back| {
        let mut plans = Plans::new(node(change.gateway));
        let (probes, memory) = prepare(lab, &mut plans, change, back);
        let old = send_all(lab, &probes, &memory);
        let mut places = Vec::new();
        let new = if back { &change.here } else { &change.there };
        let ops = plans.next(new);
        lab.apply_stepwise(&ops, |lab, number, map| {
            places.push((
                format!("write {number} ({map})"),
                send_all(lab, &probes, &memory),
            ));
        });
        let new = send_all(lab, &probes, &memory);
        held(&probes, &old, &new);
        let changed = old.iter().zip(&new).filter(|(old, new)| old != new).count();
        let mut strays = Strays::default();
        for (place, met) in &places {
            strays.compare(place, &probes, &old, met, &new);
        }
        println!(
            "{}{} [{:?}]: {} operations, {} writes, {} packets, {changed} of {} probes change",
            change.name,
            if back { ", back" } else { "" },
            lab.hook(),
            ops.len(),
            places.len(),
            strays.packets,
            probes.len(),
        );
        assert!(places.len() >= ops.len(), "every operation writes");
        assert!(!ops.is_empty(), "{}: nothing changes", change.name);
        strays.report()
    });
}

/// How often each case goes there and back.
const TURNS: usize = 12;

#[test]
fn while_the_tables_change_a_packet_meets_the_old_ones_or_the_new_ones() {
    each(|lab, change, back| {
        let mut plans = Plans::new(node(change.gateway));
        let (mut probes, memory) = prepare(lab, &mut plans, change, back);
        // Each turn gives new ids: UDP flows, which name one, are looked at between the writes.
        probes.retain(|probe| probe.holds || !probe.goes_on);
        let (old, new) = if back {
            (&change.there, &change.here)
        } else {
            (&change.here, &change.there)
        };
        let mut strays = Strays::default();
        let mut known = [send_all(lab, &probes, &memory), Vec::new()];
        for turn in 0..TURNS {
            let ops = plans.next(if turn % 2 == 0 { new } else { old });
            let mut met = Vec::new();
            lab.apply_meanwhile(&ops, |lab| met.push(send_all(lab, &probes, &memory)));
            if turn == 0 {
                known[1] = send_all(lab, &probes, &memory);
            }
            let [old, new] = &known;
            for met in &met {
                strays.compare("meanwhile", &probes, old, met, new);
            }
        }
        let [old, new] = &known;
        held(&probes, old, new);
        strays.report()
    });
}
