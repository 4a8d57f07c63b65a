//! Which endpoints a service port has, and which of them take new flows.

use std::net::SocketAddr;

use lb_common::service::member_flag;

use crate::{
    node::NodeConfig,
    snapshot::{Endpoint, PortProtocol, SliceObject},
    tables::Protocol,
};

/// The backends of one service port of one family, each list ordered by endpoint.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct EndpointSets {
    /// Candidates under the policy `Cluster`.
    pub(super) cluster: Vec<SocketAddr>,
    /// Candidates under the policy `Local`.
    pub(super) local: Vec<SocketAddr>,
    /// Everything a flow may stay with, with bits of [`member_flag`]; holds both sets.
    pub(super) members: Vec<Member>,
    /// Some endpoint is usable somewhere.
    pub(super) any: bool,
}

/// One endpoint that is a member.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Member {
    pub(super) endpoint: SocketAddr,
    /// Bits of [`member_flag`].
    pub(super) flags: u32,
    /// It runs on this node.
    pub(super) on_node: bool,
}

/// Which sets a service port uses.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    pub(super) cluster: bool,
    pub(super) local: bool,
    /// Topology hints are followed.
    pub(super) topology: bool,
}

/// Joins the slices of a Service by port name and protocol.
///
/// The two sets fall back to terminating endpoints independently: a `Local` policy never borrows
/// remote endpoints, a `Cluster` policy never mixes ready and terminating ones.
pub(super) fn sets(
    slices: &[&SliceObject],
    port: &str,
    protocol: Protocol,
    node: &NodeConfig,
    wanted: Wanted,
) -> EndpointSets {
    let candidates = candidates(slices, port, protocol, node);
    let ready = || candidates.iter().filter(|c| c.is(Usability::Ready));
    let draining = || candidates.iter().filter(|c| c.is(Usability::Draining));
    let any = ready().next().is_some() || draining().next().is_some();

    let mut cluster = Vec::new();
    if wanted.cluster {
        let level = if wanted.topology {
            Level::of(&ready().map(|c| c.state), node)
        } else {
            Level::None
        };
        cluster.extend(
            ready()
                .filter(|c| level.admits(c.state, node))
                .map(|c| c.endpoint),
        );
        if cluster.is_empty() {
            cluster.extend(draining().map(|c| c.endpoint));
        }
    }
    let mut local = Vec::new();
    if wanted.local {
        local.extend(ready().filter(|c| c.on_node).map(|c| c.endpoint));
        if local.is_empty() {
            local.extend(draining().filter(|c| c.on_node).map(|c| c.endpoint));
        }
    }
    let member = |c: &Candidate<'_>| {
        let bit = |set: bool, bit: u32| if set { bit } else { 0 };
        let flags = bit(
            cluster.binary_search(&c.endpoint).is_ok(),
            member_flag::CLUSTER,
        ) | bit(local.binary_search(&c.endpoint).is_ok(), member_flag::LOCAL)
            | bit(c.usability > Usability::None, member_flag::SERVING);
        (flags != 0).then_some(Member {
            endpoint: c.endpoint,
            flags,
            on_node: c.on_node,
        })
    };
    let members = candidates.iter().filter_map(member).collect();
    EndpointSets {
        cluster,
        local,
        members,
        any,
    }
}

/// How much an endpoint can be used, least first.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Usability {
    /// Not at all.
    None,
    /// Flows may stay, new ones never come.
    Serving,
    /// Serving and terminating: takes new flows if nothing else is there.
    Draining,
    /// Takes new flows, also if it is terminating.
    Ready,
}

impl Usability {
    fn of(endpoint: &Endpoint) -> Self {
        match endpoint {
            Endpoint { ready: true, .. } => Self::Ready,
            Endpoint {
                serving: true,
                terminating: true,
                ..
            } => Self::Draining,
            Endpoint { serving: true, .. } => Self::Serving,
            _ => Self::None,
        }
    }
}

struct Candidate<'a> {
    endpoint: SocketAddr,
    usability: Usability,
    on_node: bool,
    state: &'a Endpoint,
}

impl Candidate<'_> {
    fn is(&self, usability: Usability) -> bool {
        self.usability == usability
    }
}

/// Every endpoint once, ordered. Of several copies the most usable counts; one that says it runs on
/// this node is believed.
fn candidates<'a>(
    slices: &[&'a SliceObject],
    port: &str,
    protocol: Protocol,
    node: &NodeConfig,
) -> Vec<Candidate<'a>> {
    let mut candidates = Vec::new();
    for slice in slices {
        let joins = slice
            .ports
            .iter()
            .filter(|p| p.name == port && p.protocol == PortProtocol::Balanced(protocol));
        for number in joins.map(|p| p.port) {
            candidates.extend(slice.endpoints.iter().map(|state| Candidate {
                endpoint: SocketAddr::new(state.address, number),
                usability: Usability::of(state),
                on_node: state.node.as_deref() == Some(&node.name),
                state,
            }));
        }
    }
    // The sort is stable and slices come by name: copies are compared in a fixed order.
    candidates.sort_by(|a, b| {
        (a.endpoint, b.usability, b.on_node).cmp(&(b.endpoint, a.usability, a.on_node))
    });
    candidates.dedup_by(|later, first| {
        let same = later.endpoint == first.endpoint;
        first.on_node |= same && later.on_node;
        same
    });
    candidates
}

/// How near an endpoint must be.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Level {
    SameNode,
    SameZone,
    None,
}

impl Level {
    /// A level counts if every ready endpoint has a hint for it and one of them names us.
    #[expect(single_use_lifetimes, reason = "`impl Trait` cannot elide it")]
    fn of<'a>(ready: &(impl Iterator<Item = &'a Endpoint> + Clone), node: &NodeConfig) -> Self {
        let counts = |level: Self, has_hint: fn(&Endpoint) -> bool| {
            ready.clone().all(has_hint) && ready.clone().any(|e| level.admits(e, node))
        };
        if counts(Self::SameNode, |e| !e.node_hints.is_empty()) {
            Self::SameNode
        } else if counts(Self::SameZone, |e| !e.zone_hints.is_empty()) {
            Self::SameZone
        } else {
            Self::None
        }
    }

    fn admits(self, endpoint: &Endpoint, node: &NodeConfig) -> bool {
        match self {
            Self::SameNode => endpoint.node_hints.contains(&node.name),
            Self::SameZone => node
                .zone
                .as_ref()
                .is_some_and(|z| !z.is_empty() && endpoint.zone_hints.contains(z)),
            Self::None => true,
        }
    }
}

#[cfg(test)]
mod tests;
