//! Services beside the watched ones, in the API server: they come, change and go. Their backends are addresses
//! that may be backends of the watched ones too, so that ids are shared and set free.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::{
    api::{Api, Kind},
    scene::{REMOTE, endpoint},
    server::PORT,
};

/// Most Services at a time.
const NUMBER: usize = 200;

/// The Services, as they should be in the tables when all is quiet.
#[derive(Clone, Debug)]
pub struct Others {
    present: Vec<bool>,
    random: u64,
}

impl Default for Others {
    fn default() -> Self {
        Self {
            present: vec![false; NUMBER],
            random: 0x5eed,
        }
    }
}

impl Others {
    /// Adds, changes or removes one.
    pub fn change(&mut self, api: &Api<'_>) {
        let number = self.below(NUMBER);
        let remove = self.below(4) == 0;
        let Some(present) = self.present.get_mut(number) else {
            return;
        };
        let name = format!("other-{number}");
        let known = std::mem::replace(present, !(*present && remove));
        if known && remove {
            api.remove(Kind::Service, &name);
            api.remove(Kind::Slice, &name);
            return;
        }
        if !known || self.below(4) == 0 {
            let port = 1_000 + self.below(50_000);
            api.put(Kind::Service, &name, service(&name, number, port));
        }
        let v6 = is_v6(number);
        let endpoints: Vec<IpAddr> = (0..=self.below(12))
            .map(|_| {
                let host = u16::try_from(100 + self.below(100)).expect("a host's number");
                endpoint(self.below(REMOTE), host, v6)
            })
            .collect();
        api.put(Kind::Slice, &name, slice(&name, v6, endpoints));
    }

    /// Frontends of those that are there.
    pub fn frontends(&self) -> usize {
        self.present.iter().filter(|present| **present).count()
    }

    /// A number below a limit, by Knuth's generator: the same in every run.
    fn below(&mut self, limit: usize) -> usize {
        self.random = self
            .random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.random >> 33).unwrap_or(0) % limit
    }
}

/// Every third has an IPv6 address.
const fn is_v6(number: usize) -> bool {
    number.is_multiple_of(3)
}

fn service(name: &str, number: usize, port: usize) -> Value {
    let v6 = is_v6(number);
    let vip = if v6 {
        format!("2001:db8:f::{:x}", number + 1)
    } else {
        format!("192.0.2.{}", 20 + number)
    };
    let family = if v6 { "IPv6" } else { "IPv4" };
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": "others", "uid": name},
        "spec": {
            "type": "LoadBalancer", "ipFamilies": [family],
            "ports": [{"name": "main", "port": port, "targetPort": PORT, "protocol": "TCP"}],
        },
        "status": {"loadBalancer": {"ingress": [{"ip": vip}]}},
    })
}

fn slice(name: &str, v6: bool, mut endpoints: Vec<IpAddr>) -> Value {
    endpoints.sort();
    endpoints.dedup();
    let endpoints = endpoints
        .iter()
        .map(|address| json!({"addresses": [address.to_string()], "conditions": {"ready": true}}));
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": name, "namespace": "others", "uid": name,
            "labels": {"kubernetes.io/service-name": name},
        },
        "addressType": if v6 { "IPv6" } else { "IPv4" },
        "ports": [{"name": "main", "port": PORT, "protocol": "TCP"}],
        "endpoints": endpoints.collect::<Vec<_>>(),
    })
}
