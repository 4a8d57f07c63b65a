//! Every row, by the tables it needs.

use lb_common::bench::stage;
use lb_userspace::tables::Protocol;

use super::{
    FLOWS,
    case::{Picture, Point, Proof, Row, Setup, count, label},
    group::{Group, Mode, NODE, Policy, Purpose, Shape},
    kernel::{BENCH_HASH, BENCH_LRU, Program, Sizes},
};
use crate::packet::packet;

mod large;

/// Flows promoted in a round: few enough for the LRU table to keep every one of them.
const PROMOTED: u32 = 16_384;
/// Numbers of flows.
const HOT_AND_COLD: [u32; 2] = [1, FLOWS];
const EVERY: [u32; 3] = [1, 1_024, FLOWS];

/// Rows that share tables.
#[derive(Default)]
pub(super) struct Draft {
    pub(super) sizes: Sizes,
    pub(super) groups: Vec<Group>,
    pub(super) rows: Vec<Row>,
}

impl Draft {
    /// The group of a shape, made at first sight.
    fn group(&mut self, shape: Shape) -> Group {
        if let Some(known) = self.groups.iter().find(|group| group.shape == shape) {
            return known.clone();
        }
        let number = u16::try_from(self.groups.len()).expect("few groups");
        let group = Group::new(number, shape);
        self.groups.push(group.clone());
        group
    }

    /// Leaves out rows whose name has none of the `wanted` parts, if there are any, but for those that
    /// others are held against.
    pub(super) fn keep(&mut self, wanted: &[String]) {
        let has = |row: &Row| wanted.iter().any(|part| row.name.contains(part.as_str()));
        let is_yardstick = |row: &Row| row.is_null() || row.program == Program::Reference;
        self.rows
            .retain(|row| wanted.is_empty() || is_yardstick(row) || has(row));
    }
}

/// All rows; the first draft has the yardsticks.
pub(super) fn drafts() -> Vec<Draft> {
    let mut drafts = vec![ordinary()];
    large::push(&mut drafts);
    drafts
}

/// Rows over tables of production's sizes.
fn ordinary() -> Draft {
    let mut draft = Draft {
        sizes: Sizes {
            snat_addresses: 4,
            ..Sizes::default()
        },
        ..Draft::default()
    };
    for v6 in [false, true] {
        yardsticks(&mut draft, v6);
        established(&mut draft, v6);
        near(&mut draft, v6);
        new_flows(&mut draft, v6);
        rejected(&mut draft, v6);
    }
    policies(&mut draft);
    stages(&mut draft);
    draft
}

/// Rows others are held against, and packets that are not ours.
fn yardsticks(draft: &mut Draft, v6: bool) {
    let any = draft.group(Shape::tcp(v6, Mode::FullNat, Purpose::Established));
    for program in [Program::Xdp, Program::Ingress, Program::Egress] {
        draft.rows.push(Row::null(program, &any));
    }
    if !v6 {
        for flows in HOT_AND_COLD {
            let what = format!("reference program, {}", count(flows));
            let mut row = Row::new(Program::Reference, &what, &any, Proof::REFERENCE);
            row.flows = flows;
            draft.rows.push(row);
        }
    }
    for program in [Program::Xdp, Program::Ingress, Program::Egress] {
        draft.rows.push(Row::transit(program, &any));
    }
    if !v6 {
        let [node, _] = NODE;
        let what = "IPv4 not ours: the node's address, no frontend";
        let program = Program::Xdp;
        let mut row = Row::new(program, what, &any, Proof::foreign(program));
        let (client, _) = any.request(0);
        let packet = packet().tcp(&client.to_string(), &format!("{node}:22"));
        row.set_frame(&packet.ack_only());
        draft.rows.push(row);
    }
}

