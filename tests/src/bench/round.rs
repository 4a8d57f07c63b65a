//! One round of one row: get ready, run, see to it that every iteration did what the row says.

use anyhow::{Context as _, Result, ensure};
use lb_common::{
    bench::{BenchCase, HEADER_WORDS},
    reason::Event,
};
use lb_userspace::tables::TableSet;

use super::{
    case::{Kind, Row},
    kernel::{BENCH, Kernel},
    machine,
};

const PASS: usize = 2;
const REDIRECT: usize = 4;
/// Iterations that warm caches where the row's flows are fewer.
const WARM: u32 = 4_096;
/// New flows that fill `EMBRYONIC`, two entries each: from then on each evicts others.
const FILLING: u32 = 65_536;
/// New flows of a timed call that must find room: half of what `EMBRYONIC_V6` has room for.
const ROOM: u32 = 16_384;
/// How often a round is repeated because a tick began in it.
const ATTEMPTS: u32 = 20;

/// Runs a round and notes its time.
pub(super) fn run(
    kernel: &mut Kernel,
    row: &mut Row,
    iterations: u32,
    tables: &TableSet,
) -> Result<()> {
    let iterations = match row.kind {
        // Each flow once.
        Kind::Route | Kind::Promotion => row.flows,
        Kind::New => iterations.min(ROOM),
        _ => iterations,
    };
    for _ in 0..ATTEMPTS {
        if let (Kind::Established | Kind::Route, Some(group)) = (row.kind, &row.group) {
            kernel.establish(group, tables)?;
        }
        let tick = kernel.tick()?;
        prepare(kernel, row, tables)?;
        let before = Counts::now(kernel)?;
        let time = call(kernel, row, iterations)?;
        let after = Counts::now(kernel)?;
        // A new flow meets no stamp of its own.
        let in_one_tick = matches!(row.kind, Kind::New | Kind::Flood) || kernel.tick()? == tick;
        if let (Kind::Promotion, Some(group)) = (row.kind, &row.group) {
            kernel.forget(group, row.flows, tables)?;
        }
        if !in_one_tick {
            continue;
        }
        let verdicts = verdicts(kernel)?;
        check(row.kind, iterations, &verdicts, &before, &after)?;
        for (sum, count) in row.verdicts.iter_mut().zip(verdicts) {
            *sum += count;
        }
        row.iterations += u64::from(iterations);
        row.samples.push(time / f64::from(iterations));
        return Ok(());
    }
    anyhow::bail!("a tick began in each of {ATTEMPTS} rounds: the machine is too busy")
}

fn prepare(kernel: &Kernel, row: &mut Row, tables: &TableSet) -> Result<()> {
    match row.kind {
        Kind::Null | Kind::Foreign => call(kernel, row, WARM)?,
        Kind::Established => call(kernel, row, row.flows.max(WARM))?,
        Kind::New => {
            let time = call(kernel, row, WARM)?;
            kernel.clear_embryonic()?;
            time
        }
        Kind::Flood => call(kernel, row, FILLING)?,
        Kind::Route => {
            let time = call(kernel, row, row.flows)?;
            kernel.change_routes()?;
            time
        }
        Kind::Promotion => {
            let group = row.group.as_ref().context("a group to promote")?;
            // In a full table some would evict others.
            kernel.clear_embryonic()?;
            kernel.conceive(group, row.flows, tables)?;
            0.0
        }
    };
    Ok(())
}

/// Runs the wrapper; returns the CPU time it took.
fn call(kernel: &Kernel, row: &mut Row, iterations: u32) -> Result<f64> {
    let mut header = [0; HEADER_WORDS];
    let (words, _) = row.frame.as_chunks::<4>();
    for (word, bytes) in header.iter_mut().zip(words) {
        *word = u32::from_ne_bytes(*bytes);
    }
    let case = BenchCase {
        header,
        counter: row.counter,
        results: [0; 16],
        flow_mask: row.flows - 1,
        flags: row.flags,
        services: row.services,
        stage: 0,
    };
    kernel.map(BENCH)?.update(&0_u32, &case)?;
    row.counter += u64::from(iterations);
    let before = machine::cpu_time()?;
    kernel.run(&row.frame, row.port, iterations)?;
    Ok(machine::cpu_time()? - before)
}

fn verdicts(kernel: &Kernel) -> Result<[u64; 16]> {
    let case: BenchCase = kernel
        .map(BENCH)?
        .lookup(&0_u32)?
        .context("BENCH is empty")?;
    Ok(case.results)
}

/// What the data path counted.
struct Counts {
    forwarded: u64,
    handed_over: u64,
    created: u64,
    promoted: u64,
}

impl Counts {
    fn now(kernel: &Kernel) -> Result<Self> {
        Ok(Self {
            forwarded: kernel.counted(Event::XdpForwarded)?,
            handed_over: kernel.counted(Event::HandedToTcx)?,
            created: kernel.counted(Event::FlowCreated)?,
            promoted: kernel.counted(Event::FlowPromoted)?,
        })
    }
}

/// One in a thousand may go by TCX, as now and then one does to keep its neighbour fresh.
fn check(
    kind: Kind,
    iterations: u32,
    verdicts: &[u64; 16],
    before: &Counts,
    after: &Counts,
) -> Result<()> {
    let all = u64::from(iterations);
    let enough = |count: u64| count * 1_000 >= all * 999;
    let of = |verdict: usize| verdicts.get(verdict).copied().unwrap_or(0);
    let forwarded = after.forwarded - before.forwarded;
    let handed_over = after.handed_over - before.handed_over;
    let right = match kind {
        Kind::Null | Kind::Foreign => of(PASS) == all && forwarded == 0 && handed_over == 0,
        _ => enough(of(REDIRECT)) && of(REDIRECT) == forwarded && of(PASS) == handed_over,
    };
    let created = after.created - before.created;
    let promoted = after.promoted - before.promoted;
    let right = right
        && match kind {
            Kind::New | Kind::Flood => enough(created) && promoted == 0,
            Kind::Promotion => enough(promoted) && created == 0,
            _ => created + promoted == 0,
        };
    ensure!(
        right,
        "of {all} packets {} passed, {} were redirected, {} ended otherwise; counted: {forwarded} \
         forwarded, {handed_over} handed to TCX, {created} flows created, {promoted} promoted",
        of(PASS),
        of(REDIRECT),
        verdicts.iter().sum::<u64>() - of(PASS) - of(REDIRECT),
    );
    Ok(())
}
