//! What the source of a new flow decides, but for source ranges: which backend set it gets, and whether it
//! keeps its address.

use lb_common::{
    reason::Reason,
    service::{service_flag, source_class},
};
use lb_tests::{
    book::{BOOKS, Book, to_client, towards},
    case::{Step, case, from, run},
    flows::{Conversation, Mode, rejected},
    network::{INSIDE, OUTSIDE, PODS, Port, SLIM},
    tables::Tables,
};

/// Who sends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Source {
    /// A pod of this node.
    Pod,
    /// A pod of another node.
    FarPod,
    /// An address of this node.
    Node,
    /// A client outside the cluster.
    Outside,
}

impl Source {
    const ALL: [Self; 4] = [Self::Pod, Self::FarPod, Self::Node, Self::Outside];

    fn port(self) -> Port {
        match self {
            Self::Pod => PODS,
            Self::FarPod => SLIM,
            Self::Node | Self::Outside => OUTSIDE,
        }
    }

    fn client(self, book: Book, port: u16) -> String {
        match self {
            Self::Pod => book.pod(6, port),
            Self::FarPod => book.slim(6, port),
            Self::Node => book.at(book.node_address(), port),
            Self::Outside => book.client(port),
        }
    }
}

fn with_classes(book: Book, tables: Tables) -> Tables {
    use source_class::{LOCAL_POD, NODE, POD, SERVICE_NETWORK};
    let (pods, far, all) = (
        book.pick("10.1.0.0/24", "2001:db8:b::/64"),
        book.pick("10.2.0.0/24", "2001:db8:c::/64"),
        book.pick("10.0.0.0/14", "2001:db8:8::/45"),
    );
    tables
        .class(pods, POD | LOCAL_POD)
        .class(far, POD)
        // A longer prefix decides alone.
        .class(all, LOCAL_POD | SERVICE_NETWORK)
        .class(book.pick("198.51.100.1/32", "2001:db8:100::1/128"), NODE)
}

/// What becomes of a first packet.
#[derive(Clone, Copy, Debug)]
enum Fate {
    /// To the backend elsewhere, with the client's address.
    Kept,
    /// To the backend elsewhere, with an address of ours.
    Masked,
    /// To the pod of this node, with the client's address.
    Pod,
    /// To the pod of this node, with an address of ours.
    MaskedPod,
    Dropped,
    Rejected,
}

/// Where the endpoints are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Endpoints {
    Elsewhere,
    Here,
    Nowhere,
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table of cases")]
fn the_source_decides_the_set_and_the_mode() {
    use Endpoints::{Elsewhere, Here, Nowhere};
    use Fate::{Dropped, Kept, Masked, MaskedPod, Pod, Rejected};
    use service_flag::{EXTERNAL_LOCAL, INTERNAL_LOCAL, KEEP_SOURCE};
    let local = EXTERNAL_LOCAL | INTERNAL_LOCAL;
    // Frontend, policy, endpoints; then the sources: pod, far pod, node, outside. A pod that is the
    // backend's neighbour on a bridge must not be answered past us.
    let rows = [
        ("VIP, Cluster", false, 0, Elsewhere, [Masked; 4]),
        (
            "VIP, Cluster",
            false,
            INTERNAL_LOCAL,
            Elsewhere,
            [Masked; 4],
        ),
        ("VIP, Cluster", false, 0, Here, [MaskedPod, Pod, Pod, Pod]),
        ("VIP, Cluster", false, 0, Nowhere, [Rejected; 4]),
        ("VIP, gateway", false, KEEP_SOURCE, Elsewhere, [Kept; 4]),
        (
            "VIP, Local",
            false,
            EXTERNAL_LOCAL,
            Elsewhere,
            [Kept, Masked, Masked, Dropped],
        ),
        (
            "VIP, Local",
            false,
            local,
            Elsewhere,
            [Kept, Masked, Masked, Dropped],
        ),
        (
            "VIP, Local",
            false,
            EXTERNAL_LOCAL,
            Here,
            [MaskedPod, Pod, Pod, Pod],
        ),
        ("VIP, Local", false, EXTERNAL_LOCAL, Nowhere, [Rejected; 4]),
        (
            "ClusterIP, Cluster",
            true,
            0,
            Elsewhere,
            [Kept, Masked, Masked, Masked],
        ),
        (
            "ClusterIP, Cluster",
            true,
            EXTERNAL_LOCAL,
            Elsewhere,
            [Kept, Masked, Masked, Masked],
        ),
        (
            "ClusterIP, Cluster",
            true,
            0,
            Here,
            [MaskedPod, Pod, Pod, Pod],
        ),
        ("ClusterIP, Cluster", true, 0, Nowhere, [Rejected; 4]),
        (
            "ClusterIP, Local",
            true,
            INTERNAL_LOCAL,
            Elsewhere,
            [Dropped; 4],
        ),
        (
            "ClusterIP, Local",
            true,
            local,
            Here,
            [MaskedPod, Pod, Pod, Pod],
        ),
        ("ClusterIP, Local", true, local, Nowhere, [Rejected; 4]),
    ];
    for (row, internal, flags, endpoints, fates) in rows {
        let cases = BOOKS.into_iter().flat_map(|book| {
            Source::ALL
                .into_iter()
                .zip(fates)
                .map(move |(source, fate)| {
                    let service = with_classes(book, book.service()).flags(flags);
                    let service = if internal {
                        service.internal()
                    } else {
                        service
                    };
                    let tables = match endpoints {
                        Elsewhere => service.backends([book.backend(5, 8443).as_str()]),
                        Here => service.local_backends([book.pod(5, 8443).as_str()]),
                        Nowhere => service,
                    };
                    let name = format!(
                        "{}: {row}, flags {flags}, {endpoints:?}, from {source:?}",
                        book.name()
                    );
                    case(name, tables).steps(exchange(book, source, fate))
                })
        });
        run(cases.collect());
    }
}

