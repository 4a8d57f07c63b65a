//! Objects as JSON, with what every test wants filled in.

use serde_json::{Value, json};

/// The image of the test server.
pub const SERVER: &str = "localhost/pod-server:1";
/// The test server's HTTP port.
pub const HTTP: u16 = 8080;
/// The test server's echo port, TCP and UDP.
pub const ECHO: u16 = 7000;

/// A Deployment of test servers, labelled `app: NAME`, spread over the workers.
pub fn deployment(name: &str, replicas: u32) -> Value {
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "strategy": {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": pod_spec(&[]),
            },
        },
    })
}

/// A pod with the test server on a certain node.
pub fn pod(name: &str, node: &str) -> Value {
    let mut spec = pod_spec(&[]);
    merge(&mut spec, &json!({"nodeName": node, "affinity": null}));
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": spec,
    })
}

/// What a pod of the test server is; `arguments` are its own.
pub fn pod_spec(arguments: &[&str]) -> Value {
    let field = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
    json!({
        "terminationGracePeriodSeconds": 20,
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{"matchExpressions": [
                {"key": "sluice.dev/edge", "operator": "DoesNotExist"},
            ]}],
        }}},
        "containers": [{
            "name": "server",
            "image": SERVER,
            "imagePullPolicy": "Never",
            "args": arguments,
            "env": [
                field("POD_NAME", "metadata.name"),
                field("POD_NAMESPACE", "metadata.namespace"),
                field("NODE_NAME", "spec.nodeName"),
            ],
            "readinessProbe": {
                "httpGet": {"path": "/readyz", "port": HTTP},
                "periodSeconds": 1,
                "failureThreshold": 1,
                // It says at once that it is not ready; what takes long is the machine.
                "timeoutSeconds": 10,
            },
        }],
    })
}

/// A Service of both families for the pods labelled `app: NAME`: HTTP at port 80, UDP at port 53.
/// `spec` is merged into its own.
pub fn service(name: &str, kind: &str, spec: &Value) -> Value {
    let mut object = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {
            "type": kind,
            "selector": {"app": name},
            "ipFamilyPolicy": "RequireDualStack",
            "ipFamilies": ["IPv4", "IPv6"],
            "ports": [
                {"name": "http", "protocol": "TCP", "port": 80, "targetPort": HTTP},
                {"name": "udp", "protocol": "UDP", "port": 53, "targetPort": ECHO},
            ],
        },
    });
    merge(&mut object["spec"], spec);
    object
}

/// An EndpointSlice written by hand, with one port, `http`.
pub fn slice(name: &str, service: &str, endpoints: &Value) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": name, "labels": {
            "kubernetes.io/service-name": service,
            "endpointslice.kubernetes.io/managed-by": "tests",
        }},
        "addressType": "IPv4",
        "ports": [{"name": "http", "protocol": "TCP", "port": HTTP}],
        "endpoints": endpoints,
    })
}

/// A list that `kubectl apply` takes at once.
pub fn list(items: &[Value]) -> Value {
    json!({"apiVersion": "v1", "kind": "List", "items": items})
}

/// Lets `changes` win over `object`, key by key; null removes a key.
pub fn merge(object: &mut Value, changes: &Value) {
    let (Value::Object(fields), Value::Object(changes)) = (&mut *object, changes) else {
        *object = changes.clone();
        return;
    };
    for (key, change) in changes {
        if change.is_null() {
            fields.remove(key);
        } else {
            merge(fields.entry(key.clone()).or_insert(Value::Null), change);
        }
    }
}
