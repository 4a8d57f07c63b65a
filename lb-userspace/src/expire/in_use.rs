//! What flows name, and what must therefore not be used for anything else.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use lb_common::{
    addr::{Addr4, Addr6},
    conntrack::{Entry, flag},
    flow::Flow,
    service::MemberKey,
};

/// Ids that flows name.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct InUse {
    /// Service-port ids.
    pub services: BTreeSet<u32>,
    /// Backend ids.
    pub backends: BTreeSet<u32>,
    /// Next-hop indices.
    pub next_hops: BTreeSet<u32>,
    /// What packets of flows are known by: VIPs, backends' addresses, SNAT addresses.
    pub addresses: BTreeSet<IpAddr>,
    /// What flows hang on.
    pub hanging: BTreeMap<MemberKey, Hanging>,
}

/// Flows of one service port with one backend.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Hanging {
    /// Where their packets go.
    pub endpoint: SocketAddr,
    /// How many there are, closed ones too.
    pub flows: u64,
}

impl InUse {
    pub(super) fn note_all<F: Flow<Address: Into<Address>>>(
        &mut self,
        flows: &[F],
        entries: &[impl Entry<Flow = F>],
    ) {
        for (flow, entry) in flows.iter().zip(entries) {
            self.note(flow, entry);
        }
    }

    pub(super) fn note<F: Flow<Address: Into<Address>>>(
        &mut self,
        flow: &F,
        entry: &impl Entry<Flow = F>,
    ) {
        let reverse = entry.flags() & flag::REVERSE != 0;
        if reverse {
            self.insert(flow.source());
        }
        // The client's address in a reply needs no bit; an SNAT address does.
        if !reverse || entry.flags() & flag::FULL_NAT != 0 {
            self.insert(flow.destination());
        }
        self.services.insert(entry.service());
        self.backends.insert(entry.backend());
        self.next_hops.insert(u32::from(entry.route().next_hop()));
        if !reverse && entry.backend() != 0 && entry.flags() & flag::PASS == 0 {
            self.hang(flow, entry);
        }
    }

    fn hang<F: Flow<Address: Into<Address>>>(&mut self, flow: &F, entry: &impl Entry<Flow = F>) {
        let written = entry.written(flow.protocol());
        let Address(address) = written.destination().into();
        let hanging = self
            .hanging
            .entry(member(entry))
            .or_insert_with(|| Hanging {
                endpoint: SocketAddr::new(address, written.destination_port().get()),
                flows: 0,
            });
        hanging.flows += 1;
    }

    fn insert(&mut self, address: impl Into<Address>) {
        let Address(address) = address.into();
        self.addresses.insert(address);
    }
}

/// What a flow hangs on.
pub(super) fn member(entry: &impl Entry) -> MemberKey {
    MemberKey {
        service: entry.service(),
        backend: entry.backend(),
    }
}

/// An address of either wire form.
pub(super) struct Address(pub(super) IpAddr);

impl From<Addr4> for Address {
    fn from(address: Addr4) -> Self {
        Self(Ipv4Addr::from(address).into())
    }
}

impl From<Addr6> for Address {
    fn from(address: Addr6) -> Self {
        Self(Ipv6Addr::from(address).into())
    }
}
