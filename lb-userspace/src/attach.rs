//! Putting the programs on devices, and keeping them there when the agent is not.
//!
//! Every attachment is a pinned link. An agent that starts finds the pins and replaces the programs
//! in place, which loses no packet; an agent that ends leaves them.
//!
//! While another layout serves ([`crate::migrate`]), its links stay where they are: TCX programs of
//! ours go before its own. A device has one XDP program: the link gets ours and stays in its directory
//! until ours serves.

use std::{
    fmt, fs, io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use tracing::{debug, info, warn};

pub use self::pinned::{detach, link_name, parse_link_name};

use self::pinned::{Pinned, chains, prefix, program};
use crate::{
    config::Mode,
    kernel::{self, Hook, Link, LinkInfo},
    pins::{
        Loaded, PinDirectory,
        step::{Step, killed_after},
    },
};

mod pinned;

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
    /// A pin where our link belongs holds something else, which is left alone.
    #[error("interface {interface}: pinned link {pin} is not ours: {what}; remove it if it may go", pin = pin.display())]
    ForeignPin {
        /// Name of the device.
        interface: String,
        /// The pin.
        pin: PathBuf,
        /// What it is.
        what: String,
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

/// Attaches the programs of one loaded data path.
#[derive(Debug)]
pub struct Attacher {
    loaded: Loaded,
    root: PathBuf,
    /// XDP links in the serving layout's directory that hold our program, and the one they held.
    borrowed: Vec<(String, OwnedFd)>,
}

impl Attacher {
    /// Attaches `loaded`; links of other layouts below `root` are taken over.
    pub const fn new(loaded: Loaded, root: PathBuf) -> Self {
        Self {
            loaded,
            root,
            borrowed: Vec::new(),
        }
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
        &mut self,
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
    /// If the kernel refuses, or a pin is not ours.
    pub fn hold(&mut self, interface: &Interface, hook: Hook) -> Result<bool, AttachError> {
        let name = link_name(hook, interface.index);
        let failed = |what: String| {
            let interface = interface.name.clone();
            move |source| AttachError::Kernel {
                interface,
                what,
                source,
            }
        };
        let mut serving = None;
        for directory in self.directories() {
            let pin = directory.link(&name);
            let opened = pinned::open(&pin, hook, interface.index);
            match opened.map_err(failed(format!("open pinned link {}", pin.display())))? {
                Pinned::Absent => {}
                Pinned::Dead => remove(&pin),
                Pinned::Foreign(what) => {
                    return Err(AttachError::ForeignPin {
                        interface: interface.name.clone(),
                        pin,
                        what,
                    });
                }
                Pinned::Ours(link, _) if chains(hook) && self.serves(&directory) => {
                    serving = Some(link);
                }
                Pinned::Ours(link, info) => match self.replace(&directory, &name, &link, info) {
                    Ok(()) => {
                        debug!(interface = interface.name, link = name, "program replaced");
                        return Ok(false);
                    }
                    // Its device went since; or it is the fast path, which may come and go.
                    Err(error) if !chains(hook) || error.raw_os_error() == Some(libc::ENOLINK) => {
                        debug!(link = name, %error, "pinned link is dead");
                        remove(&pin);
                    }
                    // The program it holds serves on: without it packets would be nobody's.
                    Err(error) => {
                        let what = format!("replace the program of pinned link {}", pin.display());
                        return Err(failed(what)(error));
                    }
                },
            }
        }
        let program = self
            .program(hook)
            .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
            .map_err(failed(format!("find program {}", program(hook))))?;
        let made = match &serving {
            Some(other) => Link::create_before(program, interface.index, hook, other),
            None => Link::create(program, interface.index, hook),
        };
        let link = match made {
            Ok(link) => link,
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                return Err(AttachError::ForeignXdp {
                    interface: interface.name.clone(),
                });
            }
            Err(error) => return Err(failed(format!("attach {}", prefix(hook)))(error)),
        };
        // Unpinned, the link would end with this function: an error here leaves nothing attached.
        let pin = self.loaded.directory.link(&name);
        kernel::pin(link.as_fd(), &pin).map_err(failed(format!("pin link {}", pin.display())))?;
        debug!(interface = interface.name, link = name, "program attached");
        if serving.is_some() {
            killed_after(Step::Tcx);
        }
        Ok(true)
    }

    /// Puts our program in the place of the one a pinned link holds. The pin comes to our directory,
    /// unless the layout it is from still serves.
    fn replace(
        &mut self,
        directory: &PinDirectory,
        name: &str,
        link: &Link,
        info: LinkInfo,
    ) -> io::Result<()> {
        let hook = parse_link_name(name).map(|(hook, _)| hook);
        let program = hook.and_then(|hook| self.program(hook));
        let program = program.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        let own = &self.loaded.directory;
        if self.serves(directory) {
            let held = kernel::open_program(info.program)?;
            link.update(program)?;
            if self.borrowed.iter().all(|(borrowed, _)| borrowed != name) {
                self.borrowed.push((name.to_owned(), held));
            }
            killed_after(Step::Xdp);
            return Ok(());
        }
        link.update(program)?;
        if directory == own {
            return Ok(());
        }
        fs::rename(directory.link(name), own.link(name))
    }

    /// TCX links of the layout that serves: hooks and devices.
    pub fn serving_links(&self) -> Vec<(Hook, u32)> {
        self.loaded.serving.iter().flat_map(tcx_links).collect()
    }

    /// TCX links of our own layout, an earlier agent's included.
    pub fn own_links(&self) -> Vec<(Hook, u32)> {
        tcx_links(&self.loaded.directory)
    }

    /// Takes a program off a device. Nothing attached is fine.
    pub fn release(&self, hook: Hook, ifindex: u32) {
        for directory in self.directories() {
            // Before ours serves, its complete path is all there is.
            if !(chains(hook) && self.serves(&directory)) {
                remove_ours(&directory.link(&link_name(hook, ifindex)), hook, ifindex);
            }
        }
    }

    /// Takes off every device what `keep` does not want, devices that are gone included.
    pub fn prune(&self, keep: impl Fn(Hook, u32) -> bool) {
        for name in self.loaded.directory.links() {
            if let Some((hook, ifindex)) = parse_link_name(&name)
                && !keep(hook, ifindex)
            {
                info!(link = name, "link removed");
                remove_ours(&self.loaded.directory.link(&name), hook, ifindex);
            }
        }
    }

    /// Undoes a start that failed: a data path that was not there before goes again, and a layout that
    /// served has its programs back.
    pub fn abandon(&mut self) {
        if let Some(serving) = &self.loaded.serving {
            for (name, program) in self.borrowed.drain(..) {
                let link = kernel::open_pinned(&serving.link(&name)).map(Link::from);
                if let Err(error) = link.and_then(|link| link.update(program.as_fd())) {
                    // The complete path serves without it.
                    warn!(link = name, %error, "the program of the layout that serves is not back");
                }
            }
        } else if self.loaded.adopted || self.directories().len() > 1 {
            return;
        }
        if let Err(error) = self.loaded.directory.remove() {
            warn!(%error, "layout not removed");
        }
    }

    /// Says that the layout serves now.
    pub fn taken_over(&mut self) {
        self.loaded.serving = None;
    }

    /// Removes the layouts that are not this one. None of them serves any more.
    pub fn retire_other_layouts(&mut self) {
        let own = &self.loaded.directory;
        for directory in self.directories().iter().filter(|d| *d != own) {
            for name in directory.links() {
                let pin = directory.link(&name);
                if self.borrowed.iter().all(|(borrowed, _)| *borrowed != name) {
                    remove(&pin);
                } else if let Err(error) = fs::rename(&pin, own.link(&name)) {
                    warn!(pin = %pin.display(), %error, "link not moved");
                }
            }
            killed_after(Step::Links);
            match directory.remove() {
                Ok(()) => info!(layout = directory.hash(), "another layout removed"),
                Err(error) => warn!(layout = directory.hash(), %error, "layout not removed"),
            }
            killed_after(Step::Removed);
        }
        self.borrowed.clear();
    }

    fn program(&self, hook: Hook) -> Option<BorrowedFd<'_>> {
        self.loaded.program(program(hook))
    }

    /// Whether packets are another layout's until ours takes over, and this is it.
    fn serves(&self, directory: &PinDirectory) -> bool {
        self.loaded.serving.as_ref() == Some(directory)
    }

    /// This layout first.
    fn directories(&self) -> Vec<PinDirectory> {
        let own = &self.loaded.directory;
        let others = PinDirectory::all(&self.root).unwrap_or_default();
        let others = others.into_iter().filter(|d| d != own);
        std::iter::once(own.clone()).chain(others).collect()
    }
}

/// TCX links of a layout: hooks and devices.
fn tcx_links(directory: &PinDirectory) -> Vec<(Hook, u32)> {
    let links = directory.links().into_iter();
    let links = links.filter_map(|name| parse_link_name(&name));
    links.filter(|(hook, _)| chains(*hook)).collect()
}

/// Removes the pin of a link, unless it is somebody else's.
fn remove_ours(pin: &Path, hook: Hook, ifindex: u32) {
    match pinned::open(pin, hook, ifindex) {
        Ok(Pinned::Absent) => {}
        Ok(Pinned::Ours(..) | Pinned::Dead) => remove(pin),
        Ok(Pinned::Foreign(what)) => warn!(pin = %pin.display(), what, "pin left alone"),
        Err(error) => warn!(pin = %pin.display(), %error, "pin not removed"),
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
