//! Backends that are on this node.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use lb_common::service::backend_flag;

use crate::tables::{BackendRecord, TableSet};

/// The backends on this node, counted as the tables change.
#[derive(Debug, Default)]
pub(in super::super) struct Nearby {
    /// Backends by address.
    local: BTreeMap<IpAddr, usize>,
    addresses: Arc<BTreeSet<IpAddr>>,
    host: usize,
}

impl Nearby {
    pub(super) fn of(tables: &TableSet) -> Self {
        let mut nearby = Self::default();
        for backend in tables.backends.values() {
            nearby.replace(None, Some(backend));
        }
        nearby
    }

    /// One backend becomes another.
    pub(super) fn replace(&mut self, old: Option<&BackendRecord>, new: Option<&BackendRecord>) {
        let is = |backend: Option<&BackendRecord>, flag: u16| {
            backend
                .filter(|b| b.flags & flag != 0)
                .map(|b| b.endpoint.ip())
        };
        self.host += usize::from(is(new, backend_flag::HOST).is_some());
        let hosts = usize::from(is(old, backend_flag::HOST).is_some());
        self.host = self.host.saturating_sub(hosts);
        let (old, new) = (is(old, backend_flag::LOCAL), is(new, backend_flag::LOCAL));
        if old == new {
            return;
        }
        if let Some(address) = new {
            let count = self.local.entry(address).or_default();
            *count += 1;
            if *count == 1 {
                Arc::make_mut(&mut self.addresses).insert(address);
            }
        }
        if let Some(address) = old
            && let Some(count) = self.local.get_mut(&address)
        {
            *count -= 1;
            if *count == 0 {
                self.local.remove(&address);
                Arc::make_mut(&mut self.addresses).remove(&address);
            }
        }
    }

    /// Addresses of this node's own pods that are backends.
    pub(in super::super) fn addresses(&self) -> Arc<BTreeSet<IpAddr>> {
        Arc::clone(&self.addresses)
    }

    /// Whether a backend is the node itself.
    pub(in super::super) const fn has_host(&self) -> bool {
        self.host > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backends_of_this_node_are_counted() {
        let backend = |endpoint: &str, flags| BackendRecord {
            endpoint: endpoint.parse().expect("an endpoint"),
            flags,
            incarnation: 1,
        };
        let far = backend("10.1.0.1:80", backend_flag::LIVE);
        let near = backend("10.1.0.1:80", backend_flag::LIVE | backend_flag::LOCAL);
        let twin = backend("10.1.0.1:81", backend_flag::LIVE | backend_flag::LOCAL);
        let host = backend("192.0.2.1:80", backend_flag::HOST | backend_flag::LOCAL);
        let mut nearby = Nearby::default();
        let steps = [
            (None, Some(far), "", false),
            (Some(far), Some(near), "10.1.0.1", false),
            (None, Some(twin), "10.1.0.1", false),
            (Some(near), None, "10.1.0.1", false),
            (None, Some(host), "10.1.0.1 192.0.2.1", true),
            (Some(host), Some(host), "10.1.0.1 192.0.2.1", true),
            (Some(twin), None, "192.0.2.1", true),
            (Some(host), None, "", false),
        ];
        for (i, (old, new, expected, has_host)) in steps.iter().enumerate() {
            nearby.replace(old.as_ref(), new.as_ref());
            let addresses: Vec<_> = nearby.addresses().iter().map(IpAddr::to_string).collect();
            assert_eq!(addresses.join(" "), *expected, "step {i}");
            assert_eq!(nearby.has_host(), *has_host, "step {i}");
        }
    }
}
