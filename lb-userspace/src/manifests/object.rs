//! One object of a manifest.

use std::{fmt, sync::Arc};

use ipnet::IpNet;
use k8s_openapi::{
    api::{
        core::v1::{Node, Service},
        discovery::v1::EndpointSlice,
        networking::v1::ServiceCIDR,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::document::{Entry, Outcome};
use crate::{
    snapshot::{
        NodeObject, ObjectName, Rejection, ServiceObject, SliceObject, Subject, SubjectKind,
        convert,
    },
    source::Scope,
};

/// The kinds we read.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Kind {
    Service,
    EndpointSlice,
    Node,
    ServiceCidr,
}

impl Kind {
    const ALL: [Self; 4] = [
        Self::Service,
        Self::EndpointSlice,
        Self::Node,
        Self::ServiceCidr,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Node => "Node",
            Self::ServiceCidr => "ServiceCIDR",
        }
    }

    const fn version(self) -> &'static str {
        match self {
            Self::Service | Self::Node => "v1",
            Self::EndpointSlice => "discovery.k8s.io/v1",
            Self::ServiceCidr => "networking.k8s.io/v1",
        }
    }

    const fn is_namespaced(self) -> bool {
        matches!(self, Self::Service | Self::EndpointSlice)
    }

    /// The kind of this name, and whether `version` is the one we read.
    pub(super) fn find(version: &str, name: &str) -> Option<(Self, bool)> {
        let kind = Self::ALL.into_iter().find(|kind| kind.name() == name)?;
        Some((kind, kind.version() == version))
    }

    /// Whether there is a list of this name: of everything, or of one of the kinds.
    pub(super) fn is_list(version: &str, name: &str) -> bool {
        let of = |kind: &Self| name.strip_suffix("List") == Some(kind.name());
        let typed = Self::ALL.iter().find(|kind| of(kind));
        (version, name) == ("v1", "List") || typed.is_some_and(|kind| kind.version() == version)
    }
}

/// What makes an object the same object in another file or version.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Key {
    pub(super) kind: Kind,
    pub(super) name: ObjectName,
}

impl Key {
    /// Of an object that may be broken otherwise.
    pub(super) fn of(kind: Kind, value: &Value) -> Option<Self> {
        let metadata = value.get("metadata")?;
        let namespace = metadata.get("namespace").and_then(Value::as_str);
        let name = metadata.get("name")?.as_str()?;
        let name = ObjectName::new(namespace.unwrap_or("default"), name);
        Some(Self::new(kind, name))
    }

    fn new(kind: Kind, mut name: ObjectName) -> Self {
        if !kind.is_namespaced() {
            name.namespace = Arc::default();
        }
        Self { kind, name }
    }

    /// Whom to tell about it.
    pub(super) fn subject(&self) -> Option<Subject> {
        let kind = match self.kind {
            Kind::Service => SubjectKind::Service,
            Kind::EndpointSlice => SubjectKind::EndpointSlice,
            Kind::Node | Kind::ServiceCidr => return None,
        };
        let name = self.name.clone();
        Some(Subject { kind, name })
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind.name(), self.name)
    }
}

/// A good object, as the snapshot will hold it.
#[derive(Clone, Debug)]
pub(super) enum Object {
    Service(Arc<ServiceObject>),
    Slice(Arc<SliceObject>),
    Node(Box<NodeObject>),
    ServiceNetworks(Vec<IpNet>),
    /// An object of a kind we read which is not ours to balance. It still has its name.
    Excluded,
}

/// Gives ports without a name the empty one, as the API server does.
fn name_ports(slice: &mut EndpointSlice) {
    for port in slice.ports.iter_mut().flatten() {
        port.name.get_or_insert_default();
    }
}

/// Reads an object of a kind we know.
pub(super) fn read(place: &str, value: Value, kind: Kind, scope: &Scope) -> Outcome {
    let key = Key::of(kind, &value);
    let claimed = scope.service_proxy_name.as_deref();
    let read = match kind {
        Kind::Service => typed::<Service>(value).map(|service| {
            let (object, rejections) = convert::service(&service, claimed);
            let object = object.map(|object| Object::Service(Arc::new(object)));
            (service.metadata, object, rejections)
        }),
        Kind::EndpointSlice => typed::<EndpointSlice>(value).map(|mut slice| {
            name_ports(&mut slice);
            let (object, rejections) = convert::slice(&slice, claimed);
            let object = object.map(|object| Object::Slice(Arc::new(object)));
            (slice.metadata, object, rejections)
        }),
        Kind::Node => typed::<Node>(value).map(|node| {
            if node.metadata.name.as_ref() != Some(&scope.node_name) {
                return (node.metadata, None, Vec::new());
            }
            let (object, rejections) = convert::node(&node);
            (
                node.metadata,
                Some(Object::Node(Box::new(object))),
                rejections,
            )
        }),
        Kind::ServiceCidr => typed::<ServiceCIDR>(value).map(|object| {
            let (networks, rejections) = convert::service_networks(&object);
            (
                object.metadata,
                Some(Object::ServiceNetworks(networks)),
                rejections,
            )
        }),
    };
    let (metadata, object, rejections) = match read {
        Ok(read) => read,
        Err((field, message)) => return broken(place, key, &field, message),
    };
    if let Err(message) = check_name(&metadata) {
        return broken(place, None, "metadata.name", message);
    }
    Outcome::Good(Entry {
        place: place.to_owned(),
        key: Key::new(kind, convert::object_name(&metadata)),
        object: object.unwrap_or(Object::Excluded),
        rejections,
    })
}

/// An object that cannot be read, and why.
pub(super) fn broken(place: &str, key: Option<Key>, field: &str, message: String) -> Outcome {
    let object = match &key {
        Some(key) => format!("{place} ({key})"),
        None => place.to_owned(),
    };
    let subject = key.as_ref().and_then(Key::subject);
    Outcome::Broken {
        key,
        rejection: Rejection {
            object,
            field: field.to_owned(),
            message,
            subject,
        },
    }
}

/// The field that does not fit, and why, if one does not.
fn typed<K: DeserializeOwned>(value: Value) -> Result<K, (String, String)> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let field = error.path().to_string();
        let field = if field == "." { String::new() } else { field };
        (field, error.inner().to_string())
    })
}

/// A name the API server would take: it ends up in tables and messages with separators of their own.
fn check_name(metadata: &ObjectMeta) -> Result<(), String> {
    let name = convert::object_name(metadata);
    let is_dns = |text: &str| {
        (1..=253).contains(&text.len())
            && text
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b))
    };
    if name.name.is_empty() {
        Err("is missing".to_owned())
    } else if is_dns(&name.name) && is_dns(&name.namespace) {
        Ok(())
    } else {
        Err(format!(
            "`{name}` is not a namespace and a name of lower-case letters, digits and `-`"
        ))
    }
}
