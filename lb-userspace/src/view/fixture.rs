//! A small node for the tests: an HTTP service on both families, a UDP service, two flows.

use std::{net::SocketAddr, sync::Arc};

use lb_common::{
    addr::{Addr4, Addr6, Be16},
    conntrack::{Closing4, Entry4, Entry6, Head, Route, flag, state},
    control::{Control, Gate},
    device::{Device, NextHop, NextHopKey, NextHopWord, SnatAddress, device_flag},
    flow::{Flow4, Flow6, protocol},
    service::{
        FragmentKey, FragmentPorts, MemberKey, Selection, address_role,
        affinity::{Affinity, AffinityKey},
        backend_flag, frontend_flag, member_flag, service_flag, source_class,
    },
    traffic::{ReplyBudget, Tally, Traffic},
};

use crate::{
    tables::{BackendRecord, FrontendId, FrontendRecord, Protocol, ServiceRecord, TableSet},
    view::{
        contents::{Clock, Contents},
        flows::{Half, Table},
    },
};

/// Parses a value of the test.
pub(crate) fn parse<T: std::str::FromStr>(text: &str) -> T {
    text.parse()
        .unwrap_or_else(|_| panic!("`{text}` does not parse"))
}

/// An IPv4 address as it lies in a packet.
pub(crate) fn addr4(text: &str) -> Addr4 {
    parse::<std::net::Ipv4Addr>(text).into()
}

/// An IPv6 address as it lies in a packet.
pub(crate) fn addr6(text: &str) -> Addr6 {
    parse::<std::net::Ipv6Addr>(text).into()
}

/// A service port without backends.
pub(crate) fn service(name: &str) -> ServiceRecord {
    ServiceRecord {
        name: name.into(),
        cluster: Selection::default(),
        local: Selection::default(),
        epoch: 1,
        flags: service_flag::LIVE,
        affinity_seconds: 0,
        source_ranges: 0,
    }
}

/// `client → VIP` becomes `snat → backend`.
pub(crate) struct Path<'a> {
    pub(crate) client: &'a str,
    pub(crate) frontend: &'a str,
    pub(crate) snat: &'a str,
    pub(crate) backend: &'a str,
}

/// Both halves of an IPv4 TCP flow.
pub(crate) fn tcp4(table: Table, path: &Path<'_>, states: [u8; 2], identity: u32) -> [Half; 2] {
    let [client, frontend, snat, backend] = [path.client, path.frontend, path.snat, path.backend]
        .map(|text| {
            let socket: std::net::SocketAddrV4 = parse(text);
            (Addr4::from(*socket.ip()), Be16::new(socket.port()))
        });
    let key = |(source, source_port), (destination, destination_port)| Flow4 {
        source,
        destination,
        source_port,
        destination_port,
        protocol: protocol::TCP.into(),
    };
    let mode = if snat == client { 0 } else { flag::FULL_NAT };
    let entry = |new: Flow4, state, stamp, flags, hop| Entry4 {
        head: Head::new(identity, state, stamp).0,
        route: Route::new(identity, hop, 1500, 3).0,
        source: new.source,
        destination: new.destination,
        source_port: new.source_port,
        destination_port: new.destination_port,
        flags,
        backend: 1,
        service: 1,
        ..Entry4::default()
    };
    let [forward, reverse] = states;
    [
        Half::v4(
            table,
            key(client, frontend),
            entry(key(snat, backend), forward, 995, mode, 1),
        ),
        Half::v4(
            table,
            key(backend, snat),
            entry(key(frontend, client), reverse, 990, mode | flag::REVERSE, 0),
        ),
    ]
}

