//! What was read from the maps, before anyone interprets it.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use lb_common::{
    addr::{Addr4, Addr6},
    conntrack::{Closing4, Closing6, TICK_MASK, ticks_since},
    control::Control,
    device::{Device, NextHop, NextHopKey, SnatAddress},
    service::{
        FragmentKey, FragmentPorts, MemberKey,
        affinity::{Affinity, AffinityKey},
    },
    traffic::{ReplyBudget, Tally, Traffic},
};

use crate::{
    preflight::tick_shift,
    tables::{Family, TableSet},
    view::flows::Half,
};

/// The maps' contents. Only what a view asked for is filled; the rest is empty.
#[derive(Clone, Debug, Default)]
pub struct Contents {
    /// The tables a plan decides.
    pub tables: TableSet,
    /// Each direction of each flow, of both families.
    pub halves: Vec<Half>,
    /// The oldest element of `CLOSING_V4`.
    pub closing4: Option<Closing4>,
    /// The oldest element of `CLOSING_V6`.
    pub closing6: Option<Closing6>,
    /// `FLOW_USE`.
    pub flow_use: Vec<u64>,
    /// `AFFINITY`.
    pub affinity: Vec<(AffinityKey, Affinity)>,
    /// `SOURCE_RANGES`: prefix length, set id and address as they lie in the key; value.
    pub source_ranges: Vec<([u32; 6], u32)>,
    /// `SOURCE_CLASS`: prefix length and address as they lie in the key; class.
    pub source_class: Vec<([u32; 5], u32)>,
    /// `ADDRESS_FILTER`.
    pub address_filter: Vec<u64>,
    /// `NEXT_HOPS`, elements in use.
    pub next_hops: BTreeMap<u32, NextHop>,
    /// `NEXT_HOP_INDEX`.
    pub next_hop_index: Vec<(NextHopKey, u32)>,
    /// The next index `NEXT_HOP_FREE` would give.
    pub next_hop_free: Option<u32>,
    /// `DEVICES`, elements in use.
    pub devices: BTreeMap<u32, Device>,
    /// `DEVICE_INDEX`.
    pub device_index: BTreeMap<u32, u32>,
    /// `SNAT_V4`, elements in use.
    pub snat4: BTreeMap<u32, SnatAddress>,
    /// `SNAT_V6`, elements in use.
    pub snat6: BTreeMap<u32, SnatAddress>,
    /// `FRAGMENTS`.
    pub fragments: Vec<(FragmentKey, FragmentPorts)>,
    /// `CONTROL`.
    pub control: Control,
    /// `DRAINS`.
    pub drains: BTreeMap<MemberKey, u64>,
    /// `COUNTERS`, summed over CPUs.
    pub counters: Vec<Tally>,
    /// `SERVICE_TRAFFIC`, summed over CPUs, without zeros.
    pub service_traffic: BTreeMap<u32, Traffic>,
    /// `BACKEND_TRAFFIC`, summed over CPUs, without zeros.
    pub backend_traffic: BTreeMap<u32, Traffic>,
    /// `REPLY_BUDGET`, one for each CPU.
    pub reply_budget: Vec<ReplyBudget>,
    /// Bytes a CPU has in `SCRATCH`, which only the data path understands.
    pub scratch_bytes: Option<u32>,
    /// Bytes `EVENTS` has room for; whoever reads it takes away what the agent should see.
    pub event_bytes: Option<u32>,
    /// Names of the interfaces, by interface index.
    pub interfaces: BTreeMap<u32, String>,
    /// When they were read, in seconds since 1970.
    pub unix_seconds: u64,
    /// The data path's clock, if its program could be run.
    pub clock: Option<Clock>,
}

/// The data path's clock.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Clock {
    /// The current tick.
    pub now: u32,
    /// Length of a tick in milliseconds.
    pub tick_ms: u64,
}

impl Clock {
    /// Length of a tick in seconds.
    pub const fn tick_seconds(self) -> f64 {
        Duration::from_millis(self.tick_ms).as_secs_f64()
    }

