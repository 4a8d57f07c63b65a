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
    let mut times = Vec::new();
    // The first makes the others comparable: from two endpoints to one it may be there at once.
    for n in 0..=changes {
        let to = if n % 2 == 0 { first } else { second };
        let change = Change::Endpoint(number, to);
        let is_there = move |seen: Seen| seen.backend == std::net::IpAddr::V4(to);
        let took = follow(peer, api, services, change, number, is_there)?;
        if n > 0 {
            times.push(took);
        }
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
        anyhow::Ok(milliseconds(reached.saturating_duration_since(begun)))
    });
    api.settle()?;
    std::thread::sleep(peer.balancer.rest());
    took.with_context(|| format!("{}, {change:?}:\n{}", peer.name(), peer.output()))
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
