//! The life of Services: endpoints, ports, types and labels change while clients watch.

use lb_tests::conformance::{
    agents::Agents,
    cluster::{Cluster, Side},
    objects::{Service, set},
    probe::Peer::{Any, Hairpin, Kept, Masqueraded},
    record::Record,
    targets::Targets,
};
use serde_json::json;

use crate::Scenario;

pub(crate) const SCENARIO: Scenario = Scenario {
    name: "services",
    rows: &[
        "S02", "S03", "S04", "S05", "S06", "S07", "S08", "S11", "S12", "S13", "S14", "S15", "S16",
        "S17", "S20", "S30", "S31", "S46", "S47", "S49", "G05", "G06", "G07", "G12", "H07", "H08",
        "H09", "H10", "H11", "H12", "H14", "H15", "D11", "D12", "D13", "D14", "D16", "E14", "E15",
        "H92", "H93", "H94", "E02", "E03", "E04", "E05", "E06",
    ],
    run,
};

fn run(record: &Record, cluster: &Cluster, agents: &mut Agents<'_>) {
    endpoints_come_and_go(record, cluster, agents);
    ports(record, cluster, agents);
    slices(record, cluster, agents);
    services_come_and_go(record, cluster, agents);
    types(record, cluster, agents);
    labels(record, cluster, agents);
    addresses(record, cluster, agents);
    families(record, cluster, agents);
}

fn endpoints_come_and_go(record: &Record, cluster: &Cluster, agents: &Agents<'_>) {
    let (near, far, outside) = (
        cluster.pod("a3"),
        cluster.pod("b3"),
        cluster.outside(Side::A),
    );
    let basic = Service::new("basic", 1).web();
    for by in [&[][..], &["a1"], &["a1", "b1"], &["b1"], &[]] {
        agents.put(&[&basic.clone().on(by)]);
        record.row("S02", || {
            if by.is_empty() {
                near.refused(&basic.cluster());
                outside.refused(&basic.cluster());
            } else {
                near.served(&basic.cluster(), by, Kept);
                outside.served(&basic.cluster(), by, Masqueraded);
            }
        });
    }
    let one = basic.clone().on(&["a1"]);
    agents.put(&[&one]);
    record.row("H07", || near.served(&one.cluster(), &["a1"], Kept));
    record.row("S05", || {
        near.served(&one.cluster(), &["a1"], Kept);
        far.served(&one.cluster(), &["a1"], Kept);
    });
    record.rows(&["S06", "H08"], || {
        cluster.pod("a1").served(&one.cluster(), &["a1"], Hairpin);
    });
    let all = ["a1", "a2", "b1", "b2"];
    let several = basic.clone().on(&all);
    agents.put(&[&several]);
    record.row("H09", || near.served(&several.cluster(), &all, Kept));
    let fewer = basic.on(&["a1", "a2", "b1"]);
    agents.put(&[&fewer]);
    for (row, targets) in [
        ("D12", fewer.cluster().v4().tcp()),
        ("D13", fewer.cluster().v4().udp()),
        ("E14", fewer.cluster().v6().tcp()),
        ("E15", fewer.cluster().v6().udp()),
    ] {
        record.row(row, || near.served(&targets, &["a1", "a2", "b1"], Kept));
    }
}

