//! From an EndpointSlice.

use k8s_openapi::{
    api::discovery::v1::{self as discovery, EndpointSlice},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use super::{HEADLESS, Rejected, has_label, is_another_proxys, label, object_name, protocol};
use crate::{
    snapshot::{Endpoint, Rejection, SliceObject, SlicePort, address::parse_usable},
    tables::Family,
};

/// Label of an EndpointSlice: its Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Annotation of an EndpointSlice: when what it tells of happened, as RFC 3339 writes it.
const TRIGGERED: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// Reduces an EndpointSlice to what balancing needs. `None`: not ours to use.
///
/// Of which Services, see [`service`](super::service).
pub fn slice(
    slice: &EndpointSlice,
    claimed: Option<&str>,
) -> (Option<SliceObject>, Vec<Rejection>) {
    let name = object_name(&slice.metadata);
    let mut rejected = Rejected {
        name: &name,
        of: Rejection::slice,
        list: Vec::new(),
        more: 0,
    };
    if is_another_proxys(&slice.metadata, claimed) || has_label(&slice.metadata, HEADLESS) {
        return (None, rejected.finish());
    }
    let service = label(&slice.metadata, SERVICE_NAME).unwrap_or_default();
    if service.is_empty() {
        let field = format!("metadata.labels[{SERVICE_NAME}]");
        rejected.push(field, "is missing: no Service uses this slice");
        return (None, rejected.finish());
    }
    let family = match slice.address_type.as_str() {
        "IPv4" => Family::V4,
        "IPv6" => Family::V6,
        other => {
            rejected.push(
                "addressType",
                format!("`{other}` is not balanced, only IPv4 and IPv6"),
            );
            return (None, rejected.finish());
        }
    };
    let ports = slice.ports.iter().flatten().enumerate();
    let ports = ports
        .filter_map(|(i, port)| slice_port(i, port, &mut rejected))
        .collect();
    let endpoints = slice.endpoints.iter().flatten().enumerate();
    let endpoints = endpoints
        .filter_map(|(i, e)| endpoint(i, e, family, &mut rejected))
        .collect();
    let object = SliceObject {
        service: service.to_owned(),
        family,
        ports,
        endpoints,
        triggered: triggered(&slice.metadata),
        name: name.clone(),
    };
    (Some(object), rejected.finish())
}

/// When the change was caused, which the slice's controller notes. A text that is no time counts as
/// none: it only feeds a measurement.
fn triggered(metadata: &ObjectMeta) -> Option<i64> {
    let text = metadata.annotations.as_ref()?.get(TRIGGERED)?;
    let time: jiff::Timestamp = text.parse().ok()?;
    Some(time.as_millisecond())
}

fn slice_port(
    index: usize,
    port: &discovery::EndpointPort,
    rejected: &mut Rejected<'_>,
) -> Option<SlicePort> {
    // Without a name or a number the port is not for Services. The name of a Service's only port is
    // there and empty: the API server writes it where it was left out.
    let (name, number) = (port.name.clone()?, port.port?);
    let Some(protocol) = protocol(port.protocol.as_deref()) else {
        let message = format!(
            "`{}` is not TCP, UDP or SCTP",
            port.protocol.as_deref().unwrap_or("")
        );
        rejected.push(format!("ports[{index}].protocol"), message);
        return None;
    };
    let Ok(number) = u16::try_from(number) else {
        let message = format!("{number} is not between 1 and 65535");
        rejected.push(format!("ports[{index}].port"), message);
        return None;
    };
    (number != 0).then_some(SlicePort {
        name,
        protocol,
        port: number,
    })
}

fn endpoint(
    index: usize,
    endpoint: &discovery::Endpoint,
    family: Family,
    rejected: &mut Rejected<'_>,
) -> Option<Endpoint> {
    let text = endpoint.addresses.first()?;
    let address = match parse_usable(text) {
        Ok(address) if Family::of(address) == family => address,
        Ok(_) => {
            let message = format!("`{text}` is not an {family} address, as addressType says");
            rejected.push(format!("endpoints[{index}].addresses[0]"), message);
            return None;
        }
        Err(why) => {
            rejected.push(format!("endpoints[{index}].addresses[0]"), why);
            return None;
        }
    };
    let conditions = endpoint.conditions.clone().unwrap_or_default();
    let hints = endpoint.hints.clone().unwrap_or_default();
    Some(Endpoint {
        address,
        ready: conditions.ready.unwrap_or(true),
        serving: conditions.serving.unwrap_or(true),
        terminating: conditions.terminating.unwrap_or(false),
        node: endpoint.node_name.clone(),
        zone_hints: hints
            .for_zones
            .into_iter()
            .flatten()
            .map(|z| z.name)
            .collect(),
        node_hints: hints
            .for_nodes
            .into_iter()
            .flatten()
            .map(|n| n.name)
            .collect(),
    })
}
