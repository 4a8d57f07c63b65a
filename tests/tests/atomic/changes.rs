//! The changes of the cluster that packets cross.

use lb_tests::{
    book::{BOOKS, Book},
    crossing::NODE,
    netns::manifest::{ServiceManifest, service},
    network::{INSIDE, PODS},
};

/// Two states of the cluster. Each case goes there and back.
pub(super) struct Change {
    pub(super) name: &'static str,
    pub(super) gateway: bool,
    /// The Services when the clients with an odd number were last seen, if that matters.
    pub(super) past: Option<Vec<ServiceManifest>>,
    pub(super) here: Vec<ServiceManifest>,
    pub(super) there: Vec<ServiceManifest>,
}

impl Change {
    fn gateway(mut self) -> Self {
        self.gateway = true;
        self
    }

    fn past(mut self, service: ServiceManifest) -> Self {
        self.past = Some(vec![bystander(), service]);
        self
    }
}

fn change(
    name: &'static str,
    here: impl IntoIterator<Item = ServiceManifest>,
    there: impl IntoIterator<Item = ServiceManifest>,
) -> Change {
    let all = |services: &mut dyn Iterator<Item = ServiceManifest>| {
        std::iter::once(bystander()).chain(services).collect()
    };
    Change {
        name,
        gateway: false,
        past: None,
        here: all(&mut here.into_iter()),
        there: all(&mut there.into_iter()),
    }
}

/// A Service no case touches.
fn bystander() -> ServiceManifest {
    let service = service("other").vip("192.0.2.2").vip("2001:db8::2");
    remote(service.tcp(80, 8080).udp(80, 8080), [5, 8])
}

/// The Service of the cases, without endpoints.
fn bare() -> ServiceManifest {
    ports("web", 443, 8443)
}

fn ports(name: &str, port: u16, target: u16) -> ServiceManifest {
    let service = service(name).vip("192.0.2.1").vip("2001:db8::1");
    service.tcp(port, target).udp(port, target)
}

/// Endpoints elsewhere, in both families.
fn remote<const N: usize>(service: ServiceManifest, hosts: [u8; N]) -> ServiceManifest {
    let of = |host| FAMILIES.map(|book: Book| book.host(INSIDE, host));
    let all = hosts.into_iter().flat_map(of);
    all.fold(service, |service, address| service.endpoint(&address))
}

/// Pods of this node, in both families.
fn local<const N: usize>(service: ServiceManifest, hosts: [u8; N]) -> ServiceManifest {
    let of = |host| FAMILIES.map(|book: Book| book.host(PODS, host));
    let all = hosts.into_iter().flat_map(of);
    all.fold(service, |service, address| {
        service.endpoint(&address).on_node(NODE)
    })
}

/// An endpoint that terminates but serves on.
fn draining(service: ServiceManifest, host: u8) -> ServiceManifest {
    let all = FAMILIES.map(|book: Book| book.host(INSIDE, host));
    all.iter().fold(service, |service, address| {
        service.endpoint(address).draining()
    })
}

/// A book of each family.
const FAMILIES: [Book; 2] = [BOOKS[0], BOOKS[2]];

fn only_local(service: ServiceManifest) -> ServiceManifest {
    service
        .spec("externalTrafficPolicy: Local")
        .spec("healthCheckNodePort: 32000")
}

fn affine(service: ServiceManifest) -> ServiceManifest {
    service.spec("sessionAffinity: ClientIP")
}

fn ranges(service: ServiceManifest, v4: &str, v6: &str) -> ServiceManifest {
    service.spec(&format!("loadBalancerSourceRanges: [\"{v4}\", \"{v6}\"]"))
}

/// Every case.
pub(super) fn changes() -> Vec<Change> {
    let mut all = sets();
    all.extend(policies());
    all.extend(clients());
    all
}

/// Endpoints elsewhere.
fn web(hosts: &[u8]) -> ServiceManifest {
    let one = |service, host: &u8| remote(service, [*host]);
    hosts.iter().fold(bare(), one)
}

/// Endpoints elsewhere and on this node.
fn mixed() -> ServiceManifest {
    local(web(&[5, 6]), [7])
}

