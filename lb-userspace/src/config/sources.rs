//! Keys about where Services come from, and where the agent listens.

use std::{env, fs, net::SocketAddr};

use super::{
    Kubernetes, Switch,
    check::Problems,
    raw::{BoolOrWord, RawKubernetes, WordOrList},
};

/// Default of `healthAddress`.
pub(super) const HEALTH: &str = "[::]:10356";
/// Default of `metricsAddress`.
pub(super) const METRICS: &str = "127.0.0.1:10350";
/// Longest value of a label, in bytes.
const LABEL: usize = 63;

/// The node's name where nobody gives one: the variable a pod's specification sets, else the host's
/// name as the kubelet writes it.
pub(super) fn default_node_name() -> Option<String> {
    let named = env::var("NODE_NAME").ok().filter(|name| !name.is_empty());
    named.or_else(|| {
        let host = fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
        let host = host.trim().to_lowercase();
        (!host.is_empty()).then_some(host)
    })
}

/// Naming a kubeconfig means to use it, unless `enabled` says otherwise.
pub(super) fn kubernetes(raw: RawKubernetes, problems: &mut Problems) -> Option<Kubernetes> {
    let kubeconfig = raw.kubeconfig.filter(|path| !path.is_empty());
    let context = raw.context.filter(|context| !context.is_empty());
    if context.is_some() && kubeconfig.is_none() {
        problems.push(
            "kubernetes.context",
            "needs kubernetes.kubeconfig (or --kubeconfig)",
        );
    }
    let enabled = raw.enabled.unwrap_or(kubeconfig.is_some());
    enabled.then(|| Kubernetes {
        kubeconfig: kubeconfig.map(Into::into),
        context,
    })
}

pub(super) fn proxy_name(value: Option<String>, problems: &mut Problems) -> Option<String> {
    let name = value.filter(|name| !name.is_empty())?;
    let inner = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let outer = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    let valid = name.len() <= LABEL
        && name.chars().all(inner)
        && outer(name.chars().next())
        && outer(name.chars().next_back());
    if !valid {
        let message = format!("`{name}` is not the value of a label");
        problems.push("serviceProxyName", message);
    }
    Some(name)
}

pub(super) fn switch(value: Option<BoolOrWord>, key: &str, problems: &mut Problems) -> Switch {
    let word = match value {
        None => return Switch::Auto,
        Some(BoolOrWord::Bool(true)) => return Switch::On,
        Some(BoolOrWord::Bool(false)) => return Switch::Off,
        Some(BoolOrWord::Word(word)) => word,
    };
    match word.as_str() {
        "auto" => Switch::Auto,
        "on" | "true" => Switch::On,
        "off" | "false" => Switch::Off,
        _ => {
            problems.push(key, format!("`{word}` is not `auto`, `on` or `off`"));
            Switch::Auto
        }
    }
}

pub(super) fn listen(
    value: Option<WordOrList>,
    key: &str,
    default: &str,
    problems: &mut Problems,
) -> Vec<SocketAddr> {
    let mut read = |key: String, text: &str| {
        let parsed = text.parse();
        if parsed.is_err() {
            let message = format!("`{text}` is not an address with a port, such as {default}");
            problems.push(key, message);
        }
        parsed.ok()
    };
    match value.unwrap_or_else(|| WordOrList::Word(default.to_owned())) {
        WordOrList::Word(word) if word == "off" => Vec::new(),
        WordOrList::Word(word) => read(key.to_owned(), &word).into_iter().collect(),
        WordOrList::List(list) => {
            let list = list.iter().enumerate();
            list.filter_map(|(i, text)| read(format!("{key}[{i}]"), text))
                .collect()
        }
    }
}
