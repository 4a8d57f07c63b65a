use std::{collections::BTreeSet, sync::Arc};

use lb_common::{
    reason::{Counter, Event, Reason},
    traffic::{Tally, Traffic},
};

use super::{
    reading::{FlowTable, MapUse, Snat, Used},
    *,
};
use crate::{
    diff::diff,
    pressure::Table,
    snapshot::{ObjectName, Subject},
    view::{counters::counters, fixture},
    watch::Contacted,
};

/// Metrics with no unit: facts, not amounts.
const WITHOUT_UNIT: [&str; 2] = ["sluice_build", "sluice_source_complete"];

#[derive(Debug)]
struct Fixed(Reading);

impl Collector for Fixed {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.0.encode(&mut encoder)
    }
}

fn tally(packets: u64) -> Tally {
    Tally {
        packets,
        bytes: packets * 100,
    }
}

fn reading() -> Reading {
    let traffic = |packets| Traffic {
        forward: tally(packets),
        reply: tally(packets - 1),
        new_flows: 3,
        established: 2,
    };
    let mut tallies = vec![Tally::default(); Counter::CAPACITY as usize];
    for (counter, packets) in [
        (Counter::Reason(Reason::NotOurs), 7),
        (Counter::Reason(Reason::SourceRange), 8),
        (Counter::Event(Event::XdpForwarded), 9),
    ] {
        tallies[counter.index() as usize] = tally(packets);
    }
    let mut counts = counters(&tallies);
    counts.retain(|count| count.packets != 0);
    let used = |name: &str, packets| Used {
        what: Arc::from(name),
        traffic: traffic(packets),
        active: 1,
    };
    Reading {
        services: vec![
            used("default/web:http/TCP/IPv4", 1_001),
            used("kube-system/dns:/UDP/IPv6", 11),
        ],
        backends: vec![Used {
            what: "[2001:db8::5]:8080".parse().expect("an endpoint"),
            traffic: traffic(21),
            active: 1,
        }],
        counters: counts,
        flows: [(100, 1), (50, 2)].map(|(entries, udp_entries)| FlowTable {
            entries,
            udp_entries,
            limit: 960,
            udp_limit: 512,
            capacity: 1_024,
        }),
        snat: vec![Snat {
            address: "192.0.2.9".parse().expect("an address"),
            flows: 30,
            most_ports: 20,
            ports: 64_512,
        }],
        maps: vec![
            MapUse {
                name: "services".into(),
                entries: Some(2),
                capacity: 65_536,
            },
            MapUse {
                name: "scratch".into(),
                entries: None,
                capacity: 2,
            },
        ],
        failures: 0,
        health_ports: [(PortState::Serving, 2), (PortState::Elsewhere, 1)].into(),
        dropped_events: 6,
        api: Some(Contacted {
            outage: Duration::from_millis(1_500),
            last_event: 1_700_000_000.25,
        }),
        resident_bytes: 12_345_678,
    }
}

/// Everything the agent counts, once, and a fixed reading.
fn exposition() -> String {
    let mut registry = Registry::with_prefix("sluice");
    let agent = Agent::new(&mut registry);
    registry.register_collector(Box::new(Fixed(reading())));
    let metrics = Metrics(Arc::new(Inner {
        registry,
        agent,
        data_path: Arc::default(),
    }));
    let without = WithoutLocal {
        internal: 1,
        external: 2,
    };
    metrics.planned(Duration::from_millis(3), without);
    let tables = fixture::contents().tables;
    let ops = diff(&TableSet::default(), &tables);
    metrics.applied(&ops, &tables, Duration::from_millis(5));
    metrics.apply_failed();
    metrics.programmed(&[Duration::from_millis(30), Duration::from_secs(2)]);
    metrics.resynced(false);
    metrics.resynced(true);
    let pass = Pass {
        deleted: 4,
        ..Pass::default()
    };
    metrics.expired(&pass, Duration::from_millis(1));
    let rejection = |object: &str, kind: Option<SubjectKind>| Rejection {
        object: object.into(),
        field: "spec".into(),
        message: "is odd".into(),
        subject: kind.map(|kind| Subject {
            kind,
            name: ObjectName::new("default", object),
        }),
    };
    metrics.rejected(&[
        rejection("a", Some(SubjectKind::Service)),
        rejection("a", Some(SubjectKind::Service)),
        rejection("b", Some(SubjectKind::Service)),
        rejection("c", None),
    ]);
    let room = Room {
        table: Table::Flows(crate::tables::Family::V4),
        used: 8,
        limit: 10,
    };
    metrics.pressed(&[(room, Level::Filling), (room, Level::Calm)]);
    metrics.source_complete(true);
    metrics.text().expect("text")
}

