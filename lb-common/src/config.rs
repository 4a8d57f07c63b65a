//! What the agent fixes when it loads the programs.

use crate::wire;

wire! {
    /// The one read-only global of the data path, `CONFIG`.
    pub struct Config {
        /// Bits of [`config_flag`].
        pub flags: u32,
        /// A tick is `jiffies >> tick_shift`: about one second.
        pub tick_shift: u32,
        /// [`UnknownFlows`] as a number.
        pub unknown_flows: u32,
        /// Replies (RST, unreachable, too big, echo) a CPU may send in one tick.
        pub replies_per_tick: u32,
        /// Entries of `FLOWS_V4` from which new TCP flows are refused.
        pub flows4_limit: u32,
        /// Entries of `FLOWS_V6` from which new TCP flows are refused.
        pub flows6_limit: u32,
        /// Entries of `FLOWS_V4` that UDP may take.
        pub udp4_limit: u32,
        /// Entries of `FLOWS_V6` that UDP may take.
        pub udp6_limit: u32,
        /// Ticks after which a closed tuple leaves the table.
        pub closed_ticks: u32,
        /// Ticks after which an unanswered embryonic flow is forgotten.
        pub embryonic_ticks: u32,
        /// Ticks after which one packet per next hop goes by the kernel's neighbour table.
        pub neighbour_ticks: u32,
        /// Length of a tick in milliseconds.
        pub tick_millis: u32,
    }
}

/// Bits of [`Config::flags`].
pub mod config_flag {
    /// SYN-less packets of a gateway backend's endpoint pass although no flow knows them.
    pub const DIRECT_BACKEND_ACCESS: u32 = 1;
    /// Packets to an address of a service network that no Service has are dropped: on a node without
    /// kube-proxy the stack would send them back where they came from.
    pub const DROP_UNALLOCATED: u32 = 1 << 1;
}

/// What happens to a SYN-less TCP packet to a frontend which no flow knows.
#[repr(u32)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum UnknownFlows {
    /// The node's stack gets it: connections of a kube-proxy on this node go on.
    Stack = 0,
    /// A backend is selected as for a SYN: the same answer on every node.
    Select = 1,
    /// It is dropped and counted.
    Drop = 2,
}