fn udp6() -> Half {
    let port = Be16::new;
    let flow = Flow6 {
        source: addr6("2001:db8:1::9"),
        destination: addr6("2001:db8::53"),
        source_port: port(5353),
        destination_port: port(53),
        protocol: protocol::UDP.into(),
    };
    let entry = Entry6 {
        head: Head::new(0xbeef, state::EMBRYONIC, 1000).0,
        source: flow.source,
        destination: addr6("2001:db8:2::1"),
        source_port: port(5353),
        destination_port: port(5300),
        flags: flag::LOCAL,
        backend: 3,
        service: 3,
        ..Entry6::default()
    };
    Half::v6(Table::Embryonic, flow, entry)
}

fn frontend(socket: &str, protocol: Protocol) -> FrontendId {
    let socket: SocketAddr = parse(socket);
    FrontendId {
        address: socket.ip(),
        port: socket.port(),
        protocol,
    }
}

fn tables() -> TableSet {
    let record = |service, flags| FrontendRecord { service, flags };
    let backend = |endpoint, flags| BackendRecord {
        endpoint: parse(endpoint),
        flags: backend_flag::LIVE | flags,
        incarnation: 1,
    };
    let selection = |element, length| Selection { element, length };
    let extent: Arc<[u32]> = (0..251).map(|slot| 1 + slot % 2).collect();
    TableSet {
        frontends: [
            (
                frontend("192.0.2.1:80", Protocol::Tcp),
                record(1, frontend_flag::SOURCE_RANGES),
            ),
            (frontend("0.0.0.0:30080", Protocol::Tcp), record(1, 0)),
            (
                frontend("[2001:db8::1]:80", Protocol::Tcp),
                record(2, frontend_flag::INTERNAL),
            ),
            (frontend("[2001:db8::53]:53", Protocol::Udp), record(3, 0)),
        ]
        .into(),
        services: [
            (
                1,
                ServiceRecord {
                    cluster: selection(1, 251),
                    epoch: 4,
                    flags: service_flag::LIVE | service_flag::HAS_ENDPOINTS,
                    affinity_seconds: 10_800,
                    ..service("default/web:http/TCP/IPv4")
                },
            ),
            (2, service("default/web:http/TCP/IPv6")),
            (
                3,
                ServiceRecord {
                    local: selection(17, 3),
                    flags: service_flag::LIVE | service_flag::EXTERNAL_LOCAL,
                    ..service("kube-system/dns:dns/UDP/IPv6")
                },
            ),
        ]
        .into(),
        backends: [
            (1, backend("10.0.0.1:8080", 0)),
            (2, backend("10.0.0.2:8080", 0)),
            (3, backend("[2001:db8:2::1]:5300", backend_flag::LOCAL)),
        ]
        .into(),
        members: [
            ((1, 1), member_flag::CLUSTER | member_flag::SERVING),
            ((1, 2), member_flag::CLUSTER | member_flag::SERVING),
            ((1, 4), member_flag::SERVING),
            (
                (3, 3),
                member_flag::CLUSTER | member_flag::LOCAL | member_flag::SERVING,
            ),
        ]
        .into(),
        extents: [(1, extent), (17, Arc::from([3, 3, 3]))].into(),
        source_ranges: [(5, parse("198.51.100.0/24"))].into(),
        source_classes: [(parse("2001:db8::/32"), source_class::POD)].into(),
        addresses: [
            (parse("192.0.2.1"), address_role::VIP),
            (parse("10.0.0.100"), address_role::SNAT),
        ]
        .into(),
        gateway_endpoints: [frontend("10.0.0.1:8080", Protocol::Tcp)].into(),
    }
}