fn ports(record: &Record, cluster: &Cluster, agents: &Agents<'_>) {
    let (near, outside) = (cluster.pod("a3"), cluster.outside(Side::A));
    for (pod, port) in [
        ("a1", 100),
        ("b1", 101),
        ("a1", 8443),
        ("b1", 8443),
        ("b1", 8081),
    ] {
        cluster.serve(pod, port);
    }
    for port in [53, 5353] {
        cluster.serve("a1", port);
        cluster.serve("b1", port);
    }
    let one = Targets::tcp as fn(Targets) -> Targets;
    let multi = Service::new("multi", 2).tcp("one", 80, 1).tcp("two", 81, 1);
    let split = multi.clone().slice(&[("one", 100)]).on(&["a1"]);
    let split = split.slice(&[("two", 101)]).on(&["b1"]);
    agents.put(&[&split]);
    let (first, second) = (of_port(&multi, 80), of_port(&multi, 81));
    record.row("S03", || {
        near.served(&one(first.clone()), &["a1"], Kept);
        near.served(&one(second.clone()), &["b1"], Kept);
    });
    agents.put(&[&multi.clone().slice(&[("two", 101)]).on(&["b1"])]);
    record.row("S03", || {
        near.refused(&first);
        near.served(&second, &["b1"], Kept);
    });
    let single = multi.clone().without_port("two");
    for (service, second_serves) in [
        (single.clone().slice(&[("one", 100)]).on(&["a1"]), false),
        (split, true),
        (single.slice(&[("one", 100)]).on(&["a1"]), false),
    ] {
        agents.put(&[&service]);
        record.row("S04", || {
            near.served(&first, &["a1"], Kept);
            if second_serves {
                near.served(&second, &["b1"], Kept);
            } else {
                near.refused(&second);
            }
        });
    }
    let both = ["a1", "b1"];
    let named = Service::new("named", 3).tcp("http", 80, 8080);
    let named = named.slice(&[("http", 8080)]).on(&["a1"]);
    let named = named.slice(&[("http", 8081)]).on(&["b1"]);
    let secure = Service::new("secure", 4).tcp("https", 443, 8443).on(&both);
    let dns = Service::new("dns", 5)
        .tcp("tcp", 53, 5353)
        .udp("udp", 53, 53)
        .on(&both);
    agents.put(&[&named, &secure, &dns]);
    record.row("S49", || {
        near.served(&named.cluster(), &both, Kept);
        outside.served(&named.cluster(), &both, Masqueraded);
    });
    record.row("H10", || near.served(&secure.cluster(), &both, Kept));
    record.row("H11", || near.served(&dns.cluster().tcp(), &both, Kept));
    record.row("H12", || near.served(&dns.cluster().udp(), &both, Kept));
    let as_udp = dns.cluster().udp().port(443);
    let secure_at = |targets: Targets| {
        let cluster = secure.cluster();
        let addresses = cluster.0.iter().map(|target| target.address);
        let targets = targets.0.into_iter().zip(addresses);
        Targets(
            targets
                .map(|(mut target, address)| {
                    target.address = address;
                    target
                })
                .collect(),
        )
    };
    record.row("H14", || near.refused(&secure_at(as_udp)));
    record.row("H15", || near.refused(&dns.cluster().tcp().port(443)));
}

fn of_port(service: &Service, port: u16) -> Targets {
    let mut targets = service.cluster();
    targets.0.retain(|target| target.address.port() == port);
    targets
}

fn slices(record: &Record, cluster: &Cluster, agents: &Agents<'_>) {
    let near = cluster.pod("a3");
    let ports = Service::new("by-hand", 6)
        .tcp("one", 80, 1)
        .tcp("two", 81, 1);
    let ports = ports.slice(&[("one", 8080)]).on(&["a1"]);
    let ports = ports.slice(&[("two", 8080)]).on(&["b1"]);
    let spread = Service::new("spread", 7).web();
    let spread = spread
        .slice(&[("http", 8080), ("echo", 8080)])
        .on(&["a1", "b1"]);
    // Endpoint b1 is in both.
    let spread = spread
        .slice(&[("http", 8080), ("echo", 8080)])
        .on(&["b1", "b2"]);
    let mirrored = Service::new("mirrored", 8).web().on(&["a2", "b2"]);
    let mut objects = mirrored.objects();
    for object in objects.iter_mut().skip(1) {
        let labels = object.pointer_mut("/metadata/labels").expect("labels");
        let manager = "endpointslicemirroring-controller.k8s.io";
        set(labels, "endpointslice.kubernetes.io/managed-by", manager);
        // Nobody knows the nodes of addresses written by hand.
        let endpoints = object.get_mut("endpoints").and_then(|e| e.as_array_mut());
        for endpoint in endpoints.expect("endpoints") {
            set(endpoint, "nodeName", json!(null));
        }
    }
    agents.object("mirrored", objects);
    agents.put(&[&ports, &spread]);
    record.row("G05", || {
        near.served(&of_port(&ports, 80), &["a1"], Kept);
        near.served(&of_port(&ports, 81), &["b1"], Kept);
    });
    record.row("G06", || {
        near.served(&spread.cluster(), &["a1", "b1", "b2"], Kept);
    });
    record.row("G07", || {
        near.served(&mirrored.cluster(), &["a2", "b2"], Any);
    });
}

