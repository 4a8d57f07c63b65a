//! What stays when other things change.

use super::*;

#[test]
fn ids_extents_and_epochs_stay_while_nothing_changes() {
    let three = || {
        [
            service("a", &["192.0.2.1"], &["80"]),
            service("b", &["192.0.2.2"], &["80"]),
            service("c", &["192.0.2.3"], &["80"]),
        ]
    };
    let slices = |b: &[&str]| {
        [
            slice("a_1", &["80"], &["10.1.0.1"]),
            slice("b_1", &["80"], b),
            slice("c_1", &["80"], &["10.1.0.3"]),
        ]
    };
    let first = plan_of(&snapshot(three(), slices(&["10.1.0.2"])), &node()).tables;
    let same = plan_after(&first, &snapshot(three(), slices(&["10.1.0.2"])), &node()).tables;
    assert_eq!(first, same);

    let [_, b, c] = three();
    let without_a = plan_after(&first, &snapshot([b, c], slices(&["10.1.0.2"])), &node()).tables;
    for id in [2, 3] {
        assert_eq!(without_a.services[&id], first.services[&id]);
    }
    let ids: Vec<_> = without_a.backends.keys().copied().collect();
    assert_eq!(ids, [2, 3]);

    let changed = plan_after(
        &first,
        &snapshot(three(), slices(&["10.1.0.2", "10.1.0.9"])),
        &node(),
    )
    .tables;
    assert_eq!(changed.services[&1], first.services[&1]);
    assert_eq!(changed.services[&2].epoch, first.services[&2].epoch + 1);
    assert!(
        !first
            .extents
            .contains_key(&changed.services[&2].cluster.element),
        "make before break"
    );
    assert_eq!(
        changed.backends[&4].endpoint,
        "10.1.0.9:80".parse::<SocketAddr>().expect("an endpoint")
    );
}

#[test]
fn ids_in_use_or_in_quarantine_are_not_handed_out() {
    let first = plan_of(&snapshot([web()], [web_slice()]), &node()).tables;
    let other = || {
        snapshot(
            [service("db", &["192.0.2.20"], &["5432"])],
            [slice("db_1", &["5432"], &["10.1.0.9"])],
        )
    };
    let quarantine = Quarantine {
        services: [2].into(),
        backends: [3, 4].into(),
        incarnations: [(5, 7)].into(),
        ..Quarantine::default()
    };
    let second = plan(&first, &other(), &node(), &quarantine).tables;
    assert_eq!(second.services.keys().copied().collect::<Vec<_>>(), [3]);
    assert_eq!(
        second
            .backends
            .iter()
            .map(|(id, b)| (*id, b.incarnation))
            .collect::<Vec<_>>(),
        [(5, 8)]
    );
    let third = plan(
        &second,
        &snapshot([web()], [web_slice()]),
        &node(),
        &Quarantine::default(),
    )
    .tables;
    assert_eq!(
        third.services.keys().copied().collect::<Vec<_>>(),
        [1],
        "free again"
    );
}

#[test]
fn service_ports_with_the_same_backends_share_an_extent() {
    let many = || service("web", &["192.0.2.10"], &["a:80", "b:81", "c:82"]);
    let same = slice(
        "web_1",
        &["a:8080", "b:8080", "c:9090"],
        &["10.1.0.1", "10.1.0.2"],
    );
    let tables = plan_of(&snapshot([many()], [same.clone()]), &node()).tables;
    assert_eq!(tables.services[&1].cluster, tables.services[&2].cluster);
    assert_ne!(tables.services[&1].cluster, tables.services[&3].cluster);
    assert_eq!(tables.extents.len(), 2);
    assert_eq!(tables.backends.len(), 4);
    let more = service("zzz", &["192.0.2.11"], &["a:80"]);
    let joined = slice("zzz_1", &["a:9090"], &["10.1.0.1", "10.1.0.2"]);
    let later = plan_after(&tables, &snapshot([many(), more], [same, joined]), &node()).tables;
    assert_eq!(
        later.extents.len(),
        2,
        "a newcomer joins the extent which is there"
    );
}

#[test]
fn a_corrupted_extent_is_written_anew_elsewhere() {
    let good = plan_of(&snapshot([web()], [web_slice()]), &node()).tables;
    let mut dump = good.clone();
    let element = good.services[&1].cluster.element;
    let mut table = good.extents[&element].to_vec();
    table[7] = 0;
    dump.extents.insert(element, table.into());
    let plan = plan(
        &dump,
        &snapshot([web()], [web_slice()]),
        &node(),
        &Quarantine::default(),
    );
    let moved = plan.tables.services[&1].cluster;
    assert_ne!(moved.element, element);
    assert_eq!(plan.tables.extents[&moved.element], good.extents[&element]);
}

#[test]
fn who_loses_a_frontend_gets_a_new_epoch() {
    let planned = |previous: &TableSet, blue: &[&str], green: &[&str]| {
        let services = [
            service("blue", blue, &["53/UDP"]),
            service("green", green, &["53/UDP"]),
        ];
        let slices = [
            slice("blue_1", &["53/UDP"], &["10.1.0.1"]),
            slice("green_1", &["53/UDP"], &["10.1.0.2"]),
        ];
        plan_after(previous, &snapshot(services, slices), &node()).tables
    };
    let of_blue = ["192.0.2.1", "192.0.2.8"];
    let first = planned(&TableSet::default(), &of_blue, &["192.0.2.9"]);
    for (name, blue, green, raised) in [
        (
            "nothing",
            of_blue.as_slice(),
            ["192.0.2.9"].as_slice(),
            [0, 0],
        ),
        ("moved", &["192.0.2.8"], &["192.0.2.1", "192.0.2.9"], [1, 0]),
        (
            "moved for another",
            &["192.0.2.9", "192.0.2.8"],
            &["192.0.2.1"],
            [1, 1],
        ),
        ("dropped", &["192.0.2.8"], &["192.0.2.9"], [1, 0]),
        ("new", &of_blue, &["192.0.2.9", "192.0.2.10"], [0, 0]),
    ] {
        let then = planned(&first, blue, green);
        let epochs = [1, 2].map(|id| then.services[&id].epoch - first.services[&id].epoch);
        assert_eq!(epochs, raised, "{name}");
        assert_eq!(planned(&then, blue, green), then, "{name}, again");
    }
}

