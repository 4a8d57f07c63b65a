//! Installing what the other tasks need.
//!
//! Everything is checked by presence first, so a second run installs nothing. On Debian and its
//! relatives packages come from apt; elsewhere the error lists what to install.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result, bail};

use crate::{cluster, command, ebpf};

const BPF_LINKER: &str = "0.13.0";
const LLVM_PREFIX: &str = "/usr/lib/llvm-22";

/// One thing that must be on the machine, and the Debian packages that bring it.
pub(crate) struct Need {
    what: What,
    packages: &'static str,
}

enum What {
    /// A program in `PATH` or in a directory for system administration.
    Program(&'static str),
    /// A file or directory.
    File(&'static str),
    /// A compiler that builds `core` for BPF.
    Compiler,
}

const COMPILER: &[Need] = &[Need {
    what: What::Compiler,
    packages: "rustc-web rust-web-src",
}];

/// Needed to compile bpf-linker; of these only LLVM itself is needed to run it.
const LINKER_LIBRARIES: &[Need] = &[
    file("/usr/lib/llvm-22/include/llvm-c/Core.h", "llvm-22-dev"),
    file("/usr/lib/llvm-22/lib/libPolly.a", "libpolly-22-dev"),
    file("/usr/include/zstd.h", "libzstd-dev"),
    file("/usr/include/zlib.h", "zlib1g-dev"),
    file("/usr/include/libxml2/libxml/xmlversion.h", "libxml2-dev"),
    program("cc", "gcc libc6-dev"),
];

/// What the namespace tests and the demonstration run.
const NETWORK: &[Need] = &[
    program("ip", "iproute2"),
    program("nsenter", "util-linux"),
    program("ping", "iputils-ping"),
    program("ethtool", "ethtool"),
    program("bpftool", "bpftool"),
    program("curl", "curl"),
    program("iperf3", "iperf3"),
    program("dig", "bind9-dnsutils"),
    program("nft", "nftables"),
    program("iptables", "iptables"),
    program("tcpdump", "tcpdump"),
    program("psql", "postgresql-client"),
    file("/usr/lib/postgresql", "postgresql"),
];

/// What the disruption tier runs beside these.
const DISRUPTION: &[Need] = &[program("websocketd", "websocketd")];

/// What the load balancer is measured beside; kube-proxy is compiled.
const PEERS: &[Need] = &[
    program("haproxy", "haproxy"),
    program("nginx", "nginx"),
    file(
        "/usr/lib/nginx/modules/ngx_stream_module.so",
        "libnginx-mod-stream",
    ),
];

/// Everything any task needs.
///
/// # Errors
/// Something is missing and cannot be installed; the error says what and how to install it.
pub(crate) fn everything() -> Result<()> {
    lint()?;
    compiler()?;
    disruption()?;
    cluster::setup()?;
    eprintln!("setup: everything is there");
    Ok(())
}

/// What compiling the data path needs.
///
/// # Errors
/// As [`everything`].
pub(crate) fn compiler() -> Result<()> {
    install(COMPILER)?;
    if linker_works() {
        return Ok(());
    }
    install(LINKER_LIBRARIES)?;
    eprintln!("setup: installing bpf-linker {BPF_LINKER}, about a minute");
    let mut cargo = command::cargo();
    // Cargo's own settings for this workspace must not reach another package's build.
    cargo
        .current_dir("/")
        .env("LLVM_PREFIX", LLVM_PREFIX)
        .env_remove("RUSTFLAGS")
        .args(["install", "bpf-linker", "--version", BPF_LINKER, "--force"])
        .args(["--no-default-features", "--features", "llvm-22"]);
    command::run(&mut cargo).with_context(|| {
        format!("bpf-linker {BPF_LINKER} needs LLVM 22 with its headers under {LLVM_PREFIX}")
    })?;
    if !linker_works() {
        bail!("bpf-linker was installed but does not run");
    }
    Ok(())
}

/// What the namespace tests and the demonstration need.
///
/// # Errors
/// As [`everything`].
pub(crate) fn network() -> Result<()> {
    install(NETWORK)
}

/// What the disruption tier needs: all of the network tests and more.
///
/// # Errors
/// As [`everything`].
pub(crate) fn disruption() -> Result<()> {
    network()?;
    install(DISRUPTION)
}

/// What the benchmark of peers needs: all of the network tests and more.
///
/// # Errors
/// As [`everything`].
pub(crate) fn peers() -> Result<()> {
    network()?;
    install(PEERS)
}

/// What the lint task needs.
///
/// # Errors
/// A component of the toolchain is missing and rustup cannot add it.
pub(crate) fn lint() -> Result<()> {
    for (subcommand, component) in [("fmt", "rustfmt"), ("clippy", "clippy")] {
        if command::output(command::cargo().args([subcommand, "--version"])).is_err() {
            eprintln!("setup: adding {component} to the toolchain");
            command::run(Command::new("rustup").args(["component", "add", component]))
                .with_context(|| format!("`cargo {subcommand}` is missing"))?;
        }
    }
    Ok(())
}

fn linker_works() -> bool {
    command::find("bpf-linker").is_some_and(|linker| {
        command::output(Command::new(linker).arg("--version"))
            .is_ok_and(|told| told.contains(BPF_LINKER))
    })
}

impl Need {
    fn is_met(&self) -> bool {
        match self.what {
            What::Program(name) => command::find(name).is_some(),
            What::File(path) => Path::new(path).exists(),
            What::Compiler => ebpf::has_compiler(),
        }
    }

    fn name(&self) -> &'static str {
        match self.what {
            What::Program(name) | What::File(name) => name,
            What::Compiler => "a rustup nightly with rust-src, or Debian's rustc with its sources",
        }
    }
}

pub(crate) const fn program(name: &'static str, packages: &'static str) -> Need {
    Need {
        what: What::Program(name),
        packages,
    }
}

pub(crate) const fn file(path: &'static str, packages: &'static str) -> Need {
    Need {
        what: What::File(path),
        packages,
    }
}

/// Installs the packages of the needs that are not met.
pub(crate) fn install(needs: &[Need]) -> Result<()> {
    let missing: Vec<&Need> = needs.iter().filter(|need| !need.is_met()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = missing.iter().map(|need| need.name()).collect();
    let packages: BTreeSet<_> = missing
        .iter()
        .flat_map(|need| need.packages.split(' '))
        .collect();
    let wanted = packages.iter().copied().collect::<Vec<_>>().join(" ");
    if command::find("apt-get").is_none() {
        bail!(
            "missing: {}. This is no Debian: install what its packages {wanted} hold, \
             by this system's own means",
            names.join(", ")
        );
    }
    eprintln!("setup: missing {}; installing {wanted}", names.join(", "));
    update()
        .and_then(|()| {
            let mut arguments = vec!["install", "--yes", "-qq", "--no-install-recommends"];
            arguments.extend(packages.iter().copied());
            apt(&arguments)
        })
        .with_context(|| format!("install the Debian packages {wanted}"))?;
    for need in missing {
        if !need.is_met() {
            bail!(
                "{} is still missing after installing {}",
                need.name(),
                need.packages
            );
        }
    }
    Ok(())
}

/// Reads the lists of packages, once.
fn update() -> Result<()> {
    static UPDATED: AtomicBool = AtomicBool::new(false);
    if !UPDATED.swap(true, Ordering::Relaxed) {
        apt(&["update", "-qq"])?;
    }
    Ok(())
}

/// Runs apt-get, through sudo where we are not root.
fn apt(arguments: &[&str]) -> Result<()> {
    let mut apt = if command::is_root() {
        Command::new("apt-get")
    } else {
        let mut sudo = Command::new("sudo");
        sudo.args(["--non-interactive", "apt-get"]);
        sudo
    };
    apt.env("DEBIAN_FRONTEND", "noninteractive")
        // Packages of servers would start them; the tests start their own, in namespaces.
        .env("RUNLEVEL", "1")
        .args(["-o", "Acquire::Retries=3"])
        .args(arguments);
    command::run(&mut apt)
}
