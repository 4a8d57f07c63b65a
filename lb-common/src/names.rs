//! Names of the programs and maps, and the sizes the maps have unless the operator says otherwise.
//!
//! `ip link` and `bpftool` show at most 15 bytes of a name; the object file has all of it.

/// XDP fast path.
pub const LB_XDP: &str = "lb_xdp";
/// TCX ingress, the complete path.
pub const LB_INGRESS: &str = "lb_ingress";
/// TCX egress: reverse NAT for backends that are the node itself.
pub const LB_EGRESS: &str = "lb_egress";
/// Run by the agent: condemns and deletes idle flows.
pub const LB_EXPIRE: &str = "lb_expire";
/// Run by the agent and `lbctl`: returns the current tick.
pub const LB_CLOCK: &str = "lb_clock";
/// Tracepoint `xdp:xdp_redirect_err`.
pub const LB_REDIRECT_ERR: &str = "lb_redirect_err";
/// Tracepoint `xdp:xdp_devmap_xmit`.
pub const LB_DEVMAP_XMIT: &str = "lb_devmap_xmit";
/// The read-only global holding [`crate::config::Config`].
pub const CONFIG: &str = "CONFIG";

/// A map's name and its default number of entries.
macro_rules! maps {
    ($($(#[$doc:meta])* $name:ident = $entries:expr),+ $(,)?) => {
        $($(#[$doc])* pub const $name: &str = stringify!($name);)+

        /// Every map of the data path with its default `max_entries`.
        pub const MAPS: &[(&str, usize)] = &[$(($name, $entries)),+];

        /// Default `max_entries` of each map, for the definitions in `lb-ebpf`.
        pub mod entries {
            $($(#[$doc])* pub const $name: usize = $entries;)+
        }
    };
}

maps! {
    /// Frontend key → frontend.
    FRONTENDS_V4 = 65_536,
    /// Frontend key → frontend.
    FRONTENDS_V6 = 65_536,
    /// Endpoints of gateway backends: their SYN-less packets without a flow are dropped.
    GATEWAY_ENDPOINTS_V4 = 65_536,
    /// Endpoints of gateway backends.
    GATEWAY_ENDPOINTS_V6 = 65_536,
    /// Service-port id → service port.
    SERVICES = 65_536,
    /// Service-port id → its name, so that ids and names outlive the agent.
    SERVICE_NAMES = 65_536,
    /// Backend id → backend.
    BACKENDS_V4 = 65_536,
    /// Backend id → backend.
    BACKENDS_V6 = 65_536,
    /// (service-port id, backend id) → member.
    MEMBERS = 131_072,
    /// Arena of Maglev tables: sixteen backend ids an element.
    SLOTS = 1_048_576,
    /// Established flows.
    FLOWS_V4 = 524_288,
    /// Established flows.
    FLOWS_V6 = 262_144,
    /// Flows that have not proved themselves; least recently used.
    EMBRYONIC_V4 = 131_072,
    /// Flows that have not proved themselves; least recently used.
    EMBRYONIC_V6 = 65_536,
    /// Closed flows waiting to leave `FLOWS_V4`: half its entries, since each flow has two.
    CLOSING_V4 = 262_144,
    /// Closed flows waiting to leave `FLOWS_V6`.
    CLOSING_V6 = 131_072,
    /// Entries in use, see [`crate::names::flow_use`].
    FLOW_USE = 4,
    /// (service port, client) → backend.
    AFFINITY = 65_536,
    /// (set id, source prefix) → 1.
    SOURCE_RANGES = 65_536,
    /// Prefix → bits of [`crate::service::source_class`]. IPv4 prefixes are keyed IPv4-mapped.
    SOURCE_CLASS = 4_096,
    /// Address → role.
    ADDRESSES = 65_536,
    /// The bitmap consulted before anything else.
    ADDRESS_FILTER = 1,
    /// Next-hop index → next hop.
    NEXT_HOPS = 16_384,
    /// (device, gateway) → next-hop index.
    NEXT_HOP_INDEX = 16_384,
    /// Next-hop indices free to take.
    NEXT_HOP_FREE = 16_384,
    /// Device index → device.
    DEVICES = 4_096,
    /// Interface index → device index.
    DEVICE_INDEX = 4_096,
    /// SNAT addresses.
    SNAT_V4 = 256,
    /// SNAT addresses.
    SNAT_V6 = 256,
    /// (service-port id, backend id) → Unix second at which the flows left there are ended. Kept for the
    /// agent, which writes and reads it; no program does.
    DRAINS = 65_536,
    /// Later fragments' ports.
    FRAGMENTS = 16_384,
    /// One [`crate::control::Control`]: what user space tells the running data path.
    CONTROL = 1,
    /// Per-CPU counters by [`crate::reason::Counter::index`].
    COUNTERS = 128,
    /// Per-CPU traffic by service-port id.
    SERVICE_TRAFFIC = 65_536,
    /// Per-CPU traffic by backend id.
    BACKEND_TRAFFIC = 65_536,
    /// Ring buffer of [`crate::refusal::Refusal`], in bytes: a power of two, whole pages.
    EVENTS = 65_536,
    /// Per-CPU working memory: two elements for what the stack has no room for, one for when closed flows are due, then
    /// [`crate::names::ROUTE_ELEMENTS`].
    SCRATCH = 131,
    /// Per-CPU budget of replies: tick and replies sent in it.
    REPLY_BUDGET = 1,
}

/// Elements of `SCRATCH` for routes looked up in the current tick: eight routes of 64 bytes each.
pub const ROUTE_ELEMENTS: u32 = 128;

/// Elements of `FLOW_USE`: how many entries the established tables hold.
pub mod flow_use {
    /// `FLOWS_V4`, all.
    pub const V4: u32 = 0;
    /// `FLOWS_V6`, all.
    pub const V6: u32 = 1;
    /// `FLOWS_V4`, UDP only.
    pub const UDP_V4: u32 = 2;
    /// `FLOWS_V6`, UDP only.
    pub const UDP_V6: u32 = 3;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_have_room() {
        assert_eq!(
            Ok(crate::reason::Counter::CAPACITY),
            u32::try_from(entries::COUNTERS)
        );
    }
}
