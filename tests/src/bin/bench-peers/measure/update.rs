//! From a change to the first connection it decides, by a client that asks all the time.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lb_tests::netns::now;

use crate::{
    api::Api,
    peers::Peer,
    probe,
    server::Seen,
    services::{BACKENDS, Change, Services},
};

/// Longest wait for a change, and for everything.
const PATIENCE: Duration = Duration::from_mins(2);
const LONG_PATIENCE: Duration = Duration::from_mins(15);
/// So many connections in a row do not meet one of two endpoints by chance.
const IN_A_ROW: u32 = 32;

/// Milliseconds from the start of a peer's program until the first and last Services, and some between, were
/// served; all are there before. Nobody serves them when it starts.
pub(crate) fn load(peer: &mut Peer<'_>, services: &Services) -> Result<f64> {
    let targets = services.sample();
    let targets: Vec<_> = targets
        .into_iter()
        .map(|number| peer.balancer.frontend(number))
        .collect();
    for &target in &targets {
        let answer = probe::once(&peer.world.client, target);
        ensure!(
            answer.is_err(),
            "{target} is served before {} starts",
            peer.name()
        );
    }
    let begun = now();
    peer.start(services)?;
    let reached = std::thread::scope(|scope| {
        let client = &peer.world.client;
        probe::watch(scope, client, targets, LONG_PATIENCE, |_| true)?.reached()
    });
    peer.check()?;
    let reached = reached.with_context(|| format!("{}:\n{}", peer.name(), peer.output()))?;
    Ok(milliseconds(reached.saturating_duration_since(begun)))
}

/// Milliseconds from each change of a Service's only endpoint to the first connection to the new one. The list is
/// as before afterwards but for that Service.
pub(crate) fn endpoint(
    peer: &Peer<'_>,
    api: &Api,
    services: &mut Services,
    changes: u32,
) -> Result<Vec<f64>> {
    let [first, second] = BACKENDS;
    let number = services.count() / 2;
    let is = |to| move |seen: Seen| seen.backend == std::net::IpAddr::V4(to);
    // From two endpoints to one: where the others begin.
    let begin = Change::Endpoint(number, first);
    services.apply(begin);
    peer.begin(begin, services)?;
    api.settle()?;
    wait_until_alone(peer, number, is(first))?;
    std::thread::sleep(peer.balancer.rest());
    let mut times = Vec::new();
    for n in 0..changes {
        let to = if n % 2 == 0 { second } else { first };
        let change = Change::Endpoint(number, to);
        times.push(follow(peer, api, services, change, number, is(to))?);
        wait_until_alone(peer, number, is(to))?;
    }
    Ok(times)
}

/// Milliseconds from each addition of a Service to its first connection. Each is removed again.
pub(crate) fn add(
    peer: &Peer<'_>,
    api: &Api,
    services: &mut Services,
    additions: u32,
) -> Result<Vec<f64>> {
    let mut times = Vec::new();
    for _ in 0..additions {
        let number = services.count();
        let target = peer.balancer.frontend(number);
        let answer = probe::once(&peer.world.client, target);
        ensure!(answer.is_err(), "{target} is served before it is there");
        times.push(follow(
            peer,
            api,
            services,
            Change::Add(number),
            number,
            |_| true,
        )?);
        services.apply(Change::Remove(number));
        peer.begin(Change::Remove(number), services)?;
        api.settle()?;
        let start = now();
        while probe::once(&peer.world.client, target).is_ok() {
            ensure!(
                start.elapsed() < PATIENCE,
                "{}: a removed Service is still served",
                peer.name()
            );
        }
        std::thread::sleep(peer.balancer.rest());
    }
    Ok(times)
}

fn follow(
    peer: &Peer<'_>,
    api: &Api,
    services: &mut Services,
    change: Change,
    number: u32,
    wanted: impl Fn(Seen) -> bool + Send,
) -> Result<f64> {
    services.apply(change);
    let took = std::thread::scope(|scope| {
        let targets = vec![peer.balancer.frontend(number)];
        let watch = probe::watch(scope, &peer.world.client, targets, PATIENCE, wanted)?;
        let begun = peer.begin(change, services)?;
        let reached = watch.reached()?;
        let took = reached.checked_duration_since(begun);
        anyhow::Ok(milliseconds(
            took.context("it was there before the change")?,
        ))
    });
    api.settle()?;
    std::thread::sleep(peer.balancer.rest());
    took.with_context(|| format!("{}, {change:?}:\n{}", peer.name(), peer.output()))
}

/// Waits until every connection is as wanted: a peer that was stopped may still serve what was before.
fn wait_until_alone(peer: &Peer<'_>, number: u32, wanted: impl Fn(Seen) -> bool) -> Result<()> {
    let target = peer.balancer.frontend(number);
    let start = now();
    let mut in_a_row = 0;
    while in_a_row < IN_A_ROW {
        match probe::once(&peer.world.client, target) {
            Ok(seen) if wanted(seen) => in_a_row += 1,
            _ => in_a_row = 0,
        }
        ensure!(
            start.elapsed() < PATIENCE,
            "{}: an endpoint that went still answers",
            peer.name()
        );
    }
    Ok(())
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
