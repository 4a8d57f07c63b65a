//! The services and clients of the differential test, and what of a frame is compared.

use std::net::{IpAddr, SocketAddr};

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use lb_common::service::{service_flag, source_class};
use lb_tests::{book::Book, tables::Tables};

/// Backends 1 and 2 elsewhere, 3 a pod of this node, in states that differ; a service on the second VIP
/// whose replies come back through this node; a node port; a cluster IP with affinity; and a VIP
/// with source ranges under a `Local` policy, whose affinity is another.
pub(crate) fn tables(book: Book, variant: u8) -> Tables {
    let any = book.at(book.pick("0.0.0.0", "::"), 30_080);
    let frontend = |number| book.frontend_at(&destination(book, number));
    // In the last two variants the first service has another frontend, and the second one has its; in the very
    // last with a backend of both.
    let (moved, shared) = (variant >= 5, variant == 6);
    let variant = variant % 5;
    let first = book.bare().frontend(&frontend(if moved { 6 } else { 0 }));
    let mut service = members(book, variant, first).frontend(&frontend(1));
    if moved {
        service = service.also(&frontend(0));
    }
    if shared {
        service = service.backends([book.backend(5, 8443).as_str()]);
    }
    let service = service
        .backends([book.backend(7, 9_000).as_str()])
        .keep_source()
        .frontend(&book.frontend_at(&any))
        .backends([book.backend(8, 9_001).as_str()])
        .node_ports_on(book.node_address())
        .frontend(&frontend(3))
        .internal()
        .affinity(if variant == 2 { 0 } else { 60 });
    let service = members(book, variant, service)
        .frontend(&frontend(4))
        .flags(service_flag::EXTERNAL_LOCAL)
        .source_ranges(
            u32::from(variant) + 1,
            [
                book.pick("10.0.0.0/8", "2001:db8::/44"),
                ranges(book, variant),
            ],
        )
        .also(&frontend(5))
        .affinity(40);
    members(book, variant, service)
        .class(
            book.pick("10.2.0.6/31", "2001:db8:c::6/127"),
            source_class::POD,
        )
        .class(
            book.pick("10.2.0.6/32", "2001:db8:c::6/128"),
            source_class::POD | source_class::LOCAL_POD,
        )
        .class(
            book.pick("10.96.0.0/16", "2001:db8:96::/112"),
            source_class::SERVICE_NETWORK,
        )
}

/// What is in every second set of ranges.
fn ranges(book: Book, variant: u8) -> &'static str {
    match variant % 3 {
        0 => book.pick("198.51.100.0/24", "2001:db8:100::/48"),
        1 => book.pick("203.0.113.0/25", "2001:db8:ffff::/48"),
        _ => book.pick("192.0.2.0/24", "2001:db8:eeee::/48"),
    }
}

/// Adds the backends of a variant to the last service.
fn members(book: Book, variant: u8, service: Tables) -> Tables {
    let (one, two, pod) = (
        book.backend(5, 8443),
        book.backend(6, 8443),
        book.pod(5, 8443),
    );
    match variant {
        0 => service
            .backends([one.as_str(), two.as_str()])
            .local_backends([pod.as_str()]),
        1 => service
            .draining([one.as_str()])
            .backends([two.as_str()])
            .local_backends([pod.as_str()]),
        2 => service
            .gone([one.as_str()])
            .backends([two.as_str(), one.as_str()]),
        3 => service
            .gone([one.as_str(), two.as_str()])
            .local_backends([pod.as_str()]),
        _ => service.gone([one.as_str(), two.as_str(), pod.as_str()]),
    }
}

/// Frontends first, then what is none in most variants, or never.
pub(crate) fn destination(book: Book, number: u8) -> String {
    match number {
        0 => book.vip(443),
        1 => book.at(book.pick("192.0.2.2", "2001:db8::2"), 443),
        2 => book.at(book.node_address(), 30_080),
        3 => book.at(book.pick("10.96.0.1", "2001:db8:96::1"), 443),
        4 => book.at(book.pick("192.0.2.3", "2001:db8::3"), 443),
        5 => book.at(book.pick("192.0.2.4", "2001:db8::4"), 443),
        6 => book.vip(444),
        7 => book.snat(50_000),
        _ => book.at(book.pick("10.96.0.9", "2001:db8:96::9"), 443),
    }
}

/// Outside, behind the router, a pod of this node, a pod of another, and a backend.
pub(crate) fn client(book: Book, number: u8) -> String {
    match number {
        0 => book.client(40_000),
        1 => book.client(40_001),
        2 => book.far_client(40_000),
        3 => book.far_client(40_002),
        4 => book.slim(6, 40_000),
        5 => book.slim(7, 40_000),
        _ => book.pod(5, 40_000),
    }
}

/// The endpoints of a TCP or UDP frame.
pub(crate) fn tuple_of(frame: &[u8]) -> (SocketAddr, SocketAddr) {
    let sliced = SlicedPacket::from_ethernet(frame).expect("a readable frame");
    let (source, destination): (IpAddr, IpAddr) = match sliced.net.expect("IP") {
        NetSlice::Ipv4(v4) => (
            v4.header().source_addr().into(),
            v4.header().destination_addr().into(),
        ),
        NetSlice::Ipv6(v6) => (
            v6.header().source_addr().into(),
            v6.header().destination_addr().into(),
        ),
        NetSlice::Arp(_) => panic!("ARP"),
    };
    let (from, to) = match sliced.transport.expect("a transport header") {
        TransportSlice::Tcp(tcp) => (tcp.source_port(), tcp.destination_port()),
        TransportSlice::Udp(udp) => (udp.source_port(), udp.destination_port()),
        other => panic!("{other:?}"),
    };
    (
        SocketAddr::new(source, from),
        SocketAddr::new(destination, to),
    )
}
