//! The documents of one manifest file, each good or broken on its own.

use std::{fmt, sync::Arc};

use k8s_openapi::{
    api::{core::v1::Service, discovery::v1::EndpointSlice},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde_json::Value;

use crate::snapshot::{
    ObjectName, Rejection, ServiceObject, SliceObject, Subject, SubjectKind, convert,
};

/// The kinds we read.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Kind {
    Service,
    EndpointSlice,
}

/// What makes an object the same object in another file or version.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Key {
    pub(super) kind: Kind,
    pub(super) name: ObjectName,
}

impl Key {
    /// Whom to tell about it.
    pub(super) fn subject(&self) -> Option<Subject> {
        let kind = match self.kind {
            Kind::Service => SubjectKind::Service,
            Kind::EndpointSlice => SubjectKind::EndpointSlice,
        };
        let name = self.name.clone();
        Some(Subject { kind, name })
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {}", self.kind, self.name)
    }
}

/// A good object, as the snapshot will hold it.
#[derive(Clone, Debug)]
pub(super) enum Object {
    Service(Arc<ServiceObject>),
    Slice(Arc<SliceObject>),
    /// An object of a kind we read which is not ours to balance. It still has its name.
    Excluded,
}

/// One object of a file.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// Place inside the file, such as `document 2` or `document 1 items[3]`.
    pub(super) place: String,
    pub(super) key: Key,
    pub(super) object: Object,
    /// Fields of it that are not served.
    pub(super) rejections: Vec<Rejection>,
}

/// What became of one object of a file.
#[derive(Clone, Debug)]
pub(super) enum Outcome {
    Good(Entry),
    /// `key` is known if the document says which object it means to be.
    Broken {
        key: Option<Key>,
        rejection: Rejection,
    },
}

impl Outcome {
    /// Something broken which may be any object.
    pub(super) fn unknown(place: &str, message: impl Into<String>) -> Self {
        let rejection = Rejection {
            object: place.to_owned(),
            field: String::new(),
            message: message.into(),
            subject: None,
        };
        Self::Broken {
            key: None,
            rejection,
        }
    }
}

/// Reads every document of a file.
pub(super) fn parse(text: &str, json: bool) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    let documents = if json {
        json_documents(text)
    } else {
        yaml_documents(text)
    };
    for (i, document) in documents.into_iter().enumerate() {
        let place = format!("document {}", i + 1);
        match document {
            Ok(Value::Null) => {}
            Ok(value) => read_value(&place, value, &mut outcomes),
            Err(message) => outcomes.push(Outcome::unknown(&place, message)),
        }
    }
    outcomes
}

type Document = Result<Value, String>;

fn json_documents(text: &str) -> Vec<Document> {
    let documents = serde_json::Deserializer::from_str(text).into_iter::<Value>();
    documents
        .map(|document| document.map_err(|error| error.to_string()))
        .collect()
}

fn yaml_documents(text: &str) -> Vec<Document> {
    split(text)
        .into_iter()
        .map(|(line, document)| yaml_document(line, &document))
        .collect()
}

fn yaml_document(first_line: usize, text: &str) -> Document {
    // One document may be a list of a cluster's every Service: the defaults are for configuration.
    // A port may be named `n` or `on`: that is no boolean.
    let options = serde_saphyr::options! {
        strict_booleans: true,
        budget: serde_saphyr::budget! { max_events: 64_000_000, max_nodes: 32_000_000 },
    };
    let parsed = serde_saphyr::from_str_with_options::<Value>(text, options);
    parsed.map_err(|error| {
        let line = error
            .location()
            .map_or(0, |l| usize::try_from(l.line()).unwrap_or(0));
        let message = error.without_snippet().to_string();
        let message = message.lines().next().unwrap_or_default().to_owned();
        format!(
            "line {}: is not YAML: {message}",
            first_line + line.saturating_sub(1)
        )
    })
}

/// Splits a YAML stream at its document markers, so that one broken document leaves the others be.
/// A line that begins with `---` is a marker wherever it stands. Returns each document that has any
/// content, with the number of its first line.
fn split(text: &str) -> Vec<(usize, String)> {
    let mut documents = Vec::new();
    let mut current = String::new();
    let mut start = 1;
    let mut finish = |current: &mut String, start: usize| {
        let document = std::mem::take(current);
        let has_content = |line: &str| {
            let line = line.trim();
            !(line.is_empty() || line == "---" || line == "..." || line.starts_with(['#', '%']))
        };
        if document.lines().any(has_content) {
            documents.push((start, document));
        }
    };
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    for (i, line) in text.lines().enumerate() {
        if is_marker(line, "---") {
            finish(&mut current, start);
            start = i + 1;
        } else if is_marker(line, "...") {
            finish(&mut current, start);
            start = i + 2;
            continue;
        }
        current.push_str(line);
        current.push('\n');
    }
    finish(&mut current, start);
    documents
}

