//! How many flows there are, by what they belong to.

use std::{collections::BTreeMap, net::IpAddr};

use lb_common::{
    conntrack::{Entry, flag, state},
    flow::{Flow, protocol},
};

use super::in_use::Address;
use crate::tables::Family;

/// Flows found by a pass.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct FlowCounts {
    /// Flows established and not closed, by service-port id.
    pub services: PerId,
    /// Flows established and not closed, by backend id.
    pub backends: PerId,
    /// Entries in `EMBRYONIC_V4` and `EMBRYONIC_V6`: one for each direction.
    pub embryonic: [u64; 2],
    /// Established entries of closed flows, IPv4 and IPv6: they rest, and yield to whoever needs their place.
    pub closed: [u64; 2],
    /// Flows that have a port of an SNAT address.
    pub snat: BTreeMap<IpAddr, SnatUse>,
}

/// Numbers by a small id.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct PerId(Vec<u32>);

/// Flows that have a port of one SNAT address.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct SnatUse {
    /// By backend and protocol: a port serves one flow to each.
    ports: PerId,
}

impl PerId {
    /// The number of an id.
    pub fn of(&self, id: u32) -> u64 {
        self.0
            .get(id as usize)
            .map_or(0, |number| u64::from(*number))
    }

    fn count(&mut self, id: u32) {
        let index = id as usize;
        if index >= self.0.len() {
            self.0.resize(index + 1, 0);
        }
        if let Some(number) = self.0.get_mut(index) {
            *number += 1;
        }
    }
}

impl SnatUse {
    /// Flows that have a port of the address.
    pub fn flows(&self) -> u64 {
        self.ports.0.iter().map(|ports| u64::from(*ports)).sum()
    }

    /// Ports taken by flows to the backend which most flows go to.
    pub fn most_ports(&self) -> u64 {
        self.ports
            .0
            .iter()
            .copied()
            .max()
            .unwrap_or_default()
            .into()
    }
}

impl FlowCounts {
    pub(super) fn note_established<F: Flow<Address: Into<Address>>>(
        &mut self,
        flow: &F,
        entry: &impl Entry<Flow = F>,
    ) {
        if state::is_closed(entry.head().state()) {
            let Address(address) = flow.source().into();
            *of(&mut self.closed, Family::of(address)) += 1;
            // It gives its SNAT port to whoever needs it.
            return;
        }
        if entry.flags() & flag::REVERSE != 0 {
            self.note_snat(flow, entry);
        } else {
            self.services.count(entry.service());
            self.backends.count(entry.backend());
        }
    }

    pub(super) fn note_embryonic<F: Flow<Address: Into<Address>>>(
        &mut self,
        family: Family,
        flows: &[F],
        entries: &[impl Entry<Flow = F>],
    ) {
        *of(&mut self.embryonic, family) += flows.len() as u64;
        for (flow, entry) in flows.iter().zip(entries) {
            if entry.flags() & flag::REVERSE != 0 {
                self.note_snat(flow, entry);
            }
        }
    }

    /// A reply's destination is what the backend takes for its client.
    fn note_snat<F: Flow<Address: Into<Address>>>(
        &mut self,
        flow: &F,
        entry: &impl Entry<Flow = F>,
    ) {
        if entry.flags() & flag::FULL_NAT == 0 {
            return;
        }
        let Address(address) = flow.destination().into();
        let udp = u32::from(flow.protocol() == protocol::UDP);
        let id = entry.backend().saturating_mul(2).saturating_add(udp);
        self.snat.entry(address).or_default().ports.count(id);
    }
}

/// The number of one family.
const fn of([v4, v6]: &mut [u64; 2], family: Family) -> &mut u64 {
    match family {
        Family::V4 => v4,
        Family::V6 => v6,
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use lb_common::{
        addr::Be16,
        conntrack::{Entry4, Head},
        flow::Flow4,
    };

    use super::*;

    #[test]
    fn flows_are_counted_once_and_ports_by_backend() {
        let flow = |port, protocol| Flow4 {
            source: Ipv4Addr::new(10, 0, 0, 5).into(),
            destination: Ipv4Addr::new(192, 0, 2, 9).into(),
            source_port: Be16::new(8_080),
            destination_port: Be16::new(port),
            protocol: u32::from(protocol),
        };
        let entry = |flags, state, backend| Entry4 {
            flags,
            head: Head::new(1, state, 1).0,
            service: 7,
            backend,
            ..Entry4::default()
        };
        let reverse = flag::REVERSE | flag::FULL_NAT;
        let established = state::ESTABLISHED;
        let closed = state::CLOSED;
        let mut counts = FlowCounts::default();
        for (port, protocol, entry) in [
            (1, protocol::TCP, entry(0, established, 3)),
            (1, protocol::TCP, entry(reverse, established, 3)),
            (2, protocol::TCP, entry(0, closed, 3)),
            (2, protocol::TCP, entry(reverse, closed, 3)),
            (1, protocol::UDP, entry(reverse, established, 3)),
            (3, protocol::TCP, entry(reverse, established, 4)),
            (4, protocol::TCP, entry(flag::REVERSE, established, 4)),
        ] {
            counts.note_established(&flow(port, protocol), &entry);
        }
        counts.note_embryonic(
            Family::V4,
            &[flow(9, protocol::TCP), flow(10, protocol::TCP)],
            &[entry(0, established, 3), entry(reverse, established, 3)],
        );
        assert_eq!((counts.services.of(7), counts.services.of(8)), (1, 0));
        assert_eq!((counts.backends.of(3), counts.backends.of(4)), (1, 0));
        assert_eq!(counts.embryonic, [2, 0]);
        assert_eq!(counts.closed, [2, 0]);
        let (address, snat) = counts.snat.first_key_value().expect("an SNAT address");
        assert_eq!(*address, IpAddr::from([192, 0, 2, 9]));
        assert_eq!((snat.flows(), snat.most_ports()), (4, 2));
    }
}
