//! Annotations of ours on a Service.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::Rejected;
use crate::duration::parse_duration;

/// Prefix of our annotations.
const OURS: &str = "sluice.dev/";
/// How long flows may stay with a backend that is terminating or gone.
const DRAIN_DEADLINE: &str = "sluice.dev/drain-deadline";

/// Those of ours, as they are.
pub(super) fn ours(metadata: &ObjectMeta) -> BTreeMap<String, String> {
    let all = metadata.annotations.iter().flatten();
    all.filter(|(key, _)| key.starts_with(OURS))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

/// The drain deadline, if there is one.
pub(super) fn drain_deadline(
    metadata: &ObjectMeta,
    rejected: &mut Rejected<'_>,
) -> Option<Duration> {
    let text = metadata.annotations.as_ref()?.get(DRAIN_DEADLINE)?;
    let wrong = |why| {
        let message = format!("{why}; flows stay with a backend until they end");
        rejected.push(format!("metadata.annotations[{DRAIN_DEADLINE}]"), message);
    };
    parse_duration(text.trim()).map_err(wrong).ok()
}
