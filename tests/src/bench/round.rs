//! One round of one row: get ready, run, see to it that every iteration did what the row says.

use anyhow::{Context as _, Result, ensure};
use lb_common::{
    bench::{BenchCase, bench_flag},
    conntrack::Entry4,
    flow::Flow4,
};
use lb_userspace::tables::TableSet;

use super::{
    case::{Proof, Row, Setup, WATCHED},
    kernel::{BENCH, Kernel, Program},
    machine,
};

/// Iterations that warm caches where the row's flows are fewer.
const WARM: u32 = 4_096;
/// New flows that fill `EMBRYONIC`, two entries each: from then on each evicts others.
const FILLING: u32 = 65_536;
/// Bare inserts that fill their table.
const BARE_FILLING: u32 = 131_072;
/// New flows of a timed call that must find room: half of what `EMBRYONIC_V6` has room for.
const ROOM: u32 = 16_384;
/// New flows that meet every backend, so that its next hop is known.
const INTRODUCTION: u32 = 256;
/// How often a round is repeated because a tick began in it.
const ATTEMPTS: u32 = 20;

/// Runs a round and notes its time.
pub(super) fn run(
    kernel: &mut Kernel,
    row: &mut Row,
    iterations: u32,
    tables: &TableSet,
) -> Result<()> {
    let iterations = match row.setup {
        // Each flow once.
        Setup::Route | Setup::Promotion => row.flows,
        Setup::Room | Setup::Bare(_, false) => iterations.min(ROOM),
        Setup::Warm | Setup::Established | Setup::Full | Setup::Bare(_, true) => iterations,
    };
    for _ in 0..ATTEMPTS {
        if let Setup::Established | Setup::Route = row.setup {
            let group = row.group.clone();
            kernel.establish(&group, tables)?;
        }
        let tick = kernel.tick()?;
        prepare(kernel, row, tables)?;
        let before = counts(kernel)?;
        let time = call(kernel, row, iterations)?;
        let after = counts(kernel)?;
        // A new flow meets no stamp of its own.
        let in_one_tick = !matches!(
            row.setup,
            Setup::Established | Setup::Route | Setup::Promotion
        ) || kernel.tick()? == tick;
        if row.setup == Setup::Promotion {
            kernel.forget(&row.group, row.flows, tables)?;
        }
        if !in_one_tick {
            continue;
        }
        let results = results(kernel)?;
        let counted = after
            .iter()
            .zip(before)
            .map(|(after, before)| after - before);
        check(
            &row.proof,
            iterations,
            &results,
            &counted.collect::<Vec<_>>(),
        )?;
        for (sum, count) in row.results.iter_mut().zip(results) {
            *sum += count;
        }
        row.iterations += u64::from(iterations);
        row.samples.push(time / f64::from(iterations));
        return Ok(());
    }
    anyhow::bail!("a tick began in each of {ATTEMPTS} rounds: the machine is too busy")
}

fn prepare(kernel: &Kernel, row: &mut Row, tables: &TableSet) -> Result<()> {
    match row.setup {
        // With that many flows ticks never end, and no cache holds them from one round to the next.
        Setup::Established if row.flows > super::FLOWS && row.counter > 0 => {
            call(kernel, row, WARM)?;
        }
        // Of a tick's first packets the steps alone know nothing.
        Setup::Established if row.program == Program::Stages => {
            let mut whole = Row::established(Program::Xdp, &row.group, false, row.flows);
            call(kernel, &mut whole, row.flows.max(WARM))?;
        }
        Setup::Warm | Setup::Established => {
            call(kernel, row, row.flows.max(WARM))?;
        }
        Setup::Room => {
            call(kernel, row, WARM)?;
            kernel.clear_embryonic()?;
        }
        Setup::Full => {
            call(kernel, row, FILLING)?;
        }
        Setup::Bare(map, full) => {
            call(kernel, row, if full { BARE_FILLING } else { WARM })?;
            if !full {
                kernel.clear::<Flow4, Entry4>(map)?;
            }
        }
        Setup::Route => {
            call(kernel, row, row.flows)?;
            kernel.change_routes()?;
        }
        Setup::Promotion => {
            introduce(kernel, row)?;
            // In a full table some would evict others.
            kernel.clear_embryonic()?;
            kernel.conceive(&row.group, row.flows, tables)?;
        }
    }
    Ok(())
}

