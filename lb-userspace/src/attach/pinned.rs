//! Pins of links: their names, and what is really behind one. A directory can be written by others, and
//! what is somebody else's is never updated or removed.

use std::{io, path::Path};

use lb_common::names::{LB_EGRESS, LB_INGRESS, LB_XDP};

use crate::{
    kernel::{self, Hook, Link, LinkInfo, ProgramInfo},
    pins::PinDirectory,
};

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

pub(super) const fn prefix(hook: Hook) -> &'static str {
    match hook {
        Hook::XdpNative => "xdp",
        Hook::XdpGeneric => "xdpgeneric",
        Hook::TcxIngress => "ingress",
        Hook::TcxEgress => "egress",
    }
}

/// Name of the program that belongs at a hook.
pub(super) const fn program(hook: Hook) -> &'static str {
    match hook {
        Hook::XdpNative | Hook::XdpGeneric => LB_XDP,
        Hook::TcxIngress => LB_INGRESS,
        Hook::TcxEgress => LB_EGRESS,
    }
}

/// Whether several programs can be at the hook of one device.
pub(super) const fn chains(hook: Hook) -> bool {
    matches!(hook, Hook::TcxIngress | Hook::TcxEgress)
}

/// What a pin of a link turned out to be.
#[derive(Debug)]
pub(super) enum Pinned {
    /// There is none.
    Absent,
    /// A link of ours on the device.
    Ours(Link, LinkInfo),
    /// A link of ours whose device is gone: an index may be used again, the link knows its own.
    Dead,
    /// Another's, in words.
    Foreign(String),
}

/// Looks what is pinned at `path`, where the link for a hook of a device belongs.
pub(super) fn open(path: &Path, hook: Hook, ifindex: u32) -> io::Result<Pinned> {
    let link = match kernel::open_pinned(path) {
        Ok(fd) => Link::from(fd),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Pinned::Absent),
        Err(error) => return Err(error),
    };
    let info = link.info()?;
    let program = match kernel::open_program(info.program) {
        Ok(program) => kernel::program_info(std::os::fd::AsFd::as_fd(&program)).ok(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        // Programs are found by id with CAP_SYS_ADMIN alone. Without it the link must do.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied && hook.has(info) => {
            return Ok(if info.ifindex == ifindex {
                Pinned::Ours(link, info)
            } else {
                Pinned::Dead
            });
        }
        Err(error) => return Err(error),
    };
    Ok(match foreign(info, program.as_ref(), hook) {
        Some(what) => Pinned::Foreign(what),
        None if info.ifindex != ifindex => Pinned::Dead,
        None => Pinned::Ours(link, info),
    })
}

/// Takes every program of ours that a directory's links hold off its device, before the call returns.
/// The pins stay.
///
/// # Errors
///
/// The link that cannot be opened or detached, by its pin.
pub fn detach(pins: &PinDirectory) -> io::Result<()> {
    for name in pins.links() {
        let Some((hook, ifindex)) = parse_link_name(&name) else {
            continue;
        };
        let path = pins.link(&name);
        let named = |error: io::Error| {
            io::Error::new(error.kind(), format!("detach {}: {error}", path.display()))
        };
        if let Pinned::Ours(link, _) = open(&path, hook, ifindex).map_err(named)? {
            link.detach().map_err(named)?;
        }
    }
    Ok(())
}

/// Why a link is not ours, if it is not. Pure.
fn foreign(info: LinkInfo, program: Option<&ProgramInfo>, hook: Hook) -> Option<String> {
    let Some(found) = program else {
        return Some("what is pinned is no link of a program".to_owned());
    };
    let wanted = program_name(hook);
    if found.name != wanted {
        return Some(format!(
            "the link holds program {}, not {wanted}",
            found.name
        ));
    }
    if !hook.is_of(info, found) {
        return Some(format!(
            "the link holds program {wanted} at another hook than {}",
            prefix(hook)
        ));
    }
    None
}

/// As the kernel keeps it: 15 bytes of it.
fn program_name(hook: Hook) -> &'static str {
    let name = program(hook);
    name.get(..15).unwrap_or(name)
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
    fn a_link_is_ours_by_kind_program_and_hook() {
        const XDP: u32 = 6;
        const TCX: u32 = 11;
        const CLASSIFIER: u32 = 3;
        const INGRESS: u32 = 46;
        let link = |kind, attach_type| LinkInfo {
            kind,
            id: 5,
            program: 9,
            ifindex: 3,
            attach_type,
        };
        let program = |kind, name: &str| ProgramInfo {
            kind,
            id: 9,
            name: name.to_owned(),
        };
        let xdp = program(XDP, "lb_xdp");
        let ingress = program(CLASSIFIER, "lb_ingress");
        let other = program(CLASSIFIER, "cil_from_netdev");
        for (name, info, program, hook, expected) in [
            ("XDP", link(XDP, 0), Some(&xdp), Hook::XdpNative, None),
            (
                "generic XDP",
                link(XDP, 0),
                Some(&xdp),
                Hook::XdpGeneric,
                None,
            ),
            (
                "TCX",
                link(TCX, INGRESS),
                Some(&ingress),
                Hook::TcxIngress,
                None,
            ),
            (
                "another's program",
                link(TCX, INGRESS),
                Some(&other),
                Hook::TcxIngress,
                Some("the link holds program cil_from_netdev, not lb_ingress"),
            ),
            (
                "ours, of another hook",
                link(XDP, 0),
                Some(&xdp),
                Hook::TcxIngress,
                Some("the link holds program lb_xdp, not lb_ingress"),
            ),
            (
                "ours, attached elsewhere",
                link(TCX, INGRESS + 1),
                Some(&ingress),
                Hook::TcxIngress,
                Some("the link holds program lb_ingress at another hook than ingress"),
            ),
            (
                "a program's name and another type",
                link(TCX, INGRESS),
                Some(&program(XDP, "lb_ingress")),
                Hook::TcxIngress,
                Some("the link holds program lb_ingress at another hook than ingress"),
            ),
            (
                "no link",
                link(1, 0),
                None,
                Hook::XdpNative,
                Some("what is pinned is no link of a program"),
            ),
        ] {
            let found = foreign(info, program, hook);
            assert_eq!(found.as_deref(), expected, "{name}");
        }
    }
}
