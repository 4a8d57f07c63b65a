//! The control plane of Sluice.
//!
//! ```text
//! sources -> Snapshot -plan-> TableSet (desired) -diff-> [TableOp] -apply-> Dataplane
//!                        ^ previous TableSet (ids)            \-dump-> TableSet (actual)
//! ```

pub mod agent;
pub mod attach;
pub mod config;
pub mod dataplane;
pub mod devices;
pub mod diff;
pub mod drain;
pub mod duration;
pub mod events;
pub mod expire;
pub mod health;
pub mod http;
pub mod kernel;
pub mod maglev;
pub mod manifests;
pub mod metrics;
pub mod migrate;
pub mod netfilter;
mod netlink;
pub mod node;
pub mod pins;
pub mod plan;
pub mod preflight;
pub mod pressure;
pub mod refusals;
pub mod snapshot;
pub mod source;
pub mod stack_flows;
pub mod tables;
pub mod telemetry;
pub mod view;
pub mod watch;
