//! The rows of the benchmark.

use anyhow::{Context as _, Result, ensure};
use lb_common::bench::{HEADER_WORDS, bench_flag};
use lb_userspace::tables::Protocol;

use super::{
    group::{FLOWS, Group, NODE, PAYLOAD, Purpose, SERVICES, plus},
    kernel::Kernel,
};
use crate::{
    network::{INSIDE, OUTSIDE, Port},
    packet::{Packet, packet},
};

/// Flows promoted in a round: few enough for the LRU table to keep every one of them.
const PROMOTED: u32 = 16_384;

/// What a row's packets must do, each of them.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    /// Nothing: the wrapper alone.
    Null,
    /// Pass, unmodified and uncounted.
    Foreign,
    /// Be forwarded by an established flow.
    Established,
    /// The same, each the first of its flow after a change of routes.
    Route,
    /// Make a flow, while the embryonic table has room.
    New,
    /// Make a flow in place of an older one: the embryonic table is full, as in a flood.
    Flood,
    /// Promote a flow.
    Promotion,
}

/// A row and what was measured of it.
pub(super) struct Row {
    pub(super) name: String,
    pub(super) kind: Kind,
    /// Nanoseconds, net.
    pub(super) target: Option<u32>,
    /// Whose flows must be there.
    pub(super) group: Option<Group>,
    pub(super) frame: Vec<u8>,
    pub(super) port: Port,
    /// Bits of [`bench_flag`].
    pub(super) flags: u32,
    /// A power of two.
    pub(super) flows: u32,
    /// Services they are spread over.
    pub(super) services: u32,
    /// Iterations the wrapper has run for this row.
    pub(super) counter: u64,
    /// Nanoseconds per packet, gross, one for each timed call.
    pub(super) samples: Vec<f64>,
    /// Verdicts of all timed calls by number.
    pub(super) verdicts: [u64; 16],
    /// Iterations of all timed calls.
    pub(super) iterations: u64,
}

/// Every row in the order of the table.
pub(super) fn rows(groups: &[Group], kernel: &Kernel) -> Result<Vec<Row>> {
    let find = |purpose, v6, full_nat, protocol| {
        groups
            .iter()
            .find(|group| {
                group.purpose == purpose
                    && group.is_v6() == v6
                    && group.full_nat == full_nat
                    && group.protocol == protocol
            })
            .context("a group of flows is missing")
    };
    let tcp = |purpose, v6, full_nat| find(purpose, v6, full_nat, Protocol::Tcp);
    let mut rows = Vec::new();
    for v6 in [false, true] {
        let any = tcp(Purpose::Established, v6, true)?;
        rows.push(Row::new(
            Kind::Null,
            "null (restores only)",
            any,
            FLOWS,
            None,
        ));
        rows.push(transit(any, kernel)?);
        if !v6 {
            rows.push(own_address(any));
        }
        for full_nat in [false, true] {
            let group = tcp(Purpose::Established, v6, full_nat)?;
            for reply in [false, true] {
                let counts: &[_] = if v6 { &[1, FLOWS] } else { &[1, 1_024, FLOWS] };
                for &flows in counts {
                    rows.push(established(group, reply, flows));
                }
            }
        }
        let what = "first after a route change";
        rows.push(Row::new(Kind::Route, what, any, FLOWS, None));
        if !v6 {
            let udp = find(Purpose::Established, v6, true, Protocol::Udp)?;
            rows.extend([false, true].map(|reply| established(udp, reply, 1)));
            let spread = tcp(Purpose::Spread, v6, false)?;
            let mut row = established(spread, false, SERVICES);
            row.name = format!("{} of {SERVICES} services", row.name);
            row.services = SERVICES;
            rows.push(row);
        }
        for full_nat in [false, true] {
            let group = tcp(Purpose::New, v6, full_nat)?;
            for (kind, what) in [
                (Kind::New, "new flow"),
                (Kind::Flood, "new flow, table full"),
            ] {
                let mut row = Row::new(kind, what, group, 1, Some(900));
                row.flags |= bench_flag::FRESH;
                row.set_frame(&group.syn());
                rows.push(row);
            }
        }
        let group = tcp(Purpose::Promoted, v6, true)?;
        rows.push(Row::new(
            Kind::Promotion,
            "promotion",
            group,
            PROMOTED,
            None,
        ));
    }
    for row in &rows {
        ensure!(
            row.flows.is_power_of_two() && row.frame.len() >= size_of::<[u32; HEADER_WORDS]>(),
            "{}: the wrapper cannot cycle through {} flows of {} bytes",
            row.name,
            row.flows,
            row.frame.len(),
        );
    }
    Ok(rows)
}