/// Lets a few flows begin, so that the backends' next hops are known.
fn introduce(kernel: &Kernel, row: &Row) -> Result<()> {
    let mut first = Row::new(row.program, &row.name, &row.group, row.proof);
    first.set_frame(&row.group.syn());
    first.flags |= bench_flag::FRESH;
    call(kernel, &mut first, INTRODUCTION)?;
    Ok(())
}

/// Runs the wrapper; returns the CPU time it took.
fn call(kernel: &Kernel, row: &mut Row, iterations: u32) -> Result<f64> {
    let case = BenchCase {
        header: row.header()?,
        counter: row.counter,
        results: [0; 16],
        flow_mask: row.flows - 1,
        flags: row.flags,
        services: row.group.shape.services,
        stage: row.stage,
    };
    kernel.map(BENCH)?.update(&0_u32, &case)?;
    row.counter += u64::from(iterations);
    let before = machine::cpu_time()?;
    kernel.run(row.program, &row.frame, row.port, iterations)?;
    Ok(machine::cpu_time()? - before)
}

fn results(kernel: &Kernel) -> Result<[u64; 16]> {
    let case: BenchCase = kernel
        .map(BENCH)?
        .lookup(&0_u32)?
        .context("BENCH is empty")?;
    Ok(case.results)
}

/// What the data path counted, in the order of [`WATCHED`].
fn counts(kernel: &Kernel) -> Result<Vec<u64>> {
    WATCHED
        .iter()
        .map(|counter| kernel.counted(*counter))
        .collect()
}

/// Every iteration came to the result, and was counted as the proof says. Of what is counted one in a
/// thousand may go another way: by TCX now and then, to keep its neighbour fresh.
fn check(proof: &Proof, iterations: u32, results: &[u64; 16], counted: &[u64]) -> Result<()> {
    let all = u64::from(iterations);
    let few = if proof.counters.is_empty() {
        0
    } else {
        all / 1_000
    };
    let right = results.get(usize::from(proof.result)).copied().unwrap_or(0);
    let as_said = WATCHED.iter().zip(counted).all(|(counter, count)| {
        if proof.counters.contains(counter) {
            (all - few..=all).contains(count)
        } else {
            *count <= few
        }
    });
    let whole = results.iter().sum::<u64>() == all;
    let counts = WATCHED.iter().zip(counted).filter(|(_, count)| **count > 0);
    ensure!(
        right + few >= all && whole && as_said,
        "of {all} packets {right} came to result {}; results {results:?}; counted: {}",
        proof.result,
        counts
            .map(|(counter, count)| format!("{count} {}", counter.name()))
            .collect::<Vec<_>>()
            .join(", "),
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(proof: &Proof, result: usize, packets: u64, counted: &[(usize, u64)]) -> bool {
        let mut results = [0; 16];
        if let Some(count) = results.get_mut(result) {
            *count = packets;
        }
        let mut counts = vec![0; WATCHED.len()];
        for (index, count) in counted {
            counts[*index] = *count;
        }
        check(proof, 10_000, &results, &counts).is_ok()
    }

    #[test]
    fn a_row_that_did_something_else_is_no_result() {
        let forwarded = Proof::forwarded(Program::Xdp, Mode::Dnat);
        // XDP_REDIRECT, counted as sent by XDP: the first of what is watched.
        assert!(outcome(&forwarded, 4, 10_000, &[(0, 10_000)]));
        assert!(outcome(&forwarded, 4, 10_000, &[(0, 9_995), (4, 5)]));
        for (result, packets, counted) in [
            (4, 10_000, vec![]),
            (2, 10_000, vec![(0, 10_000)]),
            (4, 9_000, vec![(0, 9_000)]),
            (4, 10_000, vec![(0, 10_000), (5, 10_000)]),
            (4, 10_000, vec![(0, 9_000), (4, 1_000)]),
        ] {
            assert!(
                !outcome(&forwarded, result, packets, &counted),
                "{result} {packets} {counted:?}"
            );
        }
    }

    #[test]
    fn a_packet_that_is_not_ours_passes_always() {
        let foreign = Proof::foreign(Program::Xdp);
        assert!(outcome(&foreign, 2, 10_000, &[]));
        assert!(!outcome(&foreign, 2, 9_999, &[]));
        assert!(!outcome(&foreign, 2, 10_000, &[(4, 1)]));
    }

    use super::super::group::Mode;
}
