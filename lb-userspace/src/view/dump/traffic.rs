//! Rows of the maps that packets write: traffic, closed flows, fragments, budgets.

use std::net::{IpAddr, SocketAddr};

use lb_common::{addr::Be16, names::flow_use as index, traffic::Traffic};
use serde::Serialize;

use crate::{
    tables::Family,
    view::{
        catalog::Choice,
        contents::{Contents, unmapped},
        flows::protocol_name,
    },
};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct TrafficRow {
    id: u32,
    name: String,
    packets: u64,
    bytes: u64,
    reply_packets: u64,
    reply_bytes: u64,
    new_flows: u64,
    established: u64,
}

fn traffic_row(id: u32, name: String, traffic: &Traffic) -> TrafficRow {
    TrafficRow {
        id,
        name,
        packets: traffic.forward.packets,
        bytes: traffic.forward.bytes,
        reply_packets: traffic.reply.packets,
        reply_bytes: traffic.reply.bytes,
        new_flows: traffic.new_flows,
        established: traffic.established,
    }
}

pub(super) fn services(contents: &Contents) -> Vec<TrafficRow> {
    let traffic = contents.service_traffic.iter();
    traffic
        .map(|(&id, t)| traffic_row(id, contents.service(id), t))
        .collect()
}

pub(super) fn backends(contents: &Contents) -> Vec<TrafficRow> {
    let traffic = contents.backend_traffic.iter();
    traffic
        .map(|(&id, t)| traffic_row(id, contents.backend(id), t))
        .collect()
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ClosingRow {
    protocol: String,
    source: SocketAddr,
    destination: SocketAddr,
    identity: String,
    closed_seconds: Option<u64>,
}

/// The oldest closed flow of each family: the kernel lends no more of a queue.
pub(super) fn closing(contents: &Contents, choice: Choice) -> Vec<ClosingRow> {
    let socket = |address: IpAddr, port: Be16| SocketAddr::new(address, port.get());
    let v4 = contents
        .closing4
        .filter(|_| choice.wants(Family::V4))
        .map(|closing| ClosingRow {
            protocol: protocol_name(closing.flow.protocol),
            source: socket(
                IpAddr::V4(closing.flow.source.into()),
                closing.flow.source_port,
            ),
            destination: socket(
                IpAddr::V4(closing.flow.destination.into()),
                closing.flow.destination_port,
            ),
            identity: format!("{:08x}", closing.identity),
            closed_seconds: contents.idle(closing.since),
        });
    let v6 = contents
        .closing6
        .filter(|_| choice.wants(Family::V6))
        .map(|closing| ClosingRow {
            protocol: protocol_name(closing.flow.protocol),
            source: socket(
                IpAddr::V6(closing.flow.source.into()),
                closing.flow.source_port,
            ),
            destination: socket(
                IpAddr::V6(closing.flow.destination.into()),
                closing.flow.destination_port,
            ),
            identity: format!("{:08x}", closing.identity),
            closed_seconds: contents.idle(closing.since),
        });
    [v4, v6].into_iter().flatten().collect()
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct FlowUseRow {
    family: Family,
    protocol: &'static str,
    entries: u64,
}

/// Entries of the established tables; a flow has two.
pub(super) fn flow_use(contents: &Contents) -> Vec<FlowUseRow> {
    let names = [
        (index::V4, Family::V4, "all"),
        (index::V6, Family::V6, "all"),
        (index::UDP_V4, Family::V4, "UDP"),
        (index::UDP_V6, Family::V6, "UDP"),
    ];
    let row = |(index, family, protocol)| {
        let entries = *contents.flow_use.get(index as usize)?;
        Some(FlowUseRow {
            family,
            protocol,
            entries,
        })
    };
    names.into_iter().filter_map(row).collect()
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct FragmentRow {
    source: IpAddr,
    destination: IpAddr,
    id: String,
    protocol: String,
    source_port: u16,
    destination_port: u16,
}

pub(super) fn fragments(contents: &Contents) -> Vec<FragmentRow> {
    let mut rows: Vec<_> = contents
        .fragments
        .iter()
        .map(|(key, ports)| FragmentRow {
            source: unmapped(key.source),
            destination: unmapped(key.destination),
            id: format!("{:#x}", key.id),
            protocol: protocol_name(key.protocol),
            source_port: ports.source_port.get(),
            destination_port: ports.destination_port.get(),
        })
        .collect();
    rows.sort_by(|a, b| (a.source, a.destination, &a.id).cmp(&(b.source, b.destination, &b.id)));
    rows
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct BudgetRow {
    cpu: usize,
    tick: u64,
    replies: u64,
}

pub(super) fn reply_budget(contents: &Contents) -> Vec<BudgetRow> {
    let budgets = contents.reply_budget.iter().enumerate();
    budgets
        .map(|(cpu, b)| BudgetRow {
            cpu,
            tick: b.tick,
            replies: b.sent,
        })
        .collect()
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ScratchRow {
    bytes_per_cpu: u32,
}

/// Working memory has a size and no meaning between packets.
pub(super) fn scratch(contents: &Contents) -> Vec<ScratchRow> {
    let bytes = contents.scratch_bytes.into_iter();
    bytes
        .map(|bytes_per_cpu| ScratchRow { bytes_per_cpu })
        .collect()
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct EventsRow {
    bytes: u32,
}

/// Refusals waiting for the agent: reading them would take them from it.
pub(super) fn events(contents: &Contents) -> Vec<EventsRow> {
    let bytes = contents.event_bytes.into_iter();
    bytes.map(|bytes| EventsRow { bytes }).collect()
}
