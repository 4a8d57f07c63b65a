//! The seam between deciding and acting: one operation at a time, and a way to read everything back.

use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;

use crate::tables::{BackendRecord, FrontendId, FrontendRecord, ServiceRecord, TableSet};

pub mod bpf;
pub mod model;

/// One change of the tables.
///
/// An operation is one map write as far as a packet can tell: before it every packet sees the old
/// state, after it the new one.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum TableOp {
    /// Writes or replaces a backend.
    SetBackend(u32, BackendRecord),
    /// Removes a backend. Nothing names it any more, flows excepted.
    RemoveBackend(u32),
    /// Writes or replaces a membership.
    SetMember((u32, u32), u32),
    /// Removes a membership.
    RemoveMember((u32, u32)),
    /// Writes a Maglev table into an extent no service port names.
    WriteExtent(u32, Arc<[u32]>),
    /// Gives an extent back. No service port names it any more; readers may still be in it.
    FreeExtent(u32),
    /// Publishes a service port: its selections, flags, and last its set epoch.
    SetService(u32, ServiceRecord),
    /// Removes a service port. No frontend names it any more.
    RemoveService(u32),
    /// Gives an address a role (and sets its bit in the address filter first).
    SetAddress(IpAddr, u32),
    /// Takes an address's role away. The filter's bit stays while flows may use it.
    RemoveAddress(IpAddr),
    /// Writes or replaces a frontend.
    SetFrontend(FrontendId, FrontendRecord),
    /// Removes a frontend: it stops taking new flows.
    RemoveFrontend(FrontendId),
    /// Declares an endpoint of a gateway backend.
    SetGatewayEndpoint(FrontendId),
    /// Removes an endpoint of a gateway backend.
    RemoveGatewayEndpoint(FrontendId),
    /// Adds a network to a source-range set which no service port names.
    SetSourceRange(u32, IpNet),
    /// Takes a network out of a source-range set which no service port names any more.
    RemoveSourceRange(u32, IpNet),
    /// Gives a network a source class.
    SetSourceClass(IpNet, u32),
    /// Takes a network's source class away: that of a wider network counts again.
    RemoveSourceClass(IpNet),
}

/// Why an operation had no effect.
#[derive(Debug, thiserror::Error)]
pub enum DataplaneError {
    /// The kernel refused. `what` names operation and object.
    #[error("{what}")]
    Kernel {
        /// Operation and object, such as `set frontend 192.0.2.1:443/TCP`.
        what: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A table has no room. `what` names operation and object.
    #[error("{what}: {table} is full ({capacity} entries)")]
    Full {
        /// Operation and object.
        what: String,
        /// The map.
        table: &'static str,
        /// Its `max_entries`.
        capacity: u32,
    },
}

/// The kernel's tables, or a model of them. Both satisfy the same tests.
pub trait Dataplane {
    /// Reads back every table. Called at start and on a timer: the kernel, not memory, is the truth.
    ///
    /// # Errors
    ///
    /// If a table cannot be read; nothing has changed then.
    fn dump(&self) -> Result<TableSet, DataplaneError>;

    /// Performs one operation.
    ///
    /// # Errors
    ///
    /// On `Err` the operation had no effect and may be retried.
    fn apply(&mut self, op: &TableOp) -> Result<(), DataplaneError>;
}
