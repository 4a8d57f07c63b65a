//! Every map, decoded: the rows of `lbctl map-dump`.
//!
//! A row names the fields of key and value, with ids resolved beside their numbers. The JSON keys
//! are stable.

mod network;
mod policy;
mod traffic;

use crate::view::{
    catalog::{Choice, View},
    contents::Contents,
    flows::{self, Half, Table},
    render::Sheet,
};

/// The rows of a view.
pub fn dump(contents: &Contents, choice: Choice) -> Box<dyn Sheet> {
    match choice.view {
        View::Frontends => Box::new(policy::frontends(contents, choice)),
        View::GatewayEndpoints => Box::new(policy::gateway_endpoints(contents, choice)),
        View::Services => Box::new(policy::services(contents)),
        View::ServiceNames => Box::new(policy::service_names(contents)),
        View::Backends => Box::new(policy::backends(contents, choice)),
        View::Members => Box::new(policy::members(contents)),
        View::Slots => Box::new(policy::slots(contents)),
        View::Addresses => Box::new(policy::addresses(contents)),
        View::AddressFilter => Box::new(policy::address_filter(contents)),
        View::Affinity => Box::new(policy::affinity(contents)),
        View::SourceRanges => Box::new(policy::source_ranges(contents)),
        View::SourceClass => Box::new(policy::source_class(contents)),
        View::Flows => Box::new(halves(contents, choice, Table::Established)),
        View::Embryonic => Box::new(halves(contents, choice, Table::Embryonic)),
        View::Closing => Box::new(traffic::closing(contents, choice)),
        View::FlowUse => Box::new(traffic::flow_use(contents)),
        View::Counters => Box::new(crate::view::counters::counters(&contents.counters)),
        View::ServiceTraffic => Box::new(traffic::services(contents)),
        View::BackendTraffic => Box::new(traffic::backends(contents)),
        View::ReplyBudget => Box::new(traffic::reply_budget(contents)),
        View::Scratch => Box::new(traffic::scratch(contents)),
        View::Events => Box::new(traffic::events(contents)),
        View::Fragments => Box::new(traffic::fragments(contents)),
        View::NextHops => Box::new(network::next_hops(contents)),
        View::NextHopIndex => Box::new(network::next_hop_index(contents)),
        View::NextHopFree => Box::new(network::next_hop_free(contents)),
        View::Devices => Box::new(network::devices(contents)),
        View::DeviceIndex => Box::new(network::device_index(contents)),
        View::Snat => Box::new(network::snat(contents, choice)),
        View::Control => Box::new(network::control(contents)),
        View::Drains => Box::new(policy::drains(contents)),
    }
}

/// One direction of a flow: an entry of `FLOWS_*` or `EMBRYONIC_*`.
#[derive(serde::Serialize)]
#[serde(rename_all = "camelCase")]
struct HalfRow {
    direction: &'static str,
    protocol: String,
    source: std::net::SocketAddr,
    destination: std::net::SocketAddr,
    new_source: std::net::SocketAddr,
    new_destination: std::net::SocketAddr,
    state: &'static str,
    condemned: bool,
    idle_seconds: Option<u64>,
    identity: String,
    flags: Vec<String>,
    next_hop: String,
    mtu: Option<u16>,
    route_generation: u16,
    backend: u32,
    service: u32,
    service_name: String,
}

/// Each direction a row; the two of a flow share `identity` and stand together.
fn halves(contents: &Contents, choice: Choice, table: Table) -> Vec<HalfRow> {
    let mut halves: Vec<&Half> = contents
        .halves
        .iter()
        .filter(|half| half.table == table)
        .filter(|half| choice.wants(crate::tables::Family::of(half.seen.source.ip())))
        .collect();
    halves.sort_by_key(|half| (half.head.identity(), half.is_reverse(), half.seen));
    halves
        .into_iter()
        .map(|half| half_row(contents, half))
        .collect()
}

fn half_row(contents: &Contents, half: &Half) -> HalfRow {
    let direction = flows::direction(contents, half);
    HalfRow {
        direction: if half.is_reverse() {
            "reverse"
        } else {
            "forward"
        },
        protocol: flows::protocol_name(half.seen.protocol),
        source: direction.source,
        destination: direction.destination,
        new_source: direction.new_source,
        new_destination: direction.new_destination,
        state: direction.state,
        condemned: direction.condemned,
        idle_seconds: direction.idle_seconds,
        identity: format!("{:08x}", half.head.identity()),
        flags: crate::view::flags::words(half.flags, crate::view::flags::ENTRY),
        next_hop: direction.next_hop,
        mtu: direction.mtu,
        route_generation: half.route.generation(),
        backend: half.backend,
        service: half.service,
        service_name: contents.service(half.service),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::{
        catalog::find,
        fixture,
        render::{Output, text_of},
    };

    fn text(name: &str, output: Output) -> String {
        let choice = find(name).unwrap_or_else(|| panic!("no view {name}"));
        text_of(&*dump(&fixture::contents(), choice), output)
    }

    #[test]
    fn every_view_of_an_empty_node_is_json() {
        for view in View::ALL {
            let sheet = dump(
                &Contents::default(),
                Choice {
                    view: *view,
                    family: None,
                },
            );
            let text = text_of(&*sheet, Output::Json);
            let parsed: serde_json::Value = serde_json::from_str(&text)
                .unwrap_or_else(|error| panic!("{}: {error}", view.name()));
            assert!(parsed.is_array(), "{}", view.name());
        }
    }

    #[test]
    fn every_view_of_the_fixture_as_a_table() {
        let quiet = [View::Counters, View::ServiceNames];
        let views = View::ALL.iter().filter(|view| !quiet.contains(view));
        let texts = views.map(|view| {
            let text = text(view.name(), Output::Table);
            format!("[{}]\n{text}", view.name())
        });
        insta::assert_snapshot!(texts.collect::<Vec<_>>().join("\n"));
    }

    #[test]
    fn both_directions_of_a_flow_as_json() {
        insta::assert_snapshot!(text("FLOWS_V4", Output::Json));
    }

    #[test]
    fn a_map_name_shows_one_family() {
        let both = text("frontends", Output::Table).lines().count();
        let v4 = text("FRONTENDS_V4", Output::Table).lines().count();
        let v6 = text("FRONTENDS_V6", Output::Table).lines().count();
        assert_eq!(v4 - 1 + v6 - 1, both - 1);
    }
}
