//! Fixtures of the tests which need the kernel: packets, programs under test, namespaces.
//!
//! The tests themselves are in `tests/`: `packet_*.rs` run single packets through the programs,
//! `netns_*.rs` run the agent and real clients in network namespaces, `kubernetes_*.rs` do so in a real
//! cluster.

#![expect(
    clippy::missing_panics_doc,
    reason = "a fixture that fails its test panics"
)]

pub mod bench;
pub mod book;
pub mod case;
pub mod conformance;
pub mod control;
pub mod crossing;
pub mod disruption;
pub mod figure;
pub mod flood;
mod flow_key;
pub mod flows;
pub mod kubernetes;
pub mod netns;
pub mod network;
pub mod packet;
pub mod pcap;
pub mod plot;
pub mod programming;
pub mod race;
pub mod require;
pub mod run;
pub mod stream;
pub mod tables;
