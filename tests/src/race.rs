//! Two CPUs at once on the shipped programs: threads that are pinned, meet before every turn, and come
//! to it a little apart, so that the windows of a race are swept. [`check`] says what the tables
//! must look like afterwards, however the race ended.

use std::{
    hint::{black_box, spin_loop},
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};

pub use self::{
    contest::{Batch, Line, Race, asks, race, run, tells},
    invariants::{Found, check, forget},
    records::{CONDEMN, COUNT, DELETE, expiry},
};
use crate::{
    netns,
    network::{CLIENT, Port},
    packet::Packet,
    run::{Lab, Outcome, Programs, Verdict},
};

mod contest;
mod crowd;
mod invariants;
mod records;

/// Flows of a batch: their turns come one after the other, then the tables are looked at.
pub const BATCH: u16 = 50;

/// Most iterations of an empty loop by which one side comes late: somewhat more than a program's run.
const LATE: usize = 4_096;

/// What one CPU does in a turn.
#[derive(Clone, Debug)]
pub enum Act {
    /// A frame that comes in: by `lb_xdp`, then by `lb_ingress` if that passes it.
    Frame(Vec<u8>, Port),
    /// The same, by `lb_ingress` alone.
    Classified(Vec<u8>, Port),
    /// The input of `lb_expire`.
    Expire(Vec<u8>),
}

/// A packet that comes in by `port`, addressed to it.
pub fn frame(port: Port, packet: &Packet) -> Act {
    Act::Frame(packet.clone().next_hop(CLIENT, port.mac).bytes(), port)
}

impl Act {
    /// The same frame, but not by XDP.
    #[must_use]
    pub fn by_tcx(self) -> Self {
        match self {
            Self::Frame(frame, port) => Self::Classified(frame, port),
            other => other,
        }
    }

    fn run(&self, programs: &Programs) -> Outcome {
        match self {
            Self::Frame(frame, port) => {
                let outcome = programs.xdp(frame, *port);
                if outcome.verdict == Verdict::Pass {
                    programs.ingress(frame, *port)
                } else {
                    outcome
                }
            }
            Self::Classified(frame, port) => programs.ingress(frame, *port),
            Self::Expire(records) => Outcome {
                verdict: Verdict::Other(programs.expire(records)),
                frame: Vec::new(),
            },
        }
    }
}

/// Runs acts on the calling thread; the last one's outcome.
pub fn perform(lab: &Lab, acts: &[Act]) -> Option<Outcome> {
    acts.iter().map(|act| act.run(lab.programs())).last()
}

/// What came of a turn: the outcomes of each side.
pub type Outcomes = [Vec<Outcome>; 2];

/// Runs turns on two CPUs at once. Returns the outcomes, and in how many turns the sides overlapped.
pub fn collide(programs: &Programs, turns: &[[Vec<Act>; 2]]) -> (Vec<Outcomes>, usize) {
    let arrived = AtomicUsize::new(0);
    let run = |side: usize| {
        pin(side);
        let mut done = Vec::with_capacity(turns.len());
        for (number, turn) in turns.iter().enumerate() {
            meet(&arrived, 2 * (number + 1));
            if number % 2 == side {
                for step in 0..(number * 2_654_435) % LATE {
                    black_box(step);
                }
            }
            let acts = turn.get(side).map(Vec::as_slice).unwrap_or_default();
            let began = netns::now();
            let outcomes: Vec<Outcome> = acts.iter().map(|act| act.run(programs)).collect();
            done.push((began, netns::now(), outcomes));
        }
        done
    };
    let (left, right) = std::thread::scope(|scope| {
        let right = scope.spawn(|| run(1));
        let left = scope.spawn(|| run(0));
        let join = |side: std::thread::ScopedJoinHandle<'_, _>| {
            side.join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        (join(left), join(right))
    });
    let mut overlapped = 0;
    let both = left.into_iter().zip(right);
    let outcomes = both.map(
        |((began, ended, left), (other_began, other_ended, right))| {
            overlapped += usize::from(overlaps((began, ended), (other_began, other_ended)));
            [left, right]
        },
    );
    (outcomes.collect(), overlapped)
}

fn overlaps(one: (Instant, Instant), other: (Instant, Instant)) -> bool {
    one.0 < other.1 && other.0 < one.1
}

/// Waits until `target` arrivals are counted. Who waits long lets others have the CPU.
fn meet(arrived: &AtomicUsize, target: usize) {
    arrived.fetch_add(1, Ordering::AcqRel);
    let mut spins = 0_u32;
    while arrived.load(Ordering::Acquire) < target {
        spins += 1;
        if spins > 10_000 {
            std::thread::yield_now();
        } else {
            spin_loop();
        }
    }
}

fn pin(cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu).expect("a CPU's number");
    sched_setaffinity(Pid::from_raw(0), &set).expect("two CPUs");
}

/// How long a race is tried: `SLUICE_RACE_SECONDS`, or so long that all of them end soon.
pub fn patience() -> Duration {
    let seconds = std::env::var("SLUICE_RACE_SECONDS").ok();
    let seconds = seconds.and_then(|text| text.parse().ok());
    Duration::from_secs_f64(seconds.unwrap_or(1.0))
}
