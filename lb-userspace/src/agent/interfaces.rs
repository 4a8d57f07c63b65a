//! Which programs sit on which devices, and following devices that come, go and change.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use tracing::{info, warn};

use crate::{
    attach::{AttachError, Attached, Attacher, Interface},
    config::{Config, PodInterfaces},
    devices::{Link, NetworkView, Routes},
    kernel::{self, Hook},
    preflight,
};

/// Keeps programs where they belong.
#[derive(Debug)]
pub(super) struct Interfaces {
    attacher: Attacher,
    /// By interface index.
    managed: BTreeMap<u32, Managed>,
    /// Pod-facing devices and devices with `lb_egress`.
    held: BTreeSet<(u32, Hook)>,
    /// Where the addresses in `looked_up` are, as of network state `looked_up_at`.
    looked_up: BTreeSet<IpAddr>,
    looked_up_at: u64,
    missing: BTreeSet<String>,
}

/// What was taken of a device, and what it was like then.
#[derive(Debug)]
struct Managed {
    attached: Attached,
    obstacle: Option<String>,
    mtu: Option<u32>,
    /// What asking again ended with, if not with an answer.
    failure: Option<String>,
}

impl Managed {
    /// Whether the driver said no to native XDP.
    const fn is_refused(&self) -> bool {
        self.obstacle.is_none() && self.attached.reason.is_some()
    }
}

impl Interfaces {
    pub(super) const fn new(attacher: Attacher) -> Self {
        Self {
            attacher,
            managed: BTreeMap::new(),
            held: BTreeSet::new(),
            looked_up: BTreeSet::new(),
            looked_up_at: 0,
            missing: BTreeSet::new(),
        }
    }

    /// Attaches to every interface of the configuration. On failure nothing new is left attached.
    pub(super) fn start(&mut self, config: &Config, view: &NetworkView) -> Result<(), AttachError> {
        let result = self.attach_all(config, view);
        if result.is_err() {
            self.attacher.abandon();
        }
        result
    }

    /// Takes off again what was attached beside a layout that serves.
    pub(super) fn abandon(&mut self) {
        self.attacher.abandon();
    }

    /// Removes links of an earlier configuration, and other layouts: from now on this one serves.
    pub(super) fn settle(&mut self, config: &Config, view: &NetworkView) {
        self.attacher.taken_over();
        // What stays must not stay an older program's, with the settings of its time.
        for (hook, index) in self.attacher.own_links() {
            if self.keeps(config, view, hook, index)
                && let Some(link) = view.network.links().get(&index)
            {
                self.try_hold(&interface(index, link), hook);
            }
        }
        self.attacher
            .prune(|hook, index| self.keeps(config, view, hook, index));
        self.attacher.retire_other_layouts();
    }

    /// Whether a link that an earlier agent left is wanted. Pod-facing ones stay: flows may still need
    /// them.
    fn keeps(&self, config: &Config, view: &NetworkView, hook: Hook, index: u32) -> bool {
        let automatic = config.pod_interfaces == PodInterfaces::Auto;
        let wanted =
            self.managed.contains_key(&index) || self.held.contains(&(index, Hook::TcxIngress));
        exists(view, index)
            && (wanted || hook == Hook::TcxEgress || (automatic && hook == Hook::TcxIngress))
    }

    fn attach_all(&mut self, config: &Config, view: &NetworkView) -> Result<(), AttachError> {
        for name in &config.interfaces {
            let Some(index) = index(view, name) else {
                continue;
            };
            preflight::check_forwarding(name, config.manage_sysctls);
            self.manage(
                config,
                &Interface {
                    index,
                    name: name.clone(),
                },
                view,
            )?;
        }
        if let PodInterfaces::List(names) = &config.pod_interfaces {
            for name in names {
                let Some(index) = index(view, name) else {
                    continue;
                };
                preflight::check_forwarding(name, config.manage_sysctls);
                self.hold(
                    &Interface {
                        index,
                        name: name.clone(),
                    },
                    Hook::TcxIngress,
                )?;
            }
        }
        // Where the layout that serves has a program, flows may need one of ours.
        for (hook, index) in self.attacher.serving_links() {
            if self.keeps(config, view, hook, index)
                && let Some(link) = view.network.links().get(&index)
            {
                let interface = interface(index, link);
                match self.hold(&interface, hook) {
                    // Pods end at any time, and their devices with them.
                    Err(error) if !preflight::has_device(index) => {
                        warn!(interface = interface.name, "{}", chain(&error));
                    }
                    held => held?,
                }
            }
        }
        Ok(())
    }

