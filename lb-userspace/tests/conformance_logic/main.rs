//! Conformance rows about logic: Kubernetes objects in, tables out, no packets.
//!
//! Each row is one test, named by its id. Objects are read from JSON as the API delivers them, so
//! that reading them is part of what is tested.

#![expect(
    clippy::indexing_slicing,
    clippy::needless_pass_by_value,
    reason = "a test that panics says where; objects are made to be given away"
)]

mod fixture;
mod section_h;
mod section_h_changes;
mod section_h_whole;
mod section_i;
mod section_j;
mod section_k_flows;
mod section_k_node;
mod section_k_services;
mod section_k_slices;
