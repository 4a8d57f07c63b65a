//! A node: a network namespace and a mount namespace with containerd, kubelet, maybe kube-proxy.
//!
//! Everything a node writes is under its own directory, mounted over `/var/lib` and `/var/log`, or
//! in memory, mounted over `/run`. Its mounts end with its last process.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::network::Network;
use super::processes::{Processes, wait};
use super::topology::{self, Node};
use super::{ProxyMode, build, control};
use crate::command;

const PATIENCE: Duration = Duration::from_secs(30);
const SOCKET: &str = "/run/containerd/containerd.sock";

/// Makes the node's mount namespace, then waits; all else of the node enters it.
const ANCHOR: &str = r#"
mount --make-rslave /
! mountpoint -q /sys/fs/cgroup/unified || umount /sys/fs/cgroup/unified
mount --make-rshared /
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/netns /run/lock /run/containerd
mount -t bpf bpf /sys/fs/bpf
mount --bind "$1/lib" /var/lib
mount --bind "$1/log" /var/log
hostname "$2"
: > "$1/mounted"
exec sleep infinity
"#;

/// One running node.
pub(super) struct Machine<'a> {
    node: &'a Node,
    directory: PathBuf,
    network: &'a Network,
    processes: &'a Processes,
    anchor: u32,
}

impl<'a> Machine<'a> {
    /// Starts the node's containerd and gives it images.
    ///
    /// # Errors
    /// A program does not start or is not ready in time.
    pub(super) fn start(
        node: &'a Node,
        run: &Path,
        network: &'a Network,
        processes: &'a Processes,
        images: &[PathBuf],
    ) -> Result<Self> {
        let directory = directory(run, &node.name);
        for part in ["lib", "log", "cni"] {
            let part = directory.join(part);
            fs::create_dir_all(&part).with_context(|| format!("make {}", part.display()))?;
        }
        let text = |name: &str, text: &str| {
            let file = directory.join(name);
            fs::write(&file, text).with_context(|| format!("write {}", file.display()))
        };
        text("cni/10-bridge.conflist", &network_config(node))?;
        text("containerd.toml", &runtime_config(&directory))?;
        text(
            "kubelet.yaml",
            &kubelet_config(&processes.pods(&node.name), run),
        )?;

        let mut anchor = Command::new("nsenter");
        anchor
            .arg(format!("--net={}", network.file(&node.name).display()))
            .args(["unshare", "--mount", "--uts", "--propagation", "slave"])
            .args(["sh", "-e", "-c", ANCHOR, "sh"])
            .arg(&directory)
            .arg(&node.name);
        let anchor = processes.start(&format!("{}-anchor", node.name), &anchor)?;
        let machine = Self {
            node,
            directory,
            network,
            processes,
            anchor,
        };
        machine.settle(images)?;
        Ok(machine)
    }

    fn settle(&self, images: &[PathBuf]) -> Result<()> {
        let name = &self.node.name;
        wait(&format!("the mounts of {name}"), PATIENCE, || {
            Ok(self.directory.join("mounted").exists().then_some(()))
        })?;
        let mut containerd = self.enter("containerd");
        containerd
            .arg("--config")
            .arg(self.directory.join("containerd.toml"));
        self.start_program("containerd", &containerd)?;
        wait(&format!("containerd of {name}"), PATIENCE, || {
            let mut ctr = self.enter("ctr");
            ctr.args(["--address", SOCKET, "version"]);
            Ok(command::output(&mut ctr).ok().map(drop))
        })?;
        images
            .iter()
            .try_for_each(|image| import(self.anchor, image))
    }

    /// Starts the kubelet, and kube-proxy if there is to be one.
    ///
    /// # Errors
    /// A program does not start.
    pub(super) fn join(&self, components: &Path, run: &Path, proxy: ProxyMode) -> Result<()> {
        let name = &self.node.name;
        let mut kubelet = self.enter(components);
        kubelet
            .arg("kubelet")
            .arg("--config")
            .arg(self.directory.join("kubelet.yaml"))
            .arg("--kubeconfig")
            .arg(control::kubeconfig(run, name))
            .arg(format!("--hostname-override={name}"))
            .arg(format!("--node-ip={}", self.node.addresses().join(",")));
        self.start_program("kubelet", &kubelet)?;
        let Some(mode) = proxy.argument() else {
            return Ok(());
        };
        let mut proxy = self.enter(components);
        proxy
            .arg("kube-proxy")
            .arg("--kubeconfig")
            .arg(control::kubeconfig(run, "kube-proxy"))
            .arg(format!("--hostname-override={name}"))
            .arg(format!("--proxy-mode={mode}"))
            .arg(format!("--cluster-cidr={}", topology::POD_RANGES))
            // These cannot be set in a namespace.
            .args(["--conntrack-max-per-core=0"])
            .args(["--conntrack-tcp-timeout-established=0"])
            .args(["--conntrack-tcp-timeout-close-wait=0"]);
        self.start_program("kube-proxy", &proxy)
    }

