//! A lab as it is before a case: nothing but the devices of [`crate::network`].

use aya::maps::{PerCpuArray, PerCpuValues};
use lb_common::{
    addr::Addr6,
    conntrack::{Closing4, Closing6, Entry4, Entry6},
    control::Gate,
    device::{Device, NextHop, NextHopKey, SnatAddress, device_flag},
    flow::{Flow4, Flow6},
    names,
    service::{
        FragmentKey, FragmentPorts,
        affinity::{Affinity, AffinityKey},
    },
    wire::Wire,
};
use lb_userspace::tables::TableSet;

use super::{Hook, Lab, SMALL};
use crate::{
    network::{INSIDE, OUTSIDE, PODS, PORTS},
    packet::address,
};

impl Lab {
    /// Forgets every table, flow and next hop. Counters count on.
    pub(super) fn reset(&mut self, hook: Hook) {
        self.hook = hook;
        self.set_gate(Gate::OPEN);
        self.apply(&TableSet::default());
        self.dataplane
            .get_mut()
            .rebuild_filter(&TableSet::default(), [])
            .expect("ADDRESS_FILTER");
        for name in [names::FLOWS_V4, names::EMBRYONIC_V4] {
            self.clear::<Flow4, Entry4>(name);
        }
        for name in [names::FLOWS_V6, names::EMBRYONIC_V6] {
            self.clear::<Flow6, Entry6>(name);
        }
        self.clear::<FragmentKey, FragmentPorts>(names::FRAGMENTS);
        self.clear::<AffinityKey, Affinity>(names::AFFINITY);
        self.clear::<NextHopKey, u32>(names::NEXT_HOP_INDEX);
        while let Some(Closing4 { .. }) = self.map(names::CLOSING_V4).pop().expect("CLOSING_V4") {}
        while let Some(Closing6 { .. }) = self.map(names::CLOSING_V6).pop().expect("CLOSING_V6") {}
        let uses = self.map(names::FLOW_USE);
        for element in 0..uses.info().max_entries {
            uses.update(&element, &0_u64).expect("FLOW_USE");
        }
        let budget = self
            .ebpf
            .map_mut(names::REPLY_BUDGET)
            .expect("REPLY_BUDGET");
        let mut budget = PerCpuArray::<_, [u64; 2]>::try_from(budget).expect("two words a CPU");
        let cpus = aya::util::nr_cpus().expect("CPUs");
        let zero = PerCpuValues::try_from(vec![[0; 2]; cpus]).expect("one value a CPU");
        budget.set(0, zero, 0).expect("REPLY_BUDGET");
        self.forget_routes();
        let free = self.map(names::NEXT_HOP_FREE);
        while free.pop::<u32>().expect("NEXT_HOP_FREE").is_some() {}
        let hops = self.map(names::NEXT_HOPS);
        let numbers: Vec<u32> = (0..SMALL).collect();
        hops.update_batch(&numbers, &vec![NextHop::default(); numbers.len()])
            .expect("NEXT_HOPS");
        for number in 1..SMALL {
            free.push(&number).expect("NEXT_HOP_FREE");
        }
        self.describe_devices();
    }

    /// Forgets the routes looked up in this tick, as if others had taken their places.
    pub fn forget_routes(&mut self) {
        let scratch = self.ebpf.map_mut(names::SCRATCH).expect("SCRATCH");
        let mut scratch = PerCpuArray::<_, [u64; 64]>::try_from(scratch).expect("64 words a CPU");
        let cpus = aya::util::nr_cpus().expect("CPUs");
        for element in 0..scratch.len() {
            let zero = PerCpuValues::try_from(vec![[0; 64]; cpus]).expect("one value a CPU");
            scratch.set(element, zero, 0).expect("SCRATCH");
        }
    }

    fn clear<K: Wire, V: Wire>(&self, name: &str) {
        let map = self.map(name);
        let entries: Vec<(K, V)> = map
            .read_all()
            .unwrap_or_else(|e| panic!("read {name}: {e}"));
        let keys: Vec<K> = entries.into_iter().map(|(key, _)| key).collect();
        map.delete_batch(&keys)
            .unwrap_or_else(|e| panic!("clear {name}: {e}"));
    }

    fn describe_devices(&self) {
        let snat = self.map(names::SNAT_V4);
        let snat6 = self.map(names::SNAT_V6);
        let (devices, index) = (self.map(names::DEVICES), self.map(names::DEVICE_INDEX));
        for port in PORTS {
            let owns = port != OUTSIDE;
            let redirect = if port == PODS {
                0
            } else {
                device_flag::REDIRECT
            };
            let device = Device {
                ifindex: port.ifindex,
                mtu: port.mtu,
                mac: port.mac,
                flags: redirect,
                snat4_first: port.index,
                snat4_count: u16::from(owns),
                snat6_first: port.index,
                snat6_count: u16::from(owns),
                vlan_parent: 0,
                vlan_id: 0,
                index: port.index,
            };
            devices
                .update(&u32::from(port.index), &device)
                .expect("DEVICES");
            index
                .update(&port.ifindex, &u32::from(port.index))
                .expect("DEVICE_INDEX");
            if owns {
                let (v4, v6) = port.snat();
                let element = u32::from(port.index);
                snat.update(&element, &snat_address(v4, 1024, 64_512))
                    .expect("SNAT_V4");
                snat6
                    .update(&element, &snat_address(v6, 1024, 64_512))
                    .expect("SNAT_V6");
            }
        }
    }

    /// Narrows the SNAT ports behind [`INSIDE`].
    pub fn snat_ports(&self, first: u32, count: u32) {
        let (v4, v6) = INSIDE.snat();
        let element = u32::from(INSIDE.index);
        let map = self.map(names::SNAT_V4);
        map.update(&element, &snat_address(v4, first, count))
            .expect("SNAT_V4");
        let map = self.map(names::SNAT_V6);
        map.update(&element, &snat_address(v6, first, count))
            .expect("SNAT_V6");
    }

    /// Puts so many SNAT addresses behind [`INSIDE`].
    pub fn snat_addresses(&self, count: u16) {
        let (v4, v6) = (self.map(names::SNAT_V4), self.map(names::SNAT_V6));
        for element in 0..u32::from(count) {
            let (high, low) = (element >> 8, element & 0xff);
            let address = snat_address(&format!("10.77.{high}.{low}"), 1_024, 64_512);
            v4.update(&element, &address).expect("SNAT_V4");
            let address = snat_address(&format!("2001:db8:77::{element:x}"), 1_024, 64_512);
            v6.update(&element, &address).expect("SNAT_V6");
        }
        let devices = self.map(names::DEVICES);
        let key = u32::from(INSIDE.index);
        let device: Device = devices.lookup(&key).expect("DEVICES").expect("an element");
        let device = Device {
            snat4_first: 0,
            snat4_count: count,
            snat6_first: 0,
            snat6_count: count,
            ..device
        };
        devices.update(&key, &device).expect("DEVICES");
    }
}

/// An SNAT address and its ports.
fn snat_address(text: &str, first_port: u32, port_count: u32) -> SnatAddress {
    let address = match address(text) {
        std::net::IpAddr::V4(v4) => Addr6([lb_common::addr::Addr4::from(v4).0, 0, 0, 0]),
        std::net::IpAddr::V6(v6) => v6.into(),
    };
    SnatAddress {
        address,
        first_port,
        port_count,
    }
}