fn services_come_and_go(record: &Record, cluster: &Cluster, agents: &Agents<'_>) {
    let (near, outside) = (cluster.pod("a3"), cluster.outside(Side::A));
    let all = ["a1", "a2", "b1"];
    let services = [(9, "up-1"), (10, "up-2"), (11, "up-3")]
        .map(|(number, name)| Service::new(name, number).web().on(&all));
    let [first, second, third] = &services;
    agents.put(&[first, second]);
    let serves = |service: &Service| near.served(&service.cluster(), &all, Kept);
    record.rows(&["S07", "D11"], || {
        serves(first);
        serves(second);
    });
    agents.delete(&["up-1"]);
    record.rows(&["S07", "D11"], || {
        near.unserved(&first.cluster());
        serves(second);
    });
    agents.put(&[third]);
    record.row("S07", || {
        serves(second);
        serves(third);
    });
    // The same name again, at another address.
    agents.delete(&["up-2", "up-3"]);
    let again = Service::new("up-2", 12).web().on(&all);
    agents.put(&[&again]);
    record.row("S08", || {
        serves(&again);
        near.unserved(&second.cluster());
    });
    let doomed = Service::new("doomed", 13).web().kind("NodePort").on(&all);
    agents.put(&[&doomed]);
    let (tcp, udp) = (
        doomed.node_port(Side::A).tcp(),
        doomed.node_port(Side::A).udp(),
    );
    record.row("D14", || outside.served(&tcp, &all, Masqueraded));
    record.row("D16", || outside.served(&udp, &all, Masqueraded));
    agents.delete(&["doomed"]);
    record.row("D14", || outside.unserved(&tcp));
    record.row("D16", || outside.unserved(&udp));
    record.row("S20", || {
        // Anyone may listen there now.
        let port = doomed.node_port_number(80);
        cluster.serve("node-a", port);
        outside.served(&doomed.node_port(Side::A), &["node-a"], Kept);
        cluster.silence("node-a", port);
    });
}

fn types(record: &Record, cluster: &Cluster, agents: &Agents<'_>) {
    let (near, far, outside) = (
        cluster.pod("a3"),
        cluster.pod("b3"),
        cluster.outside(Side::A),
    );
    let both = ["a1", "b1"];
    let ported = Service::new("ported", 14).web().kind("NodePort").on(&both);
    agents.put(&[&ported]);
    record.row("S11", || {
        near.served(&ported.cluster(), &both, Kept);
        outside.served(&ported.cluster(), &both, Masqueraded);
        for side in Side::BOTH {
            let second = ported.node_port_at(side, |v4| side.second_address(v4));
            for way in [ported.node_port(side), second] {
                for client in [&near, &far, &outside] {
                    client.served(&way, &both, Any);
                }
            }
        }
    });
    let plain = Service::new("grows", 15).tcp("http", 80, 8080).on(&both);
    let tcp = plain.clone().kind("NodePort");
    let more = tcp.clone().udp("echo", 80, 8080);
    agents.put(&[&plain]);
    record.row("S13", || {
        near.served(&plain.cluster(), &both, Kept);
        outside.unserved(&tcp.node_port(Side::A));
    });
    agents.put(&[&tcp]);
    record.row("S13", || {
        outside.served(&tcp.node_port(Side::A), &both, Masqueraded);
        outside.unserved(&more.node_port(Side::A).udp());
    });
    agents.put(&[&more]);
    record.row("S13", || {
        assert_eq!(tcp.node_port_number(80), more.node_port_number(80));
        outside.served(&more.node_port(Side::A), &both, Masqueraded);
        near.served(&more.cluster(), &both, Kept);
    });
    let base = Service::new("alias", 16).web().on(&both);
    let alias = base
        .clone()
        .kind("ExternalName")
        .spec("externalName", "www.example.com");
    let nowhere = || {
        near.unserved(&base.cluster());
        outside.unserved(&base.clone().kind("NodePort").node_port(Side::A));
    };
    let inside = base.clone();
    let node_port = base.clone().kind("NodePort");
    for (rows, service, open) in [
        (&["S14", "S15"][..], &alias, false),
        (&["S14", "S16"], &inside, true),
        (&["S16"], &alias, false),
        (&["S15", "S17"], &node_port, true),
        (&["S17"], &alias, false),
    ] {
        agents.put(&[service]);
        record.rows(rows, || {
            if open {
                near.served(&service.cluster(), &both, Kept);
            } else {
                nowhere();
            }
        });
        if rows.contains(&"S15") && open {
            record.row("S15", || {
                outside.served(&service.node_port(Side::A), &both, Masqueraded);
            });
        }
    }
    let shared = Service::new("shared", 17).web().on(&both);
    for (without, tcp, udp) in [
        ("none", true, true),
        ("echo", true, false),
        ("http", false, true),
    ] {
        agents.put(&[&shared.clone().without_port(without)]);
        record.row("S46", || {
            for (targets, serves) in [(shared.cluster().tcp(), tcp), (shared.cluster().udp(), udp)]
            {
                if serves {
                    near.served(&targets, &both, Kept);
                } else {
                    near.refused(&targets);
                }
            }
        });
    }
}