fn is_marker(line: &str, marker: &str) -> bool {
    line.strip_prefix(marker)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r']))
}

/// Reads one object, or every item of a list.
fn read_value(place: &str, mut value: Value, outcomes: &mut Vec<Outcome>) {
    let text = |value: &Value, field: &str| {
        value
            .get(field)
            .and_then(Value::as_str)
            .map(str::to_owned)
            .unwrap_or_default()
    };
    let (version, kind) = (text(&value, "apiVersion"), text(&value, "kind"));
    match (version.as_str(), kind.as_str()) {
        ("v1", "List" | "ServiceList") | ("discovery.k8s.io/v1", "EndpointSliceList") => {
            let items = value.get_mut("items").map(Value::take).unwrap_or_default();
            let items = match items {
                Value::Array(items) => items,
                Value::Null => Vec::new(),
                _ => {
                    let mut outcome = Outcome::unknown(place, "is not a list");
                    if let Outcome::Broken { rejection, .. } = &mut outcome {
                        "items".clone_into(&mut rejection.field);
                    }
                    return outcomes.push(outcome);
                }
            };
            for (i, mut item) in items.into_iter().enumerate() {
                // Items of a typed list need not repeat their type.
                if let (Some(item), Some(item_kind)) =
                    (item.as_object_mut(), kind.strip_suffix("List"))
                    && !item_kind.is_empty()
                {
                    item.entry("apiVersion")
                        .or_insert_with(|| version.clone().into());
                    item.entry("kind").or_insert_with(|| item_kind.into());
                }
                read_value(&format!("{place} items[{i}]"), item, outcomes);
            }
        }
        ("v1", "Service") => outcomes.push(read_object(place, value, Kind::Service)),
        ("discovery.k8s.io/v1", "EndpointSlice") => {
            outcomes.push(read_object(place, value, Kind::EndpointSlice));
        }
        ("", _) | (_, "") => outcomes.push(Outcome::unknown(
            place,
            "is not a Kubernetes object: apiVersion or kind is missing",
        )),
        (version, "Service" | "EndpointSlice") => {
            let key = key_of(&value, &kind);
            outcomes.push(broken(
                place,
                key,
                "apiVersion",
                format!("`{version}` is not supported"),
            ));
        }
        _ => tracing::debug!(place, version, kind, "not a kind to balance, ignored"),
    }
}

fn key_of(value: &Value, kind: &str) -> Option<Key> {
    let kind = match kind {
        "Service" => Kind::Service,
        "EndpointSlice" => Kind::EndpointSlice,
        _ => return None,
    };
    let metadata = value.get("metadata")?;
    let namespace = metadata
        .get("namespace")
        .and_then(Value::as_str)
        .unwrap_or("default");
    let name = metadata.get("name")?.as_str()?;
    Some(Key {
        kind,
        name: ObjectName::new(namespace, name),
    })
}

fn broken(place: &str, key: Option<Key>, field: &str, message: String) -> Outcome {
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

fn read_object(place: &str, value: Value, kind: Kind) -> Outcome {
    let key = key_of(&value, &format!("{kind:?}"));
    let (metadata, object, rejections) = match kind {
        Kind::Service => match serde_path_to_error::deserialize::<_, Service>(value) {
            Ok(service) => {
                let (object, rejections) = convert::service(&service);
                let object = object.map(|object| Object::Service(Arc::new(object)));
                (service.metadata, object, rejections)
            }
            Err(error) => return mistyped(place, key, &error),
        },
        Kind::EndpointSlice => match serde_path_to_error::deserialize::<_, EndpointSlice>(value) {
            Ok(slice) => {
                let (object, rejections) = convert::slice(&slice);
                let object = object.map(|object| Object::Slice(Arc::new(object)));
                (slice.metadata, object, rejections)
            }
            Err(error) => return mistyped(place, key, &error),
        },
    };
    if let Err(message) = check_name(&metadata) {
        return broken(place, None, "metadata.name", message);
    }
    Outcome::Good(Entry {
        place: place.to_owned(),
        key: Key {
            kind,
            name: convert::object_name(&metadata),
        },
        object: object.unwrap_or(Object::Excluded),
        rejections,
    })
}

fn mistyped(
    place: &str,
    key: Option<Key>,
    error: &serde_path_to_error::Error<serde_json::Error>,
) -> Outcome {
    let field = error.path().to_string();
    broken(
        place,
        key,
        if field == "." { "" } else { &field },
        error.inner().to_string(),
    )
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
