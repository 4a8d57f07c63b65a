//! The configuration file as written, before it is checked.

use serde::Deserialize;

use super::{LogFormat, Mode, Problem, UnknownFlows};

/// Every key of the file. Absent keys take defaults when the configuration is checked.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct RawConfig {
    pub(super) manifests: Option<String>,
    pub(super) kubernetes: RawKubernetes,
    pub(super) service_proxy_name: Option<String>,
    pub(super) node_name: Option<String>,
    pub(super) zone: Option<String>,
    pub(super) interfaces: Vec<String>,
    pub(super) pod_interfaces: Option<WordOrList>,
    pub(super) mode: Option<Mode>,
    pub(super) gateway: Option<bool>,
    pub(super) snat: RawSnat,
    pub(super) unknown_flows: Option<UnknownFlows>,
    pub(super) direct_backend_access: Option<bool>,
    pub(super) node_port_addresses: Option<WordOrList>,
    #[serde(rename = "externalIPs")]
    pub(super) external_ips: Option<bool>,
    pub(super) pod_networks: Vec<String>,
    pub(super) drop_unallocated: Option<BoolOrWord>,
    pub(super) health_check_node_ports: Option<BoolOrWord>,
    pub(super) health_address: Option<WordOrList>,
    pub(super) metrics_address: Option<WordOrList>,
    pub(super) events: Option<bool>,
    pub(super) tables: RawTables,
    pub(super) timeouts: RawTimeouts,
    pub(super) replies_per_second: Option<u32>,
    pub(super) pin_root: Option<String>,
    pub(super) lock_file: Option<String>,
    pub(super) object: Option<String>,
    pub(super) manage_sysctls: Option<bool>,
    pub(super) log: RawLog,
}

/// Either a word such as `auto`, or a list.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, expecting = "expected a word or a list of strings")]
pub(super) enum WordOrList {
    Word(String),
    List(Vec<String>),
}

/// `true`, `false`, or a word such as `auto`.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, expecting = "expected true, false or a word")]
pub(super) enum BoolOrWord {
    Bool(bool),
    Word(String),
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct RawKubernetes {
    pub(super) enabled: Option<bool>,
    pub(super) kubeconfig: Option<String>,
    pub(super) context: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct RawSnat {
    pub(super) addresses: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct RawTimeouts {
    pub(super) tcp: Option<RawDuration>,
    pub(super) udp: Option<RawDuration>,
    pub(super) embryonic: Option<RawDuration>,
    pub(super) closed: Option<RawDuration>,
}

/// `2h15m`, or a number of seconds.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, expecting = "expected a duration such as `90s` or `2h15m`")]
pub(super) enum RawDuration {
    Seconds(u64),
    Text(String),
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct RawTables {
    pub(super) frontends: Option<u32>,
    pub(super) gateway_endpoints: Option<u32>,
    pub(super) services: Option<u32>,
    pub(super) backends: Option<u32>,
    pub(super) members: Option<u32>,
    pub(super) slots: Option<u32>,
    pub(super) flows_v4: Option<u32>,
    pub(super) flows_v6: Option<u32>,
    pub(super) embryonic_v4: Option<u32>,
    pub(super) embryonic_v6: Option<u32>,
    pub(super) affinity: Option<u32>,
    pub(super) source_ranges: Option<u32>,
    pub(super) source_class: Option<u32>,
    pub(super) addresses: Option<u32>,
    pub(super) next_hops: Option<u32>,
    pub(super) devices: Option<u32>,
    pub(super) snat: Option<u32>,
    pub(super) fragments: Option<u32>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct RawLog {
    pub(super) level: Option<String>,
    pub(super) format: Option<LogFormat>,
}

impl RawConfig {
    /// Reads a file's text.
    pub(super) fn parse(text: &str) -> Result<Self, Problem> {
        // By way of a JSON value, whose errors can name the key. An empty file is all defaults.
        let options = serde_saphyr::options! { strict_booleans: true };
        let value = serde_saphyr::from_str_with_options::<Option<serde_json::Value>>(text, options);
        let value = value.map_err(|error| {
            let line = error.location().map_or(0, |location| location.line());
            let message = error.without_snippet().to_string();
            let message = message.lines().next().unwrap_or_default();
            Problem {
                key: String::new(),
                message: format!("line {line}: is not YAML: {message}"),
            }
        })?;
        let value = value.unwrap_or_else(|| serde_json::Value::Object(serde_json::Map::new()));
        serde_path_to_error::deserialize(value).map_err(|error| {
            let key = error.path().to_string();
            let key = if key == "." { String::new() } else { key };
            Problem {
                key,
                message: error.inner().to_string(),
            }
        })
    }
}
