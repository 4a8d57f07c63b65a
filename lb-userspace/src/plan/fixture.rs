//! Snapshots in few words, and tables as text, for tests.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use lb_common::service::{
    Selection, address_role, backend_flag, frontend_flag, member_flag, service_flag, source_class,
};

use crate::{
    dataplane::TableOp,
    node::NodeConfig,
    snapshot::{
        Endpoint, FieldAddress, ObjectName, PortProtocol, ServiceKind, ServiceObject,
        ServicePortObject, SliceObject, SlicePort, Snapshot,
    },
    tables::{Family, Protocol, ServiceRecord, TableSet},
};

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// This node: `edge-1`, 198.51.100.1 and `2001:db8:1::1`, neither gateway nor node ports.
pub(crate) fn node() -> NodeConfig {
    NodeConfig {
        name: "edge-1".to_owned(),
        addresses: [ip("198.51.100.1"), ip("2001:db8:1::1")].into(),
        external_ips: true,
        ..NodeConfig::default()
    }
}

/// As [`node`], serving node ports on all its addresses.
pub(crate) fn node_with_node_ports() -> NodeConfig {
    let node = node();
    NodeConfig {
        node_port_addresses: node.addresses.clone(),
        ..node
    }
}

/// A LoadBalancer Service `default/NAME`. `ports` are such as `80`, `http:80`, `dns:53/UDP`,
/// `http:80/TCP@30080`; the families are those of the VIPs. It has a health check's port.
pub(crate) fn service(name: &str, vips: &[&str], ports: &[&str]) -> ServiceObject {
    let ingress_ips = fields(vips, |i| format!("status.loadBalancer.ingress[{i}].ip"));
    let families: BTreeSet<_> = ingress_ips.iter().map(|a| Family::of(a.address)).collect();
    ServiceObject {
        name: ObjectName::new("default", name),
        kind: ServiceKind::LoadBalancer,
        families: families.into_iter().collect(),
        ingress_ips,
        ports: ports
            .iter()
            .enumerate()
            .map(|(i, text)| port(i, text))
            .collect(),
        health_check_node_port: 32_000,
        ..ServiceObject::default()
    }
}

pub(crate) fn fields(addresses: &[&str], field: impl Fn(usize) -> String) -> Vec<FieldAddress> {
    let field = |(i, text): (usize, &&str)| FieldAddress {
        field: field(i).into(),
        address: ip(text),
    };
    addresses.iter().enumerate().map(field).collect()
}

fn port(index: usize, text: &str) -> ServicePortObject {
    let (text, node_port) = text.split_once('@').unwrap_or((text, "0"));
    let (text, protocol) = text.split_once('/').unwrap_or((text, "TCP"));
    let (name, number) = text.split_once(':').unwrap_or(("", text));
    ServicePortObject {
        index,
        name: name.to_owned(),
        protocol: protocol_of(protocol),
        port: number.parse().expect("a port"),
        node_port: node_port.parse().expect("a node port"),
        app_protocol: None,
    }
}

fn protocol_of(text: &str) -> PortProtocol {
    match text {
        "TCP" => PortProtocol::Balanced(Protocol::Tcp),
        "UDP" => PortProtocol::Balanced(Protocol::Udp),
        "SCTP" => PortProtocol::Sctp,
        _ => panic!("not a protocol: {text}"),
    }
}

/// A slice `default/NAME` of the Service its name begins with (up to `_`). `ports` as in
/// [`service`]; `endpoints` are an address and words: `unready`, `deaf` (not serving),
/// `terminating`, `on=NODE`, `zone=ZONE`, `fornode=NODE`.
pub(crate) fn slice(name: &str, ports: &[&str], endpoints: &[&str]) -> SliceObject {
    let endpoints: Vec<_> = endpoints.iter().map(|text| endpoint(text)).collect();
    SliceObject {
        name: ObjectName::new("default", name),
        service: name.split('_').next().unwrap_or_default().to_owned(),
        family: endpoints
            .first()
            .map_or(Family::V4, |e| Family::of(e.address)),
        ports: ports
            .iter()
            .map(|text| port(0, text))
            .map(|p| SlicePort {
                name: p.name,
                protocol: p.protocol,
                port: p.port,
            })
            .collect(),
        endpoints,
        triggered: None,
    }
}

