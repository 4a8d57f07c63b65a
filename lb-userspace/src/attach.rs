//! Putting the programs on devices, and keeping them there when the agent is not.
//!
//! Every attachment is a pinned link. An agent that starts finds the pins and replaces the programs
//! in place, which loses no packet; an agent that ends leaves them.

use std::{
    fmt, fs, io,
    os::fd::{AsFd as _, BorrowedFd},
    path::{Path, PathBuf},
};

use lb_common::names::{LB_EGRESS, LB_INGRESS, LB_XDP};
use tracing::{debug, info, warn};

use crate::{
    config::Mode,
    kernel::{self, Hook, Link},
    pins::{Loaded, PinDirectory},
};

/// A device to attach to.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Interface {
    /// Interface index.
    pub index: u32,
    /// Name, for people.
    pub name: String,
}

/// What became of a device.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Attached {
    /// The XDP hook taken, if any.
    pub xdp: Option<Hook>,
    /// Why there is none although one was wanted.
    pub reason: Option<String>,
}

impl fmt::Display for Attached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.xdp {
            Some(Hook::XdpNative) => "native XDP + TCX",
            Some(_) => "generic XDP + TCX",
            None => "TCX alone",
        })?;
        self.reason
            .as_ref()
            .map_or(Ok(()), |reason| write!(f, ": {reason}"))
    }
}

/// Why a program could not be attached. The device is as it was before.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// Somebody else's XDP program is there.
    #[error(
        "interface {interface}: another XDP program is attached; remove it \
         (`ip link set dev {interface} xdp off`) or choose mode tcx"
    )]
    ForeignXdp {
        /// Name of the device.
        interface: String,
    },
    /// The kernel refused.
    #[error("interface {interface}: {what}")]
    Kernel {
        /// Name of the device.
        interface: String,
        /// Operation and object.
        what: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// Name of the pin of the link that holds a hook of a device.
pub fn link_name(hook: Hook, ifindex: u32) -> String {
    format!("{}-{ifindex}", prefix(hook))
}

/// Reads a pin's name back; `None` for links that sit on no device.
pub fn parse_link_name(name: &str) -> Option<(Hook, u32)> {
    let (kind, ifindex) = name.rsplit_once('-')?;
    let hook = [
        Hook::XdpNative,
        Hook::XdpGeneric,
        Hook::TcxIngress,
        Hook::TcxEgress,
    ]
    .into_iter()
    .find(|hook| prefix(*hook) == kind)?;
    Some((hook, ifindex.parse().ok()?))
}

const fn prefix(hook: Hook) -> &'static str {
    match hook {
        Hook::XdpNative => "xdp",
        Hook::XdpGeneric => "xdpgeneric",
        Hook::TcxIngress => "ingress",
        Hook::TcxEgress => "egress",
    }
}

const fn program(hook: Hook) -> &'static str {
    match hook {
        Hook::XdpNative | Hook::XdpGeneric => LB_XDP,
        Hook::TcxIngress => LB_INGRESS,
        Hook::TcxEgress => LB_EGRESS,
    }
}

/// Attaches the programs of one loaded data path.
#[derive(Debug)]
pub struct Attacher {
    loaded: Loaded,
    root: PathBuf,
}

impl Attacher {
    /// Attaches `loaded`; links of other layouts below `root` are taken over.
    pub const fn new(loaded: Loaded, root: PathBuf) -> Self {
        Self { loaded, root }
    }

    /// The directory whose links these are.
    pub const fn directory(&self) -> &PinDirectory {
        &self.loaded.directory
    }

    /// The data path whose programs these are.
    pub const fn loaded(&self) -> &Loaded {
        &self.loaded
    }

    /// Puts the complete path on a device, and the fast path where mode and driver allow.
    ///
    /// `obstacle` says why native XDP must not be used here although the driver may offer it.
    ///
    /// # Errors
    ///
    /// If TCX is refused, or XDP where the mode insists on it, or a foreign XDP program is there.
    pub fn attach(
        &self,
        interface: &Interface,
        mode: Mode,
        obstacle: Option<String>,
    ) -> Result<Attached, AttachError> {
        // The complete path first: from now on the fast path may come and go without a loss.
        let is_new = self.hold(interface, Hook::TcxIngress)?;
        let wanted = match mode {
            Mode::Auto | Mode::Native => Some(Hook::XdpNative),
            Mode::Generic => Some(Hook::XdpGeneric),
            Mode::Tcx => None,
        };
        for other in [Hook::XdpNative, Hook::XdpGeneric] {
            if wanted != Some(other) || obstacle.is_some() {
                self.release(other, interface.index);
            }
        }
        if obstacle.is_some() {
            return Ok(Attached {
                xdp: None,
                reason: obstacle,
            });
        }
        let Some(hook) = wanted else {
            return Ok(Attached {
                xdp: None,
                reason: None,
            });
        };
        match self.hold(interface, hook) {
            Ok(_) => Ok(Attached {
                xdp: Some(hook),
                reason: None,
            }),
            Err(AttachError::Kernel { source, .. }) if mode == Mode::Auto => {
                let reason = format!("driver refused native XDP: {source}");
                Ok(Attached {
                    xdp: None,
                    reason: Some(reason),
                })
            }
            Err(error) => {
                if is_new {
                    self.release(Hook::TcxIngress, interface.index);
                }
                Err(error)
            }
        }
    }

