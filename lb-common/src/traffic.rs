//! Values of the per-CPU counters.

use crate::wire;

wire! {
    /// Packets and bytes (of IP packet) of one kind.
    pub struct Tally {
        /// Packets.
        pub packets: u64,
        /// Bytes, IP header included, link layer not.
        pub bytes: u64,
    }
}

wire! {
    /// Traffic of a service port or of a backend.
    pub struct Traffic {
        /// Client to backend.
        pub forward: Tally,
        /// Backend to client.
        pub reply: Tally,
        /// Flows created.
        pub new_flows: u64,
        /// Flows that became established.
        pub established: u64,
    }
}

wire! {
    /// Replies of ours (RST, unreachable, …) a CPU sent in a tick.
    pub struct ReplyBudget {
        /// The tick.
        pub tick: u64,
        /// Replies sent in it.
        pub sent: u64,
    }
}
