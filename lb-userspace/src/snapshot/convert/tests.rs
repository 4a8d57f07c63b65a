use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::{Value, from_value, json};

use super::*;
use crate::snapshot::SliceObject;

fn service_of(value: Value) -> (Option<ServiceObject>, Vec<String>) {
    let object: Service = from_value(value).expect("a typed Service");
    let (object, rejections) = service(&object, None);
    (object, rejections.iter().map(ToString::to_string).collect())
}

fn slice_of(value: Value) -> (Option<SliceObject>, Vec<String>) {
    let object: EndpointSlice = from_value(value).expect("a typed EndpointSlice");
    let (object, rejections) = slice(&object, None);
    (object, rejections.iter().map(ToString::to_string).collect())
}

fn base(spec: Value) -> Value {
    let mut service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
        "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.10"}]}},
    });
    service["spec"] = spec;
    service
}

#[test]
fn excluded_services_are_left_out_without_a_word() {
    let label = |key: &str| {
        let mut service = base(json!({"ports": [{"port": 80}], "clusterIP": "10.0.0.1"}));
        service["metadata"]["labels"] = json!({key: ""});
        service
    };
    for (name, value) in [
        (
            "headless",
            base(json!({"clusterIP": "None", "ports": [{"port": 80}]})),
        ),
        ("headless, list only", base(json!({"clusterIPs": ["None"]}))),
        (
            "external name",
            base(json!({"type": "ExternalName", "clusterIP": "10.0.0.1"})),
        ),
        (
            "another proxy's",
            label("service.kubernetes.io/service-proxy-name"),
        ),
        ("labelled headless", label("service.kubernetes.io/headless")),
    ] {
        assert_eq!(service_of(value), (None, vec![]), "{name}");
    }
}

#[test]
fn a_bad_address_is_named_and_the_rest_goes_on() {
    let mut value = base(json!({
        "type": "LoadBalancer",
        "clusterIPs": ["10.0.0.010", "2001:DB8::1"],
        "externalIPs": ["203.0.113.7", "none of it", "0.0.0.0"],
        "ports": [{"port": 80}, {"port": 0}, {"name": "x", "port": 81, "protocol": "QUIC"}],
        "externalTrafficPolicy": "Near",
        "sessionAffinity": "ClientIP",
        "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 90000}},
        "loadBalancerSourceRanges": [" 198.51.100.0/24 ", "everyone"],
    }));
    value["status"]["loadBalancer"]["ingress"] = json!([
        {"ip": "192.0.2.300"}, {"ip": "192.0.2.11", "ipMode": "VIP"},
        {"ip": "192.0.2.12", "ipMode": "Proxy"}, {"hostname": "lb.example"},
    ]);
    let (object, rejections) = service_of(value);
    let object = object.expect("the rest goes on");
    let texts = |list: &[FieldAddress]| {
        list.iter()
            .map(|a| a.address.to_string())
            .collect::<Vec<_>>()
    };
    assert_eq!(texts(&object.cluster_ips), ["10.0.0.10", "2001:db8::1"]);
    assert_eq!(texts(&object.external_ips), ["203.0.113.7"]);
    assert_eq!(texts(&object.ingress_ips), ["192.0.2.11"]);
    assert_eq!(
        &*object.ingress_ips[0].field,
        "status.loadBalancer.ingress[1].ip"
    );
    assert_eq!(object.families, [Family::V4, Family::V6]);
    assert_eq!(object.ports.len(), 1);
    assert_eq!(object.affinity_seconds, 10_800);
    assert_eq!(object.source_ranges.len(), 1);
    assert!(object.restricts_sources);
    assert_eq!(
        rejections,
        [
            "Service default/web: spec.externalIPs[1]: `none of it` is not an IP address",
            "Service default/web: spec.externalIPs[2]: `0.0.0.0` is the unspecified address",
            "Service default/web: status.loadBalancer.ingress[0].ip: `192.0.2.300` is not an IP address",
            "Service default/web: spec.ports[1].port: 0 is not between 1 and 65535",
            "Service default/web: spec.ports[2].protocol: `QUIC` is not TCP, UDP or SCTP",
            "Service default/web: spec.externalTrafficPolicy: `Near` is neither Cluster nor Local; taken as Cluster",
            "Service default/web: spec.sessionAffinityConfig.clientIP.timeoutSeconds: 90000 is not between 1 and 86400; taken as 10800",
            "Service default/web: spec.loadBalancerSourceRanges[1]: `everyone` is not a prefix in CIDR notation",
        ]
    );
}

#[test]
fn a_drain_deadline_is_a_duration_or_named() {
    const FIELD: &str = "Service default/web: metadata.annotations[sluice.dev/drain-deadline]:";
    for (name, text, expected, rejection) in [
        ("minutes", "30m", Some(1_800), None),
        ("spaces around it", " 1h ", Some(3_600), None),
        ("at once", "0s", Some(0), None),
        (
            "a number",
            "30",
            None,
            Some(
                "`30` is not a duration such as `90s` or `2h15m`; flows stay with a backend until they end",
            ),
        ),
    ] {
        let mut value = base(json!({"ports": [{"port": 80}]}));
        value["metadata"]["annotations"] = json!({"sluice.dev/drain-deadline": text});
        let (object, rejections) = service_of(value);
        let object = object.expect("the Service is served");
        let seconds = object.drain_deadline.map(|deadline| deadline.as_secs());
        assert_eq!(seconds, expected, "{name}");
        let said: Vec<_> = rejection
            .iter()
            .map(|text| format!("{FIELD} {text}"))
            .collect();
        assert_eq!(rejections, said, "{name}");
    }
    assert_eq!(
        service_of(base(json!({}))).0.and_then(|s| s.drain_deadline),
        None
    );
}

