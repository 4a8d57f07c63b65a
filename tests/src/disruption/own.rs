//! The Services whose flows are watched, and their churn: far more endpoints come and go than stay, and the
//! length of their Maglev tables crosses steps. Whoever selected anew would find another backend for nearly
//! every flow, and [`Selector`] says for how many.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::Arc,
};

use lb_common::{
    addr::Be16,
    flow::{Flow as _, Flow4, Flow6, protocol::TCP},
    maglev::slot,
};
use lb_userspace::maglev;

use super::{
    flows::Tuple,
    scene::{NODE, POD, REMOTE, endpoint},
    server::PORT,
};
use crate::netns::manifest::{ServiceManifest, service};

/// Name, VIPs and a line of `spec` of each Service.
const SERVICES: [(&str, [&str; 2], &str); 2] = [
    (
        "cluster",
        ["192.0.2.1", "2001:db8::1"],
        "externalTrafficPolicy: Cluster",
    ),
    (
        "gateway",
        ["192.0.2.2", "2001:db8::2"],
        "externalTrafficPolicy: Local",
    ),
];

/// The frontends' port.
const FRONTEND_PORT: u16 = 80;

/// A set of endpoints. All hold those the flows are with.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Endpoints {
    /// These alone: 6, a table of 1,021 slots.
    Few,
    /// 44 more: a table of 16,381 slots.
    Many,
    /// 30 others more: a table of 4,093 slots.
    Others,
}

impl Endpoints {
    /// The sets that are published in turn while the flows are watched.
    pub const CHURN: [Self; 2] = [Self::Many, Self::Others];

    /// Every endpoint of a family, and whether it is a pod of the edge node.
    pub fn all(self, v6: bool) -> Vec<(SocketAddr, bool)> {
        let more = match self {
            Self::Few => 0..0,
            Self::Many => 100..122,
            Self::Others => 150..165,
        };
        let remote = (0..REMOTE).flat_map(|network| {
            let hosts = (1..=2).chain(more.clone());
            hosts.map(move |host| (endpoint(network, host, v6), false))
        });
        let pods = (1..=2).map(|host| (endpoint(POD, host, v6), true));
        let socket = |(address, pod)| (SocketAddr::new(address, PORT), pod);
        remote.chain(pods).map(socket).collect()
    }

    /// Slots of the Maglev table over it.
    pub fn length(self) -> u32 {
        maglev::length_for(self.all(false).len())
    }

    /// Whose endpoints of this set another lacks, of how many.
    pub fn replaced(self, other: Self) -> (usize, usize) {
        let (mine, others) = (self.all(false), other.all(false));
        let gone = mine.iter().filter(|one| !others.contains(one)).count();
        (gone, mine.len())
    }

    /// Writes the manifests of every Service with these endpoints into a directory.
    pub fn publish(self, manifests: &Path) {
        for (name, [v4, v6], spec) in SERVICES {
            let service = service(name).vip(v4).vip(v6).tcp(FRONTEND_PORT, PORT);
            write(manifests, name, &self.behind(service.spec(spec)));
        }
    }

    fn behind(self, mut service: ServiceManifest) -> ServiceManifest {
        for v6 in [false, true] {
            for (endpoint, pod) in self.all(v6) {
                service = service.endpoint(&endpoint.ip().to_string());
                if pod {
                    service = service.on_node(NODE);
                }
            }
        }
        service
    }
}

/// Writes or replaces a manifest; the agent never sees half of it.
pub fn write(manifests: &Path, name: &str, service: &ServiceManifest) {
    let hidden = manifests.join(format!(".{name}.new"));
    std::fs::write(&hidden, service.yaml()).expect("a temporary file");
    std::fs::rename(&hidden, manifests.join(format!("{name}.yaml"))).expect("a temporary file");
}

/// The frontends: two Services, each of two families.
pub fn frontends() -> Vec<SocketAddr> {
    let vips = SERVICES.iter().flat_map(|(_, vips, _)| vips);
    let socket = |vip: &&str| SocketAddr::new(vip.parse().expect("an address"), FRONTEND_PORT);
    vips.map(socket).collect()
}

/// Which backend a new flow would get.
pub struct Selector {
    endpoints: Vec<SocketAddr>,
    table: Arc<[u32]>,
}

impl Selector {
    /// By a set's Maglev table, of one family.
    pub fn new(set: Endpoints, v6: bool) -> Self {
        let endpoints: Vec<_> = set.all(v6).into_iter().map(|(it, _)| it).collect();
        let ids: Vec<_> = endpoints.iter().copied().zip(1..).collect();
        let table = maglev::build(&ids, set.length());
        Self { endpoints, table }
    }

    /// The backend of a new flow.
    pub fn select(&self, tuple: Tuple) -> IpAddr {
        let length = u32::try_from(self.table.len()).expect("a Maglev table");
        let slot = usize::try_from(slot(hash(tuple), length)).expect("a slot");
        let id = self.table.get(slot).expect("a slot of the table");
        let number = usize::try_from(id - 1).expect("an id");
        self.endpoints.get(number).expect("an endpoint").ip()
    }
}

fn hash(tuple: Tuple) -> u32 {
    let Tuple { client, server } = tuple;
    let (source, destination) = (Be16::new(client.port()), Be16::new(server.port()));
    match (client.ip(), server.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            Flow4::new(from.into(), source, to.into(), destination, TCP).hash()
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            Flow6::new(from.into(), source, to.into(), destination, TCP).hash()
        }
        _ => unreachable!("a flow is of one family"),
    }
}

/// How many of the flows would move if they were selected anew from a set.
pub fn would_move(flows: &[(Tuple, IpAddr)], set: Endpoints) -> usize {
    let selectors = [false, true].map(|v6| Selector::new(set, v6));
    let [v4, v6] = &selectors;
    let moves = |(tuple, backend): &&(Tuple, IpAddr)| {
        let selector = if tuple.server.is_ipv6() { v6 } else { v4 };
        selector.select(*tuple) != *backend
    };
    flows.iter().filter(moves).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_churn_replaces_most_and_crosses_steps() {
        let [one, other] = Endpoints::CHURN;
        for (from, to) in [(one, other), (other, one)] {
            let (gone, all) = from.replaced(to);
            assert!(2 * gone >= all, "{gone} of {all}");
            assert_ne!(from.length(), to.length());
        }
        assert_eq!(
            Endpoints::Few.replaced(one).0,
            0,
            "no flow's own backend goes"
        );
        let lengths = [Endpoints::Few, one, other].map(Endpoints::length);
        assert_eq!(lengths, [1_021, 16_381, 4_093]);
    }
}
