//! What must be so before anything is touched: privileges, kernel, one agent only, forwarding.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use nix::fcntl::{Flock, FlockArg};
use tracing::{info, warn};

use crate::kernel;

/// Why the agent must not start.
#[derive(Debug, thiserror::Error)]
pub enum PreflightError {
    /// The process may not do what it must.
    #[error("missing privileges: {}; run as root or grant them", missing.join(", "))]
    Privileges {
        /// Names of the capabilities.
        missing: Vec<&'static str>,
    },
    /// Another agent runs.
    #[error("lockFile {path}: another lb-agent is running here{}", holder.as_deref().unwrap_or(""))]
    Running {
        /// The lock file.
        path: PathBuf,
        /// What the other one wrote into it.
        holder: Option<String>,
    },
    /// Another agent runs on these pins, whatever its lock file.
    #[error("pinRoot {root}: another lb-agent is running on these pins")]
    PinsInUse {
        /// The pin root.
        root: PathBuf,
    },
    /// The kernel has no TCX.
    #[error("this kernel has no TCX: Linux 6.6 or newer is needed")]
    NoTcx,
    /// A file could not be read or written. `what` names operation and object.
    #[error("{what}")]
    Io {
        /// Operation and object.
        what: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// Held while the agent runs.
#[derive(Debug)]
pub struct Lock {
    _file: Flock<File>,
}

/// Takes the pins for this agent alone: two that were given different lock files would undo each
/// other's work. The lock goes with the process; the pin root is made if need be.
///
/// # Errors
///
/// [`PreflightError::PinsInUse`] if somebody else has them.
pub fn lock_pins(root: &Path) -> Result<Lock, PreflightError> {
    let what = |verb| format!("{verb} pinRoot {}", root.display());
    fs::create_dir_all(root).map_err(failed(what("create")))?;
    let directory = File::open(root).map_err(failed(what("open")))?;
    match Flock::lock(directory, FlockArg::LockExclusiveNonblock) {
        Ok(directory) => Ok(Lock { _file: directory }),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => Err(PreflightError::PinsInUse {
            root: root.to_owned(),
        }),
        Err((_, error)) => Err(failed(what("lock"))(error.into())),
    }
}

/// Checks that this process may load programs and attach them.
///
/// # Errors
///
/// Naming every capability that is missing.
pub fn require_privileges() -> Result<(), PreflightError> {
    const STATUS: &str = "/proc/self/status";
    let status = fs::read_to_string(STATUS).map_err(failed(format!("read {STATUS}")))?;
    let missing = missing_capabilities(effective(&status));
    if missing.is_empty() {
        Ok(())
    } else {
        Err(PreflightError::Privileges { missing })
    }
}

/// Checks that the kernel has TCX, by asking it.
///
/// # Errors
///
/// [`PreflightError::NoTcx`] if not.
pub fn require_tcx() -> Result<(), PreflightError> {
    let has = kernel::has_tcx().map_err(failed("ask the kernel for TCX".to_owned()))?;
    if has {
        Ok(())
    } else {
        Err(PreflightError::NoTcx)
    }
}

/// Takes the lock only one agent of a node may hold. It goes with the process.
///
/// # Errors
///
/// [`PreflightError::Running`] if somebody else has it.
pub fn lock(path: &Path) -> Result<Lock, PreflightError> {
    if let Some(directory) = path.parent() {
        let create = fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory);
        create.map_err(failed(format!(
            "lockFile: create directory {}",
            directory.display()
        )))?;
    }
    let mut options = File::options();
    options
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600);
    let file = options
        .open(path)
        .map_err(failed(format!("open lockFile {}", path.display())))?;
    let mut file = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| {
        if error == nix::errno::Errno::EWOULDBLOCK {
            let holder = fs::read_to_string(path)
                .ok()
                .map(|text| text.trim().to_owned());
            let holder = holder.filter(|text| !text.is_empty());
            let holder = holder.map(|pid| format!(" (process {pid})"));
            return PreflightError::Running {
                path: path.to_owned(),
                holder,
            };
        }
        failed(format!("lock lockFile {}", path.display()))(error.into())
    })?;
    let written = file
        .set_len(0)
        .and_then(|()| writeln!(file, "{}", std::process::id()));
    written.map_err(failed(format!("write lockFile {}", path.display())))?;
    Ok(Lock { _file: file })
}

/// Whether there is a device with this interface index now.
pub fn has_device(index: u32) -> bool {
    nix::net::if_::if_indextoname(index).is_ok()
}

