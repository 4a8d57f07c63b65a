//! Frontends that several Services ask for.

use super::*;

#[test]
fn a_frontend_belongs_to_the_older_service() {
    let claim = |name: &str, created: Option<i64>| ServiceObject {
        created,
        ..service(name, &["192.0.2.10"], &["80"])
    };
    let slices = || {
        [
            slice("a_1", &["1"], &["10.1.0.1"]),
            slice("b_1", &["1"], &["10.1.0.2"]),
        ]
    };
    let winner = |plan: &Plan| {
        plan.tables.services[&plan
            .tables
            .frontends
            .values()
            .next()
            .expect("a frontend")
            .service]
            .name
            .clone()
    };
    let b_holds = plan_of(&snapshot([claim("b", None)], slices()), &node()).tables;
    let nothing = TableSet::default();
    for (name, a, b, previous, expected, rejection) in [
        (
            "older",
            Some(20),
            Some(10),
            &nothing,
            "b",
            "Service default/a: status.loadBalancer.ingress[0].ip: 192.0.2.10:80/TCP belongs to Service default/b, which is older",
        ),
        (
            "older, against the holder",
            Some(10),
            Some(20),
            &b_holds,
            "a",
            "Service default/b: status.loadBalancer.ingress[0].ip: 192.0.2.10:80/TCP belongs to Service default/a, which is older",
        ),
        (
            "holder",
            None,
            None,
            &b_holds,
            "b",
            "Service default/a: status.loadBalancer.ingress[0].ip: 192.0.2.10:80/TCP belongs to Service default/b",
        ),
        (
            "name",
            None,
            None,
            &nothing,
            "a",
            "Service default/b: status.loadBalancer.ingress[0].ip: 192.0.2.10:80/TCP belongs to Service default/a",
        ),
        (
            "same age, holder",
            Some(10),
            Some(10),
            &b_holds,
            "b",
            "Service default/a: status.loadBalancer.ingress[0].ip: 192.0.2.10:80/TCP belongs to Service default/b",
        ),
        (
            "a time beats none",
            None,
            Some(10),
            &nothing,
            "b",
            "Service default/a: status.loadBalancer.ingress[0].ip: 192.0.2.10:80/TCP belongs to Service default/b, which has a creation time",
        ),
    ] {
        let plan = plan_after(
            previous,
            &snapshot([claim("a", a), claim("b", b)], slices()),
            &node(),
        );
        assert_eq!(
            winner(&plan),
            format!("default/{expected}:80/TCP/IPv4"),
            "{name}"
        );
        assert_eq!(rejections(&plan), [rejection], "{name}");
    }
    let mut second = claim("b", None);
    second.ports = service("b", &[], &["http:80", "https:443"]).ports;
    let plan = plan_of(&snapshot([claim("a", None), second], slices()), &node());
    assert_eq!(
        plan.tables.frontends.len(),
        2,
        "the loser's other frontends go on"
    );
}
