//! What the data path tells the agent of its own accord, by the ring buffer `EVENTS`: packets refused
//! for want of room or of a setting, which an operator can do something about.

use crate::{
    addr::{Addr6, Be16},
    reason::Reason,
    wire,
};

wire! {
    /// A refused packet. IPv4 addresses are IPv4-mapped.
    pub struct Refusal {
        /// Source address.
        pub source: Addr6,
        /// Destination address.
        pub destination: Addr6,
        /// Source port.
        pub source_port: Be16,
        /// Destination port.
        pub destination_port: Be16,
        /// IP protocol number.
        pub protocol: u32,
        /// Number of the [`Reason`].
        pub reason: u32,
        /// Tick at which it was refused.
        pub tick: u32,
    }
}

/// Whether refusals for a reason are told. The counters have all of them, this has who was concerned.
#[inline(always)]
pub const fn is_told(reason: u32) -> bool {
    reason == Reason::FlowTableFull as u32
        || reason == Reason::SnatExhausted as u32
        || reason == Reason::NoSnatAddress as u32
        || reason == Reason::InsertFailed as u32
        || reason == Reason::NoRoute as u32
        || reason == Reason::BrokenTable as u32
}
