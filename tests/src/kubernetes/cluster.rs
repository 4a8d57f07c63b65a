//! The cluster: started by `cargo xtask cluster up`, removed however the test program ends.

use std::{
    fs::{self, File},
    io::Write as _,
    ops::Deref,
    os::unix::process::CommandExt as _,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    process::{ChildStdin, Command, Output, Stdio},
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use serde_json::Value;

use super::{agent::Agent, client::Place, say};
use crate::{
    netns::{now, poll_until, succeed, text},
    require,
};

/// Long enough for anything a cluster does on a busy machine.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// Does something when it is dropped, also when the test fails.
pub struct Finally<F: FnMut()>(pub F);

impl<F: FnMut()> Drop for Finally<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// What kind of cluster a test program wants.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// `--kube-proxy` of `cargo xtask cluster up`.
    pub kube_proxy: &'static str,
    /// Nodes that balance.
    pub edges: u8,
    /// Nodes that only run pods.
    pub workers: u8,
    /// The overlay of `deploy/overlays` with Sluice.
    pub overlay: &'static str,
}

/// The cluster of a test program, started by the first test that needs it.
#[derive(Debug)]
pub struct Shared {
    options: Options,
    cluster: OnceLock<Result<Cluster, String>>,
    turn: Mutex<()>,
}

impl Shared {
    /// A cluster yet to be started.
    pub const fn new(options: Options) -> Self {
        Self {
            options,
            cluster: OnceLock::new(),
            turn: Mutex::new(()),
        }
    }

    /// The cluster, for one test alone; `None` if the test is to be skipped.
    pub fn take(&'static self) -> Option<Turn> {
        if !require::kernel_tests() {
            return None;
        }
        // A failed test must not fail the others.
        let guard = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let cluster = self.cluster.get_or_init(|| {
            // Once: what does not start now will not for the next test either.
            let start = || Cluster::start(self.options);
            catch_unwind(AssertUnwindSafe(start)).map_err(|panic| {
                let said = panic.downcast_ref::<String>().map(String::as_str);
                said.or_else(|| panic.downcast_ref::<&str>().copied())
                    .unwrap_or("it panicked")
                    .to_owned()
            })
        });
        match cluster {
            Ok(cluster) => Some(Turn {
                cluster,
                _guard: guard,
            }),
            Err(why) => panic!("there is no cluster: {why}"),
        }
    }
}

/// The time in which a test has the cluster for itself.
#[derive(Debug)]
pub struct Turn {
    cluster: &'static Cluster,
    _guard: MutexGuard<'static, ()>,
}

impl Deref for Turn {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        self.cluster
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.cluster.agent().log();
            let lines: Vec<_> = log.lines().collect();
            let first = lines.len().saturating_sub(60);
            eprintln!("--- the agent's last words:\n{}", lines[first..].join("\n"));
        }
    }
}

/// A running cluster with Sluice on its edge nodes.
#[derive(Debug)]
pub struct Cluster {
    /// Path of the network namespaces without the place's name.
    namespaces: String,
    components: PathBuf,
    /// The admin's kubeconfig.
    pub kubeconfig: PathBuf,
    options: Options,
    /// As long as it is open the cluster lives.
    _janitor: ChildStdin,
}

impl Cluster {
    fn start(options: Options) -> Self {
        let start = now();
        let janitor = janitor();
        succeed(
            xtask()
                .args(["cluster", "up", "--kube-proxy", options.kube_proxy])
                .args(["--edges", &options.edges.to_string()])
                .args(["--workers", &options.workers.to_string()]),
        );
        let run = workspace().join("target/cluster/run");
        let environment = fs::read_to_string(run.join("environment")).expect("a running cluster");
        let variable = |name: &str| {
            let line = environment
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            line.unwrap_or_else(|| panic!("no {name} in {environment}"))
                .to_owned()
        };
        let cluster = Self {
            namespaces: variable("NAMESPACES"),
            components: variable("COMPONENTS").into(),
            kubeconfig: variable("KUBECONFIG").into(),
            options,
            _janitor: janitor,
        };
        let ready = start.elapsed();
        cluster.load(&image());
        cluster.deploy();
        say(&format!(
            "cluster with kube-proxy {}: ready after {:.1} s, Sluice after {:.1} s",
            options.kube_proxy,
            ready.as_secs_f64(),
            start.elapsed().as_secs_f64()
        ));
        cluster
    }