#[test]
fn families_come_from_the_field_else_from_the_addresses() {
    for (name, spec, expected) in [
        (
            "field",
            json!({"ipFamilies": ["IPv6"], "clusterIP": "10.0.0.1"}),
            vec![Family::V6],
        ),
        (
            "cluster address",
            json!({"clusterIP": "2001:db8::1"}),
            vec![Family::V6],
        ),
        ("load-balancer address", json!({}), vec![Family::V4]),
        (
            "second family",
            json!({"externalIPs": ["2001:db8::1"]}),
            vec![Family::V4, Family::V6],
        ),
        (
            "the primary family first",
            json!({"ipFamilies": ["IPv6", "IPv4", "IPv6"]}),
            vec![Family::V6, Family::V4],
        ),
    ] {
        let (object, rejections) = service_of(base(spec));
        assert_eq!(object.map(|o| o.families), Some(expected), "{name}");
        assert!(rejections.is_empty(), "{name}");
    }
}

#[test]
fn conditions_have_the_defaults_of_the_api() {
    let (object, rejections) = slice_of(json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": "web-1", "namespace": "shop",
                     "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "ports": [{"name": "", "port": 8080}, {"name": "none"}, {"name": "zero", "port": 0},
                  {"port": 8081}],
        "endpoints": [
            {"addresses": ["10.1.0.1"]},
            {"addresses": ["10.1.0.2", "10.1.0.99"],
             "conditions": {"ready": false, "serving": true, "terminating": true}, "nodeName": "a"},
            {"addresses": []},
            {"addresses": ["2001:db8::1"]},
            {"addresses": ["127.0.0.1"]},
        ],
    }));
    let object = object.expect("a slice");
    assert_eq!(object.name.to_string(), "shop/web-1");
    assert_eq!(object.ports.len(), 1);
    let states: Vec<_> = object
        .endpoints
        .iter()
        .map(|e| {
            (
                e.address.to_string(),
                e.ready,
                e.serving,
                e.terminating,
                e.node.as_deref(),
            )
        })
        .collect();
    assert_eq!(
        states,
        [
            ("10.1.0.1".to_owned(), true, true, false, None),
            ("10.1.0.2".to_owned(), false, true, true, Some("a")),
        ]
    );
    assert_eq!(
        rejections,
        [
            "EndpointSlice shop/web-1: endpoints[3].addresses[0]: `2001:db8::1` is not an IPv4 address, as addressType says",
            "EndpointSlice shop/web-1: endpoints[4].addresses[0]: `127.0.0.1` is a loopback address",
        ]
    );
}

#[test]
fn ten_thousand_broken_fields_are_a_few_rejections() {
    let endpoints: Vec<_> = (0..10_000)
        .map(|i| json!({"addresses": [format!("pod-{i}")]}))
        .collect();
    let (object, rejections) = slice_of(json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": "s", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4", "endpoints": endpoints,
    }));
    assert_eq!(object.map(|o| o.endpoints.len()), Some(0));
    assert_eq!(rejections.len(), MOST_REJECTIONS + 1);
    assert_eq!(
        rejections.last().map(String::as_str),
        Some("EndpointSlice default/s: 9984 more fields cannot be understood")
    );
}

#[test]
fn slices_that_are_not_ours_are_left_out() {
    let slice = |labels: &Value, address_type: &str| {
        slice_of(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": "s", "labels": labels}, "addressType": address_type,
        }))
    };
    let named = json!({"kubernetes.io/service-name": "web"});
    assert_eq!(slice(&json!({}), "IPv4").1.len(), 1);
    assert_eq!(slice(&named, "FQDN").1.len(), 1);
    assert!(slice(&named, "IPv6").0.is_some());
    let headless =
        json!({"kubernetes.io/service-name": "web", "service.kubernetes.io/headless": ""});
    assert_eq!(slice(&headless, "IPv4"), (None, vec![]));
}

#[test]
fn a_proxy_s_name_claims_its_services_and_only_these() {
    let labelled = |name: Option<&str>| {
        let mut value = base(json!({"clusterIP": "10.0.0.1", "ports": [{"port": 80}]}));
        if let Some(name) = name {
            value["metadata"]["labels"] = json!({"service.kubernetes.io/service-proxy-name": name});
        }
        from_value::<Service>(value).expect("a typed Service")
    };
    for (label, claimed, expected) in [
        (None, None, true),
        (Some(""), None, false),
        (Some("sluice"), None, false),
        (Some("sluice"), Some("sluice"), true),
        (Some("other"), Some("sluice"), false),
        (None, Some("sluice"), false),
    ] {
        let (object, _) = service(&labelled(label), claimed);
        assert_eq!(object.is_some(), expected, "{label:?} {claimed:?}");
    }
}
