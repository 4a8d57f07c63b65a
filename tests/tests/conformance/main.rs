//! The conformance tier: scenarios that each set a world up once and check many rows in it.
//!
//! Arguments are ids of rows: `cargo test -p lb-tests --test conformance -- H34 S05` runs the scenarios
//! they are in and counts only them. `CONFORMANCE_LOGIC` names a file with the results of the rows
//! that are unit tests, one `ID ok` or `ID FAILED` a line.

use std::{
    any::Any,
    io::Write as _,
    panic::{AssertUnwindSafe, catch_unwind},
    process::ExitCode,
};

use lb_tests::{
    conformance::{agents::Agents, cluster::Cluster, record::Record, rows},
    netns::now,
    require,
};

mod affinity;
mod balancers;
mod endpoints;
mod flows;
mod networking;
mod policies;
mod recovery;
mod services;
mod sources;
mod topology;

/// Steps in a world, and the rows they check.
struct Scenario {
    name: &'static str,
    rows: &'static [&'static str],
    run: fn(&Record, &Cluster, &mut Agents<'_>),
}

/// Worlds that live at the same time, and what happens in each, in this order. Every scenario finds
/// a world without Services. Loading the data path takes longer than most of them: so few worlds.
const WORLDS: [&[Scenario]; 2] = [
    &[
        services::SCENARIO,
        endpoints::SCENARIO,
        policies::SCENARIO,
        networking::SCENARIO,
        sources::SCENARIO,
        topology::SCENARIO,
    ],
    &[
        flows::SCENARIO,
        balancers::SCENARIO,
        affinity::SCENARIO,
        recovery::SCENARIO,
    ],
];

fn main() -> ExitCode {
    let ids: Vec<String> = std::env::args().skip(1).collect();
    if let Some(unknown) = ids.iter().find(|id| rows::find(id).is_none()) {
        eprintln!("there is no row {unknown}");
        return ExitCode::FAILURE;
    }
    if !require::kernel_tests() {
        return ExitCode::SUCCESS;
    }
    // A line each; the count repeats what failed.
    std::panic::set_hook(Box::new(|panic| eprintln!("{panic}")));
    let record = Record::new(ids);
    take_in_logic(&record);
    std::thread::scope(|scope| {
        for world in WORLDS {
            scope.spawn(|| live(world, &record));
        }
    });
    let mut out = std::io::stdout().lock();
    match record
        .conclude(&mut out)
        .and_then(|good| out.flush().map(|()| good))
    {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("write the count: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Sets a world up and runs what is asked for in it.
fn live(world: &[Scenario], record: &Record) {
    let wanted = |scenario: &&Scenario| record.wants_any(scenario.rows);
    let scenarios: Vec<&Scenario> = world.iter().filter(wanted).collect();
    if scenarios.is_empty() {
        return;
    }
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let cluster = Cluster::new();
        let mut agents = Agents::new(&cluster).start();
        for scenario in &scenarios {
            run(scenario, record, &cluster, &mut agents);
            agents.clear();
        }
    }));
    for scenario in scenarios {
        close(record, scenario, &outcome);
    }
}

fn run(scenario: &Scenario, record: &Record, cluster: &Cluster, agents: &mut Agents<'_>) {
    let begun = now();
    let steps = || (scenario.run)(record, cluster, agents);
    let outcome = catch_unwind(AssertUnwindSafe(steps));
    let seconds = begun.elapsed().as_secs_f64();
    eprintln!("scenario {} took {seconds:.1} s", scenario.name);
    close(record, scenario, &outcome);
}

fn close(record: &Record, scenario: &Scenario, outcome: &Result<(), Box<dyn Any + Send>>) {
    let end = match outcome {
        Ok(()) => Ok(()),
        Err(panic) => Err(panic.as_ref()),
    };
    record.close(scenario.rows, end);
}

fn take_in_logic(record: &Record) {
    let Some(path) = std::env::var_os("CONFORMANCE_LOGIC") else {
        return;
    };
    let text = std::fs::read_to_string(&path).expect("the results of the unit tests");
    for line in text.lines() {
        match line.split_once(' ') {
            Some((id, "ok")) => record.note_result(id, None),
            Some((id, _)) => record.note_result(id, Some("its unit test failed")),
            None => {}
        }
    }
}