/// Endpoints, ports, Services.
fn sets() -> Vec<Change> {
    vec![
        change("an endpoint more", [web(&[5])], [web(&[5, 6])]),
        change("an endpoint more, dnat", [web(&[5])], [web(&[5, 6])]).gateway(),
        change("an endpoint replaced", [web(&[5, 6])], [web(&[6, 7])]),
        change("all replaced", [web(&[5, 6])], [web(&[7, 8])]),
        change(
            "the table one step longer",
            [web(&[5, 6])],
            [web(&[5, 6, 7, 8])],
        ),
        change(
            "the table one step longer, dnat",
            [web(&[5, 6])],
            [web(&[5, 7, 8])],
        )
        .gateway(),
        change("all endpoints gone", [web(&[5, 6])], [bare()]),
        change(
            "an endpoint terminates",
            [web(&[5, 6, 7])],
            [draining(web(&[6, 7]), 5)],
        ),
        change(
            "of two that terminate one gone",
            [draining(draining(bare(), 5), 6)],
            [draining(bare(), 5)],
        ),
        change("a Service more", [], [web(&[5, 6])]),
        change("a Service without endpoints more", [], [bare()]),
        change(
            "another port",
            [web(&[5, 6])],
            [remote(ports("web", 444, 8443), [5, 6])],
        ),
        change(
            "another target port",
            [web(&[5, 6])],
            [remote(ports("web", 443, 9443), [5, 6])],
        ),
        change(
            "another Service of the same address",
            [web(&[5, 6])],
            [remote(ports("heir", 443, 8443), [6, 7])],
        ),
        change(
            "only the IPv4 endpoints",
            [web(&[5, 6])],
            [bare()
                .endpoint("10.0.0.7")
                .endpoint("2001:db8:a::5")
                .endpoint("2001:db8:a::6")],
        ),
        change(
            "a family less",
            [web(&[5, 6])],
            [service("web")
                .vip("192.0.2.1")
                .tcp(443, 8443)
                .udp(443, 8443)
                .endpoint("10.0.0.5")
                .endpoint("10.0.0.6")],
        ),
        change("pods of this node more", [web(&[5, 6])], [mixed()]),
    ]
}

/// From which set packets draw.
fn policies() -> Vec<Change> {
    vec![
        change("policy", [mixed()], [only_local(mixed())]),
        change(
            "policy, no pod here",
            [web(&[5, 6])],
            [only_local(web(&[5, 6]))],
        ),
        change("policy, no endpoint", [bare()], [only_local(bare())]),
        change(
            "policy, role gateway",
            [web(&[5, 6])],
            [only_local(web(&[5, 6]))],
        )
        .gateway(),
        change(
            "policy and endpoints at once",
            [web(&[5, 6])],
            [only_local(local(web(&[7]), [5, 6]))],
        ),
        change(
            "under policy Local the last pod here gone",
            [only_local(mixed())],
            [only_local(web(&[5, 6]))],
        ),
        change(
            "under policy Local everything gone",
            [only_local(mixed())],
            [only_local(bare())],
        ),
    ]
}

/// What depends on the client.
fn clients() -> Vec<Change> {
    vec![
        change("affinity", [web(&[5, 6, 7])], [affine(web(&[5, 6, 7]))]).past(affine(web(&[5]))),
        change(
            "under affinity an endpoint terminates",
            [affine(web(&[5, 6, 7]))],
            [affine(draining(web(&[6, 7]), 5))],
        )
        .past(affine(web(&[5]))),
        change(
            "under affinity an endpoint gone",
            [affine(web(&[5, 6, 7, 8]))],
            [affine(web(&[6, 8]))],
        )
        .past(affine(web(&[5, 7]))),
        change(
            "under affinity the policy",
            [affine(mixed())],
            [only_local(affine(mixed()))],
        )
        .past(affine(mixed())),
        change(
            "source ranges",
            [web(&[5, 6])],
            [ranges(
                web(&[5, 6]),
                "203.0.113.0/25",
                "2001:db8:ffff::/121",
            )],
        ),
        change(
            "other source ranges",
            [ranges(web(&[5]), "203.0.113.0/25", "2001:db8:ffff::/121")],
            [ranges(
                web(&[5]),
                "203.0.113.64/26",
                "2001:db8:ffff::80/121",
            )],
        ),
    ]
}
