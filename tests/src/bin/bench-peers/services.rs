//! The Services every peer serves: one list, as objects of the API server and as lines of
//! configuration files.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use serde_json::{Value, json};

/// The addresses behind the balancer; one namespace has both.
pub(crate) const BACKENDS: [Ipv4Addr; 2] =
    [Ipv4Addr::new(10, 0, 0, 11), Ipv4Addr::new(10, 0, 0, 12)];
/// The port of a Service.
pub(crate) const PORT: u16 = 80;
/// The port of its endpoints.
pub(crate) const TARGET_PORT: u16 = 8080;
/// Where the Services' addresses are from: RFC 2544's networks for benchmarks.
pub(crate) const NETWORK: &str = "198.18.0.0/15";
/// The one namespace of all objects.
pub(crate) const NAMESPACE: &str = "peers";

const FIRST: u32 = u32::from_be_bytes([198, 18, 0, 1]);
/// Beside the list, a Service of UDP with one endpoint: flows of datagrams are measured on it.
const DATAGRAMS: Ipv4Addr = Ipv4Addr::new(198, 19, 255, 1);
const DATAGRAM_NAME: &str = "datagrams";

/// The list. A Service's number is its place.
#[derive(Clone, Debug, Default)]
pub(crate) struct Services {
    endpoints: Vec<Vec<Ipv4Addr>>,
}

/// One step from a list to another.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Change {
    /// Another endpoint, the only one from then on.
    Endpoint(u32, Ipv4Addr),
    /// One more Service at the end, with all endpoints.
    Add(u32),
    /// The last Service goes.
    Remove(u32),
}

impl Services {
    /// `number` Services of two endpoints.
    pub(crate) fn new(number: u32) -> Self {
        Self {
            endpoints: (0..number).map(|_| BACKENDS.to_vec()).collect(),
        }
    }

    /// How many.
    pub(crate) fn count(&self) -> u32 {
        u32::try_from(self.endpoints.len()).unwrap_or(u32::MAX)
    }

    /// Each with its number.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &[Ipv4Addr])> {
        (0..).zip(self.endpoints.iter().map(Vec::as_slice))
    }

    /// The list after a change.
    pub(crate) fn apply(&mut self, change: Change) {
        match change {
            Change::Endpoint(number, address) => {
                let at = usize::try_from(number).ok();
                if let Some(endpoints) = at.and_then(|at| self.endpoints.get_mut(at)) {
                    *endpoints = vec![address];
                }
            }
            Change::Add(_) => self.endpoints.push(BACKENDS.to_vec()),
            Change::Remove(_) => drop(self.endpoints.pop()),
        }
    }

    /// Services to look at for whether all are served: the ends, and some between.
    pub(crate) fn sample(&self) -> Vec<u32> {
        let last = self.count().saturating_sub(1);
        let mut sample: Vec<u32> = (0..=8).map(|part| last / 8 * part).collect();
        sample.push(last);
        sample.dedup();
        sample
    }
}

/// The Service's address.
pub(crate) fn address(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(FIRST + number)
}

/// Where a client asks.
pub(crate) fn frontend(number: u32) -> SocketAddr {
    SocketAddrV4::new(address(number), PORT).into()
}

/// The Service's name.
pub(crate) fn name(number: u32) -> String {
    format!("service-{number}")
}

/// The name of its EndpointSlice.
pub(crate) fn slice_name(number: u32) -> String {
    format!("{}-abcde", name(number))
}

/// Where a client sends datagrams.
pub(crate) fn datagrams() -> SocketAddr {
    (DATAGRAMS, PORT).into()
}

/// Where they are to arrive.
pub(crate) fn datagram_backend() -> SocketAddr {
    let [backend, _] = BACKENDS;
    (backend, TARGET_PORT).into()
}

/// A Service's two objects.
pub(crate) fn objects(number: u32) -> [Value; 2] {
    let name = name(number);
    [
        service(&name, "TCP", address(number)),
        slice(&name, "TCP", &BACKENDS),
    ]
}

/// Those of the Service of UDP.
pub(crate) fn datagram_objects() -> [Value; 2] {
    let [backend, _] = BACKENDS;
    [
        service(DATAGRAM_NAME, "UDP", DATAGRAMS),
        slice(DATAGRAM_NAME, "UDP", &[backend]),
    ]
}

fn service(name: &str, protocol: &str, address: Ipv4Addr) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "ports": [{"name": "port", "protocol": protocol, "port": PORT, "targetPort": TARGET_PORT}],
            "externalIPs": [address],
        },
    })
}

fn slice(name: &str, protocol: &str, endpoints: &[Ipv4Addr]) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": format!("{name}-abcde"),
            "namespace": NAMESPACE,
            "labels": {"kubernetes.io/service-name": name},
        },
        "addressType": "IPv4",
        "ports": [{"name": "port", "protocol": protocol, "port": TARGET_PORT}],
        "endpoints": endpoints_value(endpoints),
    })
}

/// The `endpoints` of an EndpointSlice.
pub(crate) fn endpoints_value(endpoints: &[Ipv4Addr]) -> Value {
    let endpoints = endpoints.iter().map(|address| {
        json!({
            "addresses": [address],
            "conditions": {"ready": true, "serving": true, "terminating": false},
            "nodeName": "worker-1",
        })
    });
    endpoints.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_lead_back() {
        let mut services = Services::new(3);
        assert_eq!(services.sample(), [0, 2]);
        for change in [
            Change::Add(3),
            Change::Endpoint(1, BACKENDS[0]),
            Change::Remove(3),
        ] {
            services.apply(change);
        }
        let endpoints: Vec<_> = services.iter().map(|(_, all)| all.len()).collect();
        assert_eq!(endpoints, [2, 1, 2]);
        assert_eq!(frontend(256).to_string(), "198.18.1.1:80");
    }
}
