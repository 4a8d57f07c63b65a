//! Runs of operations of one kind, written by one call.
//!
//! A plan of ten thousand services is some hundred thousand operations; by single calls they would
//! take the better part of a second.

use std::{io, mem::discriminant};

use lb_common::service::{Backend4, Backend6};

use super::{
    BpfDataplane,
    encode::{self, Backend, Key},
};
use crate::{dataplane::TableOp, tables::FrontendId};

/// Whether two operations may stand in one batch.
pub(super) fn same_batch(a: &TableOp, b: &TableOp) -> bool {
    discriminant(a) == discriminant(b)
}

impl BpfDataplane {
    /// Performs a run of one kind by batches. False: not done, or only in part; the operations can
    /// then be performed one by one, since every one of them may be repeated.
    pub(super) fn apply_run(&self, run: &[TableOp]) -> bool {
        let Some(first) = run.first() else {
            return true;
        };
        let result = match first {
            TableOp::SetBackend(..) => self.set_backends(run),
            TableOp::SetMember(..) => self.set_members(run),
            TableOp::SetService(..) => self.set_services(run),
            TableOp::SetFrontend(..) => self.set_frontends(run),
            TableOp::SetAddress(..) => self.set_addresses(run),
            TableOp::SetGatewayEndpoint(_) => self.set_gateway_endpoints(run),
            TableOp::RemoveMember(_)
            | TableOp::RemoveFrontend(_)
            | TableOp::RemoveAddress(_)
            | TableOp::RemoveGatewayEndpoint(_) => self.remove(run),
            TableOp::RemoveBackend(_)
            | TableOp::WriteExtent(..)
            | TableOp::FreeExtent(_)
            | TableOp::RemoveService(_)
            | TableOp::SetSourceRange(..)
            | TableOp::RemoveSourceRange(..)
            | TableOp::SetSourceClass(..)
            | TableOp::RemoveSourceClass(_) => return false,
        };
        result.is_ok()
    }

    fn set_backends(&self, run: &[TableOp]) -> io::Result<()> {
        let (mut v4, mut v6) = (Columns::default(), Columns::default());
        for op in run {
            let TableOp::SetBackend(id, record) = op else {
                continue;
            };
            self.mark_quietly(record.endpoint.ip())?;
            // An id is of one family: the other array's element says so.
            match encode::backend(record) {
                Backend::V4(value) => {
                    v4.push(*id, value);
                    v6.push(*id, Backend6::default());
                }
                Backend::V6(value) => {
                    v6.push(*id, value);
                    v4.push(*id, Backend4::default());
                }
            }
        }
        self.begin_backends(run.iter().filter_map(|op| match op {
            TableOp::SetBackend(id, record) => Some((*id, *record)),
            _ => None,
        }))?;
        self.maps.backends_v4.update_batch(&v4.keys, &v4.values)?;
        self.maps.backends_v6.update_batch(&v6.keys, &v6.values)
    }

    fn set_members(&self, run: &[TableOp]) -> io::Result<()> {
        let mut columns = Columns::default();
        for op in run {
            let TableOp::SetMember((service, backend), flags) = op else {
                continue;
            };
            let (key, value) = encode::member(*service, *backend, *flags);
            columns.push(key, value);
        }
        self.maps
            .members
            .update_batch(&columns.keys, &columns.values)
    }

    fn set_services(&self, run: &[TableOp]) -> io::Result<()> {
        let mut columns = Columns::default();
        for op in run {
            let TableOp::SetService(id, record) = op else {
                continue;
            };
            columns.push(*id, encode::service_name(&record.name));
        }
        self.begin_services(columns.keys.iter().copied())?;
        self.maps
            .service_names
            .update_batch(&columns.keys, &columns.values)?;
        for op in run {
            let TableOp::SetService(id, record) = op else {
                continue;
            };
            self.publish(*id, record).map_err(io::Error::other)?;
        }
        Ok(())
    }

