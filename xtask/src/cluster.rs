//! A real Kubernetes cluster on this machine, made of namespaces.
//!
//! Kubelets, pods and control plane are the real ones; see [`topology`] for the network. All files
//! are under `target/cluster`: `bin` is what was compiled, `run` lives as long as the cluster, `log`
//! until the next one. Several working trees can each have a cluster.

mod build;
mod control;
mod golang;
mod network;
mod node;
mod processes;
mod topology;

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Subcommand, ValueEnum};

pub(crate) use self::build::setup;
use self::control::Control;
use self::network::Network;
use self::node::Machine;
use self::processes::Processes;
use self::topology::Node;
use crate::{command, root};

/// What to do with the cluster.
#[derive(Subcommand)]
pub(crate) enum Task {
    /// Start it, after removing one that is already there
    Up {
        /// Nodes that only run pods
        #[arg(long, default_value_t = 2)]
        workers: u8,
        /// Nodes that also balance, labelled sluice.dev/edge
        #[arg(long, default_value_t = 1)]
        edges: u8,
        /// The proxy on every node
        #[arg(long, value_enum, default_value_t = ProxyMode::Iptables)]
        kube_proxy: ProxyMode,
    },
    /// Remove it without a trace, also after a crash
    Down,
    /// Run kubectl as the cluster's admin
    Kubectl {
        /// Arguments of kubectl
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Give every node an image
    Load {
        /// A docker-archive or OCI archive
        archive: PathBuf,
    },
    /// Kill a program, such as `kube-apiserver` or `worker1-kubelet`
    Stop {
        /// The program
        name: String,
    },
    /// Start a program again
    Start {
        /// The program
        name: String,
    },
    /// Run a command in `client`, `router`, `control` or a node
    Exec {
        /// Where
        place: String,
        /// The command and its arguments
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        arguments: Vec<String>,
    },
}

/// How kube-proxy programs the nodes.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum ProxyMode {
    /// With iptables, Kubernetes' default
    Iptables,
    /// With nftables
    Nftables,
    /// There is no kube-proxy
    None,
}

impl ProxyMode {
    fn argument(self) -> Option<&'static str> {
        match self {
            Self::Iptables => Some("iptables"),
            Self::Nftables => Some("nftables"),
            Self::None => None,
        }
    }
}

/// Performs a task on this working tree's cluster.
///
/// # Errors
/// A command fails; what `up` made until then is removed, but for the logs.
pub(crate) fn cluster(task: Task) -> Result<()> {
    ensure!(
        command::is_root(),
        "the cluster is made of network and mount namespaces: run this as root"
    );
    let cluster = Cluster::new();
    match task {
        Task::Up {
            workers,
            edges,
            kube_proxy,
        } => cluster.up_with(workers, edges, kube_proxy),
        Task::Down => cluster.down(),
        Task::Kubectl { arguments } => cluster.pass(cluster.kubectl().args(&arguments)),
        Task::Load { archive } => cluster.load(&archive),
        Task::Stop { name } => cluster.processes.stop(&name),
        Task::Start { name } => cluster.processes.resume(&name),
        Task::Exec { place, arguments } => cluster.pass(&mut cluster.exec(&place, &arguments)?),
    }
}

/// Compiles and installs what [`cluster`] needs, so that starting one takes seconds.
///
/// # Errors
/// Something is missing and cannot be installed, or does not compile.
pub(crate) fn prepare() -> Result<()> {
    setup()?;
    build::build(&Cluster::new().directory)?;
    Ok(())
}

/// Compiles the program that becomes each component of Kubernetes, and returns it.
///
/// # Errors
/// Something is missing and cannot be installed, or does not compile.
pub(crate) fn components() -> Result<PathBuf> {
    setup()?;
    Ok(build::build(&Cluster::new().directory)?.components)
}