    /// How it was started.
    pub fn options(&self) -> Options {
        self.options
    }

    /// Applies Sluice as the tests want it, and waits until every agent is ready.
    pub fn deploy(&self) {
        self.apply_directory(&deploy().join("overlays").join(self.options.overlay));
        self.agent().wait_rolled_out();
    }

    /// What `kubectl apply -k` does; returns what changed.
    pub fn apply_directory(&self, directory: &Path) -> String {
        let directory = directory.display().to_string();
        self.kubectl(["apply", "-k", &directory])
    }

    /// Gives every node an image.
    pub fn load(&self, archive: &Path) {
        succeed(xtask().args(["cluster", "load"]).arg(archive));
    }

    /// Gives an image of a node another name too.
    pub fn tag(&self, node: &str, name: &str, another: &str) {
        let socket = [
            "--address",
            "/run/containerd/containerd.sock",
            "-n",
            "k8s.io",
        ];
        let words = ["images", "tag", "--force", name, another];
        self.node(node, &[&["ctr"][..], &socket, &words].concat());
    }

    /// Kills a program of the cluster.
    pub fn stop(&self, program: &str) {
        succeed(xtask().args(["cluster", "stop", program]));
    }

    /// Starts it again.
    pub fn resume(&self, program: &str) {
        succeed(xtask().args(["cluster", "start", program]));
    }

    /// The process of a program of the cluster.
    pub fn process(&self, program: &str) -> nix::unistd::Pid {
        let file = workspace().join(format!("target/cluster/run/programs/{program}.pid"));
        let text = fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        let number = text.trim().parse().expect("a process id");
        nix::unistd::Pid::from_raw(number)
    }

    /// What the programs of the cluster logged.
    pub fn program_log(&self, program: &str) -> String {
        let file = workspace().join(format!("target/cluster/log/{program}.log"));
        fs::read_to_string(file).unwrap_or_default()
    }

    /// Runs a command in a node, with its file systems; it must succeed.
    pub fn node(&self, name: &str, command: &[&str]) -> String {
        let output = succeed(xtask().args(["cluster", "exec", name]).args(command));
        text(&output.stdout)
    }

    /// The network of `client`, `router`, `control` or a node.
    pub fn place(&self, name: &str) -> Place {
        Place::new(format!("{}{name}", self.namespaces).into())
    }

    /// The name of that network's namespace.
    pub fn namespace(&self, name: &str) -> String {
        let path = format!("{}{name}", self.namespaces);
        path.rsplit('/').next().unwrap_or_default().to_owned()
    }

    /// The client outside.
    pub fn client(&self) -> Place {
        self.place("client")
    }

