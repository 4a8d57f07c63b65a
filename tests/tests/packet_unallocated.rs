//! Addresses of the cluster's service networks that no Service has.

use lb_common::{config::config_flag, reason::Reason, service::source_class};
use lb_tests::{
    book::BOOKS,
    case::{case, from, run},
    flows::{Conversation, Mode, rejected},
    network::{INSIDE, OUTSIDE, PODS, Port},
    packet::packet,
};

#[test]
fn a_cluster_ip_nobody_has_is_dropped_on_demand() {
    let cases = BOOKS.into_iter().flat_map(|book| {
        [false, true].map(|on| {
            let at = |v4, v6| book.at(book.pick(v4, v6), 80);
            let (nobody, vip) = (at("10.96.0.9", "2001:db8:96::9"), book.vip(444));
            let outside = at("10.97.0.9", "2001:db8:97::9");
            let talk = Conversation::new(book, Mode::FullNat);
            let tables = talk
                .tables()
                .internal()
                .class(
                    book.pick("10.96.0.0/16", "2001:db8:96::/112"),
                    source_class::SERVICE_NETWORK,
                )
                .class(
                    book.pick("192.0.2.0/24", "2001:db8::/112"),
                    source_class::SERVICE_NETWORK,
                );
            let client = book.client(40_000);
            let stray = |port: Port, source: &str, destination: &str, drops: bool| {
                let step = from(port, &book.first(source, destination));
                if drops && on {
                    step.unseen_by_xdp().drops(Reason::UnallocatedAddress)
                } else {
                    step.passes(Some(Reason::NotOurs))
                }
            };
            let (host, free) = (
                book.pick("198.51.100.7", "2001:db8:100::7"),
                book.pick("10.96.0.9", "2001:db8:96::9"),
            );
            let other = |protocol| {
                let packet = packet().raw(host, free, protocol).payload_length(32);
                from(OUTSIDE, &packet).passes(Some(Reason::NotOurs))
            };
            let ping = packet().ping(host, free, 1, 1);
            let name = format!("{}: unallocated, {on}", book.name());
            case(name, tables)
                .config(|config| {
                    config.flags = if on { config_flag::DROP_UNALLOCATED } else { 0 };
                })
                .step(stray(OUTSIDE, &client, &nobody, true))
                .step(stray(PODS, &book.pod(6, 40_000), &nobody, true))
                // Its source is in the address filter, so that all of it is parsed.
                .step(stray(INSIDE, &book.backend(5, 8443), &nobody, true))
                .step(stray(OUTSIDE, &client, &outside, false))
                // The source is no destination.
                .step(stray(OUTSIDE, &nobody, &client, false))
                .step(other(132))
                .step(other(47))
                .step(from(OUTSIDE, &ping).passes(Some(Reason::NotOurs)))
                // An address of the network that a Service has.
                .step(rejected(book, OUTSIDE, &client, &vip, Reason::NoFrontend))
                .step(talk.request(&talk.first()).creates())
        })
    });
    run(cases.collect());
}
