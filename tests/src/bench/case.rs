//! A row of the benchmark: which packets, through which program, and what each must do.

use std::{collections::BTreeMap, net::IpAddr};

use anyhow::{Context as _, Result};
use lb_common::{
    bench::{HEADER_WORDS, HEADER_WORDS_V4, bench_flag},
    reason::{Counter, Event, Reason},
};
use lb_userspace::tables::Protocol;

use super::{
    group::{Group, Mode, plus},
    kernel::{Kernel, Program},
};
use crate::{
    network::{OUTSIDE, Port},
    packet::Packet,
};

/// What comes before a timed call.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Setup {
    /// Nothing but packets that warm caches.
    Warm,
    /// The group's flows are established, and each looked its route up in this tick.
    Established,
    /// The same, then routes change.
    Route,
    /// There is room for new flows.
    Room,
    /// The embryonic table is full, as in a flood.
    Full,
    /// Flows wait for the packet that promotes them.
    Promotion,
    /// A map of bare inserts is empty, or full.
    Bare(&'static str, bool),
}

/// What each packet must come to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Proof {
    /// Its result, by the low four bits.
    pub(super) result: u8,
    /// What it is counted under, of [`WATCHED`]; the others stay as they are.
    pub(super) counters: &'static [Counter],
}

const PASS: u8 = 2;
const XDP_DROP: u8 = 1;
const XDP_TX: u8 = 3;
const XDP_REDIRECT: u8 = 4;
const TCX_REDIRECT: u8 = 7;
const NEXT: u8 = 15;

const XDP_FORWARDED: Counter = Counter::Event(Event::XdpForwarded);
const TCX_FORWARDED: Counter = Counter::Event(Event::TcxForwarded);
const DELIVERED: Counter = Counter::Event(Event::Delivered);
const EGRESS_FORWARDED: Counter = Counter::Event(Event::EgressForwarded);
const HANDED_TO_TCX: Counter = Counter::Event(Event::HandedToTcx);
const CREATED: Counter = Counter::Event(Event::FlowCreated);
const PROMOTED: Counter = Counter::Event(Event::FlowPromoted);
const RESET_SENT: Counter = Counter::Event(Event::ResetSent);
const NOT_OURS: Counter = Counter::Reason(Reason::NotOurs);
const NO_ENDPOINT: Counter = Counter::Reason(Reason::NoEndpoint);
const SOURCE_RANGE: Counter = Counter::Reason(Reason::SourceRange);

/// Counters looked at after each timed call.
pub(super) const WATCHED: [Counter; 11] = [
    XDP_FORWARDED,
    TCX_FORWARDED,
    DELIVERED,
    EGRESS_FORWARDED,
    HANDED_TO_TCX,
    CREATED,
    PROMOTED,
    RESET_SENT,
    NOT_OURS,
    NO_ENDPOINT,
    SOURCE_RANGE,
];

impl Proof {
    const fn of(result: u8, counters: &'static [Counter]) -> Self {
        Self { result, counters }
    }

    /// Passes at the first look; TCX counts it.
    pub(super) const fn foreign(program: Program) -> Self {
        match program {
            Program::Ingress => Self::of(NEXT, &[NOT_OURS]),
            _ => Self::untouched(program),
        }
    }

    /// Passes, and nobody counts it.
    pub(super) const fn untouched(program: Program) -> Self {
        Self::of(if program.is_tcx() { NEXT } else { PASS }, &[])
    }

    /// Sent on, or given to the node's own stack or back.
    pub(super) const fn forwarded(program: Program, mode: Mode) -> Self {
        match (program, mode) {
            (Program::Egress, _) => Self::of(NEXT, &[EGRESS_FORWARDED]),
            (Program::Ingress, Mode::Host) => Self::of(NEXT, &[DELIVERED]),
            (Program::Ingress, _) => Self::of(TCX_REDIRECT, &[TCX_FORWARDED]),
            _ => Self::of(XDP_REDIRECT, &[XDP_FORWARDED]),
        }
    }

    /// Sent on, with a new flow.
    pub(super) const fn created(program: Program) -> Self {
        match program {
            Program::Ingress => Self::of(TCX_REDIRECT, &[TCX_FORWARDED, CREATED]),
            _ => Self::of(XDP_REDIRECT, &[XDP_FORWARDED, CREATED]),
        }
    }

    /// Refused for want of an endpoint: XDP leaves the answer to TCX.
    pub(super) const fn rejected(program: Program) -> Self {
        match program {
            Program::Ingress => Self::of(TCX_REDIRECT, &[NO_ENDPOINT, RESET_SENT]),
            _ => Self::HANDED_OVER,
        }
    }

