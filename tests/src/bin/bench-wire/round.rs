//! One round of one row: send, see to it that every frame came through as it must, and note the rate.

use std::time::Duration;

use anyhow::{Result, ensure};
use lb_tests::{
    netns::now,
    stream::{Call, Lane, Outcome, Programs, Ticks},
};

use crate::{
    rows::{Row, Sample},
    setup::{Counts, PATIENCE, Scene, Setup},
};

/// How long a call takes, about. It ends with a wait for a grace period of the kernel, 20 to 30 ms long, which
/// should not count for much.
const CALL: Duration = Duration::from_millis(750);
/// Frames in a first call: enough for every flow to look up its route, and for a guess at the rate.
const FIRST: u32 = 131_072;
/// Share of the processors' time that a round may lose: idle, stolen, or given to other programs.
const WASTE: f64 = 0.1;
/// How often a round that loses more is run; the best one counts.
const ATTEMPTS: u32 = 3;
/// One in so many packets of a flow may go by TCX, to keep neighbours fresh.
const BY_TCX: u64 = 1_000;

/// Lets neighbours find each other, looks at every checksum of a first call, and finds out how many frames a
/// round is.
pub(crate) fn prepare(row: &mut Row, scene: &Scene<'_>, programs: &mut Programs) -> Result<()> {
    let deadline = now() + PATIENCE;
    loop {
        let outcome = programs.run(&call(row, scene, 64, true))?;
        if outcome.arrived.frames == outcome.sent {
            break;
        }
        ensure!(
            now() < deadline,
            "the first frames do not arrive: {outcome:?}"
        );
    }
    let outcome = programs.run(&call(row, scene, FIRST, true))?;
    let lost = outcome.sent - outcome.arrived.frames;
    ensure!(
        outcome.arrived.wrong == 0 && lost * BY_TCX <= outcome.sent,
        "of {} frames {} arrived as they must, {} did not",
        outcome.sent,
        outcome.arrived.frames,
        outcome.arrived.wrong,
    );
    let frames = u128::from(outcome.sent) * CALL.as_nanos() / wall(&outcome).as_nanos().max(1);
    row.count = u32::try_from(frames / row.processors.len() as u128)?;
    Ok(())
}

/// Runs a round, again if a processor idled or was taken away meanwhile.
pub(crate) fn run(row: &mut Row, scene: &Scene<'_>, programs: &mut Programs) -> Result<()> {
    let mut best: Option<Sample> = None;
    for attempt in 0..ATTEMPTS {
        let before = scene.counts();
        let outcome = programs.run(&call(row, scene, row.count, false))?;
        let after = scene.counts();
        check(
            row,
            &outcome,
            before.zip(after).map(|(then, now)| now.since(then)),
        )?;
        let sample = sample(&outcome);
        row.repeated += u32::from(attempt > 0);
        if best
            .as_ref()
            .is_none_or(|best| sample.waste() < best.waste())
        {
            best = Some(sample);
        }
        if sample.waste() <= WASTE {
            break;
        }
    }
    row.samples.extend(best);
    Ok(())
}

fn call<'s>(row: &'s Row, scene: &Scene<'s>, count: u32, verify: bool) -> Call<'s> {
    Call {
        frames: row.frames,
        count,
        from: scene.sender(row.frames.is_reply),
        onward: Some(scene.onward()),
        processors: &row.processors,
        verify,
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "ticks and frames of a second, which a double holds exactly"
)]
fn sample(outcome: &Outcome) -> Sample {
    let Outcome { lanes, arrived, .. } = outcome;
    let ticks = |pick: fn(&Ticks) -> u64| -> f64 {
        let each = lanes.iter().map(|lane| pick(&lane.ticks));
        each.sum::<u64>() as f64
    };
    let seconds = |pick: fn(&Lane) -> Duration| -> f64 {
        lanes.iter().map(|lane| pick(lane).as_secs_f64()).sum()
    };
    let all = ticks(|ticks| ticks.all()).max(1.0);
    let busy = ticks(|ticks| ticks.busy) / all;
    let time = seconds(|lane| lane.wall);
    let frames = arrived.frames as f64;
    Sample {
        mpps: frames / wall(outcome).as_secs_f64() / 1e6,
        ns: time * busy / frames * 1e9,
        idle: ticks(|ticks| ticks.idle) / all,
        stolen: ticks(|ticks| ticks.stolen) / all,
        shared: (busy - seconds(|lane| lane.own) / time).max(0.0),
        lost: outcome.sent - arrived.frames,
    }
}

/// The longest of the calls, which began together.
fn wall(outcome: &Outcome) -> Duration {
    let walls = outcome.lanes.iter().map(|lane| lane.wall);
    walls.max().unwrap_or_default()
}

/// Whether sender, Sluice and receiver agree.
fn check(row: &Row, outcome: &Outcome, counts: Option<Counts>) -> Result<()> {
    let Outcome { sent, arrived, .. } = outcome;
    let asked = u64::from(row.count) * row.processors.len() as u64;
    ensure!(*sent == asked, "{asked} frames were asked for, {sent} sent");
    ensure!(
        arrived.wrong == 0,
        "{} of {sent} frames arrived as they must not",
        arrived.wrong
    );
    let Some(Counts { xdp, tcx, lost }) = counts else {
        return Ok(());
    };
    let by_tcx = row.setup == Setup::Tcx;
    ensure!(
        xdp + tcx == *sent && arrived.frames + lost == *sent,
        "{sent} frames sent, {xdp} counted as forwarded by XDP and {tcx} by TCX, {lost} as lost, {} arrived",
        arrived.frames,
    );
    ensure!(
        if by_tcx {
            xdp == 0
        } else {
            tcx * BY_TCX <= *sent
        },
        "{xdp} frames went by XDP, {tcx} by TCX",
    );
    Ok(())
}