#[test]
fn a_planner_remembers_its_tables_and_raises_epochs_once() {
    let snapshot = snapshot([web()], [web_slice()]);
    let mut planner = Planner::default();
    let mut next = |previous: &TableSet, raise: bool| {
        if raise {
            planner.raise_epochs();
        }
        planner
            .plan(previous, &snapshot, &node(), &Quarantine::default())
            .tables
    };
    let first = next(&TableSet::default(), false);
    let second = next(&first, false);
    assert_eq!(first, second);
    let element = first.services[&1].cluster.element;
    assert!(Arc::ptr_eq(
        &first.extents[&element],
        &second.extents[&element]
    ));
    let third = next(&second, true);
    assert_eq!(third.services[&1].epoch, first.services[&1].epoch + 1);
    assert_eq!(next(&third, false), third);
}

#[test]
fn order_of_the_input_does_not_matter() {
    let objects =
        || (0..20).map(|i| service(&format!("s{i}"), &[&format!("192.0.2.{}", i / 2)], &["80"]));
    let slices = || {
        (0..20).map(|i| {
            slice(
                &format!("s{i}_1"),
                &["80"],
                &[&format!("10.1.0.{}", i % 7 + 1)],
            )
        })
    };
    let forth = plan_of(&snapshot(objects(), slices()), &node());
    let back = plan_of(&snapshot(objects().rev(), slices().rev()), &node());
    assert_eq!(forth, back);
    assert_eq!(forth.rejected.len(), 10);
}

#[test]
fn a_service_whose_slice_could_not_be_read_at_the_start_keeps_its_backends() {
    let web = || service("web", &["192.0.2.1"], &["80"]);
    let with = |endpoints: &[&str]| snapshot([web()], [slice("web_1", &["80"], endpoints)]);
    let before = plan_of(&with(&["10.1.0.1"]), &node()).tables;
    let name = before.services[&1].name.clone();
    for (case, now, expected) in [
        ("no slice", snapshot([web()], []), &before),
        (
            "another slice",
            with(&["10.1.0.2"]),
            &plan_after(&before, &with(&["10.1.0.2"]), &node()).tables,
        ),
    ] {
        let mut after = plan_after(&before, &now, &node()).tables;
        keep(&before, &mut after, &[name.clone()].into());
        assert_eq!(&after, expected, "{case}");
    }
}

#[test]
fn what_could_not_be_read_at_the_start_is_kept() {
    let restricted = |object: ServiceObject, range: &str| ServiceObject {
        restricts_sources: true,
        source_ranges: vec![range.parse().expect("a network")],
        ..object
    };
    let both = snapshot(
        [
            restricted(service("a", &["192.0.2.1"], &["80"]), "10.0.0.0/8"),
            service("b", &["192.0.2.2"], &["80"]),
        ],
        [
            slice("a_1", &["80"], &["10.1.0.1"]),
            slice("b_1", &["80"], &["10.1.0.2"]),
        ],
    );
    let before = plan_of(&both, &node()).tables;
    let lost = before.services[&1].name.clone();
    // The file of "a" is broken, "b" changes, "c" is new.
    let now = snapshot(
        [
            service("b", &["192.0.2.2"], &["80"]),
            restricted(service("c", &["192.0.2.3"], &["80"]), "10.0.0.0/9"),
        ],
        [
            slice("b_1", &["80"], &["10.1.0.2", "10.1.0.4"]),
            slice("c_1", &["80"], &["10.1.0.3"]),
        ],
    );
    let mut after = plan_after(&before, &now, &node()).tables;
    assert!(!after.services.contains_key(&1), "the plan alone drops it");
    keep(&before, &mut after, &[lost].into());
    assert_eq!(after.services.len(), 3);
    assert_eq!(after.services[&1], before.services[&1]);
    let ranges: Vec<_> = after.source_ranges.iter().collect();
    let ranges: Vec<_> = ranges.iter().map(|(set, n)| format!("{set} {n}")).collect();
    assert_eq!(
        ranges,
        ["1 10.0.0.0/8", "2 10.0.0.0/9"],
        "and whom it admits"
    );
    let kept = |tables: &TableSet| -> Vec<_> {
        let frontends = tables.frontends.iter();
        frontends
            .filter(|(_, record)| record.service == 1)
            .map(|(id, _)| *id)
            .collect()
    };
    assert_eq!(kept(&after), kept(&before));
    assert_eq!(after.addresses.len(), 3);
    assert_eq!(violations(&after), [] as [String; 0]);

    let mut other = plan_after(&before, &now, &node()).tables;
    let untouched = other.clone();
    keep(
        &before,
        &mut other,
        &["default/other:80/TCP/IPv4".to_owned()].into(),
    );
    assert_eq!(other, untouched, "only what is named");
}
