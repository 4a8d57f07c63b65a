//! The documents of one manifest file, each good or broken on its own.

use serde_json::Value;

use super::object::{self, Key, Kind, Object};
use crate::{snapshot::Rejection, source::Scope};

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
pub(super) fn parse(text: &str, json: bool, scope: &Scope) -> Vec<Outcome> {
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
            Ok(value) => read_value(&place, value, scope, &mut outcomes),
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
fn read_value(place: &str, mut value: Value, scope: &Scope, outcomes: &mut Vec<Outcome>) {
    let text = |value: &Value, field: &str| {
        value
            .get(field)
            .and_then(Value::as_str)
            .map(str::to_owned)
            .unwrap_or_default()
    };
    let (version, kind) = (text(&value, "apiVersion"), text(&value, "kind"));
    match (version.as_str(), kind.as_str()) {
        (version, kind) if Kind::is_list(version, kind) => {
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
                    item.entry("apiVersion").or_insert_with(|| version.into());
                    item.entry("kind").or_insert_with(|| item_kind.into());
                }
                read_value(&format!("{place} items[{i}]"), item, scope, outcomes);
            }
        }
        ("", _) | (_, "") => outcomes.push(Outcome::unknown(
            place,
            "is not a Kubernetes object: apiVersion or kind is missing",
        )),
        (version, kind) => match Kind::find(version, kind) {
            Some((kind, true)) => outcomes.push(object::read(place, value, kind, scope)),
            Some((kind, false)) => {
                let key = Key::of(kind, &value);
                let message = format!("`{version}` is not supported");
                outcomes.push(object::broken(place, key, "apiVersion", message));
            }
            None => tracing::debug!(place, version, kind, "not a kind to balance, ignored"),
        },
    }
}