/// Flows to backends elsewhere.
fn established(draft: &mut Draft, v6: bool) {
    for mode in [Mode::Dnat, Mode::FullNat] {
        let group = draft.group(Shape::tcp(v6, mode, Purpose::Established));
        for reply in [false, true] {
            for flows in EVERY {
                let mut row = Row::established(Program::Xdp, &group, reply, flows);
                row.points
                    .extend((!reply).then(|| against_flows(&group, flows)));
                draft.rows.push(row);
            }
        }
        for reply in [false, true] {
            for flows in HOT_AND_COLD {
                let row = Row::established(Program::Ingress, &group, reply, flows);
                draft.rows.push(row);
            }
        }
        if mode == Mode::Dnat {
            // What the hash table takes of it.
            for flows in EVERY {
                let what = format!("flow found, {}", count(flows));
                draft.rows.push(found(&group, &what, stage::FOUND, flows));
            }
        }
        if mode == Mode::FullNat {
            let what = format!("{} first after a route change, 64k flows", label(&group));
            let proof = Proof::forwarded(Program::Xdp, mode);
            let mut row = Row::new(Program::Xdp, &what, &group, proof);
            row.setup = Setup::Route;
            row.flows = FLOWS;
            draft.rows.push(row);
        }
    }
    let udp = draft.group(Shape {
        protocol: Protocol::Udp,
        ..Shape::tcp(v6, Mode::FullNat, Purpose::Established)
    });
    for reply in [false, true] {
        for flows in EVERY {
            let row = Row::established(Program::Xdp, &udp, reply, flows);
            draft.rows.push(row);
        }
    }
}

/// Flows to backends on this node: XDP leaves them to TCX.
fn near(draft: &mut Draft, v6: bool) {
    let pods = draft.group(Shape::tcp(v6, Mode::Local, Purpose::Established));
    let mut row = Row::established(Program::Xdp, &pods, false, 1);
    row.name.push_str(", handed over");
    row.proof = Proof::HANDED_OVER;
    row.target = None;
    draft.rows.push(row);
    for reply in [false, true] {
        for flows in HOT_AND_COLD {
            let row = Row::established(Program::Ingress, &pods, reply, flows);
            draft.rows.push(row);
        }
    }
    let host = draft.group(Shape::tcp(v6, Mode::Host, Purpose::Established));
    for (program, reply) in [(Program::Ingress, false), (Program::Egress, true)] {
        for flows in HOT_AND_COLD {
            draft
                .rows
                .push(Row::established(program, &host, reply, flows));
        }
    }
}

/// Flows being made.
fn new_flows(draft: &mut Draft, v6: bool) {
    for mode in [Mode::Dnat, Mode::FullNat] {
        let group = draft.group(Shape::tcp(v6, mode, Purpose::New));
        let proof = Proof::created(Program::Xdp);
        let mut row = Row::fresh(Program::Xdp, "new flow", &group, proof);
        row.target = Some(900);
        row.points
            .extend((!v6).then(|| up_to(&group, "", stage::SENT)));
        draft.rows.push(row);
        let mut row = Row::fresh(Program::Xdp, "new flow, table full", &group, proof);
        row.target = Some(900);
        row.setup = Setup::Full;
        draft.rows.push(row);
        let (program, what) = (Program::Ingress, "new flow");
        let row = Row::fresh(program, what, &group, Proof::created(program));
        draft.rows.push(row);
    }
    let group = draft.group(Shape::tcp(v6, Mode::FullNat, Purpose::Promoted));
    let what = format!("{} promotion", label(&group));
    let mut row = Row::new(Program::Xdp, &what, &group, Proof::PROMOTED);
    row.setup = Setup::Promotion;
    row.flows = PROMOTED;
    draft.rows.push(row);
}

/// SYNs to a service without an endpoint.
fn rejected(draft: &mut Draft, v6: bool) {
    let group = draft.group(Shape {
        policy: Policy::Empty,
        ..Shape::tcp(v6, Mode::FullNat, Purpose::New)
    });
    for program in [Program::Xdp, Program::Ingress] {
        let what = match program {
            Program::Xdp => "no endpoint, handed over",
            _ => "no endpoint, answered with RST",
        };
        let mut row = Row::fresh(program, what, &group, Proof::rejected(program));
        row.setup = Setup::Warm;
        draft.rows.push(row);
    }
}

