//! The names under which `lbctl map-dump` knows the maps: one friendly name for both families.

use lb_common::names;

use crate::tables::Family;

macro_rules! catalog {
    ($($(#[$doc:meta])* $variant:ident = $label:literal: [$($map:ident),+]),+ $(,)?) => {
        /// One view: a map, or the maps of both families.
        #[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
        pub enum View { $($(#[$doc])* $variant),+ }

        impl View {
            /// Every view.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The friendly name.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $label),+ }
            }

            /// The maps it shows.
            pub const fn maps(self) -> &'static [&'static str] {
                match self { $(Self::$variant => &[$(names::$map),+]),+ }
            }
        }
    };
}

catalog! {
    /// Frontends.
    Frontends = "frontends": [FRONTENDS_V4, FRONTENDS_V6],
    /// Endpoints of gateway backends.
    GatewayEndpoints = "gateway-endpoints": [GATEWAY_ENDPOINTS_V4, GATEWAY_ENDPOINTS_V6],
    /// Service ports.
    Services = "services": [SERVICES],
    /// Names of service ports.
    ServiceNames = "service-names": [SERVICE_NAMES],
    /// Backends.
    Backends = "backends": [BACKENDS_V4, BACKENDS_V6],
    /// Which backend is in which service port's sets.
    Members = "members": [MEMBERS],
    /// Maglev tables.
    Slots = "slots": [SLOTS],
    /// Established flows, each direction a row.
    Flows = "flows": [FLOWS_V4, FLOWS_V6],
    /// Embryonic flows, each direction a row.
    Embryonic = "embryonic": [EMBRYONIC_V4, EMBRYONIC_V6],
    /// The oldest closed flow of each family.
    Closing = "closing": [CLOSING_V4, CLOSING_V6],
    /// Entries the flow tables hold.
    FlowUse = "flow-use": [FLOW_USE],
    /// Session affinity.
    Affinity = "affinity": [AFFINITY],
    /// Source ranges of load balancers.
    SourceRanges = "source-ranges": [SOURCE_RANGES],
    /// Classes of source addresses.
    SourceClass = "source-class": [SOURCE_CLASS],
    /// Roles of addresses.
    Addresses = "addresses": [ADDRESSES],
    /// The bitmap over hashed addresses.
    AddressFilter = "address-filter": [ADDRESS_FILTER],
    /// Cached neighbours.
    NextHops = "next-hops": [NEXT_HOPS],
    /// Where a neighbour stands in the cache.
    NextHopIndex = "next-hop-index": [NEXT_HOP_INDEX],
    /// The next free place of the cache.
    NextHopFree = "next-hop-free": [NEXT_HOP_FREE],
    /// Devices the data path may send through.
    Devices = "devices": [DEVICES],
    /// Where an interface stands among the devices.
    DeviceIndex = "device-index": [DEVICE_INDEX],
    /// SNAT addresses and their ports.
    Snat = "snat": [SNAT_V4, SNAT_V6],
    /// Ports of fragmented datagrams.
    Fragments = "fragments": [FRAGMENTS],
    /// What user space tells the running data path.
    Control = "control": [CONTROL],
    /// Until when flows may stay with backends that left a service port.
    Drains = "drains": [DRAINS],
    /// Packets by event and by reason.
    Counters = "counters": [COUNTERS],
    /// Traffic of service ports.
    ServiceTraffic = "service-traffic": [SERVICE_TRAFFIC],
    /// Traffic of backends.
    BackendTraffic = "backend-traffic": [BACKEND_TRAFFIC],
    /// Replies of ours in the current tick, by CPU.
    ReplyBudget = "reply-budget": [REPLY_BUDGET],
    /// Working memory of the data path.
    Scratch = "scratch": [SCRATCH],
    /// Refusals told to the agent, which reads them off.
    Events = "events": [EVENTS],
}

/// A view, perhaps of one family only.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Choice {
    /// The view.
    pub view: View,
    /// The only family to show.
    pub family: Option<Family>,
}

impl Choice {
    /// True if rows of `family` are wanted.
    pub fn wants(self, family: Family) -> bool {
        self.family.is_none_or(|only| only == family)
    }
}

/// Finds a view by its friendly name, or by a map's name in any spelling (`FLOWS_V4`, `flows-v4`).
pub fn find(name: &str) -> Option<Choice> {
    let name = name.to_ascii_lowercase().replace('_', "-");
    let (stem, family) = match name.strip_suffix("-v4") {
        Some(stem) => (stem, Some(Family::V4)),
        None => match name.strip_suffix("-v6") {
            Some(stem) => (stem, Some(Family::V6)),
            None => (name.as_str(), None),
        },
    };
    let view = View::ALL.iter().copied().find(|view| view.name() == stem)?;
    (family.is_none() || view.maps().len() > 1).then_some(Choice { view, family })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_map_has_a_view_and_is_found_by_its_name() {
        for &(map, _) in names::MAPS {
            let views: Vec<_> = View::ALL
                .iter()
                .filter(|v| v.maps().contains(&map))
                .collect();
            assert_eq!(views.len(), 1, "{map}");
            let choice = find(map).unwrap_or_else(|| panic!("{map} has no view"));
            assert!(choice.view.maps().contains(&map), "{map}");
            assert_eq!(
                choice.family.is_some(),
                choice.view.maps().len() > 1,
                "{map}"
            );
        }
    }

    #[test]
    fn names_are_found_in_any_spelling() {
        let both = |view| Some(Choice { view, family: None });
        let cases = [
            ("friendly", "flows", both(View::Flows)),
            ("capitals", "Next-Hops", both(View::NextHops)),
            ("underscore", "next_hops", both(View::NextHops)),
            (
                "one family",
                "FLOWS_V6",
                Some(Choice {
                    view: View::Flows,
                    family: Some(Family::V6),
                }),
            ),
            ("a family of a map without families", "members-v4", None),
            ("unknown", "flow", None),
        ];
        for (name, input, expected) in cases {
            assert_eq!(find(input), expected, "{name}");
        }
    }
}