    fn enter(&self, program: impl AsRef<Path>) -> Command {
        enter(self.anchor, self.network, &self.node.name, program)
    }

    fn start_program(&self, name: &str, program: &Command) -> Result<()> {
        let name = format!("{}-{name}", self.node.name);
        self.processes.start(&name, program)?;
        Ok(())
    }
}

/// Where a node's files are.
pub(super) fn directory(run: &Path, name: &str) -> PathBuf {
    run.join("nodes").join(name)
}

/// The process that holds a node's namespaces.
///
/// # Errors
/// There is no such node.
pub(super) fn anchor(processes: &Processes, name: &str) -> Result<u32> {
    processes.id(&format!("{name}-anchor"))
}

/// A command that runs in a node.
pub(super) fn enter(
    anchor: u32,
    network: &Network,
    name: &str,
    program: impl AsRef<Path>,
) -> Command {
    let mut command = Command::new("nsenter");
    command
        .arg(format!("--target={anchor}"))
        .args(["--mount", "--uts"])
        .arg(format!("--net={}", network.file(name).display()))
        .arg("--")
        .arg(program.as_ref());
    command
}

/// Gives a node an image.
///
/// # Errors
/// The archive cannot be read, or containerd refuses it.
pub(super) fn import(anchor: u32, archive: &Path) -> Result<()> {
    // Opened here: the file may be where the node has something else.
    let file = File::open(archive).with_context(|| format!("read {}", archive.display()))?;
    let mut ctr = Command::new("nsenter");
    ctr.arg(format!("--target={anchor}"))
        .args(["--mount", "--", "ctr", "--address", SOCKET])
        .args(["--namespace", "k8s.io", "images", "import", "-"])
        .stdin(Stdio::from(file));
    let output = ctr
        .output()
        .with_context(|| format!("start `{}`", command::line(&ctr)))?;
    command::text(&ctr, output)?;
    Ok(())
}

fn network_config(node: &Node) -> String {
    let [v4, v6] = node.pod_subnets();
    format!(
        r#"{{"cniVersion": "0.4.0", "name": "pods", "plugins": [{{
  "type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
  "ipam": {{"type": "host-local",
    "ranges": [[{{"subnet": "{v4}"}}], [{{"subnet": "{v6}"}}]],
    "routes": [{{"dst": "0.0.0.0/0"}}, {{"dst": "::/0"}}]}}
}}]}}
"#
    )
}

fn runtime_config(directory: &Path) -> String {
    format!(
        r#"version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.internal.v1.tracing", "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs"]

[grpc]
address = "{SOCKET}"

[plugins."io.containerd.internal.v1.opt"]
path = "/var/lib/containerd/opt"

[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{}"
disable_apparmor = true
# Lowering a score needs CAP_SYS_RESOURCE, which virtual machines may lack.
restrict_oom_score_adj = true

[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "{}"

[plugins."io.containerd.grpc.v1.cri".containerd]
# runc cannot start privileged containers without CAP_SYS_RESOURCE.
default_runtime_name = "crun"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.crun]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.crun.options]
BinaryName = "/usr/bin/crun"
"#,
        build::PAUSE_IMAGE,
        directory.join("cni").display()
    )
}

fn kubelet_config(cgroup: &str, run: &Path) -> String {
    format!(
        r#"apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication:
  anonymous: {{enabled: true}}
  webhook: {{enabled: false}}
  x509: {{clientCAFile: {ca}}}
authorization: {{mode: AlwaysAllow}}
cgroupDriver: cgroupfs
cgroupRoot: {cgroup}
containerRuntimeEndpoint: unix://{SOCKET}
enforceNodeAllocatable: []
evictionHard: {{memory.available: 50Mi, nodefs.available: 1%, nodefs.inodesFree: 1%, imagefs.available: 1%}}
failCgroupV1: false
failSwapOn: false
imageGCHighThresholdPercent: 100
localStorageCapacityIsolation: false
makeIPTablesUtilChains: false
resolvConf: ""
volumePluginDir: /var/lib/kubelet/volume-plugins
"#,
        ca = control::certificate(run).display()
    )
}
