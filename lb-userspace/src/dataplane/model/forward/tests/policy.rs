//! What the source of a new flow decides, and session affinity.

use lb_common::service::{frontend_flag, service_flag, source_class};

use super::*;
use crate::tables::ServiceRecord;

const POD: &str = "10.9.0.7:40000";
const FAR_POD: &str = "10.8.0.7:40000";
const NODE: &str = "198.51.100.1:40000";

/// One backend elsewhere, sources of every class, and a set of ranges that no service port names.
fn classified() -> TableSet {
    let (nothing, slices) = (TableSet::default(), web_slice(&["10.1.0.1"]));
    let mut tables = tables_after(&nothing, &node(), web(), slices);
    for (network, class) in [
        ("10.8.0.0/15", source_class::POD),
        ("10.9.0.0/24", source_class::POD | source_class::LOCAL_POD),
        ("198.51.100.1/32", source_class::NODE),
        ("192.0.2.0/24", source_class::SERVICE_NETWORK),
    ] {
        let network = network.parse().expect("a network");
        tables.source_classes.insert(network, class);
    }
    let range = "203.0.113.0/24".parse().expect("a network");
    tables.source_ranges.insert((9, range));
    tables
}

fn each_service(mut tables: TableSet, change: impl Fn(&mut ServiceRecord)) -> TableSet {
    tables.services.values_mut().for_each(change);
    tables
}

fn each_frontend(mut tables: TableSet, flags: u32) -> TableSet {
    for frontend in tables.frontends.values_mut() {
        frontend.flags |= flags;
    }
    tables
}

fn restricted(set: u32) -> TableSet {
    let tables = each_service(classified(), |record| record.source_ranges = set);
    each_frontend(tables, frontend_flag::SOURCE_RANGES)
}

fn external_local() -> TableSet {
    each_service(classified(), |record| {
        record.flags |= service_flag::EXTERNAL_LOCAL;
    })
}

fn internal() -> TableSet {
    each_frontend(external_local(), frontend_flag::INTERNAL)
}

#[test]
fn the_source_decides_admission_set_and_mode() {
    use ForwardingMode::{Dnat, FullNat};
    let dropped = Err(Reason::NoLocalEndpoint);
    let blocked = Err(Reason::SourceRange);
    for (name, tables, source, expected) in [
        ("unrestricted", classified(), CLIENT, Ok(FullNat)),
        ("in the range", restricted(9), CLIENT, Ok(FullNat)),
        ("outside the range", restricted(9), POD, blocked),
        ("an empty set", restricted(8), CLIENT, blocked),
        ("Cluster, pod", classified(), POD, Ok(FullNat)),
        ("Local, pod of this node", external_local(), POD, Ok(Dnat)),
        ("Local, far pod", external_local(), FAR_POD, Ok(FullNat)),
        ("Local, the node", external_local(), NODE, Ok(FullNat)),
        ("Local, outside", external_local(), CLIENT, dropped),
        ("ClusterIP, pod of this node", internal(), POD, Ok(Dnat)),
        ("ClusterIP, far pod", internal(), FAR_POD, Ok(FullNat)),
        ("ClusterIP, outside", internal(), CLIENT, Ok(FullNat)),
        ("hairpin", classified(), "10.1.0.1:40000", Ok(FullNat)),
    ] {
        let found = match first(&tables, packet(source, WEB, Some(SYN))) {
            Outcome::New(new) => Ok(new.mode),
            Outcome::Refused(reason) => Err(reason),
            Outcome::Known(_) => unreachable!("no flows"),
        };
        assert_eq!(found, expected, "{name}");
    }
}

#[test]
fn an_address_no_service_has_is_dropped_on_demand() {
    let packet = packet(CLIENT, "192.0.2.99:80", Some(SYN));
    for (drop_unallocated, reason) in [(false, Reason::NotOurs), (true, Reason::UnallocatedAddress)]
    {
        let model = Forwarder::new(ForwarderConfig {
            unknown_flows: UnknownFlows::Select,
            direct_backend_access: false,
            drop_unallocated,
        });
        let outcome = model.forward(&classified(), &packet);
        assert_eq!(outcome, Outcome::Refused(reason));
    }
}

#[test]
fn a_client_returns_while_it_is_remembered() {
    let endpoints = ["10.1.0.1", "10.1.0.2", "10.1.0.3"];
    let tables = |previous: &TableSet, endpoints: &[&str], seconds| {
        let tables = tables_after(previous, &node(), web(), web_slice(endpoints));
        each_service(tables, |record| record.affinity_seconds = seconds)
    };
    let mut model = forwarder(UnknownFlows::Drop);
    let mut port = 40_000;
    let mut flow = |model: &mut Forwarder, tables: &TableSet| {
        port += 1;
        let packet = packet(&format!("203.0.113.5:{port}"), WEB, Some(SYN));
        let outcome = model.forward(tables, &packet);
        model.commit(tables, &packet, &outcome, packet.tuple.source);
        match outcome {
            Outcome::New(new) => new.endpoint.ip().to_string(),
            other => panic!("{other:?}"),
        }
    };
    let whole = tables(&TableSet::default(), &endpoints, 60);
    let chosen = flow(&mut model, &whole);
    let others: Vec<_> = endpoints.into_iter().filter(|one| *one != chosen).collect();
    // Where the hash would not lead once all are there again.
    let second = flow(&mut model, &tables(&whole, &others, 60));
    assert_ne!(second, chosen, "a backend that is gone");
    for wait in [0, 60, 60] {
        model.wait(wait);
        assert_eq!(flow(&mut model, &whole), second, "after {wait} seconds");
    }
    model.wait(61);
    assert_eq!(flow(&mut model, &whole), chosen, "forgotten");
    let without = tables(&whole, &endpoints, 0);
    let reached: std::collections::BTreeSet<_> =
        (0..40).map(|_| flow(&mut model, &without)).collect();
    assert_eq!(reached.len(), 3, "without affinity");
}
