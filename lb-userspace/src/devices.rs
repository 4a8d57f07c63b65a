//! The node's network as the data path needs it: devices, SNAT addresses, and a hint when routes move.
//!
//! ```text
//! rtnetlink, netdev ─▶ Network ─decide─▶ DeviceTables ─▶ DEVICES, DEVICE_INDEX, SNAT_V4/V6
//!                         │                              CONTROL: route generation += 1
//!                         └─▶ NetworkView ─▶ agent: node addresses, interfaces to attach to
//! ```
//! The route generation is raised after the tables are written, so that whoever sees it finds them.

pub use self::{
    features::redirectable,
    monitor::{Monitor, MonitorError, NetworkView, Routes, monitor},
    network::{Link, Network},
    tables::{DeviceTables, SnatPolicy},
};

mod features;
mod monitor;
mod network;
mod parse;
mod tables;
mod writer;
