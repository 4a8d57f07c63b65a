//! Rows over tables of other sizes: many services, many flows.

use lb_common::{bench::stage, names};

use super::{
    super::{
        FLOWS,
        case::{Picture, Point, Proof, Row, label},
        group::{Group, Mode, Purpose, Shape},
        kernel::{Program, Sizes},
    },
    Draft, against_flows, found, steps, up_to,
};

/// The most flows there are rows for.
const MANY: u32 = 1 << 20;
/// Numbers of services the same flows are spread over.
const SERVICES: [u32; 4] = [1, 1_000, 10_000, MOST];
const MOST: u32 = 50_000;

/// Adds them.
pub(super) fn push(drafts: &mut Vec<Draft>) {
    drafts.extend(SERVICES.map(spread));
    for v6 in [false, true] {
        drafts.extend([Mode::Dnat, Mode::FullNat].map(|mode| crowd(v6, mode)));
    }
}

/// The same flows over a number of services.
fn spread(services: u32) -> Draft {
    let mut draft = Draft {
        sizes: Sizes {
            maps: &[
                (names::FLOWS_V6, 1_024),
                (names::CLOSING_V6, 1_024),
                (names::EMBRYONIC_V6, 1_024),
            ],
            snat_addresses: 4,
            ..Sizes::default()
        },
        ..Draft::default()
    };
    let shape = |purpose| Shape {
        services,
        ..Shape::tcp(false, Mode::Dnat, purpose)
    };
    let point = |what: &str| Point {
        picture: Picture::Services,
        series: what.to_owned(),
        x: services,
    };
    let over = match services {
        1 => "1 service".to_owned(),
        _ => format!("{services} services"),
    };
    let group = draft.group(shape(Purpose::Established));
    let mut row = Row::established(Program::Xdp, &group, false, FLOWS);
    row.name = format!("{} forward, 64k flows over {over}", label(&group));
    row.points.push(point("established"));
    draft.rows.push(row);
    // What of it depends on their number.
    for (number, what) in [
        (stage::FOUND, "flow found"),
        (stage::COUNTED, "flow found, packet counted"),
    ] {
        let named = format!("{what}, 64k flows over {over}");
        let mut row = found(&group, &named, number, FLOWS);
        row.points.push(point(what));
        draft.rows.push(row);
    }
    // Of the same services: many clients, one group of backends.
    let newcomers = Group::new(0, shape(Purpose::New));
    let proof = Proof::created(Program::Xdp);
    let what = format!("new flow over {over}");
    let mut row = Row::fresh(Program::Xdp, &what, &newcomers, proof);
    row.target = Some(900);
    row.points.push(point("new flow"));
    if services == MOST {
        let over = format!(" over {over}");
        row.points.push(up_to(&newcomers, &over, stage::SENT));
        draft.rows.extend(steps(&newcomers, &over));
    }
    draft.rows.push(row);
    draft
}

/// A million flows.
fn crowd(v6: bool, mode: Mode) -> Draft {
    // Three million entries for two million halves; ticks so long that all pass in one, and rounds too.
    const ENTRIES: u32 = 3 << 20;
    let maps: &[_] = if v6 {
        &[
            (names::FLOWS_V6, ENTRIES),
            (names::FLOWS_V4, 1_024),
            (names::CLOSING_V4, 1_024),
            (names::SLOTS, 65_536),
        ]
    } else {
        &[
            (names::FLOWS_V4, ENTRIES),
            (names::FLOWS_V6, 1_024),
            (names::CLOSING_V6, 1_024),
            (names::SLOTS, 65_536),
        ]
    };
    let mut draft = Draft {
        sizes: Sizes {
            maps,
            longer_ticks: 20,
            snat_addresses: 64,
        },
        ..Draft::default()
    };
    let group = draft.group(Shape {
        flows: MANY,
        ..Shape::tcp(v6, mode, Purpose::Established)
    });
    for reply in [false, true] {
        let mut row = Row::established(Program::Xdp, &group, reply, MANY);
        row.points
            .extend((!reply).then(|| against_flows(&group, MANY)));
        draft.rows.push(row);
    }
    draft
}