    /// Took the steps of a new flow up to one.
    pub(super) const fn stage(stage: u8, last: bool) -> Self {
        Self::of(stage, if last { &[CREATED] } else { &[] })
    }

    pub(super) const HANDED_OVER: Self = Self::of(PASS, &[HANDED_TO_TCX]);
    pub(super) const PROMOTED: Self = Self::of(XDP_REDIRECT, &[XDP_FORWARDED, PROMOTED]);
    pub(super) const OUT_OF_RANGE: Self = Self::of(XDP_DROP, &[SOURCE_RANGE]);
    pub(super) const REFERENCE: Self = Self::of(XDP_TX, &[]);
}

/// A picture a row is a point of.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Picture {
    /// Cost against the number of flows.
    Flows,
    /// Cost against the number of services.
    Services,
    /// Cost of a new flow, step by step.
    Stages,
}

/// Where in a picture.
#[derive(Clone, Debug)]
pub(super) struct Point {
    pub(super) picture: Picture,
    /// Which line, or bar.
    pub(super) series: String,
    pub(super) x: u32,
}

/// A row and what was measured of it.
pub(super) struct Row {
    pub(super) name: String,
    pub(super) program: Program,
    pub(super) setup: Setup,
    pub(super) proof: Proof,
    /// Nanoseconds, net.
    pub(super) target: Option<u32>,
    pub(super) group: Group,
    pub(super) frame: Vec<u8>,
    pub(super) port: Port,
    /// Bits of [`bench_flag`].
    pub(super) flags: u32,
    /// A power of two.
    pub(super) flows: u32,
    pub(super) stage: u32,
    /// Where it is drawn.
    pub(super) points: Vec<Point>,
    /// Its packets go between addresses that depend on the tables: see [`Row::aim`].
    pub(super) is_transit: bool,
    /// Iterations the wrapper has run for this row.
    pub(super) counter: u64,
    /// Nanoseconds per packet, gross, one for each timed call.
    pub(super) samples: Vec<f64>,
    /// Results of all timed calls by number.
    pub(super) results: [u64; 16],
    /// Iterations of all timed calls.
    pub(super) iterations: u64,
}

impl Row {
    /// A row of packets from the clients of a group, of one flow, without preparations.
    pub(super) fn new(program: Program, what: &str, group: &Group, proof: Proof) -> Self {
        let mut row = Self {
            name: what.to_owned(),
            program,
            setup: Setup::Warm,
            proof,
            target: None,
            group: group.clone(),
            frame: Vec::new(),
            port: OUTSIDE,
            flags: if group.shape.v6 { bench_flag::IPV6 } else { 0 },
            flows: 1,
            stage: 0,
            points: Vec::new(),
            is_transit: false,
            counter: 0,
            samples: Vec::new(),
            results: [0; 16],
            iterations: 0,
        };
        row.set_frame(&group.question());
        row
    }

    /// The row that only restores.
    pub(super) fn null(program: Program, group: &Group) -> Self {
        let what = format!("{} null (restores only)", group.shape.family());
        let mut row = Self::new(program, &what, group, Proof::untouched(program));
        row.flags |= bench_flag::NULL;
        row.flows = super::FLOWS;
        row.named_after_program()
    }

    /// Packets of established flows, forward or back.
    pub(super) fn established(program: Program, group: &Group, reply: bool, flows: u32) -> Self {
        let direction = if reply { "reply" } else { "forward" };
        let over = match group.shape.services {
            1 => String::new(),
            services => format!(" over {services} services"),
        };
        let what = format!("{} {direction}, {}{over}", label(group), count(flows));
        let proof = Proof::forwarded(program, group.shape.mode);
        let mut row = Self::new(program, &what, group, proof);
        row.setup = Setup::Established;
        row.flows = flows;
        if program == Program::Xdp {
            row.target = match flows {
                1 => Some(80),
                2..=1_024 => Some(120),
                1_025..=65_536 => Some(380),
                _ => None,
            };
        }
        if reply {
            row.flags |= bench_flag::REPLY;
            row.port = group.port();
            row.set_frame(&group.answer());
        }
        row.named_after_program()
    }

    /// SYNs, each of another flow.
    pub(super) fn fresh(program: Program, what: &str, group: &Group, proof: Proof) -> Self {
        let mut row = Self::new(program, &format!("{} {what}", label(group)), group, proof);
        row.setup = Setup::Room;
        row.flags |= bench_flag::FRESH;
        row.set_frame(&group.syn());
        row.named_after_program()
    }