    /// Seconds since a stamp, as near as the tick tells. A stamp ahead of the clock is "now".
    pub const fn seconds_since(self, stamp: u32) -> u64 {
        let ticks = ticks_since(self.now, stamp);
        if ticks > TICK_MASK / 2 {
            return 0;
        }
        ticks as u64 * self.tick_ms / 1000
    }
}

/// Length of the tick the agent makes of the kernel's jiffies, in milliseconds.
pub fn tick_ms(jiffies_per_second: u32) -> u64 {
    (1000 << tick_shift(jiffies_per_second)) / u64::from(jiffies_per_second.max(1))
}

impl Contents {
    /// A service port's name, or its number if no name is known.
    pub fn service(&self, id: u32) -> String {
        self.tables
            .services
            .get(&id)
            .map_or_else(|| format!("#{id}"), |s| s.name.clone())
    }

    /// A backend's endpoint, or its number if the id is free.
    pub fn backend(&self, id: u32) -> String {
        let backend = self.tables.backends.get(&id);
        backend.map_or_else(|| format!("#{id}"), |b| b.endpoint.to_string())
    }

    /// An interface's name, or its number.
    pub fn interface(&self, ifindex: u32) -> String {
        self.interfaces
            .get(&ifindex)
            .cloned()
            .unwrap_or_else(|| format!("#{ifindex}"))
    }

    /// A next hop as `gateway@interface`. Index 0 is the complete path, which asks the kernel.
    pub fn next_hop(&self, index: u32) -> String {
        match self.next_hops.get(&index) {
            _ if index == 0 => "tcx".into(),
            Some(hop) => {
                format!(
                    "{}@{}",
                    gateway(hop.family, hop.gateway),
                    self.interface(hop.ifindex)
                )
            }
            None => format!("#{index}"),
        }
    }

    /// Seconds since a stamp, if the clock is known.
    pub fn idle(&self, stamp: u32) -> Option<u64> {
        self.clock.map(|clock| clock.seconds_since(stamp))
    }
}

/// The address in a key which holds IPv4 addresses IPv4-mapped.
pub fn unmapped(address: Addr6) -> IpAddr {
    IpAddr::V6(address.into()).to_canonical()
}

/// The address of a neighbour: `AF_INET` keeps it in the first word.
pub fn gateway(family: u32, address: Addr6) -> IpAddr {
    if family == libc::AF_INET.cast_unsigned() {
        let [first, ..] = address.0;
        IpAddr::V4(Addr4(first).into())
    } else {
        IpAddr::V6(address.into())
    }
}

/// The address of an element of `SNAT_V4` or `SNAT_V6`.
pub fn snat_address(family: Family, address: Addr6) -> IpAddr {
    match family {
        Family::V4 => gateway(libc::AF_INET.cast_unsigned(), address),
        Family::V6 => IpAddr::V6(address.into()),
    }
}

/// A MAC address.
pub fn mac(bytes: [u8; 6]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_follow_the_tick_and_its_wrap() {
        let cases = [
            ("now", 100, 1024, 100, 0),
            ("a longer tick", 200, 1280, 100, 128),
            ("a tick of about a second", 200, 1024, 100, 102),
            ("over the wrap", 5, 1024, TICK_MASK - 4, 10),
            ("a packet after the clock was read", 100, 1024, 101, 0),
        ];
        for (name, now, tick_ms, stamp, expected) in cases {
            let clock = Clock { now, tick_ms };
            assert_eq!(clock.seconds_since(stamp), expected, "{name}");
        }
    }

    #[test]
    fn ticks_of_common_kernels() {
        for (hertz, expected) in [(100, 1280), (250, 1024), (300, 853), (1000, 1024)] {
            assert_eq!(tick_ms(hertz), expected, "{hertz}");
        }
    }

    #[test]
    fn gateways_of_both_families() {
        let v4: Addr4 = std::net::Ipv4Addr::new(10, 0, 0, 1).into();
        assert_eq!(gateway(2, Addr6([v4.0, 0, 0, 0])).to_string(), "10.0.0.1");
        let v6: std::net::Ipv6Addr = "2001:db8::1".parse().expect("valid");
        assert_eq!(gateway(10, v6.into()).to_string(), "2001:db8::1");
        assert_eq!(unmapped(v4.mapped()).to_string(), "10.0.0.1");
    }
}