#[test]
fn exposition_is_as_written_down() {
    // Series of a family that the registry holds come in any order.
    let mut lines = Vec::new();
    for mut family in families(&exposition()) {
        if family.kind != "histogram" {
            family.samples.sort();
        }
        lines.push(format!("# {} {} {}", family.name, family.kind, family.unit));
        lines.append(&mut family.samples);
    }
    insta::assert_snapshot!(lines.join("\n"));
}

#[test]
fn names_help_and_units() {
    let catalogue: Vec<_> = families(&exposition())
        .into_iter()
        .map(|family| {
            format!(
                "{} | {} | {} | {}",
                family.name, family.kind, family.unit, family.help
            )
        })
        .collect();
    insta::assert_snapshot!(catalogue.join("\n"));
}

#[test]
fn every_metric_has_help_and_unit_and_stands_in_the_documentation() {
    let documentation = include_str!("../metrics.rs");
    for family in families(&exposition()) {
        let Family { name, .. } = &family;
        assert!(name.starts_with("sluice_"), "{name}");
        assert!(
            family.help.ends_with('.') && family.help.len() > 20,
            "{name}: help"
        );
        if WITHOUT_UNIT.contains(&name.as_str()) {
            assert_eq!(family.unit, "", "{name}");
        } else {
            assert!(!family.unit.is_empty(), "{name}: no unit");
            assert!(
                name.ends_with(&format!("_{}", family.unit)),
                "{name}: unit {}",
                family.unit
            );
        }
        let suffix = match family.kind.as_str() {
            "counter" => "_total",
            "info" => "_info",
            _ => "",
        };
        assert!(
            documentation.contains(&format!("`{name}{suffix}`")),
            "{name}{suffix} is not in the documentation of the module"
        );
        assert!(!family.samples.is_empty(), "{name}: no sample");
    }
}

#[test]
fn samples_are_well_formed_and_unique() {
    let text = exposition();
    assert!(text.ends_with("# EOF\n"));
    let mut seen = BTreeSet::new();
    for family in families(&text) {
        for sample in &family.samples {
            let (series, value) = sample.rsplit_once(' ').expect("a value");
            assert!(value.parse::<f64>().is_ok(), "{sample}");
            assert!(seen.insert(series.to_owned()), "{series} twice");
            let name = series.split('{').next().expect("a name");
            let suffix = name
                .strip_prefix(family.name.as_str())
                .expect("its family's name");
            let suffixes: &[&str] = match family.kind.as_str() {
                "counter" => &["_total"],
                "gauge" => &[""],
                "histogram" => &["_sum", "_count", "_bucket"],
                "info" => &["_info"],
                other => panic!("type {other}"),
            };
            assert!(suffixes.contains(&suffix), "{sample}");
        }
    }
}

/// A metric family, read back.
struct Family {
    name: String,
    help: String,
    kind: String,
    unit: String,
    samples: Vec<String>,
}

fn families(text: &str) -> Vec<Family> {
    let mut families: Vec<Family> = Vec::new();
    for line in text.lines() {
        let mut words = line.splitn(4, ' ');
        let mut next = || words.next().unwrap_or_default().to_owned();
        if let Some(sample) = Some(line).filter(|line| !line.starts_with('#')) {
            families
                .last_mut()
                .expect("a family")
                .samples
                .push(sample.into());
            continue;
        }
        let (_, keyword, name, rest) = (next(), next(), next(), next());
        match keyword.as_str() {
            "HELP" => families.push(Family {
                name,
                help: rest,
                kind: String::new(),
                unit: String::new(),
                samples: Vec::new(),
            }),
            "TYPE" => families.last_mut().expect("a family").kind = rest,
            "UNIT" => families.last_mut().expect("a family").unit = rest,
            "EOF" => {}
            other => panic!("{other}"),
        }
    }
    let names: BTreeSet<_> = families.iter().map(|family| &family.name).collect();
    assert_eq!(names.len(), families.len(), "each family once");
    families
}