    fn named_after_program(mut self) -> Self {
        match self.program {
            Program::Ingress => self.name.push_str(", lb_ingress"),
            Program::Egress => self.name.push_str(", lb_egress"),
            Program::Xdp | Program::Stages | Program::Reference => {}
        }
        self
    }

    /// A packet between addresses no table names.
    pub(super) fn transit(program: Program, group: &Group) -> Self {
        let what = format!("{} not ours: transit", group.shape.family());
        let mut row = Self::new(program, &what, group, Proof::foreign(program));
        row.is_transit = true;
        row.target = (program == Program::Xdp).then_some(60);
        row.named_after_program()
    }

    /// Gives a transit row its addresses: some share their bit of the filter with one of ours.
    pub(super) fn aim(&mut self, kernel: &Kernel) -> Result<()> {
        if !self.is_transit {
            return Ok(());
        }
        let stranger = |near: IpAddr| -> Result<IpAddr> {
            for further in 64..128 {
                let address = plus(near, further);
                if kernel.is_foreign(address)? {
                    return Ok(address);
                }
            }
            anyhow::bail!("the filter is full around {near}")
        };
        let source = stranger(self.group.request(0).0.ip())?;
        let destination = stranger(self.group.forwarded(0).1.ip())?;
        let packet = self.group.transit(source, destination);
        self.set_frame(&packet);
        Ok(())
    }

    pub(super) fn set_frame(&mut self, packet: &Packet) {
        self.frame = packet.bytes();
    }

    /// The words the wrapper restores.
    ///
    /// # Errors
    ///
    /// The frame is shorter, or the flows cannot be cycled through.
    pub(super) fn header(&self) -> Result<[u32; HEADER_WORDS]> {
        let words = if self.flags & bench_flag::IPV6 != 0 {
            HEADER_WORDS
        } else {
            HEADER_WORDS_V4
        };
        let (chunks, _) = self.frame.as_chunks::<4>();
        let restored = chunks
            .get(..words)
            .with_context(|| format!("{} bytes are too short a frame", self.frame.len()))?;
        anyhow::ensure!(
            self.flows.is_power_of_two(),
            "{} flows cannot be cycled through",
            self.flows
        );
        let mut header = [0; HEADER_WORDS];
        for (word, bytes) in header.iter_mut().zip(restored) {
            *word = u32::from_ne_bytes(*bytes);
        }
        Ok(header)
    }

    /// Whether it only restores.
    pub(super) const fn is_null(&self) -> bool {
        self.flags & bench_flag::NULL != 0
    }

    /// Whether another row restores the same way.
    pub(super) const fn is_kin(&self, other: &Self) -> bool {
        (self.flags ^ other.flags) & bench_flag::IPV6 == 0 && self.hook() == other.hook()
    }

    const fn hook(&self) -> u8 {
        match self.program {
            Program::Xdp | Program::Stages | Program::Reference => 0,
            Program::Ingress => 1,
            Program::Egress => 2,
        }
    }

    /// What came out, by name; results of stages by number.
    pub(super) fn verdicts(&self) -> BTreeMap<String, u64> {
        let name = |number: usize| match (self.hook(), number) {
            (0, _) if self.program == Program::Stages && !self.is_null() => {
                format!("STAGE {number}")
            }
            (0, 0) => "ABORTED".to_owned(),
            (0, 1) | (1.., 2) => "DROP".to_owned(),
            (0, 2) => "PASS".to_owned(),
            (0, 3) => "TX".to_owned(),
            (0, 4) | (1.., 7) => "REDIRECT".to_owned(),
            (1.., 15) => "NEXT".to_owned(),
            _ => format!("{number}"),
        };
        let results = self.results.iter().enumerate();
        results
            .filter(|(_, count)| **count > 0)
            .map(|(number, count)| (name(number), *count))
            .collect()
    }
}

/// Family, protocol and mode.
pub(super) fn label(group: &Group) -> String {
    let mode = match group.shape.mode {
        Mode::Dnat => "dnat",
        Mode::FullNat => "full-nat",
        Mode::Local => "local pod",
        Mode::Host => "node itself",
    };
    let protocol = match group.shape.protocol {
        Protocol::Tcp => "",
        Protocol::Udp => " UDP",
    };
    format!("{}{protocol} {mode}", group.shape.family())
}

/// A number of flows in words.
pub(super) fn count(flows: u32) -> String {
    match flows {
        1 => "1 flow".to_owned(),
        _ if flows.is_multiple_of(1 << 20) => format!("{}M flows", flows >> 20),
        _ if flows.is_multiple_of(1 << 10) => format!("{}k flows", flows >> 10),
        _ => format!("{flows} flows"),
    }
}