/// Waits until the cluster of a test program that ended is gone.
///
/// # Errors
/// Some of it is still there.
pub(crate) fn settle() -> Result<()> {
    let cluster = Cluster::new();
    let lock = cluster.directory.join("test.lock");
    // Held by whoever removes the cluster.
    File::create(&lock)
        .and_then(|file| file.lock())
        .with_context(|| format!("lock {}", lock.display()))?;
    ensure!(
        !cluster.processes.are_running() && !cluster.network.exists(),
        "the tests left a cluster behind"
    );
    Ok(())
}

/// One working tree's cluster, whether or not it runs.
pub(crate) struct Cluster {
    directory: PathBuf,
    run: PathBuf,
    network: Network,
    processes: Processes,
}

impl Cluster {
    /// That of this working tree.
    pub(crate) fn new() -> Self {
        let directory = root().join("target/cluster");
        let mut hasher = DefaultHasher::new();
        directory.hash(&mut hasher);
        // Short: network namespaces and control groups of several trees must differ, not more.
        let name = format!("sluice-{:04x}", hasher.finish() & 0xffff);
        Self {
            network: Network::new(&name),
            processes: Processes::new(
                &name,
                &directory.join("log"),
                &directory.join("run/programs"),
            ),
            run: directory.join("run"),
            directory,
        }
    }

    /// Starts it with so many nodes, after removing one that is already there.
    ///
    /// # Errors
    /// Something does not start; what was made until then is removed.
    pub(crate) fn up_with(&self, workers: u8, edges: u8, proxy: ProxyMode) -> Result<()> {
        self.up(&topology::nodes(edges, workers)?, proxy)
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "the reader wants to see how long it takes"
    )]
    fn up(&self, nodes: &[Node], proxy: ProxyMode) -> Result<()> {
        setup()?;
        let artifacts = build::build(&self.directory)?;
        self.down()?;
        let start = Instant::now();
        if let Err(error) = self.start(nodes, proxy, &artifacts) {
            eprintln!(
                "cluster: {error:#}; the logs stay in {}",
                self.logs().display()
            );
            self.down()?;
            return Err(error);
        }
        println!("ready after {:.1} s", start.elapsed().as_secs_f32());
        command::run(self.kubectl().args(["get", "nodes", "-o", "wide"]))
    }

    fn start(&self, nodes: &[Node], proxy: ProxyMode, artifacts: &build::Artifacts) -> Result<()> {
        let logs = self.logs();
        if logs.exists() {
            fs::remove_dir_all(&logs).with_context(|| format!("remove {}", logs.display()))?;
        }
        fs::create_dir_all(&self.run).with_context(|| format!("make {}", self.run.display()))?;
        kernel::save(&self.run)?;
        self.processes.prepare(nodes)?;
        self.network.connect(nodes)?;
        self.describe(&artifacts.components)?;
        let control = Control {
            components: &artifacts.components,
            run: &self.run,
            network: &self.network,
            processes: &self.processes,
        };
        control.start(nodes)?;
        let machines = thread::scope(|scope| {
            let machines: Vec<_> = nodes
                .iter()
                .map(|node| scope.spawn(|| self.machine(node, &artifacts.images)))
                .collect();
            control.finish(nodes)?;
            machines
                .into_iter()
                .map(|machine| match machine.join() {
                    Ok(machine) => machine,
                    Err(_) => bail!("starting a node panicked"),
                })
                .collect::<Result<Vec<_>>>()
        })?;
        for machine in machines {
            machine.join(&artifacts.components, &self.run, proxy)?;
        }
        control.ready()
    }

    fn machine<'a>(&'a self, node: &'a Node, images: &[PathBuf]) -> Result<Machine<'a>> {
        Machine::start(node, &self.run, &self.network, &self.processes, images)
            .with_context(|| format!("start {}", node.name))
    }

    /// Writes what tests want to know, as shell variables.
    fn describe(&self, components: &Path) -> Result<()> {
        let file = self.run.join("environment");
        let text = format!(
            "NAMESPACES={}\nCOMPONENTS={}\nKUBECONFIG={}\n",
            self.network.file("").display(),
            components.display(),
            control::kubeconfig(&self.run, control::ADMIN).display()
        );
        fs::write(&file, text).with_context(|| format!("write {}", file.display()))
    }

    fn down(&self) -> Result<()> {
        self.processes.end()?;
        self.network.remove()?;
        if self.run.exists() {
            kernel::restore(&self.run)?;
            fs::remove_dir_all(&self.run)
                .with_context(|| format!("remove {}", self.run.display()))?;
        }
        Ok(())
    }

    /// Gives every node an image.
    ///
    /// # Errors
    /// No cluster runs, or a node refuses the image.
    pub(crate) fn load(&self, archive: &Path) -> Result<()> {
        ensure!(archive.is_file(), "there is no file {}", archive.display());
        let nodes = fs::read_dir(self.run.join("nodes")).context("no cluster runs")?;
        for node in nodes {
            let name = node?.file_name();
            let name = name.to_string_lossy();
            node::import(node::anchor(&self.processes, &name)?, archive)
                .with_context(|| format!("give {name} the image"))?;
        }
        Ok(())
    }

    /// A command that runs in `client`, `router`, `control` or a node.
    ///
    /// # Errors
    /// There is no such node.
    pub(crate) fn exec(&self, place: &str, arguments: &[String]) -> Result<Command> {
        let (program, arguments) = arguments.split_first().context("no command is given")?;
        let mut command = if matches!(place, "client" | "router" | control::NAMESPACE) {
            self.network.within(place, program)
        } else {
            let anchor = node::anchor(&self.processes, place)?;
            node::enter(anchor, &self.network, place, program)
        };
        command.args(arguments);
        Ok(command)
    }

    /// A kubectl of the admin.
    pub(crate) fn kubectl(&self) -> Command {
        let components = build::artifacts(&self.directory).components;
        control::kubectl(&components, &self.run, &self.network)
    }

    /// Becomes a command: its output and status are ours.
    fn pass(&self, command: &mut Command) -> Result<()> {
        ensure!(
            self.processes.are_running() && self.network.exists(),
            "no cluster runs: `cargo xtask cluster up` starts one"
        );
        let status = command
            .stdin(Stdio::inherit())
            .status()
            .with_context(|| format!("start `{}`", command::line(command)))?;
        if !status.success() {
            std::process::exit(status.code().unwrap_or(1));
        }
        Ok(())
    }

    fn logs(&self) -> PathBuf {
        self.directory.join("log")
    }
}