fn established(group: &Group, reply: bool, flows: u32) -> Row {
    let target = match flows {
        1 => 80,
        ..=1_024 => 120,
        _ => 380,
    };
    let direction = if reply { "reply" } else { "forward" };
    let mut row = Row::new(Kind::Established, direction, group, flows, Some(target));
    if reply {
        row.flags |= bench_flag::REPLY;
        row.port = INSIDE;
        row.set_frame(&group.answer());
    }
    row
}

/// A packet between addresses no table names.
fn transit(group: &Group, kernel: &Kernel) -> Result<Row> {
    let (client, _) = group.request(0);
    let (_, backend) = group.forwarded(0);
    let mut strangers = Vec::new();
    for from in [client.ip(), backend.ip()] {
        // Some addresses share their bit of the filter with one of ours.
        let mut candidates = (64..128).map(|further| plus(from, further));
        let stranger = candidates.find_map(|address| match kernel.is_foreign(address) {
            Ok(false) => None,
            Ok(true) => Some(Ok(address)),
            Err(error) => Some(Err(error)),
        });
        strangers.push(stranger.context("the filter is full")??);
    }
    let endpoint = |address: Option<&std::net::IpAddr>| {
        let address = address.copied().context("two strangers")?;
        anyhow::Ok(std::net::SocketAddr::new(address, 443).to_string())
    };
    let mut row = Row::new(Kind::Foreign, "not ours: transit", group, 1, Some(60));
    let (source, destination) = (endpoint(strangers.first())?, endpoint(strangers.last())?);
    let packet = packet().tcp(&source, &destination).ack_only();
    row.set_frame(&packet.payload_length(PAYLOAD));
    Ok(row)
}

/// A packet to an address of the node, but to no frontend.
fn own_address(group: &Group) -> Row {
    let (client, _) = group.request(0);
    let what = "not ours: the node's address, no frontend";
    let mut row = Row::new(Kind::Foreign, what, group, 1, None);
    let packet = packet().tcp(&client.to_string(), &format!("{NODE}:22"));
    row.set_frame(&packet.ack_only().payload_length(PAYLOAD));
    row
}

impl Row {
    /// A row of packets from the clients of a group.
    fn new(kind: Kind, what: &str, group: &Group, flows: u32, target: Option<u32>) -> Self {
        let family = if group.is_v6() { "IPv6" } else { "IPv4" };
        let mode = match (kind, group.full_nat) {
            (Kind::Null | Kind::Foreign, _) => "",
            (_, false) => " dnat",
            (_, true) => " full-nat",
        };
        let protocol = match group.protocol {
            Protocol::Tcp => "",
            Protocol::Udp => " UDP",
        };
        let flags = match kind {
            Kind::Null => bench_flag::NULL,
            _ => 0,
        };
        let name = match kind {
            Kind::Established | Kind::Route => {
                format!("{family}{protocol}{mode} {what}, {}", count(flows))
            }
            _ => format!("{family}{protocol}{mode} {what}"),
        };
        let mut row = Self {
            name,
            kind,
            target,
            group: matches!(kind, Kind::Established | Kind::Route | Kind::Promotion)
                .then(|| group.clone()),
            frame: Vec::new(),
            port: OUTSIDE,
            flags: flags | if group.is_v6() { bench_flag::IPV6 } else { 0 },
            flows,
            services: 1,
            counter: 0,
            samples: Vec::new(),
            verdicts: [0; 16],
            iterations: 0,
        };
        row.set_frame(&group.question());
        row
    }

    fn set_frame(&mut self, packet: &Packet) {
        self.frame = packet.bytes();
    }

    /// Whether it is of the same family as another row.
    pub(super) const fn is_kin(&self, other: &Self) -> bool {
        (self.flags ^ other.flags) & bench_flag::IPV6 == 0
    }
}

fn count(flows: u32) -> String {
    match flows {
        1 => "1 flow".to_owned(),
        _ if flows.is_multiple_of(1_024) => format!("{}k flows", flows / 1_024),
        _ => format!("{flows} flows"),
    }
}