/// What a service may ask for beside.
fn policies(draft: &mut Draft) {
    let with = |draft: &mut Draft, policy, purpose| {
        draft.group(Shape {
            policy,
            ..Shape::tcp(false, Mode::FullNat, purpose)
        })
    };
    let group = with(draft, Policy::Affinity, Purpose::Established);
    let mut row = Row::established(Program::Xdp, &group, false, 1);
    row.name.push_str(", session affinity");
    draft.rows.push(row);
    let created = Proof::created(Program::Xdp);
    for (policy, what, proof) in [
        (
            Policy::Affinity,
            "new flow, session affinity, client known",
            created,
        ),
        (
            Policy::Admits,
            "new flow, 100 source ranges, admitted",
            created,
        ),
        (
            Policy::Refuses,
            "SYN, 100 source ranges, refused",
            Proof::OUT_OF_RANGE,
        ),
    ] {
        let group = with(draft, policy, Purpose::New);
        draft
            .rows
            .push(Row::fresh(Program::Xdp, what, &group, proof));
    }
}

/// A new flow step by step, and what the kernel takes for an insert alone.
fn stages(draft: &mut Draft) {
    for mode in [Mode::Dnat, Mode::FullNat] {
        let group = draft.group(Shape::tcp(false, mode, Purpose::New));
        draft.rows.extend(steps(&group, ""));
    }
    let group = draft.group(Shape::tcp(false, Mode::Dnat, Purpose::New));
    for (number, map, full, what) in [
        (stage::BARE_LRU, BENCH_LRU, false, "an LRU hash with room"),
        (stage::BARE_LRU, BENCH_LRU, true, "a full LRU hash"),
        (stage::BARE_HASH, BENCH_HASH, false, "a hash with room"),
    ] {
        let result = u8::try_from(number).expect("few stages");
        let proof = Proof::stage(result, false);
        let mut row = Row::fresh(Program::Stages, "", &group, proof);
        row.name = format!("IPv4 parse, then a bare insert into {what}");
        row.setup = Setup::Bare(map, full);
        row.stage = number;
        draft.rows.push(row);
    }
}

/// A new flow up to each of its steps; `over` says what is special about the group.
fn steps(group: &Group, over: &str) -> Vec<Row> {
    let all = [
        (stage::PARSE, "parse, filter"),
        (stage::MISS, "+ no such flow"),
        (stage::CHOOSE, "+ choose a backend"),
        (stage::ROUTE, "+ route to it"),
        (stage::MODE, "+ route back"),
        (stage::CLAIM, "+ claim the reply tuple"),
        (stage::INSERT, "+ insert the forward half"),
    ];
    // Full-nat needs no route back.
    let needed = |number| number != stage::MODE || group.shape.mode == Mode::Dnat;
    let needed = all.into_iter().filter(|(number, _)| needed(*number));
    let row = |(number, what): (u32, &str)| {
        let result = u8::try_from(number).expect("few stages");
        let proof = Proof::stage(result, number == stage::INSERT);
        let what = format!("new flow{over} up to: {what}");
        let mut row = Row::fresh(Program::Stages, &what, group, proof);
        row.stage = number;
        row.points.push(up_to(group, over, number));
        row
    };
    needed.map(row).collect()
}

/// A part of what an established flow's packet takes.
fn found(group: &Group, what: &str, number: u32, flows: u32) -> Row {
    let mut row = Row::established(Program::Stages, group, false, flows);
    row.name = format!("{} {what}", label(group));
    row.proof = Proof::stage(u8::try_from(number).expect("few stages"), false);
    row.stage = number;
    row
}

fn up_to(group: &Group, over: &str, stage: u32) -> Point {
    Point {
        picture: Picture::Stages,
        series: format!("{}{over}", label(group)),
        x: stage,
    }
}

fn against_flows(group: &Group, flows: u32) -> Point {
    Point {
        picture: Picture::Flows,
        series: label(group),
        x: flows,
    }
}