/// A first packet and its answer.
fn exchange(book: Book, source: Source, fate: Fate) -> Vec<Step> {
    let (client, vip) = (source.client(book, 40_000), book.vip(443));
    let first = book.first(&client, &vip);
    let (inside, seen) = match fate {
        Fate::Kept => (INSIDE, client.clone()),
        Fate::Masked => (INSIDE, book.snat(40_000)),
        Fate::Pod => (PODS, client.clone()),
        Fate::MaskedPod => (PODS, book.snat_at(PODS, 40_000)),
        Fate::Dropped => {
            return vec![from(source.port(), &first).drops(Reason::NoLocalEndpoint)];
        }
        Fate::Rejected => {
            let port = source.port();
            return vec![rejected(book, port, &client, &vip, Reason::NoEndpoint)];
        }
    };
    let backend = book.at(&book.host(inside, 5), 8443);
    let out = first.clone().from(&seen).to(&backend);
    let request = from(source.port(), &first)
        .forwards(&towards(inside, 5, &out))
        .creates();
    let request = if inside == PODS {
        request.by_tcx()
    } else {
        request
    };
    let second = book.second(&backend, &seen);
    let back = second.clone().from(&vip).to(&client);
    let reply = match source {
        // The node's own: its stack would have it back, which no packet from the wire is.
        Source::Node => return vec![request],
        Source::Outside => from(inside, &second).replies(&to_client(&back)),
        Source::Pod => from(inside, &second)
            .replies(&towards(PODS, 6, &back))
            .by_tcx(),
        Source::FarPod => from(inside, &second).replies(&towards(SLIM, 6, &back)),
    };
    vec![request, reply]
}

#[test]
fn an_endpoint_that_is_its_own_client_does_not_see_itself() {
    let cases = BOOKS.into_iter().flat_map(|book| {
        [
            ("a pod of this node", PODS, true, 0),
            (
                "a pod under Local",
                PODS,
                true,
                service_flag::EXTERNAL_LOCAL,
            ),
            ("a host elsewhere", INSIDE, false, 0),
            ("a gateway's", INSIDE, false, service_flag::KEEP_SOURCE),
        ]
        .map(|(what, port, here, flags)| {
            let (host, vip) = (book.host(port, 5), book.vip(443));
            let (client, backend) = (book.at(&host, 40_000), book.at(&host, 8443));
            let service = with_classes(book, book.service()).flags(flags);
            let tables = if here {
                service.local_backends([backend.as_str()])
            } else {
                service.backends([backend.as_str()])
            };
            let seen = book.snat_at(port, 40_000);
            let first = book.first(&client, &vip);
            let out = first.clone().from(&seen).to(&backend);
            let second = book.second(&backend, &seen);
            let back = second.clone().from(&vip).to(&client);
            case(format!("{}: hairpin, {what}", book.name()), tables)
                .step(
                    from(port, &first)
                        .forwards(&towards(port, 5, &out))
                        .creates(),
                )
                .step(from(port, &second).replies(&towards(port, 5, &back)))
        })
    });
    run(cases.collect());
}

#[test]
fn a_pod_on_the_backends_own_network_gets_full_nat() {
    let cases = BOOKS.into_iter().map(|book| {
        // Pods and backends are hosts of one network: the backend would answer the pod directly.
        let (client, backend) = (book.backend(7, 40_000), book.backend(5, 8443));
        let (vip, snat) = (book.vip(443), book.snat(40_000));
        let tables = book
            .service()
            .internal()
            .backends([backend.as_str()])
            .class(
                book.pick("10.0.0.0/24", "2001:db8:a::/64"),
                source_class::POD | source_class::LOCAL_POD,
            );
        let first = book.first(&client, &vip);
        let second = book.second(&backend, &snat);
        let out = first.clone().from(&snat).to(&backend);
        let back = second.clone().from(&vip).to(&client);
        case(format!("{}: flat network", book.name()), tables)
            .step(
                from(INSIDE, &first)
                    .forwards(&towards(INSIDE, 5, &out))
                    .creates(),
            )
            .step(from(INSIDE, &second).replies(&towards(INSIDE, 7, &back)))
    });
    run(cases.collect());
}

#[test]
fn pods_and_the_node_itself_are_blocked_like_all() {
    let cases = BOOKS.into_iter().map(|book| {
        let tables = with_classes(book, Conversation::new(book, Mode::FullNat).tables())
            .source_ranges(1, [clients_but_the_node(book)]);
        let steps = [Source::Pod, Source::FarPod, Source::Node].map(|source| {
            let first = book.first(&source.client(book, 40_000), &book.vip(443));
            from(source.port(), &first).drops(Reason::SourceRange)
        });
        case(format!("{}: cluster sources", book.name()), tables)
            .steps(steps)
            .flows(0, 0)
    });
    run(cases.collect());
}

/// A range that has 198.51.100.7, but not 198.51.100.1.
fn clients_but_the_node(book: Book) -> &'static str {
    book.pick("198.51.100.4/30", "2001:db8:100::4/126")
}
