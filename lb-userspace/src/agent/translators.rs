//! What else on the node translates addresses, and what follows from it.

use lb_common::config::UnknownFlows as DataPathUnknownFlows;
use tokio::task::spawn_blocking;
use tracing::{info, warn};

use super::AgentError;
use crate::{
    config::{Config, Switch, UnknownFlows},
    netfilter::{self, Netfilter},
};

/// What `auto` means on this node.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Choices {
    pub(super) unknown_flows: DataPathUnknownFlows,
    pub(super) drop_unallocated: bool,
}

impl Choices {
    const fn new(config: &Config, found: Netfilter) -> Self {
        Self {
            unknown_flows: match config.unknown_flows {
                UnknownFlows::Auto if found.perhaps_kube_proxy => DataPathUnknownFlows::Stack,
                UnknownFlows::Auto | UnknownFlows::Select => DataPathUnknownFlows::Select,
                UnknownFlows::Stack => DataPathUnknownFlows::Stack,
                UnknownFlows::Drop => DataPathUnknownFlows::Drop,
            },
            // kube-proxy drops them itself, or its node's stack has a use for them.
            drop_unallocated: match config.drop_unallocated {
                Switch::Auto => !found.kube_proxy,
                Switch::On => true,
                Switch::Off => false,
            },
        }
    }
}

/// The other translators, looked at now and then.
#[derive(Debug)]
pub(super) struct Translators {
    found: Netfilter,
    /// What the data path was loaded with.
    choices: Choices,
}

impl Translators {
    /// Looks for the first time.
    pub(super) async fn look(config: &Config) -> Result<Self, AgentError> {
        let found = match spawn_blocking(netfilter::inspect).await? {
            Ok(found) => found,
            Err(error) => {
                warn!(%error, "netfilter's rules cannot be read: assuming a masquerade and a kube-proxy");
                Netfilter::UNKNOWN
            }
        };
        let choices = Choices::new(config, found);
        info!(
            masquerade = found.masquerade,
            kube_proxy = found.kube_proxy,
            perhaps_kube_proxy = found.perhaps_kube_proxy,
            unknown_flows = ?choices.unknown_flows,
            drop_unallocated = choices.drop_unallocated,
            "other translators on this node"
        );
        Ok(Self { found, choices })
    }

    pub(super) const fn found(&self) -> Netfilter {
        self.found
    }

    pub(super) const fn choices(&self) -> Choices {
        self.choices
    }

    /// Looks again, and says what a change means.
    pub(super) async fn look_again(&mut self, config: &Config) -> Result<(), AgentError> {
        let found = match spawn_blocking(netfilter::inspect).await? {
            Ok(found) => found,
            Err(error) => {
                warn!(%error, "netfilter's rules cannot be read: what was found last stays in force");
                return Ok(());
            }
        };
        let before = std::mem::replace(&mut self.found, found);
        if found == before {
            return Ok(());
        }
        if found.masquerade != before.masquerade {
            info!(
                masquerade = found.masquerade,
                "the ports for SNAT on the node's own addresses change: a masquerade takes those \
                 from 1024 on"
            );
        }
        if found.kube_proxy != before.kube_proxy {
            info!(kube_proxy = found.kube_proxy, "kube-proxy on this node");
        }
        let wanted = Choices::new(config, found);
        if wanted != self.choices {
            warn!(
                unknown_flows = ?wanted.unknown_flows,
                drop_unallocated = wanted.drop_unallocated,
                "the data path was loaded with other choices; they follow when the agent restarts"
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ConfigFlags;

    #[test]
    fn auto_leaves_to_a_kube_proxy_what_is_its() {
        use DataPathUnknownFlows::{Drop, Select, Stack};
        for (name, keys, [kube_proxy, perhaps_kube_proxy], unknown_flows, drop_unallocated) in [
            ("alone", "", [false, false], Select, true),
            ("beside kube-proxy", "", [true, true], Stack, false),
            ("perhaps beside kube-proxy", "", [false, true], Stack, true),
            (
                "as told",
                "unknownFlows: select\ndropUnallocated: true",
                [true, true],
                Select,
                true,
            ),
            (
                "as told, otherwise",
                "unknownFlows: drop\ndropUnallocated: false",
                [false, false],
                Drop,
                false,
            ),
        ] {
            let text = format!("manifests: /m\nnodeName: n\ninterfaces: [eth0]\n{keys}");
            let config = Config::parse(&text, ConfigFlags::default()).expect("a configuration");
            let found = Netfilter {
                kube_proxy,
                perhaps_kube_proxy,
                ..Netfilter::default()
            };
            let expected = Choices {
                unknown_flows,
                drop_unallocated,
            };
            assert_eq!(Choices::new(&config, found), expected, "{name}");
        }
    }
}
