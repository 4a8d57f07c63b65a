//! The control plane of Sluice.
//!
//! ```text
//! sources -> Snapshot -plan-> TableSet (desired) -diff-> [TableOp] -apply-> Dataplane
//!                        ^ previous TableSet (ids)            \-dump-> TableSet (actual)
//! ```

pub mod dataplane;
pub mod kernel;
pub mod tables;
