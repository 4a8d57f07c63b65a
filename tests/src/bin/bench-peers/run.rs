//! The run: for each number of Services all peers are built, loaded, and measured in turns.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    bench::machine::{self, Load},
    programming::plane::Plane,
};

use crate::{
    Arguments,
    api::Api,
    measure::{connections, forwarding::Stream, update},
    peers::{self, Peer, Programs},
    report::{self, Row},
    services::Services,
    versions::versions,
    world,
};

/// How long connections are made in a round, by each peer.
const ROUND: Duration = Duration::from_secs(1);

/// Measures everything, and prints it.
#[expect(clippy::print_stdout, reason = "the result of the program")]
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    ensure!(arguments.rounds > 0, "--rounds is 0");
    let mut numbers = arguments.services.clone();
    numbers.sort_unstable();
    numbers.dedup();
    ensure!(
        numbers.first().is_some_and(|first| *first > 0),
        "--services 0"
    );
    let before = Load::now()?;
    let versions = versions(&arguments.components)?;
    let directory = tempfile::tempdir().context("make a directory")?;
    world::connect_api_server();
    let plane = Plane::start(&arguments.components, directory.path())?;
    let api = Api::connect(&plane.kubeconfig)?;
    let programs = Programs {
        components: &arguments.components,
        agent: &arguments.agent,
        kubeconfig: &plane.kubeconfig,
        directory: directory.path(),
    };
    let mut rows = Vec::new();
    let mut written = 0;
    for number in numbers {
        say(&format!("{number} Services"));
        api.fill(written..number)?;
        written = number;
        rows.extend(of_number(arguments, programs, &api, number)?);
    }
    report::publish(&rows, arguments.json.as_deref())?;
    println!("\n{}\n{versions}", machine::describe(&before)?);
    Ok(())
}

/// All peers with one number of Services.
fn of_number(
    arguments: &Arguments,
    programs: Programs<'_>,
    api: &Api,
    number: u32,
) -> Result<Vec<Row>> {
    let services = Services::new(number);
    let mut peers = peers::all(programs, api, number)?;
    let mut rows: Vec<Row> = Vec::new();
    for peer in &mut peers {
        let mut row = Row {
            peer: peer.name(),
            services: number,
            ..Row::default()
        };
        if peer.serves() {
            let load = update::load(peer, &services)?;
            say(&format!("  {}: loaded in {load:.0} ms", peer.name()));
            row.load = Some(load);
            row.memory = peer.memory()?;
            row.kernel_memory = peer.balancer.kernel_memory()?;
        }
        peer.freeze()?;
        rows.push(row);
    }
    say(&format!("  connections, {} rounds", arguments.rounds));
    for round in 0..arguments.rounds {
        for (peer, row) in in_turn(&peers, &mut rows, round) {
            peer.thaw()?;
            let rate = connections::measure(peer, number, ROUND);
            peer.freeze()?;
            row.connections.push(rate?);
        }
    }
    forward(arguments, &peers, &mut rows)?;
    for (peer, row) in peers.iter().zip(&mut rows) {
        if !peer.serves() {
            continue;
        }
        say(&format!("  changes: {}", peer.name()));
        peer.thaw()?;
        let mut services = services.clone();
        row.endpoint = update::endpoint(peer, api, &mut services, arguments.changes)?;
        row.add = update::add(peer, api, &mut services, arguments.additions)?;
        peer.freeze()?;
    }
    Ok(rows)
}

/// The rounds of forwarding. Flows end with them.
fn forward(arguments: &Arguments, peers: &[Peer<'_>], rows: &mut [Row]) -> Result<()> {
    say(&format!("  forwarding, {} rounds", arguments.rounds));
    let mut streams = Vec::new();
    for peer in peers {
        peer.thaw()?;
        streams.push(Stream::start(peer, &arguments.object)?);
        peer.freeze()?;
    }
    for round in 0..arguments.rounds {
        let mut streams: Vec<_> = streams.iter_mut().collect();
        rotate(&mut streams, round);
        for ((peer, row), stream) in in_turn(peers, rows, round).zip(streams) {
            let Some(stream) = stream else {
                continue;
            };
            peer.thaw()?;
            let rate = stream.measure(peer);
            peer.freeze()?;
            row.forwarding.push(rate?);
        }
    }
    Ok(())
}

/// Every peer once, each round beginning with another.
fn in_turn<'a, 'p>(
    peers: &'a [Peer<'p>],
    rows: &'a mut [Row],
    round: u32,
) -> impl Iterator<Item = (&'a Peer<'p>, &'a mut Row)> {
    let mut all: Vec<_> = peers.iter().zip(rows).collect();
    rotate(&mut all, round);
    all.into_iter()
}

/// Begins with another of them each round.
fn rotate<T>(all: &mut [T], round: u32) {
    let first = usize::try_from(round).unwrap_or_default() % all.len().max(1);
    all.rotate_left(first);
}

pub(crate) fn say(what: &str) {
    eprintln!("peers: {what}");
}
