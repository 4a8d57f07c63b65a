//! What the two halves of Sluice agree on: the tables' keys and values, the names and sizes of the
//! maps, the reasons a packet can meet, and the pure functions both sides must compute alike.
//!
//! `lb-ebpf` (the data path) and `lb-userspace` (the agent) both depend on this crate and on nothing
//! of each other. Everything here is plain data or a pure function: no allocation, no clock, no I/O.

#![no_std]
#![deny(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod addr;
pub mod bench;
pub mod checksum;
pub mod config;
pub mod conntrack;
pub mod control;
pub mod device;
pub mod flood;
pub mod flow;
pub mod maglev;
pub mod names;
pub mod reason;
pub mod refusal;
pub mod service;
pub mod stream;
pub mod traffic;
pub mod wire;

/// Raised with every change of a wire type, a [`reason::Reason`] number or a map definition.
///
/// It is part of the layout hash, so two versions never share a pin directory.
#[cfg(not(feature = "second-layout"))]
pub const ABI_VERSION: u32 = 5;
/// The version of the layout that only tests know.
#[cfg(feature = "second-layout")]
pub const ABI_VERSION: u32 = 1_005;
