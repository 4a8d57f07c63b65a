//! Rows of the maps that follow the node's network: devices, neighbours, SNAT addresses.

use std::net::IpAddr;

use lb_common::{control::Gate, device::NextHopWord};
use serde::Serialize;

use crate::{
    tables::Family,
    view::{
        catalog::Choice,
        contents::{Clock, Contents, gateway, mac, snat_address},
        flags,
    },
};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct NextHopRow {
    index: u32,
    gateway: IpAddr,
    interface: String,
    /// None while the neighbour is unresolved.
    mac: Option<String>,
    device: u16,
    refreshed_seconds: Option<u64>,
}

pub(super) fn next_hops(contents: &Contents) -> Vec<NextHopRow> {
    let row = |(&index, hop): (&u32, &lb_common::device::NextHop)| {
        let word = NextHopWord(hop.word);
        NextHopRow {
            index,
            gateway: gateway(hop.family, hop.gateway),
            interface: contents.interface(hop.ifindex),
            mac: (hop.word != 0).then(|| mac(word.mac())),
            device: word.device(),
            refreshed_seconds: contents.idle(hop.refreshed),
        }
    };
    contents.next_hops.iter().map(row).collect()
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct NextHopIndexRow {
    gateway: IpAddr,
    interface: String,
    index: u32,
}

pub(super) fn next_hop_index(contents: &Contents) -> Vec<NextHopIndexRow> {
    let mut rows: Vec<_> = contents
        .next_hop_index
        .iter()
        .map(|(key, index)| NextHopIndexRow {
            gateway: gateway(key.family, key.gateway),
            interface: contents.interface(key.ifindex),
            index: *index,
        })
        .collect();
    rows.sort_by_key(|row| row.index);
    rows
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct NextHopFreeRow {
    next_index: u32,
}

pub(super) fn next_hop_free(contents: &Contents) -> Vec<NextHopFreeRow> {
    contents
        .next_hop_free
        .iter()
        .map(|&next_index| NextHopFreeRow { next_index })
        .collect()
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct DeviceRow {
    index: u32,
    interface: String,
    ifindex: u32,
    mac: String,
    mtu: u32,
    flags: Vec<String>,
    snat4_first: u16,
    snat4_count: u16,
    snat6_first: u16,
    snat6_count: u16,
    vlan_parent: Option<String>,
    vlan_id: Option<u16>,
}

pub(super) fn devices(contents: &Contents) -> Vec<DeviceRow> {
    let row = |(&index, device): (&u32, &lb_common::device::Device)| {
        let vlan = device.vlan_parent != 0;
        DeviceRow {
            index,
            interface: contents.interface(device.ifindex),
            ifindex: device.ifindex,
            mac: mac(device.mac),
            mtu: device.mtu,
            flags: flags::words(device.flags.into(), flags::DEVICE),
            snat4_first: device.snat4_first,
            snat4_count: device.snat4_count,
            snat6_first: device.snat6_first,
            snat6_count: device.snat6_count,
            vlan_parent: vlan.then(|| contents.interface(device.vlan_parent)),
            vlan_id: vlan.then_some(device.vlan_id),
        }
    };
    contents.devices.iter().map(row).collect()
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct DeviceIndexRow {
    interface: String,
    ifindex: u32,
    index: u32,
}

pub(super) fn device_index(contents: &Contents) -> Vec<DeviceIndexRow> {
    let row = |(&ifindex, &index): (&u32, &u32)| DeviceIndexRow {
        interface: contents.interface(ifindex),
        ifindex,
        index,
    };
    contents.device_index.iter().map(row).collect()
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SnatRow {
    family: Family,
    index: u32,
    address: IpAddr,
    first_port: u32,
    last_port: u32,
    devices: Vec<String>,
}

/// SNAT addresses with the devices whose packets use them.
pub(super) fn snat(contents: &Contents, choice: Choice) -> Vec<SnatRow> {
    let families = [(Family::V4, &contents.snat4), (Family::V6, &contents.snat6)];
    let mut rows = Vec::new();
    for (family, addresses) in families {
        if !choice.wants(family) {
            continue;
        }
        rows.extend(addresses.iter().map(|(&index, snat)| SnatRow {
            family,
            index,
            address: snat_address(family, snat.address),
            first_port: snat.first_port,
            last_port: (snat.first_port + snat.port_count).saturating_sub(1),
            devices: users(contents, family, index),
        }));
    }
    rows
}

fn users(contents: &Contents, family: Family, index: u32) -> Vec<String> {
    let uses = |device: &&lb_common::device::Device| {
        let (first, count) = match family {
            Family::V4 => (device.snat4_first, device.snat4_count),
            Family::V6 => (device.snat6_first, device.snat6_count),
        };
        (u32::from(first)..u32::from(first) + u32::from(count)).contains(&index)
    };
    let devices = contents.devices.values().filter(uses);
    devices
        .map(|device| contents.interface(device.ifindex))
        .collect()
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ControlRow {
    route_generation: u32,
    gate: &'static str,
    /// None unless a deadline is set, or if the clock could not be read.
    gate_opens_in_seconds: Option<u64>,
}

pub(super) fn control(contents: &Contents) -> Vec<ControlRow> {
    let gate = Gate(contents.control.gate);
    let now = contents.clock.map_or(gate.deadline(), |clock| clock.now);
    let opens_in = |clock: Clock| {
        let ahead = Clock {
            now: gate.deadline(),
            ..clock
        };
        ahead.seconds_since(clock.now)
    };
    vec![ControlRow {
        route_generation: contents.control.route_generation,
        gate: gate.name(now),
        gate_opens_in_seconds: contents
            .clock
            .filter(|clock| gate.is_frozen(clock.now))
            .map(opens_in),
    }]
}