    /// Follows devices that came, went, or got VLANs; a driver that refused native XDP is asked again if the MTU
    /// is another. Failures are logged: the others go on.
    pub(super) fn follow(&mut self, config: &Config, view: &NetworkView) {
        self.managed.retain(|index, _| exists(view, *index));
        self.held.retain(|(index, _)| exists(view, *index));
        self.attacher.prune(|_, index| exists(view, index));
        for name in &config.interfaces {
            let Some(index) = index(view, name) else {
                if self.missing.insert(name.clone()) {
                    warn!(
                        interface = name,
                        "the interface is gone; waiting for it to come back"
                    );
                }
                continue;
            };
            self.missing.remove(name);
            let interface = Interface {
                index,
                name: name.clone(),
            };
            let obstacle = obstacle(&interface, view);
            if let Some(known) = self.managed.get(&index)
                && known.obstacle == obstacle
            {
                if known.is_refused() && known.mtu != mtu(view, index) {
                    self.retry(config, &interface, view);
                }
                continue;
            }
            preflight::check_forwarding(name, config.manage_sysctls);
            if let Err(error) = self.manage(config, &interface, view) {
                warn!(interface = name, "{}", chain(&error));
            }
        }
        if let PodInterfaces::List(names) = &config.pod_interfaces {
            for name in names {
                let Some(index) = index(view, name) else {
                    continue;
                };
                self.try_hold(
                    &Interface {
                        index,
                        name: name.clone(),
                    },
                    Hook::TcxIngress,
                );
            }
        }
    }

    /// Asks drivers that refused native XDP once more: not all that they mind is told of.
    pub(super) fn ask_again(&mut self, config: &Config, view: &NetworkView) {
        let refused = self.managed.iter().filter(|(_, known)| known.is_refused());
        let refused: Vec<u32> = refused.map(|(&index, _)| index).collect();
        for index in refused {
            if let Some(link) = view.network.links().get(&index) {
                self.retry(config, &interface(index, link), view);
            }
        }
    }

    /// Manages anew what is managed. A failure is logged once.
    fn retry(&mut self, config: &Config, interface: &Interface, view: &NetworkView) {
        let result = self.manage(config, interface, view);
        if let (Err(error), Some(known)) = (result, self.managed.get_mut(&interface.index)) {
            known.mtu = mtu(view, interface.index);
            let failure = chain(&error);
            if known.failure.as_ref() != Some(&failure) {
                warn!(interface = interface.name, "{failure}");
                known.failure = Some(failure);
            }
        }
    }

    /// Puts `lb_ingress` on the devices this node's backends are behind, before any packet is sent
    /// there.
    pub(super) async fn reach_pods(
        &mut self,
        config: &Config,
        view: &NetworkView,
        routes: &Routes,
        backends: &BTreeSet<IpAddr>,
    ) {
        if config.pod_interfaces != PodInterfaces::Auto {
            return;
        }
        if self.looked_up_at != view.moved {
            self.looked_up.clear();
            self.looked_up_at = view.moved;
        }
        let new: Vec<_> = backends.difference(&self.looked_up).copied().collect();
        for address in new {
            match routes.device(address).await {
                Ok(Some(index)) => {
                    let Some(link) = view.network.links().get(&index) else {
                        continue;
                    };
                    // Until the device is known, the address stays to be looked up.
                    self.looked_up.insert(address);
                    if link.mac.is_none() && !link.loopback {
                        warn!(
                            %address,
                            interface = link.name,
                            "the way to this backend has no Ethernet header: its replies would \
                             not be recognised, the device is left alone"
                        );
                    } else if !link.loopback {
                        self.try_hold(&interface(index, link), Hook::TcxIngress);
                    }
                }
                Ok(None) => {
                    self.looked_up.insert(address);
                }
                Err(error) => warn!(%address, "route of a backend: {}", chain(&error)),
            }
        }
        self.looked_up.retain(|address| backends.contains(address));
    }

