//! Everything we follow of a cluster, put together.

use std::collections::BTreeSet;

use ipnet::IpNet;
use k8s_openapi::api::{
    core::v1::{Node, Service},
    discovery::v1::EndpointSlice,
    networking::v1::ServiceCIDR,
};
use kube::runtime::watcher::Event;

use super::{received::Received, table::Table};
use crate::{
    snapshot::{NodeObject, ServiceObject, SliceObject, Snapshot},
    source::{Scope, SourceState},
};

/// An event of one of the watches.
#[derive(Clone, Debug)]
pub(super) enum Seen {
    Service(Event<Received<Service>>),
    Slice(Event<Received<EndpointSlice>>),
    Node(Event<Received<Node>>),
    Networks(Event<Received<ServiceCIDR>>),
}

/// The cluster as far as it was heard of.
#[derive(Debug)]
pub(super) struct Objects {
    scope: Scope,
    services: Table<ServiceObject>,
    slices: Table<SliceObject>,
    nodes: Table<NodeObject>,
    networks: Table<Vec<IpNet>>,
    /// This node's object, as it was last.
    node: Option<NodeObject>,
    /// The server does not tell of service networks.
    no_networks: bool,
}

impl Objects {
    pub(super) fn new(scope: Scope) -> Self {
        Self {
            scope,
            services: Table::default(),
            slices: Table::default(),
            nodes: Table::default(),
            networks: Table::default(),
            node: None,
            no_networks: false,
        }
    }

    /// Takes an event in. Returns whether anything that can be seen changed.
    pub(super) fn apply(&mut self, seen: Seen) -> bool {
        match seen {
            Seen::Service(event) => self.services.apply(event, &self.scope),
            Seen::Slice(event) => self.slices.apply(event, &self.scope),
            Seen::Networks(event) => self.networks.apply(event, &self.scope),
            Seen::Node(event) => {
                let changed = self.nodes.apply(event, &self.scope);
                if changed {
                    self.follow_node();
                }
                changed
            }
        }
    }

    /// What a node was stays known when its object goes: it is going, then.
    fn follow_node(&mut self) {
        let objects = self.nodes.objects().values();
        let mut own = objects.filter(|node| node.name == self.scope.node_name);
        if let Some(node) = own.next() {
            self.node = Some(NodeObject::clone(node));
        } else if let Some(node) = &mut self.node {
            node.deleting = true;
        }
    }

    /// Goes on without service networks. Returns whether that is new.
    pub(super) fn without_networks(&mut self) -> bool {
        !std::mem::replace(&mut self.no_networks, true)
    }

    /// There is no object of this node, and there never was.
    pub(super) fn lacks_node(&self) -> bool {
        self.nodes.is_listed() && self.node.is_none()
    }

    /// Every list there has to be was complete once.
    pub(super) fn is_complete(&self) -> bool {
        self.services.is_listed()
            && self.slices.is_listed()
            && self.node.is_some()
            && (self.networks.is_listed() || self.no_networks)
    }

    /// What is known.
    pub(super) fn state(&self) -> SourceState {
        let networks = self.networks.objects().values();
        let service_networks: BTreeSet<_> = networks.flat_map(|n| n.iter().copied()).collect();
        let services = self.services.rejections();
        let others = self.nodes.rejections().chain(self.networks.rejections());
        SourceState {
            snapshot: Snapshot {
                services: self.services.objects().clone(),
                slices: self.slices.objects().clone(),
                service_networks,
            },
            node: self.node.clone(),
            rejections: services
                .chain(self.slices.rejections())
                .chain(others)
                .cloned()
                .collect(),
            unread: self.services.is_unread() || self.slices.is_unread(),
            complete: self.is_complete(),
        }
    }
}

#[cfg(test)]
mod tests;
