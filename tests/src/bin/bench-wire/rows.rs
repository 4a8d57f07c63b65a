//! The rows of the benchmark.

use lb_tests::{
    figure::Target,
    stream::{
        Frames,
        flows::{Kind, Mode},
    },
};

use crate::setup::{MOST, SOME, Setup, kind, udp};

/// What a processor should do, in Mpps.
const LEAST: f64 = 2.0;

/// A row.
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) setup: Setup,
    pub(crate) frames: Frames,
    /// Processors that send, and what each does after.
    pub(crate) processors: Vec<usize>,
    pub(crate) target: Option<Target>,
    /// Frames of each processor in a call.
    pub(crate) count: u32,
    /// One of each round.
    pub(crate) samples: Vec<Sample>,
    /// Rounds that were run again since the processors were not ours alone.
    pub(crate) repeated: u32,
}

/// A round's result.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    /// Millions of frames a second that arrived.
    pub(crate) mpps: f64,
    /// Nanoseconds of processor each took.
    pub(crate) ns: f64,
    /// Shares of the processors' time.
    pub(crate) idle: f64,
    pub(crate) stolen: f64,
    /// Share that neither idled nor went to the sender: other programs had it.
    pub(crate) shared: f64,
    /// Frames that did not arrive.
    pub(crate) lost: u64,
}

impl Sample {
    /// Share of the processors' time that nothing of ours had.
    pub(crate) fn waste(&self) -> f64 {
        self.idle + self.stolen + self.shared
    }
}

/// All of them.
pub(crate) fn rows() -> Vec<Row> {
    let dnat = kind(false, Mode::Dnat);
    let full = kind(false, Mode::FullNat);
    // What stands before the balancer, or is none, sees what was sent.
    let plain = Frames {
        arriving: dnat.requests(SOME).sent,
        hops: 0,
        ..dnat.requests(SOME)
    };
    let mut rows = Vec::new();
    let mut both = |name: &str, setup, frames, target: bool| {
        for processors in 1..=processors() {
            rows.push(row(name, setup, frames, processors, target));
        }
    };
    both("XDP_DROP, native", Setup::Drop, plain, false);
    both("XDP_TX, native", Setup::Reflect, plain, false);
    both("XDP_REDIRECT, native", Setup::Redirect, plain, false);
    both(
        "XDP_REDIRECT by map, native",
        Setup::MapRedirect,
        plain,
        false,
    );
    both("XDP_DROP, generic", Setup::GenericDrop, plain, false);
    both("kernel forwarding", Setup::Route, dnat.direct(SOME), false);
    for (mode, kind) in [("dnat", dnat), ("full-nat", full)] {
        for flows in [SOME, MOST] {
            let name = format!("Sluice native, {mode}, {}", number(flows));
            both(&name, Setup::Native, kind.requests(flows), true);
        }
    }
    let mut one = |name: &str, setup, frames, target| {
        let name = format!("Sluice {name}, {}", number(SOME));
        rows.push(row(&name, setup, frames, 1, target));
    };
    one(
        "native, dnat, replies",
        Setup::Native,
        dnat.replies(SOME),
        true,
    );
    one(
        "native, full-nat, replies",
        Setup::Native,
        full.replies(SOME),
        true,
    );
    one(
        "native, full-nat, UDP",
        Setup::Native,
        udp(Mode::FullNat).requests(SOME),
        true,
    );
    let v6 = |mode| -> Kind { kind(true, mode) };
    one(
        "native, dnat, IPv6",
        Setup::Native,
        v6(Mode::Dnat).requests(SOME),
        true,
    );
    one(
        "native, full-nat, IPv6",
        Setup::Native,
        v6(Mode::FullNat).requests(SOME),
        true,
    );
    one(
        "generic, full-nat",
        Setup::Generic,
        full.requests(SOME),
        false,
    );
    one("TCX, full-nat", Setup::Tcx, full.requests(SOME), false);
    rows
}

fn row(name: &str, setup: Setup, frames: Frames, processors: usize, has_target: bool) -> Row {
    let cores = if processors == 1 { "core" } else { "cores" };
    Row {
        name: format!("{name}, {processors} {cores}"),
        setup,
        frames,
        // The last ones: the first gets most interrupts.
        processors: (0..self::processors()).rev().take(processors).collect(),
        // Two share what one has alone: caches, and here perhaps a core.
        target: (has_target && processors == 1).then_some(Target::AtLeast(LEAST)),
        count: 0,
        samples: Vec::new(),
        repeated: 0,
    }
}

/// Processors that may send: devices have two queues.
fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, |all| all.get().min(2))
}

fn number(flows: u32) -> String {
    match flows {
        1 => "1 flow".to_owned(),
        _ => format!("{} k flows", flows / 1_024),
    }
}