/// The node.
pub(crate) fn contents() -> Contents {
    let path = |client, snat| Path {
        client,
        frontend: "192.0.2.1:80",
        snat,
        backend: "10.0.0.1:8080",
    };
    let open = path("198.51.100.7:40000", "10.0.0.100:1024");
    let closed = path("198.51.100.8:40000", "198.51.100.8:40000");
    let mut halves = Vec::new();
    halves.extend(tcp4(
        Table::Established,
        &open,
        [state::ESTABLISHED; 2],
        0x1234_abcd,
    ));
    halves.extend(tcp4(
        Table::Established,
        &closed,
        [state::CLOSED, state::CLOSED | state::CONDEMNED],
        0x42,
    ));
    halves.push(udp6());
    let tally = |packets| Tally {
        packets,
        bytes: packets * 100,
    };
    let traffic = |packets| Traffic {
        forward: tally(packets),
        reply: tally(packets - 1),
        new_flows: 2,
        established: 1,
    };
    Contents {
        tables: tables(),
        halves,
        closing4: Some(Closing4 {
            flow: Flow4 {
                source: addr4("198.51.100.8"),
                destination: addr4("192.0.2.1"),
                source_port: Be16::new(40_000),
                destination_port: Be16::new(80),
                protocol: protocol::TCP.into(),
            },
            identity: 0x42,
            since: 980,
        }),
        closing6: None,
        flow_use: vec![4, 0, 0, 0],
        fragments: vec![(
            FragmentKey {
                source: addr4("198.51.100.7").mapped(),
                destination: addr4("192.0.2.1").mapped(),
                id: 0x77,
                protocol: protocol::UDP.into(),
            },
            FragmentPorts {
                source_port: Be16::new(5353),
                destination_port: Be16::new(53),
            },
        )],
        affinity: vec![(
            AffinityKey {
                client: addr4("198.51.100.7").mapped(),
                service: 1,
            },
            Affinity::new(1, 900),
        )],
        source_ranges: {
            let Addr6([a, b, c, d]) = addr4("198.51.100.0").mapped();
            vec![([32 + 96 + 24, 5_u32.to_be(), a, b, c, d], 1)]
        },
        source_class: {
            let Addr6([a, b, c, d]) = addr6("2001:db8::");
            vec![(
                [32, a, b, c, d],
                source_class::POD | source_class::LOCAL_POD,
            )]
        },
        address_filter: vec![0, 0b101, 0],
        service_traffic: [(1, traffic(1001))].into(),
        backend_traffic: [(1, traffic(601)), (2, traffic(401))].into(),
        reply_budget: vec![ReplyBudget { tick: 998, sent: 2 }, ReplyBudget::default()],
        ..network()
    }
}

/// Its devices, neighbours and clock.
fn network() -> Contents {
    let gateway = Addr6([addr4("10.0.0.254").0, 0, 0, 0]);
    Contents {
        next_hops: [(
            1,
            NextHop {
                word: NextHopWord::new([2, 0, 0, 0, 0, 1], 1).0,
                refreshed: 998,
                ifindex: 7,
                gateway,
                family: 2,
                reserved: 0,
            },
        )]
        .into(),
        next_hop_index: vec![(
            NextHopKey {
                ifindex: 7,
                family: 2,
                gateway,
            },
            1,
        )],
        next_hop_free: Some(2),
        devices: [(
            1,
            Device {
                ifindex: 7,
                mtu: 1500,
                mac: [2, 0, 0, 0, 0, 9],
                flags: device_flag::REDIRECT,
                snat4_first: 0,
                snat4_count: 1,
                index: 1,
                ..Device::default()
            },
        )]
        .into(),
        device_index: [(7, 1)].into(),
        snat4: [(
            0,
            SnatAddress {
                address: Addr6([addr4("10.0.0.100").0, 0, 0, 0]),
                first_port: 1024,
                port_count: 64_512,
            },
        )]
        .into(),
        snat6: [].into(),
        control: Control {
            route_generation: 3,
            gate: Gate::frozen(1002).0,
        },
        drains: [(
            MemberKey {
                service: 1,
                backend: 2,
            },
            1_700_000_000,
        )]
        .into(),
        interfaces: [(7, "eth1".into())].into(),
        clock: Some(Clock {
            now: 1000,
            tick_ms: 1024,
        }),
        ..Contents::default()
    }
}
