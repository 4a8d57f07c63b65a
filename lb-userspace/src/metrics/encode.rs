//! A reading as metrics. Pure.

use std::fmt;

use lb_common::traffic::{Tally, Traffic};
use prometheus_client::{
    encoding::{DescriptorEncoder, EncodeGaugeValue, EncodeLabelSet, EncodeMetric as _},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::Unit,
};

use super::reading::{FlowTable, Reading, Snat};
use crate::{health::PortState, tables::Family, view::counters::Count};

impl Reading {
    /// Tells everything.
    pub(super) fn encode(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        self.encode_services(out)?;
        self.encode_backends(out)?;
        self.encode_counters(out)?;
        self.encode_flows(out)?;
        self.encode_snat(out)?;
        self.encode_maps(out)?;
        self.encode_agent(out)
    }

    fn encode_services(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let services = || {
            let services = self.services.iter();
            services.map(|service| (service_labels(&service.what), service))
        };
        let tallies = |value: fn(Tally) -> u64| {
            services().flat_map(move |([a, b, c, d, e], service)| {
                directions(&service.traffic).map(|(direction, tally)| {
                    ([a, b, c, d, e, ("direction", direction)], value(tally))
                })
            })
        };
        let flows = |value: fn(&Traffic) -> u64| {
            services().map(move |(labels, service)| (labels, value(&service.traffic)))
        };
        let active = services().map(|(labels, service)| (labels, service.active));
        counter(out, &SERVICE_PACKETS, tallies(|tally| tally.packets))?;
        counter(out, &SERVICE_BYTES, tallies(|tally| tally.bytes))?;
        counter(out, &SERVICE_NEW, flows(|traffic| traffic.new_flows))?;
        counter(
            out,
            &SERVICE_ESTABLISHED,
            flows(|traffic| traffic.established),
        )?;
        gauge(out, &SERVICE_ACTIVE, active)
    }

    fn encode_backends(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let names: Vec<_> = self
            .backends
            .iter()
            .map(|backend| {
                (
                    backend.what.ip().to_string(),
                    backend.what.port().to_string(),
                )
            })
            .collect();
        let backends = || {
            let labels = names
                .iter()
                .map(|(address, port)| [("address", address.as_str()), ("port", port.as_str())]);
            labels.zip(&self.backends)
        };
        let tallies = |value: fn(Tally) -> u64| {
            backends().flat_map(move |([a, b], backend)| {
                directions(&backend.traffic)
                    .map(|(direction, tally)| ([a, b, ("direction", direction)], value(tally)))
            })
        };
        let flows = |value: fn(&Traffic) -> u64| {
            backends().map(move |(labels, backend)| (labels, value(&backend.traffic)))
        };
        let active = backends().map(|(labels, backend)| (labels, backend.active));
        counter(out, &BACKEND_PACKETS, tallies(|tally| tally.packets))?;
        counter(out, &BACKEND_BYTES, tallies(|tally| tally.bytes))?;
        counter(out, &BACKEND_NEW, flows(|traffic| traffic.new_flows))?;
        counter(
            out,
            &BACKEND_ESTABLISHED,
            flows(|traffic| traffic.established),
        )?;
        gauge(out, &BACKEND_ACTIVE, active)
    }

    fn encode_counters(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let reasons = |value: fn(&Count) -> u64| {
            self.counters.iter().filter_map(move |count| {
                let labels = [("reason", count.name), ("verdict", count.verdict?)];
                Some((labels, value(count)))
            })
        };
        let events = |value: fn(&Count) -> u64| {
            let events = self.counters.iter().filter(|count| count.verdict.is_none());
            events.map(move |count| ([("event", count.name)], value(count)))
        };
        counter(out, &REASON_PACKETS, reasons(|count| count.packets))?;
        counter(out, &REASON_BYTES, reasons(|count| count.bytes))?;
        counter(out, &EVENT_PACKETS, events(|count| count.packets))?;
        counter(out, &EVENT_BYTES, events(|count| count.bytes))
    }