    /// Sluice.
    pub fn agent(&self) -> Agent<'_> {
        Agent::new(self)
    }

    /// Runs kubectl as the admin; it must succeed. Returns its standard output.
    pub fn kubectl<const N: usize>(&self, arguments: [&str; N]) -> String {
        text(&succeed(self.kubectl_command().args(arguments)).stdout)
    }

    /// Runs kubectl, whatever comes of it.
    pub fn try_kubectl<const N: usize>(&self, arguments: [&str; N]) -> Output {
        self.kubectl_words(&arguments)
    }

    /// Like [`Self::try_kubectl`], for any number of arguments.
    pub fn kubectl_words(&self, arguments: &[&str]) -> Output {
        let mut command = self.kubectl_command();
        let command = command.args(arguments);
        command
            .output()
            .unwrap_or_else(|e| panic!("{command:?}: {e}"))
    }

    /// Runs kubectl with a text as its standard input.
    pub fn kubectl_with<const N: usize>(&self, arguments: [&str; N], input: &str) -> Output {
        let mut command = self.kubectl_command();
        let mut child = command
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("{command:?}: {e}"));
        let mut pipe = child.stdin.take().expect("a pipe");
        // It may have ended without reading; its output says why.
        drop(pipe.write_all(input.as_bytes()));
        drop(pipe);
        child.wait_with_output().expect("kubectl ends")
    }

    /// Applies manifests; the API server must accept them.
    pub fn apply(&self, manifests: &str) {
        let output = self.kubectl_with(["apply", "-f", "-"], manifests);
        assert!(
            output.status.success(),
            "{manifests}\n{}",
            text(&output.stderr)
        );
    }

    /// Names of the pods in a namespace that are not being deleted; `selector` is an option.
    pub fn pods(&self, namespace: &str, selector: &str) -> Vec<String> {
        let list = self.kubectl(["-n", namespace, "get", "pods", selector, "-o", "json"]);
        let list: Value = serde_json::from_str(&list).expect("JSON");
        let pods = list["items"].as_array().expect("a list").iter();
        pods.map(|pod| &pod["metadata"])
            .filter(|metadata| metadata["deletionTimestamp"].is_null())
            .filter_map(|metadata| metadata["name"].as_str().map(str::to_owned))
            .collect()
    }

    /// Waits for the API server to answer again.
    pub fn wait_api(&self) {
        poll_until("the API server", PATIENCE, || {
            let ready = self.try_kubectl(["get", "--raw", "/readyz", "--request-timeout=2s"]);
            ready.status.success().then_some(())
        });
    }

    fn kubectl_command(&self) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}control", self.namespaces))
            .args(["setpriv", "--pdeathsig", "KILL", "--"])
            .arg(&self.components)
            .args(["kubectl", "--kubeconfig"])
            .arg(&self.kubeconfig)
            // Beside the cluster's other files, so that nothing of it stays.
            .env("KUBECACHEDIR", self.kubeconfig.with_file_name("cache"))
            .stdin(Stdio::null());
        command
    }
}

/// The directory of manifests for clusters.
pub fn deploy() -> PathBuf {
    workspace().join("deploy")
}

/// Renders a kustomization; needs no cluster, but its programs.
pub fn render(directory: &Path) -> Output {
    let components = workspace().join("target/cluster/bin/components");
    let mut command = Command::new(components);
    command.args(["kubectl", "kustomize"]).arg(directory);
    command
        .output()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"))
}

/// The archive with Sluice's image.
pub fn image() -> PathBuf {
    let archive = workspace().join("target/image/sluice.tar");
    assert!(
        archive.exists(),
        "{}: run `cargo xtask image` first",
        archive.display()
    );
    archive
}

/// The task runner: the one that runs this test, or the one compiled last.
pub fn xtask() -> Command {
    let program = std::env::var_os("SLUICE_XTASK").map_or_else(
        || require::target_directory().join("debug/xtask"),
        PathBuf::from,
    );
    let mut command = Command::new(program);
    command.stdin(Stdio::null());
    command
}

/// Starts the process that removes the cluster when this one is gone, for whatever reason.
///
/// It holds a lock until then, which keeps the next test program waiting.
#[expect(
    clippy::zombie_processes,
    reason = "it outlives us: that is what it is for"
)]
fn janitor() -> ChildStdin {
    let directory = workspace().join("target/cluster");
    fs::create_dir_all(&directory).expect("a directory");
    let lock = File::create(directory.join("test.lock")).expect("a file to lock");
    lock.lock().expect("the lock");
    let mut child = Command::new("sh")
        .args(["-c", "cat > /dev/null; exec \"$0\" cluster down"])
        .arg(xtask().get_program())
        // The lock belongs to the open file: it is held as long as the janitor has it.
        .stdout(Stdio::from(lock))
        .stdin(Stdio::piped())
        // Ctrl-C is for the tests.
        .process_group(0)
        .spawn()
        .expect("a shell");
    child.stdin.take().expect("a pipe")
}

fn workspace() -> &'static Path {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own)
}