/// Reports, or sets, what `bpf_fib_lookup` needs: forwarding on the devices packets come in by.
pub fn check_forwarding(interface: &str, manage: bool) {
    for family in ["ipv4", "ipv6"] {
        let path = format!("/proc/sys/net/{family}/conf/{interface}/forwarding");
        // Without the file the family is not there at all.
        let Ok(value) = fs::read_to_string(&path) else {
            continue;
        };
        if value.trim() != "0" {
            continue;
        }
        // A dot in a device's name is a slash in a sysctl's.
        let sysctl = format!(
            "net.{family}.conf.{}.forwarding",
            interface.replace('.', "/")
        );
        if !manage {
            warn!(
                interface,
                "{sysctl} is 0: packets that come in here take the slow path or none; \
                 set it to 1, or set manageSysctls: true"
            );
            continue;
        }
        match fs::write(&path, "1") {
            Ok(()) => info!(interface, "{sysctl} set to 1"),
            Err(error) => warn!(interface, %error, "{sysctl} could not be set to 1"),
        }
    }
}

/// Ticks of the kernel's jiffies in a second.
///
/// # Errors
///
/// If the kernel has no coarse clock.
pub fn jiffies_per_second() -> Result<u32, PreflightError> {
    // The coarse clock advances once a jiffy, and its resolution says how long that is.
    let clock = nix::time::ClockId::CLOCK_MONOTONIC_COARSE;
    let resolution = nix::time::clock_getres(clock)
        .map_err(|error| failed("ask for the resolution of jiffies".to_owned())(error.into()))?;
    let nanoseconds = u64::try_from(resolution.tv_nsec()).unwrap_or(0).max(1);
    Ok(
        u32::try_from((1_000_000_000 + nanoseconds / 2) / nanoseconds)
            .unwrap_or(1_000)
            .max(1),
    )
}

/// The shift that makes a tick of about a second out of jiffies.
pub fn tick_shift(jiffies_per_second: u32) -> u32 {
    // The power of two nearest by ratio.
    let below = jiffies_per_second.max(1).ilog2();
    let (low, high) = (1_u64 << below, 1_u64 << (below + 1));
    let hertz = u64::from(jiffies_per_second);
    if hertz * hertz > low * high {
        below + 1
    } else {
        below
    }
}

fn failed(what: String) -> impl FnOnce(io::Error) -> PreflightError {
    move |source| PreflightError::Io { what, source }
}

/// `CapEff` of a `/proc/PID/status`.
fn effective(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0)
}

fn missing_capabilities(effective: u64) -> Vec<&'static str> {
    const NET_ADMIN: u64 = 1 << 12;
    const SYS_ADMIN: u64 = 1 << 21;
    const PERFMON: u64 = 1 << 38;
    const BPF: u64 = 1 << 39;
    let has = |bit: u64| effective & bit != 0;
    // CAP_SYS_ADMIN stands for the two that were taken out of it.
    let needed = [
        ("CAP_BPF", has(BPF) || has(SYS_ADMIN)),
        ("CAP_NET_ADMIN", has(NET_ADMIN)),
        ("CAP_PERFMON", has(PERFMON) || has(SYS_ADMIN)),
    ];
    needed
        .iter()
        .filter(|(_, has)| !has)
        .map(|(name, _)| *name)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tick_is_about_a_second() {
        for (hertz, shift) in [(100, 7), (250, 8), (300, 8), (1_000, 10), (1, 0)] {
            assert_eq!(tick_shift(hertz), shift, "{hertz}");
        }
    }

    #[test]
    fn missing_capabilities_are_named() {
        let root = effective("Name:\tx\nCapEff:\t000001ffffffffff\n");
        assert!(missing_capabilities(root).is_empty());
        let nobody = effective("CapEff:\t0000000000000000\n");
        assert_eq!(
            missing_capabilities(nobody),
            ["CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON"]
        );
        assert_eq!(missing_capabilities(1 << 21), ["CAP_NET_ADMIN"]);
    }

    #[test]
    fn a_second_agent_is_refused_and_told_of_the_first() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("run/agent.lock");
        let first = lock(&path).expect("the lock is free");
        let error = lock(&path).expect_err("the lock is taken").to_string();
        assert!(
            error.contains(&format!("process {}", std::process::id())),
            "{error}"
        );
        drop(first);
        lock(&path).expect("the lock is free again");
    }
}
