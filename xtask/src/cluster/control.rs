//! The control plane: etcd, API server, controllers and scheduler in a namespace of their own.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::network::Network;
use super::processes::{Processes, wait};
use super::topology::{self, Node};
use crate::command;

/// The namespace it is in.
pub(super) const NAMESPACE: &str = "control";
/// Who may do everything.
pub(super) const ADMIN: &str = "admin";

const PATIENCE: Duration = Duration::from_mins(1);
const USERS: [(&str, &str, &str); 4] = [
    (ADMIN, "admin", "system:masters"),
    (
        "kube-controller-manager",
        "system:kube-controller-manager",
        "",
    ),
    ("kube-scheduler", "system:kube-scheduler", ""),
    ("kube-proxy", "system:kube-proxy", ""),
];

/// The control plane's programs and files.
pub(super) struct Control<'a> {
    /// The program that becomes each component.
    pub(super) components: &'a Path,
    /// The directory of the run.
    pub(super) run: &'a Path,
    /// Where it is connected.
    pub(super) network: &'a Network,
    /// What starts it.
    pub(super) processes: &'a Processes,
}

/// A user's kubeconfig.
pub(super) fn kubeconfig(run: &Path, user: &str) -> PathBuf {
    run.join("control").join(format!("{user}.kubeconfig"))
}

/// The API server's own certificate, which also vouches for it.
pub(super) fn certificate(run: &Path) -> PathBuf {
    run.join("control/tls/apiserver.crt")
}

/// A kubectl of the admin.
pub(super) fn kubectl(components: &Path, run: &Path, network: &Network) -> Command {
    let mut kubectl = network.within(NAMESPACE, components);
    kubectl
        .args(["kubectl", "--kubeconfig"])
        .arg(kubeconfig(run, ADMIN));
    kubectl
}

impl Control<'_> {
    /// Writes keys and users, and starts etcd and the API server.
    ///
    /// # Errors
    /// A file cannot be written or a program not started.
    pub(super) fn start(&self, nodes: &[Node]) -> Result<()> {
        let directory = self.run.join("control");
        fs::create_dir_all(&directory).with_context(|| format!("make {}", directory.display()))?;
        self.users(nodes)?;
        let key = directory.join("service-accounts.key");
        command::output(
            Command::new("openssl")
                .args(["genrsa", "-out"])
                .arg(&key)
                .arg("2048"),
        )?;
        let mut etcd = self.component("etcd");
        etcd.arg("--data-dir").arg(directory.join("etcd"));
        self.processes.start("etcd", &etcd)?;
        self.processes
            .start("kube-apiserver", &self.api_server(&directory, &key))?;
        Ok(())
    }

    fn api_server(&self, directory: &Path, key: &Path) -> Command {
        let [address, _] = topology::CONTROL.map(topology::bare);
        let file = |flag: &str, file: PathBuf| format!("--{flag}={}", file.display());
        let mut server = self.component("kube-apiserver");
        server
            .arg("--etcd-servers=http://127.0.0.1:2379")
            .arg(format!("--advertise-address={address}"))
            // The port of its Service: where no proxy runs, its cluster IP leads here directly.
            .args(["--bind-address=::", "--secure-port=443"])
            .arg(file("cert-dir", directory.join("tls")))
            .arg(format!(
                "--service-cluster-ip-range={}",
                topology::SERVICE_RANGES.join(",")
            ))
            .args(["--allow-privileged=true", "--authorization-mode=Node,RBAC"])
            .arg("--kubelet-preferred-address-types=InternalIP")
            .arg(file("token-auth-file", directory.join("tokens.csv")))
            .arg("--service-account-issuer=https://kubernetes.default.svc")
            .arg(file("service-account-key-file", key.to_owned()))
            .arg(file("service-account-signing-key-file", key.to_owned()));
        server
    }

    /// Waits for the API server, tells it the nodes, and starts what needs it.
    ///
    /// # Errors
    /// The API server is not ready in time, or a program does not start.
    pub(super) fn finish(&self, nodes: &[Node]) -> Result<()> {
        wait("the API server", PATIENCE, || {
            let mut curl = self.network.within(NAMESPACE, "curl");
            curl.args(["--silent", "--fail", "--insecure", "--max-time", "2"])
                .arg("https://127.0.0.1/readyz");
            Ok(command::output(&mut curl).ok().map(drop))
        })?;
        let manifest = self.run.join("control/nodes.yaml");
        fs::write(&manifest, node_objects(nodes))
            .with_context(|| format!("write {}", manifest.display()))?;
        let mut create = kubectl(self.components, self.run, self.network);
        create.arg("create").arg("-f").arg(&manifest);
        command::output(create.stdin(Stdio::null()))?;

        let config = |user| kubeconfig(self.run, user);
        let mut controllers = self.component("kube-controller-manager");
        controllers
            .arg("--kubeconfig")
            .arg(config("kube-controller-manager"))
            .arg("--root-ca-file")
            .arg(certificate(self.run))
            .arg("--service-account-private-key-file")
            .arg(self.run.join("control/service-accounts.key"))
            .args(["--use-service-account-credentials", "--leader-elect=false"])
            // An API server that is away for a minute is no reason to take the nodes for dead.
            .arg("--node-monitor-grace-period=10m");
        self.processes
            .start("kube-controller-manager", &controllers)?;
        let mut scheduler = self.component("kube-scheduler");
        scheduler
            .arg("--kubeconfig")
            .arg(config("kube-scheduler"))
            .arg("--leader-elect=false");
        self.processes.start("kube-scheduler", &scheduler)?;
        Ok(())
    }

    /// Waits until pods can be started everywhere.
    ///
    /// # Errors
    /// A node is not ready in time.
    pub(super) fn ready(&self) -> Result<()> {
        let waits = [
            "--for=condition=Ready nodes --all",
            "--for=create serviceaccount/default",
        ];
        for what in waits {
            let mut wait = kubectl(self.components, self.run, self.network);
            wait.args(["wait", "--timeout=90s"]).args(what.split(' '));
            command::output(&mut wait)?;
        }
        Ok(())
    }

    fn component(&self, name: &str) -> Command {
        let mut command = self.network.within(NAMESPACE, self.components);
        command.arg(name);
        command
    }

    /// Tokens and kubeconfigs; the token is the user's name, nobody outside can reach the server.
    fn users(&self, nodes: &[Node]) -> Result<()> {
        let mut users: Vec<_> = USERS
            .map(|(file, user, group)| (file.to_owned(), user.to_owned(), group))
            .into();
        users.extend(nodes.iter().map(|node| {
            let user = format!("system:node:{}", node.name);
            (node.name.clone(), user, "system:nodes")
        }));
        let mut tokens = String::new();
        for (file, user, group) in &users {
            writeln!(tokens, "{file},{user},{file},\"{group}\"").context("format a token")?;
            let path = kubeconfig(self.run, file);
            fs::write(&path, kubeconfig_text(self.run, file))
                .with_context(|| format!("write {}", path.display()))?;
        }
        let file = self.run.join("control/tokens.csv");
        fs::write(&file, tokens).with_context(|| format!("write {}", file.display()))
    }
}