fn endpoint(text: &str) -> Endpoint {
    let mut words = text.split(' ');
    let address = ip(words.next().expect("an address"));
    let mut endpoint = Endpoint {
        address,
        ready: true,
        serving: true,
        terminating: false,
        node: None,
        zone_hints: Vec::new(),
        node_hints: Vec::new(),
    };
    for word in words {
        match word.split_once('=').unwrap_or((word, "")) {
            ("unready", _) => endpoint.ready = false,
            ("deaf", _) => endpoint.serving = false,
            ("terminating", _) => endpoint.terminating = true,
            ("on", node) => endpoint.node = Some(node.to_owned()),
            ("zone", zone) => endpoint.zone_hints.push(zone.to_owned()),
            ("fornode", node) => endpoint.node_hints.push(node.to_owned()),
            _ => panic!("not a word for an endpoint: {word}"),
        }
    }
    endpoint
}

pub(crate) fn snapshot(
    services: impl IntoIterator<Item = ServiceObject>,
    slices: impl IntoIterator<Item = SliceObject>,
) -> Snapshot {
    Snapshot {
        services: services
            .into_iter()
            .map(|s| (s.name.clone(), Arc::new(s)))
            .collect(),
        slices: slices
            .into_iter()
            .map(|s| (s.name.clone(), Arc::new(s)))
            .collect(),
        ..Snapshot::default()
    }
}

/// Tables, one line for each thing, ids resolved where that tells more.
pub(crate) fn text(tables: &TableSet) -> String {
    let mut lines = Vec::new();
    for (frontend, record) in &tables.frontends {
        let service = tables
            .services
            .get(&record.service)
            .map_or("?", |s| s.name.as_str());
        let names = [
            (frontend_flag::INTERNAL, "internal"),
            (frontend_flag::SOURCE_RANGES, "lb"),
        ];
        lines.push(format!(
            "frontend {frontend} -> {service}{}",
            bits(record.flags, &names)
        ));
    }
    for (id, record) in &tables.services {
        lines.push(format!("service {id} {}", service_text(record)));
        for (label, selection) in [("cluster", record.cluster), ("local", record.local)] {
            if selection.length > 0 {
                lines.push(format!(
                    "  {label} {}",
                    endpoints(tables, selection).join(" ")
                ));
            }
        }
        for (&(_, backend), &flags) in tables.members.range((*id, 0)..=(*id, u32::MAX)) {
            let names = [
                (member_flag::CLUSTER, "cluster"),
                (member_flag::LOCAL, "local"),
                (member_flag::SERVING, "serving"),
            ];
            lines.push(format!("  member {backend}{}", bits(flags, &names)));
        }
    }
    for (id, record) in &tables.backends {
        let names = [
            (u32::from(backend_flag::LOCAL), "local"),
            (backend_flag::HOST.into(), "host"),
        ];
        let flags = bits(record.flags.into(), &names);
        lines.push(format!(
            "backend {id} {}{flags} #{}",
            record.endpoint, record.incarnation
        ));
    }
    for (address, roles) in &tables.addresses {
        lines.push(format!("address {address}{}", bits(*roles, &ROLES)));
    }
    for endpoint in &tables.gateway_endpoints {
        lines.push(format!("gateway endpoint {endpoint}"));
    }
    for (set, network) in &tables.source_ranges {
        lines.push(format!("source range {set} {network}"));
    }
    for (network, class) in &tables.source_classes {
        lines.push(format!("source class {network}{}", bits(*class, &CLASSES)));
    }
    lines.iter().fold(String::new(), |mut text, line| {
        writeln!(text, "{line}").expect("text grows");
        text
    })
}