    /// Puts one program on a device: adopts the link that is there (false), else makes one (true).
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn hold(&self, interface: &Interface, hook: Hook) -> Result<bool, AttachError> {
        let name = link_name(hook, interface.index);
        let failed = |what: String| {
            let interface = interface.name.clone();
            move |source| AttachError::Kernel {
                interface,
                what,
                source,
            }
        };
        let program = self
            .program(hook)
            .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
            .map_err(failed(format!("find program {}", program(hook))))?;
        let pin = self.loaded.directory.link(&name);
        if let Some((found, link)) = self.find(&name, interface.index) {
            match link.update(program) {
                Ok(()) => {
                    if found != pin {
                        fs::rename(&found, &pin)
                            .map_err(failed(format!("move link {}", found.display())))?;
                    }
                    debug!(interface = interface.name, link = name, "program replaced");
                    return Ok(false);
                }
                Err(error) => {
                    debug!(link = name, %error, "pinned link is dead");
                    remove(&found);
                }
            }
        }
        let link = match Link::create(program, interface.index, hook) {
            Ok(link) => link,
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                return Err(AttachError::ForeignXdp {
                    interface: interface.name.clone(),
                });
            }
            Err(error) => return Err(failed(format!("attach {}", prefix(hook)))(error)),
        };
        // Unpinned, the link would end with this function: an error here leaves nothing attached.
        kernel::pin(link.as_fd(), &pin).map_err(failed(format!("pin link {}", pin.display())))?;
        debug!(interface = interface.name, link = name, "program attached");
        Ok(true)
    }

    /// Takes a program off a device. Nothing attached is fine.
    pub fn release(&self, hook: Hook, ifindex: u32) {
        let name = link_name(hook, ifindex);
        for directory in self.directories() {
            remove(&directory.link(&name));
        }
    }

    /// Takes off every device what `keep` does not want, devices that are gone included.
    pub fn prune(&self, keep: impl Fn(Hook, u32) -> bool) {
        for name in self.loaded.directory.links() {
            if let Some((hook, ifindex)) = parse_link_name(&name)
                && !keep(hook, ifindex)
            {
                info!(link = name, "link removed");
                remove(&self.loaded.directory.link(&name));
            }
        }
    }

    /// Undoes a start that failed: a data path that was not there before goes again. One that may
    /// have taken links over from another layout stays.
    pub fn abandon(&self) {
        if self.loaded.adopted || self.directories().count() > 1 {
            return;
        }
        if let Err(error) = self.loaded.directory.remove() {
            warn!(%error, "layout not removed");
        }
    }

    /// Removes the layouts that are not this one, once their links are taken over.
    pub fn retire_other_layouts(&self) {
        for directory in self.directories().filter(|d| *d != self.loaded.directory) {
            warn!(
                layout = directory.hash(),
                "another layout was in use; its flows are not carried over"
            );
            if let Err(error) = directory.remove() {
                warn!(layout = directory.hash(), %error, "layout not removed");
            }
        }
    }

    fn program(&self, hook: Hook) -> Option<BorrowedFd<'_>> {
        self.loaded.program(program(hook))
    }

    /// A pinned link that still sits on the device, in this layout or another.
    fn find(&self, name: &str, ifindex: u32) -> Option<(PathBuf, Link)> {
        self.directories().find_map(|directory| {
            let path = directory.link(name);
            let link = Link::from(kernel::open_pinned(&path).ok()?);
            // An index may be used again for another device; the link knows its own.
            if link.info().is_ok_and(|info| info.ifindex == ifindex) {
                return Some((path, link));
            }
            remove(&path);
            None
        })
    }

    /// This layout first.
    fn directories(&self) -> impl Iterator<Item = PinDirectory> {
        let own = self.loaded.directory.clone();
        let others = PinDirectory::all(&self.root).unwrap_or_default();
        std::iter::once(own.clone()).chain(others.into_iter().filter(move |d| *d != own))
    }
}

fn remove(pin: &Path) {
    match fs::remove_file(pin) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            warn!(pin = %pin.display(), %error, "pin not removed");
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_names_are_read_back() {
        for hook in [
            Hook::XdpNative,
            Hook::XdpGeneric,
            Hook::TcxIngress,
            Hook::TcxEgress,
        ] {
            assert_eq!(parse_link_name(&link_name(hook, 42)), Some((hook, 42)));
        }
        for name in ["lb_redirect_err", "xdp-", "xdp-x", "other-3", ""] {
            assert_eq!(parse_link_name(name), None, "{name}");
        }
    }

    #[test]
    fn what_was_taken_is_said_with_the_reason() {
        let attached = |xdp, reason: Option<&str>| {
            Attached {
                xdp,
                reason: reason.map(str::to_owned),
            }
            .to_string()
        };
        assert_eq!(attached(Some(Hook::XdpNative), None), "native XDP + TCX");
        assert_eq!(attached(Some(Hook::XdpGeneric), None), "generic XDP + TCX");
        assert_eq!(attached(None, Some("why")), "TCX alone: why");
    }
}
