//! etcd and the API server.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use tokio::runtime::Runtime;

use super::PATIENCE;
use crate::netns::now;

/// Where the API server is; the interface has the address.
const SERVER: &str = "192.0.2.1";
const TOKEN: &str = "admin";

/// Both, until this is dropped.
#[derive(Debug)]
pub struct Plane {
    /// How to reach the API server, as somebody who may do everything.
    pub kubeconfig: PathBuf,
    _processes: Vec<Process>,
}

/// A process that ends with us.
#[derive(Debug)]
pub struct Process(pub Child);

impl Process {
    /// Starts a program that writes to a log.
    ///
    /// # Errors
    ///
    /// The log cannot be written or the program not started.
    pub fn start(command: &mut Command, log: &Path) -> Result<Self> {
        let out = File::create(log).with_context(|| format!("write {}", log.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(out.try_clone().context("a second handle of a log")?)
            .stderr(out)
            .spawn();
        let name = command.get_program().to_string_lossy().into_owned();
        Ok(Self(child.with_context(|| format!("start {name}"))?))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // One that ended already is what we want.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

impl Plane {
    /// Starts both; the API server answers some seconds later.
    ///
    /// # Errors
    ///
    /// A file cannot be written or a program not started.
    pub fn start(components: &Path, directory: &Path) -> Result<Self> {
        let file = |name: &str| directory.join(name);
        let write = |name: &str, text: String| {
            std::fs::write(file(name), text).with_context(|| format!("write {name}"))
        };
        let made = Command::new("openssl")
            .args(["genrsa", "-out"])
            .arg(file("key"))
            .arg("2048")
            .stderr(Stdio::null())
            .status()
            .context("run openssl")?;
        ensure!(made.success(), "openssl failed");
        write(
            "tokens.csv",
            format!("{TOKEN},admin,admin,\"system:masters\"\n"),
        )?;
        let kubeconfig = file("kubeconfig");
        write("kubeconfig", kubeconfig_text(&file("tls/apiserver.crt")))?;

        let mut etcd = Command::new(components);
        etcd.arg("etcd").arg("--data-dir").arg(file("etcd"));
        let etcd = Process::start(&mut etcd, &file("etcd.log"))?;
        let mut server = Command::new(components);
        let flag = |flag: &str, name: &str| format!("--{flag}={}", file(name).display());
        server
            .arg("kube-apiserver")
            .arg("--etcd-servers=http://127.0.0.1:2379")
            .arg(format!("--advertise-address={SERVER}"))
            .args(["--secure-port=6443", "--authorization-mode=RBAC"])
            .arg("--service-cluster-ip-range=10.96.0.0/12")
            .arg(flag("cert-dir", "tls"))
            .arg(flag("token-auth-file", "tokens.csv"))
            .arg("--service-account-issuer=https://kubernetes.default.svc")
            .arg(flag("service-account-key-file", "key"))
            .arg(flag("service-account-signing-key-file", "key"));
        let server = Process::start(&mut server, &file("kube-apiserver.log"))?;
        Ok(Self {
            kubeconfig,
            _processes: vec![server, etcd],
        })
    }
}

fn kubeconfig_text(certificate: &Path) -> String {
    format!(
        "apiVersion: v1
kind: Config
clusters:
- name: sluice
  cluster: {{server: \"https://{SERVER}:6443\", certificate-authority: \"{}\"}}
users:
- name: {TOKEN}
  user: {{token: {TOKEN}}}
contexts:
- name: sluice
  context: {{cluster: sluice, user: {TOKEN}}}
current-context: sluice
",
        certificate.display()
    )
}

/// Waits for the API server. Returns the way to it.
///
/// # Errors
///
/// It did not answer in time.
pub fn reach(kubeconfig: &Path) -> Result<(Runtime, Client)> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("start the runtime")?;
    let start = now();
    // Its certificate is there once it has started.
    let client = loop {
        match runtime.block_on(connect(kubeconfig)) {
            Ok(client) => break client,
            Err(error) if start.elapsed() > PATIENCE => {
                return Err(error).context("wait for the API server");
            }
            Err(_) => std::thread::sleep(Duration::from_millis(200)),
        }
    };
    Ok((runtime, client))
}

async fn connect(kubeconfig: &Path) -> Result<Client> {
    let kubeconfig = Kubeconfig::read_from(kubeconfig)?;
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    let client = Client::try_from(config)?;
    let request = kube::core::Request::new("/readyz");
    let request = request.list(&kube::api::ListParams::default())?;
    client.request_text(request).await?;
    Ok(client)
}
