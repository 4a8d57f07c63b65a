use super::*;
use crate::view::{
    fixture::{self, Path, parse, tcp4},
    render::{Output, text_of},
};

#[test]
fn flows_as_a_table() {
    let flows = flows(&fixture::contents(), &Filter::default());
    let lines: Vec<_> = flows.iter().map(FlowLine::from).collect();
    insta::assert_snapshot!(text_of(&lines, Output::Table), @r#"
    PROTOCOL  CLIENT                FRONTEND           SNAT             BACKEND               STATE        IDLE  DRAINING  MODE        NEXT HOP               IDENTITY  SERVICE
    TCP       198.51.100.7:40000    192.0.2.1:80       10.0.0.100:1024  10.0.0.1:8080         established  5s           -  full-nat    10.0.0.254@eth1 / tcx  1234abcd  default/web:http/TCP/IPv4
    TCP       198.51.100.8:40000    192.0.2.1:80       -                10.0.0.1:8080         closed       5s           -  dnat        10.0.0.254@eth1 / tcx  00000042  default/web:http/TCP/IPv4
    UDP       [2001:db8:1::9]:5353  [2001:db8::53]:53  -                [2001:db8:2::1]:5300  embryonic/-  0s           -  dnat local  tcx / -                0000beef  kube-system/dns:dns/UDP/IPv6
    "#);
}

#[test]
fn a_flow_as_json_has_both_directions() {
    let filter = Filter {
        client: Some(parse("198.51.100.7")),
        ..Filter::default()
    };
    let flows = flows(&fixture::contents(), &filter);
    insta::assert_snapshot!(text_of(&flows, Output::Json));
}

#[test]
fn filters() {
    let endpoint = |text| Some(parse::<Endpoint>(text));
    let all = Filter::default;
    let cases = [
        ("none", all(), 3),
        (
            "part of a service's name",
            Filter {
                service: Some("web".into()),
                ..all()
            },
            2,
        ),
        (
            "another service",
            Filter {
                service: Some("db".into()),
                ..all()
            },
            0,
        ),
        (
            "a backend",
            Filter {
                backend: endpoint("10.0.0.1"),
                ..all()
            },
            2,
        ),
        (
            "a backend's port",
            Filter {
                backend: endpoint("10.0.0.1:8080"),
                ..all()
            },
            2,
        ),
        (
            "another port",
            Filter {
                backend: endpoint("10.0.0.1:8081"),
                ..all()
            },
            0,
        ),
        (
            "an IPv6 backend",
            Filter {
                backend: endpoint("[2001:db8:2::1]:5300"),
                ..all()
            },
            1,
        ),
        (
            "a client",
            Filter {
                client: endpoint("198.51.100.8"),
                ..all()
            },
            1,
        ),
        (
            "both must hold",
            Filter {
                client: endpoint("198.51.100.8"),
                service: Some("dns".into()),
                ..all()
            },
            0,
        ),
    ];
    for (name, filter, expected) in cases {
        assert_eq!(
            flows(&fixture::contents(), &filter).len(),
            expected,
            "{name}"
        );
    }
}

#[test]
fn an_endpoint_needs_an_address() {
    for bad in ["", "web", "10.0.0.1:", "10.0.0.1:99999", "2001:db8::1:x"] {
        let error = bad.parse::<Endpoint>().expect_err(bad);
        assert!(error.contains(bad), "{error}");
    }
}

#[test]
fn states_of_both_halves_become_one_word() {
    use state::{CLOSED, CONDEMNED, EMBRYONIC, ESTABLISHED, FIN, REPLIED};
    let path = Path {
        client: "198.51.100.7:1",
        frontend: "192.0.2.1:80",
        snat: "198.51.100.7:1",
        backend: "10.0.0.1:80",
    };
    let cases = [
        ("alike", ESTABLISHED, ESTABLISHED, "established"),
        ("answered", EMBRYONIC, REPLIED, "replied"),
        ("client ended", FIN, ESTABLISHED, "fin/established"),
        ("over", CLOSED, CLOSED, "closed"),
        (
            "the condemned bit is apart",
            ESTABLISHED | CONDEMNED,
            ESTABLISHED,
            "established",
        ),
    ];
    for (name, forward, reverse, expected) in cases {
        let halves = tcp4(Table::Established, &path, [forward, reverse], 1);
        let contents = Contents {
            halves: halves.into(),
            ..Contents::default()
        };
        let states: Vec<_> = flows(&contents, &Filter::default())
            .into_iter()
            .map(|flow| flow.state)
            .collect();
        assert_eq!(states, [expected], "{name}");
    }
}

#[test]
fn a_half_alone_is_still_a_flow() {
    let [forward, reverse] = fixture::contents().halves[..2] else {
        panic!("two halves")
    };
    for (name, half) in [("forward", forward), ("reverse", reverse)] {
        let contents = Contents {
            halves: vec![half],
            ..Contents::default()
        };
        let flows = flows(&contents, &Filter::default());
        let [flow] = &flows[..] else {
            panic!("{name}: {flows:?}")
        };
        assert_eq!(flow.client, parse("198.51.100.7:40000"), "{name}");
        assert_eq!(flow.frontend, parse("192.0.2.1:80"), "{name}");
        assert_eq!(flow.snat, Some(parse("10.0.0.100:1024")), "{name}");
        assert_eq!(flow.backend, parse("10.0.0.1:8080"), "{name}");
        assert_ne!(flow.forward.is_some(), flow.reverse.is_some(), "{name}");
    }
}

#[test]
fn halves_of_two_identities_are_two_flows() {
    let mut contents = fixture::contents();
    contents.halves.truncate(2);
    contents.halves[1].head = Head::new(7, state::ESTABLISHED, 0);
    assert_eq!(flows(&contents, &Filter::default()).len(), 2);
}

#[test]
fn a_flow_in_both_tables_is_one_and_established() {
    let mut contents = fixture::contents();
    contents.halves.truncate(2);
    let embryonic = contents.halves.clone().into_iter().map(|half| Half {
        table: Table::Embryonic,
        head: half.head.touched(state::EMBRYONIC, 0),
        ..half
    });
    contents.halves.splice(0..0, embryonic);
    let flows = flows(&contents, &Filter::default());
    let [flow] = &flows[..] else {
        panic!("{flows:?}")
    };
    assert_eq!(flow.state, "established");
}

#[test]
fn closed_and_embryonic_flows_are_not_active() {
    assert_eq!(active(&fixture::contents().halves), [(1, 1)].into());
}
