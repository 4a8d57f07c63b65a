//! The conformance tier: one row for each upstream case of a Service proxy, by its id.
//!
//! A row is *passed* when a check with its id ran and held. Packets were sent then and the answers
//! looked at; for rows marked [`rows::Mark::L`] the object or endpoint was. A row is *not ours* when
//! [`not_ours`] says why, and *missing* when neither is so. The scenarios with the checks are in
//! `tests/conformance/`.

pub mod agents;
pub mod cluster;
pub mod not_ours;
pub mod objects;
pub mod probe;
pub mod raw;
pub mod record;
pub mod rows;
pub mod targets;
