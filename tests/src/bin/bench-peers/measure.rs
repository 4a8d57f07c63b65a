//! What is measured of a peer.

pub(crate) mod connections;
pub(crate) mod forwarding;
pub(crate) mod update;
