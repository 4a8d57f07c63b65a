//! What an operator sees: pure functions from the tables' contents to rows, and rows to text.
//!
//! `lbctl` calls this module. Only [`read`] and [`layout`] touch the kernel; everything else turns a
//! [`contents::Contents`] into rows, which a table and JSON show with the same names.
//!
//! ```text
//! pins -read-> Contents -services/backends/flows/dump/counters-> [row] -render-> text
//! ```

pub mod backends;
pub mod catalog;
pub mod contents;
pub mod counters;
pub mod drain;
pub mod dump;
#[cfg(test)]
pub(crate) mod fixture;
pub mod flags;
pub mod flows;
pub mod layout;
pub mod read;
pub mod render;
pub mod services;
pub mod status;
pub mod usage;
