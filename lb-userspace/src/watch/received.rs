//! Objects as the API server sends them, each good or broken on its own.

use std::borrow::Cow;

use k8s_openapi::{
    api::{
        core::v1::{Node, Service},
        discovery::v1::EndpointSlice,
        networking::v1::ServiceCIDR,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::Resource;
use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use serde_json::value::RawValue;

use super::table::Read;
use crate::{
    snapshot::{
        NodeObject, ObjectName, Rejection, ServiceObject, SliceObject, Subject, SubjectKind,
        convert,
    },
    source::Scope,
};

/// An object of kind `K`, or why it is none. One that cannot be understood must not take the list
/// it is in with it.
#[derive(Clone, Debug)]
pub(super) struct Received<K> {
    /// What names it, and nothing more: the rest is big.
    metadata: ObjectMeta,
    object: Result<Box<K>, String>,
}

impl<'de, K: DeserializeOwned> Deserialize<'de> for Received<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        /// The part without which there is no object at all.
        #[derive(Deserialize)]
        struct Named {
            metadata: Metadata,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Metadata {
            name: Option<String>,
            namespace: Option<String>,
            resource_version: Option<String>,
        }
        let text = Box::<RawValue>::deserialize(deserializer)?;
        let Named { metadata } =
            serde_json::from_str(text.get()).map_err(serde::de::Error::custom)?;
        let mut parser = serde_json::Deserializer::from_str(text.get());
        let object = serde_path_to_error::deserialize(&mut parser);
        Ok(Self {
            metadata: ObjectMeta {
                name: metadata.name,
                namespace: metadata.namespace,
                resource_version: metadata.resource_version,
                ..ObjectMeta::default()
            },
            object: object.map(Box::new).map_err(|error| error.to_string()),
        })
    }
}

impl<K: Resource<DynamicType = ()>> Resource for Received<K> {
    type DynamicType = ();
    type Scope = K::Scope;

    fn kind((): &()) -> Cow<'_, str> {
        K::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        K::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        K::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        K::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// A kind we follow.
pub(super) trait Kind: Resource<DynamicType = ()> + Clone + DeserializeOwned {
    /// What of it is kept.
    type Kept;

    /// Whom to tell about an object of it.
    const SUBJECT: Option<SubjectKind>;

    /// Reduces an object to what is kept.
    fn reduce(&self, scope: &Scope) -> Read<Self::Kept>;
}

impl Kind for Service {
    type Kept = ServiceObject;

    const SUBJECT: Option<SubjectKind> = Some(SubjectKind::Service);

    fn reduce(&self, scope: &Scope) -> Read<ServiceObject> {
        match convert::service(self, scope.service_proxy_name.as_deref()) {
            (Some(object), rejections) => Read::Good(object, rejections),
            (None, rejections) if rejections.is_empty() => Read::NotOurs(rejections),
            // A type nobody knows yet: what it was before is better than nothing.
            (None, rejections) => Read::Broken(rejections),
        }
    }
}

impl Kind for EndpointSlice {
    type Kept = SliceObject;

    const SUBJECT: Option<SubjectKind> = Some(SubjectKind::EndpointSlice);

    fn reduce(&self, scope: &Scope) -> Read<SliceObject> {
        match convert::slice(self, scope.service_proxy_name.as_deref()) {
            (Some(object), rejections) => Read::Good(object, rejections),
            (None, rejections) => Read::NotOurs(rejections),
        }
    }
}

impl Kind for Node {
    type Kept = NodeObject;

    const SUBJECT: Option<SubjectKind> = None;

    fn reduce(&self, _: &Scope) -> Read<NodeObject> {
        let (object, rejections) = convert::node(self);
        Read::Good(object, rejections)
    }
}

impl Kind for ServiceCIDR {
    type Kept = Vec<ipnet::IpNet>;

    const SUBJECT: Option<SubjectKind> = None;

    fn reduce(&self, _: &Scope) -> Read<Self::Kept> {
        let (networks, rejections) = convert::service_networks(self);
        Read::Good(networks, rejections)
    }
}

impl<K: Kind> Received<K> {
    /// Its name, and what is kept of it.
    pub(super) fn read(self, scope: &Scope) -> (ObjectName, Read<K::Kept>) {
        let name = ObjectName::new(
            self.metadata.namespace.unwrap_or_default(),
            self.metadata.name.unwrap_or_default(),
        );
        let read = match self.object {
            Ok(object) => object.reduce(scope),
            Err(why) => Read::Broken(vec![Rejection {
                object: format!("{} {name}", K::kind(&())),
                field: String::new(),
                message: format!("cannot be read: {why}"),
                subject: K::SUBJECT.map(|kind| Subject {
                    kind,
                    name: name.clone(),
                }),
            }]),
        };
        (name, read)
    }
}