    fn encode_flows(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let tables = || FAMILIES.into_iter().zip(self.flows);
        let by_protocol = |value: fn(FlowTable) -> [(&'static str, u64); 2]| {
            tables().flat_map(move |(family, table)| {
                value(table).map(|(protocol, value)| {
                    (
                        [("family", family_label(family)), ("protocol", protocol)],
                        value,
                    )
                })
            })
        };
        let entries = by_protocol(|table| {
            let tcp = table.entries.saturating_sub(table.udp_entries);
            [("TCP", tcp), ("UDP", table.udp_entries)]
        });
        let limits = by_protocol(|table| [("TCP", table.limit), ("UDP", table.udp_limit)]);
        let capacities =
            tables().map(|(family, table)| ([("family", family_label(family))], table.capacity));
        gauge(out, &FLOW_ENTRIES, entries)?;
        gauge(out, &FLOW_LIMIT, limits)?;
        gauge(out, &FLOW_CAPACITY, capacities)
    }

    fn encode_snat(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let addresses = |value: fn(&Snat) -> u64| {
            let address = |snat: &Snat| [("address", snat.address.to_string())];
            self.snat
                .iter()
                .map(move |snat| (address(snat), value(snat)))
        };
        gauge(out, &SNAT_FLOWS, addresses(|snat| snat.flows))?;
        gauge(out, &SNAT_MOST, addresses(|snat| snat.most_ports))?;
        gauge(out, &SNAT_PORTS, addresses(|snat| snat.ports))
    }

    fn encode_maps(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let entries = self.maps.iter().filter_map(|map| {
            let labels = [("map", map.name.as_str())];
            Some((labels, map.entries?))
        });
        let capacities = self
            .maps
            .iter()
            .map(|map| ([("map", map.name.as_str())], map.capacity));
        gauge(out, &MAP_ENTRIES, entries)?;
        gauge(out, &MAP_CAPACITY, capacities)?;
        single(out, &MAP_FAILURES, self.failures)
    }

    fn encode_agent(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let states = [
            ("serving", PortState::Serving),
            ("elsewhere", PortState::Elsewhere),
            ("failed", PortState::Failed),
        ];
        let ports = states.map(|(label, state)| {
            let ports = self.health_ports.get(&state).copied();
            ([("state", label)], ports.unwrap_or_default())
        });
        gauge(out, &HEALTH_CHECKS, ports)?;
        single_counter(out, &DROPPED_EVENTS, self.dropped_events)?;
        if let Some(api) = self.api {
            single(out, &SOURCE_OUTAGE, api.outage.as_secs_f64())?;
            single(out, &SOURCE_EVENT, api.last_event)?;
        }
        single(out, &RESIDENT, self.resident_bytes)
    }
}

/// A metric told at a scrape.
struct Metric {
    name: &'static str,
    unit: &'static str,
    help: &'static str,
}

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

const SERVICE_PACKETS: Metric = Metric {
    name: "service",
    unit: "packets",
    help: "Packets of a service port, from clients (forward) and from backends (reply). Up to an expiry pass late.",
};
const SERVICE_BYTES: Metric = Metric {
    name: "service",
    unit: "bytes",
    help: "Bytes of IP packet of a service port, from clients (forward) and from backends (reply). Up to an expiry pass late.",
};
const SERVICE_NEW: Metric = Metric {
    name: "service_new",
    unit: "flows",
    help: "Flows created for a service port.",
};
const SERVICE_ESTABLISHED: Metric = Metric {
    name: "service_established",
    unit: "flows",
    help: "Flows of a service port whose client proved itself.",
};
const SERVICE_ACTIVE: Metric = Metric {
    name: "service_active",
    unit: "flows",
    help: "Flows of a service port that are established and not closed, as of the last expiry pass.",
};
const BACKEND_PACKETS: Metric = Metric {
    name: "backend",
    unit: "packets",
    help: "Packets of a backend, to it (forward) and from it (reply); backends without any are left out. Up to an expiry pass late.",
};
const BACKEND_BYTES: Metric = Metric {
    name: "backend",
    unit: "bytes",
    help: "Bytes of IP packet of a backend, to it (forward) and from it (reply). Up to an expiry pass late.",
};
const BACKEND_NEW: Metric = Metric {
    name: "backend_new",
    unit: "flows",
    help: "Flows created with a backend.",
};
const BACKEND_ESTABLISHED: Metric = Metric {
    name: "backend_established",
    unit: "flows",
    help: "Flows of a backend whose client proved itself.",
};
const BACKEND_ACTIVE: Metric = Metric {
    name: "backend_active",
    unit: "flows",
    help: "Flows of a backend that are established and not closed, as of the last expiry pass.",
};
const REASON_PACKETS: Metric = Metric {
    name: "reason",
    unit: "packets",
    help: "Packets that were not balanced, by why, and what became of them: pass or drop.",
};
const REASON_BYTES: Metric = Metric {
    name: "reason",
    unit: "bytes",
    help: "Bytes of IP packet that were not balanced, by why, and what became of them.",
};
const EVENT_PACKETS: Metric = Metric {
    name: "event",
    unit: "packets",
    help: "Packets with which something happened: forwarded, delivered, answered, a flow created.",
};
const EVENT_BYTES: Metric = Metric {
    name: "event",
    unit: "bytes",
    help: "Bytes of IP packet with which something happened.",
};
const FLOW_ENTRIES: Metric = Metric {
    name: "flow_table",
    unit: "entries",
    help: "Entries of the established flow tables; a flow has two.",
};
const FLOW_LIMIT: Metric = Metric {
    name: "flow_table_limit",
    unit: "entries",
    help: "Entries beyond which new flows of a protocol are refused: all count for TCP, UDP's for UDP.",
};
const FLOW_CAPACITY: Metric = Metric {
    name: "flow_table_capacity",
    unit: "entries",
    help: "Entries the established flow tables have room for.",
};
const SNAT_FLOWS: Metric = Metric {
    name: "snat",
    unit: "flows",
    help: "Flows that have a port of an SNAT address, as of the last expiry pass.",
};
const SNAT_MOST: Metric = Metric {
    name: "snat_busiest_backend",
    unit: "ports",
    help: "Ports of an SNAT address taken by flows to the one backend most of them go to.",
};
const SNAT_PORTS: Metric = Metric {
    name: "snat_capacity",
    unit: "ports",
    help: "Ports of an SNAT address: so many flows can go to each backend.",
};
const MAP_ENTRIES: Metric = Metric {
    name: "map",
    unit: "entries",
    help: "Entries in use of a map of the data path; maps where that says nothing are left out.",
};
const MAP_CAPACITY: Metric = Metric {
    name: "map_capacity",
    unit: "entries",
    help: "Entries a map of the data path has room for; bytes for the ring buffer.",
};
const MAP_FAILURES: Metric = Metric {
    name: "map_read",
    unit: "failures",
    help: "Maps of the data path that this scrape could not read.",
};
const HEALTH_CHECKS: Metric = Metric {
    name: "health_check",
    unit: "ports",
    help: "Services with a health-check node port, by who listens on it: we, somebody else, nobody.",
};
const DROPPED_EVENTS: Metric = Metric {
    name: "kubernetes_dropped",
    unit: "events",
    help: "Kubernetes Events that were not sent: too many at once, or the API refused them.",
};
const SOURCE_OUTAGE: Metric = Metric {
    name: "source_outage",
    unit: "seconds",
    help: "For how long the Kubernetes API could not be followed; 0 while it is.",
};
const SOURCE_EVENT: Metric = Metric {
    name: "source_last_event_timestamp",
    unit: "seconds",
    help: "When the Kubernetes API last told of an object, in seconds since 1970.",
};
const RESIDENT: Metric = Metric {
    name: "agent_resident_memory",
    unit: "bytes",
    help: "Memory the agent keeps in RAM.",
};

fn counter<S: EncodeLabelSet>(
    out: &mut DescriptorEncoder<'_>,
    metric: &Metric,
    samples: impl IntoIterator<Item = (S, u64)>,
) -> fmt::Result {
    let unit = Unit::Other(metric.unit.into());
    let kind = MetricType::Counter;
    let mut out = out.encode_descriptor(metric.name, metric.help, Some(&unit), kind)?;
    for (labels, value) in samples {
        ConstCounter::new(value).encode(out.encode_family(&labels)?)?;
    }
    Ok(())
}

fn gauge<S: EncodeLabelSet>(
    out: &mut DescriptorEncoder<'_>,
    metric: &Metric,
    samples: impl IntoIterator<Item = (S, u64)>,
) -> fmt::Result {
    let unit = Unit::Other(metric.unit.into());
    let kind = MetricType::Gauge;
    let mut out = out.encode_descriptor(metric.name, metric.help, Some(&unit), kind)?;
    for (labels, value) in samples {
        ConstGauge::new(value).encode(out.encode_family(&labels)?)?;
    }
    Ok(())
}

/// A gauge without labels.
fn single(
    out: &mut DescriptorEncoder<'_>,
    metric: &Metric,
    value: impl EncodeGaugeValue,
) -> fmt::Result {
    let unit = Unit::Other(metric.unit.into());
    let kind = MetricType::Gauge;
    let out = out.encode_descriptor(metric.name, metric.help, Some(&unit), kind)?;
    ConstGauge::new(value).encode(out)
}

/// A counter without labels.
fn single_counter(out: &mut DescriptorEncoder<'_>, metric: &Metric, value: u64) -> fmt::Result {
    let unit = Unit::Other(metric.unit.into());
    let kind = MetricType::Counter;
    let out = out.encode_descriptor(metric.name, metric.help, Some(&unit), kind)?;
    ConstCounter::new(value).encode(out)
}

/// Labels out of `namespace/name:port/PROTOCOL/FAMILY`.
fn service_labels(name: &str) -> [(&'static str, &str); 5] {
    let (rest, family) = name.rsplit_once('/').unwrap_or((name, ""));
    let (rest, protocol) = rest.rsplit_once('/').unwrap_or((rest, ""));
    let (object, port) = rest.split_once(':').unwrap_or((rest, ""));
    let (namespace, service) = object.split_once('/').unwrap_or(("", object));
    [
        ("namespace", namespace),
        ("service", service),
        ("port", port),
        ("protocol", protocol),
        ("family", family),
    ]
}

const fn directions(traffic: &Traffic) -> [(&'static str, Tally); 2] {
    [("forward", traffic.forward), ("reply", traffic.reply)]
}

const fn family_label(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_labels() {
        for (name, expected) in [
            (
                "default/web:http/TCP/IPv4",
                ["default", "web", "http", "TCP", "IPv4"],
            ),
            ("a/b:/UDP/IPv6", ["a", "b", "", "UDP", "IPv6"]),
            ("odd", ["", "odd", "", "", ""]),
        ] {
            assert_eq!(service_labels(name).map(|(_, value)| value), expected);
        }
    }
}