/// Settings of the kernel for the whole machine which kubelets change.
mod kernel {
    use std::fs;
    use std::path::Path;

    use anyhow::{Context as _, Result};

    const SETTINGS: [&str; 5] = [
        "vm/overcommit_memory",
        "kernel/panic",
        "kernel/panic_on_oops",
        "kernel/keys/root_maxkeys",
        "kernel/keys/root_maxbytes",
    ];

    pub(super) fn save(run: &Path) -> Result<()> {
        let lines: String = SETTINGS
            .iter()
            .filter_map(|name| {
                let value = fs::read_to_string(Path::new("/proc/sys").join(name)).ok()?;
                Some(format!("{name} {}\n", value.trim()))
            })
            .collect();
        fs::write(run.join("sysctls"), lines).context("remember the kernel's settings")
    }

    pub(super) fn restore(run: &Path) -> Result<()> {
        let Ok(text) = fs::read_to_string(run.join("sysctls")) else {
            return Ok(());
        };
        for (name, value) in text.lines().filter_map(|line| line.split_once(' ')) {
            let file = Path::new("/proc/sys").join(name);
            let is_changed = fs::read_to_string(&file).is_ok_and(|now| now.trim() != value);
            if is_changed {
                fs::write(&file, value).with_context(|| format!("write {}", file.display()))?;
            }
        }
        Ok(())
    }
}
