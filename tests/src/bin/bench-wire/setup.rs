//! What stands between client and backend.

use std::time::Duration;

use anyhow::{Context as _, Result};
use aya::programs::xdp::XdpMode;
use lb_common::reason::Event;
use lb_tests::{
    netns::{Namespace, agent::Node, world::World},
    stream::{
        Device, Programs, Receiver,
        flows::{self, FRONTENDS, Kind, Mode},
    },
};
use lb_userspace::tables::Protocol::{Tcp, Udp};

/// What the load balancer's namespace does with the frames.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Setup {
    /// Native XDP drops them as they come.
    Drop,
    /// Native XDP sends them back.
    Reflect,
    /// Native XDP redirects them to the backend as they are.
    Redirect,
    /// The same by a map of devices.
    MapRedirect,
    /// Generic XDP drops them.
    GenericDrop,
    /// The kernel routes them.
    Route,
    /// Sluice with native XDP.
    Native,
    /// Sluice with generic XDP.
    Generic,
    /// Sluice with TCX alone.
    Tcx,
}

/// Most flows of a kind.
pub(crate) const MOST: u32 = 65_536;
/// Flows of the other kinds.
pub(crate) const SOME: u32 = 1_024;

/// The flows each agent has, with their number.
const FLOWS: [(Kind, u32); 6] = [
    (kind(false, Mode::Dnat), MOST),
    (kind(false, Mode::FullNat), MOST),
    (kind(true, Mode::Dnat), SOME),
    (kind(true, Mode::FullNat), SOME),
    (udp(Mode::Dnat), SOME),
    (udp(Mode::FullNat), SOME),
];

/// TCP flows.
pub(crate) const fn kind(v6: bool, mode: Mode) -> Kind {
    Kind {
        v6,
        protocol: Tcp,
        mode,
    }
}

/// UDP flows over IPv4.
pub(crate) const fn udp(mode: Mode) -> Kind {
    Kind {
        v6: false,
        protocol: Udp,
        mode,
    }
}

impl Setup {
    /// What is attached to the load balancer's outer device, if it is not Sluice.
    const fn receiver(self) -> Option<(Receiver, XdpMode)> {
        match self {
            Self::Drop => Some((Receiver::Sink, XdpMode::Driver)),
            Self::Reflect => Some((Receiver::Reflector, XdpMode::Driver)),
            Self::Redirect => Some((Receiver::Redirector, XdpMode::Driver)),
            Self::MapRedirect => Some((Receiver::MapRedirector, XdpMode::Driver)),
            Self::GenericDrop => Some((Receiver::Sink, XdpMode::Skb)),
            Self::Route | Self::Native | Self::Generic | Self::Tcx => None,
        }
    }

    /// How Sluice attaches.
    const fn mode(self) -> Option<&'static str> {
        match self {
            Self::Native => Some("--mode=native"),
            Self::Generic => Some("--mode=generic"),
            Self::Tcx => Some("--mode=tcx"),
            _ => None,
        }
    }
}

/// A setup that is there.
pub(crate) struct Scene<'w> {
    pub(crate) setup: Setup,
    line: &'w World,
    node: Option<Node<'w>>,
}

impl<'w> Scene<'w> {
    /// Attaches the programs, or starts the agent and establishes its flows.
    pub(crate) fn new(setup: Setup, line: &'w World, programs: &mut Programs) -> Result<Self> {
        for namespace in [&line.client, line.backend()] {
            programs.attach(Receiver::Sink, eth0(namespace), XdpMode::Driver)?;
        }
        if let Some((receiver, mode)) = setup.receiver() {
            programs.attach(receiver, eth0(&line.lb), mode)?;
        }
        let node = setup.mode().map(|mode| -> Result<Node<'w>> {
            let mut node = flows::node(line).with(mode);
            // Tables of the sizes an agent has by itself.
            node.configure("");
            node.start(FRONTENDS);
            for (kind, number) in FLOWS {
                let established = flows::establish(&node, kind, number);
                established.with_context(|| format!("establish {kind:?}"))?;
            }
            Ok(node)
        });
        Ok(Self {
            setup,
            line,
            node: node.transpose()?,
        })
    }

    /// The device that sends.
    pub(crate) fn sender(&self, is_reply: bool) -> Device<'w> {
        if is_reply {
            eth0(self.line.backend())
        } else {
            eth0(&self.line.client)
        }
    }

    /// Where redirectors send.
    pub(crate) const fn onward(&self) -> Device<'w> {
        Device {
            namespace: &self.line.lb,
            name: "eth1",
        }
    }

    /// What Sluice says of the packets so far.
    pub(crate) fn counts(&self) -> Option<Counts> {
        let node = self.node.as_ref()?;
        Some(Counts {
            xdp: node.event(Event::XdpForwarded),
            tcx: node.event(Event::TcxForwarded),
            lost: node.event(Event::RedirectFailed) + node.event(Event::TransmitFailed),
        })
    }
}

/// Packets Sluice counted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Counts {
    /// Sent on by XDP.
    pub(crate) xdp: u64,
    /// Sent on by TCX.
    pub(crate) tcx: u64,
    /// Lost after the verdict.
    pub(crate) lost: u64,
}

impl Counts {
    /// What came since then.
    pub(crate) const fn since(self, then: Self) -> Self {
        Self {
            xdp: self.xdp - then.xdp,
            tcx: self.tcx - then.tcx,
            lost: self.lost - then.lost,
        }
    }
}

const fn eth0(namespace: &Namespace) -> Device<'_> {
    Device {
        namespace,
        name: "eth0",
    }
}

/// How long neighbours may take to know each other.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