    fn set_frontends(&self, run: &[TableOp]) -> io::Result<()> {
        let (mut v4, mut v6) = (Columns::default(), Columns::default());
        for op in run {
            let TableOp::SetFrontend(id, record) = op else {
                continue;
            };
            if !id.address.is_unspecified() {
                self.mark_quietly(id.address)?;
            }
            let value = encode::frontend(*record);
            match encode::key(id) {
                Key::V4(key) => v4.push(key, value),
                Key::V6(key) => v6.push(key, value),
            }
        }
        self.maps.frontends_v4.update_batch(&v4.keys, &v4.values)?;
        self.maps.frontends_v6.update_batch(&v6.keys, &v6.values)
    }

    fn set_addresses(&self, run: &[TableOp]) -> io::Result<()> {
        let mut columns = Columns::default();
        for op in run {
            let TableOp::SetAddress(address, flags) = op else {
                continue;
            };
            self.mark_quietly(*address)?;
            let (key, value) = encode::role(*address, *flags);
            columns.push(key, value);
        }
        self.maps
            .addresses
            .update_batch(&columns.keys, &columns.values)
    }

    fn set_gateway_endpoints(&self, run: &[TableOp]) -> io::Result<()> {
        let (mut v4, mut v6) = (Columns::default(), Columns::default());
        for op in run {
            let TableOp::SetGatewayEndpoint(id) = op else {
                continue;
            };
            self.mark_quietly(id.address)?;
            match encode::key(id) {
                Key::V4(key) => v4.push(key, 1_u32),
                Key::V6(key) => v6.push(key, 1_u32),
            }
        }
        self.maps
            .gateway_endpoints_v4
            .update_batch(&v4.keys, &v4.values)?;
        self.maps
            .gateway_endpoints_v6
            .update_batch(&v6.keys, &v6.values)
    }

    fn remove(&self, run: &[TableOp]) -> io::Result<()> {
        let (mut members, mut addresses) = (Vec::new(), Vec::new());
        let (mut frontends, mut endpoints) = (Keys::default(), Keys::default());
        for op in run {
            match op {
                TableOp::RemoveMember((service, backend)) => {
                    members.push(encode::member(*service, *backend, 0).0);
                }
                TableOp::RemoveAddress(address) => addresses.push(encode::role(*address, 0).0),
                TableOp::RemoveFrontend(id) => frontends.push(id),
                TableOp::RemoveGatewayEndpoint(id) => endpoints.push(id),
                _ => {}
            }
        }
        let maps = &self.maps;
        maps.members.delete_batch(&members)?;
        maps.addresses.delete_batch(&addresses)?;
        maps.frontends_v4.delete_batch(&frontends.v4)?;
        maps.frontends_v6.delete_batch(&frontends.v6)?;
        maps.gateway_endpoints_v4.delete_batch(&endpoints.v4)?;
        maps.gateway_endpoints_v6.delete_batch(&endpoints.v6)
    }

    fn mark_quietly(&self, address: std::net::IpAddr) -> io::Result<()> {
        self.mark(address, &String::new).map_err(io::Error::other)
    }
}

/// Keys and values side by side, as the kernel wants them.
struct Columns<K, V> {
    keys: Vec<K>,
    values: Vec<V>,
}

impl<K, V> Default for Columns<K, V> {
    fn default() -> Self {
        Self {
            keys: Vec::new(),
            values: Vec::new(),
        }
    }
}

impl<K, V> Columns<K, V> {
    fn push(&mut self, key: K, value: V) {
        self.keys.push(key);
        self.values.push(value);
    }
}

/// Frontend keys by family.
#[derive(Default)]
struct Keys {
    v4: Vec<lb_common::service::FrontendKey4>,
    v6: Vec<lb_common::service::FrontendKey6>,
}

impl Keys {
    fn push(&mut self, id: &FrontendId) {
        match encode::key(id) {
            Key::V4(key) => self.v4.push(key),
            Key::V6(key) => self.v6.push(key),
        }
    }
}