const CLASSES: [(u32, &str); 4] = [
    (source_class::POD, "pod"),
    (source_class::NODE, "node"),
    (source_class::LOCAL_POD, "local-pod"),
    (source_class::SERVICE_NETWORK, "service-network"),
];

const ROLES: [(u32, &str); 3] = [
    (address_role::VIP, "vip"),
    (address_role::NODE_PORT, "node-port"),
    (address_role::SNAT, "snat"),
];

fn service_text(record: &ServiceRecord) -> String {
    let names = [
        (service_flag::EXTERNAL_LOCAL, "external-local"),
        (service_flag::INTERNAL_LOCAL, "internal-local"),
        (service_flag::KEEP_SOURCE, "keep-source"),
        (service_flag::HAS_ENDPOINTS, "has-endpoints"),
    ];
    format!(
        "{} epoch {} cluster {} local {}{}",
        record.name,
        record.epoch,
        extent(record.cluster),
        extent(record.local),
        bits(record.flags, &names)
    )
}

fn extent(selection: Selection) -> String {
    if selection.length == 0 {
        "-".to_owned()
    } else {
        format!("{}+{}", selection.element, selection.length)
    }
}

fn bits(flags: u32, names: &[(u32, &str)]) -> String {
    names
        .iter()
        .filter(|(bit, _)| flags & bit != 0)
        .fold(String::new(), |text, (_, name)| text + " " + name)
}

/// The endpoints a selection leads to.
pub(crate) fn endpoints(tables: &TableSet, selection: Selection) -> Vec<String> {
    let table = tables
        .extents
        .get(&selection.element)
        .map_or(&[][..], |table| table);
    let ids: BTreeSet<_> = table.iter().copied().collect();
    let mut endpoints: Vec<SocketAddr> = ids
        .iter()
        .filter_map(|id| tables.backends.get(id))
        .map(|b| b.endpoint)
        .collect();
    endpoints.sort_unstable();
    endpoints.iter().map(ToString::to_string).collect()
}

/// An operation as text.
pub(crate) fn op_text(op: &TableOp) -> String {
    match op {
        TableOp::SetBackend(id, record) => format!("set backend {id} {}", record.endpoint),
        TableOp::WriteExtent(element, table) => format!("write extent {element}+{}", table.len()),
        TableOp::SetService(id, record) => format!("set service {id} {}", service_text(record)),
        TableOp::SetFrontend(id, record) => format!("set frontend {id} -> {}", record.service),
        TableOp::SetMember((service, backend), flags) => {
            format!("set member {service}:{backend} {flags}")
        }
        TableOp::SetAddress(address, roles) => {
            format!("set address {address}{}", bits(*roles, &ROLES))
        }
        TableOp::RemoveBackend(id) => format!("remove backend {id}"),
        TableOp::RemoveMember((service, backend)) => format!("remove member {service}:{backend}"),
        TableOp::FreeExtent(element) => format!("free extent {element}"),
        TableOp::RemoveService(id) => format!("remove service {id}"),
        TableOp::RemoveAddress(address) => format!("remove address {address}"),
        TableOp::RemoveFrontend(id) => format!("remove frontend {id}"),
        TableOp::SetGatewayEndpoint(id) => format!("set gateway endpoint {id}"),
        TableOp::RemoveGatewayEndpoint(id) => format!("remove gateway endpoint {id}"),
        TableOp::SetSourceRange(set, network) => format!("set source range {set} {network}"),
        TableOp::RemoveSourceRange(set, network) => format!("remove source range {set} {network}"),
        TableOp::SetSourceClass(network, class) => format!("set source class {network} {class}"),
        TableOp::RemoveSourceClass(network) => format!("remove source class {network}"),
    }
}