fn kubeconfig_text(run: &Path, token: &str) -> String {
    let [address, _] = topology::CONTROL.map(topology::bare);
    format!(
        "apiVersion: v1
kind: Config
clusters:
- name: sluice
  cluster: {{server: \"https://{address}\", certificate-authority: \"{}\"}}
users:
- name: {token}
  user: {{token: {token}}}
contexts:
- name: sluice
  context: {{cluster: sluice, user: {token}}}
current-context: sluice
",
        certificate(run).display()
    )
}

fn node_objects(nodes: &[Node]) -> String {
    nodes.iter().map(node_object).collect()
}

/// A Node with what its kubelet does not say about itself.
fn node_object(node: &Node) -> String {
    let Node { name, is_edge, .. } = node;
    let [v4, v6] = node.pod_subnets();
    let (label, annotation) = if *is_edge {
        (
            format!("    {}: \"\"\n", topology::EDGE_LABEL),
            format!(
                "  annotations:\n    {}: \"{}\"\n",
                topology::SNAT_ANNOTATION,
                node.snat_addresses().join(",")
            ),
        )
    } else {
        Default::default()
    };
    format!(
        "---
apiVersion: v1
kind: Node
metadata:
  name: {name}
{annotation}  labels:
    topology.kubernetes.io/region: here
    topology.kubernetes.io/zone: {zone}
{label}spec:
  podCIDR: {v4}
  podCIDRs: [\"{v4}\", \"{v6}\"]
",
        zone = node.zone()
    )
}

#[cfg(test)]
mod tests {
    use super::node_object;
    use crate::cluster::topology::nodes;

    #[test]
    fn edges_are_labelled_and_annotated() {
        let nodes = nodes(1, 1).expect("two nodes");
        let [edge, worker] = nodes.as_slice() else {
            panic!("not two nodes: {nodes:?}");
        };
        let text = node_object(edge);
        assert!(text.contains("\n    sluice.dev/edge: \"\"\n"), "{text}");
        let snat = "\n    sluice.dev/snat-addresses: \"10.200.0.111,2001:db8:200::111\"\n";
        assert!(text.contains(snat), "{text}");
        assert!(!node_object(worker).contains("sluice.dev"));
    }
}
