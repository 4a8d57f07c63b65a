//! A real Kubernetes cluster with Sluice in it, and what the tests do there.
//!
//! Each test program has one cluster, which its first test starts; see [`cluster::Shared`]. The tests
//! of a program take turns.

#![expect(
    clippy::indexing_slicing,
    reason = "a fixture that fails its test panics, and a missing field of JSON is null"
)]

use std::io::Write as _;

pub mod agent;
pub mod api;
pub mod client;
pub mod cluster;
pub mod detach;
pub mod load;
pub mod objects;
pub mod sessions;
pub mod space;
pub mod stream;

/// Prints a figure, also of tests that pass.
pub fn say(what: &str) {
    // Not print!, whose output is kept back. Nobody reading is no failure.
    drop(writeln!(std::io::stderr(), "    {what}"));
}