fn labels(record: &Record, cluster: &Cluster, agents: &Agents<'_>) {
    let near = cluster.pod("a3");
    let both = ["a1", "b1"];
    for (row, key, value, number) in [
        (
            "S30",
            "service.kubernetes.io/service-proxy-name",
            "another",
            18,
        ),
        ("S31", "service.kubernetes.io/headless", "", 19),
    ] {
        let open = Service::new(&format!("labelled-{number}"), number)
            .web()
            .on(&both);
        let labelled = open.clone().label(key, value);
        // From the start, taken away, put on, taken away again.
        for (service, ours) in [
            (&labelled, false),
            (&open, true),
            (&labelled, false),
            (&open, true),
        ] {
            agents.put(&[service]);
            record.row(row, || {
                if ours {
                    near.served(&service.cluster(), &both, Kept);
                } else {
                    near.unserved(&service.cluster());
                }
            });
        }
    }
}

fn addresses(record: &Record, cluster: &Cluster, agents: &Agents<'_>) {
    let (near, outside) = (cluster.pod("a3"), cluster.outside(Side::A));
    let both = ["a1", "b1"];
    let outer = Service::new("outer", 20)
        .web()
        .on(&both)
        .spec("externalIPs", json!(["198.51.100.20", "2001:DB8:E::0014"]));
    let funny = Service::new("funny", 21).web().on(&both);
    let zeros = json!(["010.096.000.021", "2001:0db8:0096::0015"]);
    let funny = funny
        .spec("clusterIPs", zeros)
        .spec("clusterIP", "010.096.000.021");
    let pending = Service::new("pending", 22)
        .tcp("http", 80, 8080)
        .udp("echo", 80, 8080);
    let pending = pending.kind("LoadBalancer").pending().on(&both);
    agents.put(&[&outer, &funny, &pending]);
    record.row("S12", || {
        near.served(&outer.outer(), &both, Masqueraded);
        outside.served(&outer.outer(), &both, Masqueraded);
    });
    record.row("G12", || near.served(&funny.cluster(), &both, Kept));
    record.row("S47", || {
        near.served(&pending.cluster(), &both, Kept);
        near.served(&pending.node_port(Side::A), &both, Masqueraded);
    });
    let balanced = Service::new("modes", 23)
        .web()
        .kind("LoadBalancer")
        .on(&both);
    for (row, service, served) in [
        ("H92", balanced.clone().ingress_mode("Proxy"), false),
        ("H93", balanced.clone().ingress_mode("VIP"), true),
        ("H92", balanced.clone().ingress_mode("Proxy"), false),
        ("H94", balanced, true),
    ] {
        agents.put(&[&service]);
        record.row(row, || {
            for client in [&near, &outside] {
                if served {
                    client.served(&service.balancer(), &both, Masqueraded);
                } else {
                    client.unserved(&service.balancer());
                }
            }
            near.served(&service.cluster(), &both, Kept);
        });
    }
}

fn families(record: &Record, cluster: &Cluster, agents: &Agents<'_>) {
    let (near, outside) = (cluster.pod("a3"), cluster.outside(Side::A));
    let both = ["a1", "b1"];
    let whole = Service::new("families", 24)
        .web()
        .kind("NodePort")
        .on(&both);
    for (rows, families) in [
        (&["E02", "E03"][..], &["IPv4"][..]),
        (&["E04"], &["IPv6"]),
        (&["E05"], &["IPv4", "IPv6"]),
        (&["E06"], &["IPv6", "IPv4"]),
    ] {
        let service = whole.clone().families(families);
        agents.put(&[&service]);
        record.rows(rows, || {
            near.served(&service.cluster(), &both, Kept);
            outside.served(&service.node_port(Side::A), &both, Masqueraded);
            if families.len() == 1 {
                let v4 = families.contains(&"IPv4");
                let other = |targets: Targets| if v4 { targets.v6() } else { targets.v4() };
                near.unserved(&other(whole.cluster()));
                outside.unserved(&other(whole.node_port(Side::A)));
            }
        });
    }
}