    /// Puts `lb_egress` on every device a reply of the node itself may leave by. Pod-facing devices often
    /// have no address.
    pub(super) fn reach_host(&mut self, view: &NetworkView) {
        for (&index, link) in view.network.links() {
            let (v4, v6) = view.network.primary(index);
            let has_address = v4.is_some() || v6.is_some();
            let ours =
                self.managed.contains_key(&index) || self.held.contains(&(index, Hook::TcxIngress));
            if link.mac.is_some() && !link.loopback && (has_address || ours) {
                self.try_hold(&interface(index, link), Hook::TcxEgress);
            }
        }
    }

    fn manage(
        &mut self,
        config: &Config,
        interface: &Interface,
        view: &NetworkView,
    ) -> Result<(), AttachError> {
        let obstacle = obstacle(interface, view);
        let attached = self
            .attacher
            .attach(interface, config.mode, obstacle.clone())?;
        let before = self.managed.get(&interface.index);
        if before.is_none_or(|before| before.attached != attached) {
            info!(interface = interface.name, "{}: {attached}", interface.name);
        }
        let managed = Managed {
            attached,
            obstacle,
            mtu: mtu(view, interface.index),
            failure: None,
        };
        self.managed.insert(interface.index, managed);
        Ok(())
    }

    fn hold(&mut self, interface: &Interface, hook: Hook) -> Result<(), AttachError> {
        let known = hook == Hook::TcxIngress && self.managed.contains_key(&interface.index);
        if known || self.held.contains(&(interface.index, hook)) {
            return Ok(());
        }
        self.attacher.hold(interface, hook)?;
        let what = if hook == Hook::TcxIngress {
            "TCX (pods)"
        } else {
            "TCX egress (host)"
        };
        info!(interface = interface.name, "{}: {what}", interface.name);
        self.held.insert((interface.index, hook));
        Ok(())
    }

    fn try_hold(&mut self, interface: &Interface, hook: Hook) {
        if let Err(error) = self.hold(interface, hook) {
            warn!(interface = interface.name, "{}", chain(&error));
        }
    }
}

/// Whether there is such a device. The kernel is asked once more before a device counts as gone: what was read of
/// the network may lack one, and its programs would be taken off while packets come in by it.
fn exists(view: &NetworkView, index: u32) -> bool {
    view.network.links().contains_key(&index) || preflight::has_device(index)
}

/// The interface index of a device, by the same rule.
fn index(view: &NetworkView, name: &str) -> Option<u32> {
    let known = view.network.index(name);
    known.or_else(|| nix::net::if_::if_nametoindex(name).ok())
}

fn mtu(view: &NetworkView, index: u32) -> Option<u32> {
    view.network.links().get(&index).map(|link| link.mtu)
}

fn interface(index: u32, link: &Link) -> Interface {
    Interface {
        index,
        name: link.name.clone(),
    }
}

/// Why native XDP would see frames without their tag here.
fn obstacle(interface: &Interface, view: &NetworkView) -> Option<String> {
    let mut above = view.network.links().values().filter_map(|link| link.vlan);
    if !above.any(|(parent, _)| parent == interface.index) {
        return None;
    }
    match kernel::receive_vlan_offload(&interface.name) {
        Ok(false) => None,
        Ok(true) => Some(format!(
            "VLAN devices on it and rx-vlan-offload on (`ethtool -K {} rxvlan off` allows XDP)",
            interface.name
        )),
        Err(error) => Some(format!(
            "VLAN devices on it and rx-vlan-offload unknown: {error}"
        )),
    }
}

/// An error with its causes.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
