//! The real `lb-agent` and `lbctl`, run in the load balancer's namespace with files and pins of
//! their own.

use std::{
    path::{Path, PathBuf},
    process::Output,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use lb_common::{
    names,
    reason::{Counter, Event, Reason},
    traffic::Tally,
};
use lb_userspace::{kernel::Map, pins::PinDirectory};
use nix::sys::signal::Signal;

use super::{Namespace, Process, manifest::ServiceManifest, poll_until, text, world::World};
use crate::require;

/// How long an agent may take to begin, on a busy machine: the kernel checks the programs first.
const PATIENCE: Duration = Duration::from_mins(1);

/// An agent's files and, while it runs, its process. Everything goes on drop, the data path too.
#[derive(Debug)]
pub struct Node<'w> {
    lb: &'w Namespace,
    files: tempfile::TempDir,
    pin_root: PathBuf,
    arguments: Vec<String>,
    name: &'static str,
    second_layout: bool,
    process: Option<Process>,
}

/// The path of a program built from this workspace. `SLUICE_BIN` names another directory.
pub fn binary(name: &str) -> PathBuf {
    let directory = std::env::var_os("SLUICE_BIN").map(PathBuf::from);
    directory
        .unwrap_or_else(|| require::target_directory().join("debug"))
        .join(name)
}

impl<'w> Node<'w> {
    /// An agent for the devices of `world`, not yet started.
    pub fn new(world: &'w World) -> Self {
        let interfaces = world
            .interfaces
            .iter()
            .flat_map(|name| ["--interface", name]);
        Self::on(&world.lb, interfaces)
    }

    /// An agent in any namespace, with the arguments that name its interfaces.
    pub fn on(lb: &'w Namespace, interfaces: impl IntoIterator<Item = &'static str>) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let files = tempfile::tempdir().expect("a temporary directory");
        std::fs::create_dir(files.path().join("manifests")).expect("a directory");
        let pin_root = PathBuf::from(format!(
            "/sys/fs/bpf/sluice-netns-{}-{number}",
            std::process::id()
        ));
        let arguments = interfaces.into_iter().map(ToString::to_string).collect();
        let this = Self {
            lb,
            files,
            pin_root,
            arguments,
            name: "edge",
            second_layout: false,
            process: None,
        };
        this.configure_small();
        this
    }

    /// Small tables, as in the beginning: several nodes share the machine.
    pub fn configure_small(&self) {
        self.configure(
            "tables: {flowsV4: 16384, flowsV6: 16384, embryonicV4: 16384, embryonicV6: 16384}\n",
        );
    }

    /// One more argument.
    #[must_use]
    pub fn with(mut self, argument: &str) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Another name of the node than `edge`.
    #[must_use]
    pub fn named(mut self, name: &'static str) -> Self {
        self.name = name;
        self
    }

    /// Pins below another directory, which goes with the node as well.
    #[must_use]
    pub fn pins_below(mut self, root: PathBuf) -> Self {
        self.pin_root = root;
        self
    }

    /// From the next start on it is the agent of the second layout, or the ordinary one again.
    pub fn use_second_layout(&mut self, second: bool) {
        self.second_layout = second;
    }

    /// Replaces the configuration file.
    pub fn configure(&self, text: &str) {
        self.file("config.yaml", text);
    }

    /// The directory of manifests.
    pub fn manifests(&self) -> PathBuf {
        self.files.path().join("manifests")
    }

    /// `gateway: true`.
    #[must_use]
    pub fn gateway(self) -> Self {
        self.with("--gateway")
    }

    /// The SNAT addresses of the one-armed and two-armed worlds.
    #[must_use]
    pub fn snat(self) -> Self {
        self.with("--snat-address=10.0.0.100")
            .with("--snat-address=2001:db8:a::64")
    }

    /// Where everything is pinned.
    pub fn pin_root(&self) -> &Path {
        &self.pin_root
    }

    fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.files.path().join(name);
        // The watcher must not see half a file.
        let hidden = self.files.path().join(".new");
        std::fs::write(&hidden, content).expect("a temporary file");
        std::fs::rename(&hidden, &path).expect("a temporary file");
        path
    }

    /// Writes or replaces a file of the manifest directory.
    pub fn manifest(&self, name: &str, content: &str) {
        self.file(&format!("manifests/{name}"), content);
    }

    /// Writes or replaces a Service's manifest.
    pub fn apply(&self, name: &str, service: &ServiceManifest) {
        self.manifest(&format!("{name}.yaml"), &service.yaml());
    }

    /// Removes a file of the manifest directory.
    pub fn remove(&self, name: &str) {
        let path = self.files.path().join("manifests").join(name);
        std::fs::remove_file(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    }

    /// The command line of the agent.
    pub fn command(&self) -> std::process::Command {
        let second = require::second_layout();
        let (agent, object) = if self.second_layout {
            (second.join("lb-agent"), second.join("lb-ebpf"))
        } else {
            (binary("lb-agent"), require::object_path())
        };
        let mut command = self.lb.command(agent);
        let files = self.files.path();
        command
            .args(["run", "--node-name", self.name])
            .arg("--config")
            .arg(files.join("config.yaml"))
            .arg("--manifests")
            .arg(files.join("manifests"))
            .arg("--pin-root")
            .arg(&self.pin_root)
            .arg("--lock-file")
            .arg(files.join("agent.lock"))
            .arg("--object")
            .arg(object)
            .args(&self.arguments)
            .env("NO_COLOR", "1");
        command
    }

    /// Starts the agent and waits until everything is attached and `frontends` are served.
    pub fn start(&mut self, frontends: usize) {
        self.spawn();
        self.wait_attached();
        self.wait_frontends(frontends);
    }

    /// Starts the agent; it dies with the calling thread.
    pub fn spawn(&mut self) {
        self.process = Some(Process::spawn(&mut self.command()));
    }

    /// Waits until everything is attached.
    pub fn wait_attached(&mut self) {
        let process = self.process.as_mut().expect("a process");
        // The agent says of each interface what it took, once it has it.
        let names = self.arguments.windows(2).filter_map(|pair| match pair {
            [flag, name] if flag == "--interface" || flag == "--pod-interface" => {
                Some(format!(" {name}: "))
            }
            _ => None,
        });
        let names: Vec<String> = names.collect();
        poll_until("the agent to attach its programs", PATIENCE, || {
            if let Some(status) = process.ended() {
                panic!("the agent ended ({status}):\n{}", process.output());
            }
            let log = process.output();
            names.iter().all(|name| taken(&log, name)).then_some(())
        });
    }

    /// Waits until the tables hold exactly so many frontends.
    pub fn wait_frontends(&self, number: usize) {
        poll_until(&format!("{number} frontends"), PATIENCE, || {
            (self.frontends() == Some(number)).then_some(())
        });
    }

    fn frontends(&self) -> Option<usize> {
        use lb_common::service::{Frontend, FrontendKey4, FrontendKey6};
        let v4: Vec<(FrontendKey4, Frontend)> = self.map(names::FRONTENDS_V4)?.read_all().ok()?;
        let v6: Vec<(FrontendKey6, Frontend)> = self.map(names::FRONTENDS_V6)?.read_all().ok()?;
        Some(v4.len() + v6.len())
    }

    /// Starts an agent that must give up by itself; what it printed.
    pub fn refused(mut command: std::process::Command) -> String {
        let mut process = Process::spawn(&mut command);
        let status = process.wait(PATIENCE);
        let output = process.output();
        assert!(!status.success(), "the agent ended well:\n{output}");
        output
    }

    /// The running agent.
    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("the agent runs")
    }

    /// What the agent logged.
    pub fn log(&self) -> String {
        self.process
            .as_ref()
            .map(Process::output)
            .unwrap_or_default()
    }

    /// Waits until the agent's log has a text.
    pub fn wait_log(&self, words: &str) {
        poll_until(&format!("{words:?} in the agent's log"), PATIENCE, || {
            self.log().contains(words).then_some(())
        });
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        self.process.as_mut().expect("the agent runs").kill();
        self.process = None;
    }

    /// SIGTERM; the agent must end by itself and well.
    pub fn stop(&mut self) {
        let mut process = self.process.take().expect("the agent runs");
        process.signal(Signal::SIGTERM);
        let status = process.wait(PATIENCE);
        assert!(
            status.success(),
            "the agent ended ({status}):\n{}",
            process.output()
        );
    }

    /// A pinned map, if the data path is there.
    pub fn map(&self, name: &str) -> Option<Map> {
        Map::open_pinned(&directory(&self.pin_root)?.map(name)).ok()
    }

    /// Where a map is pinned.
    pub fn map_path(&self, name: &str) -> PathBuf {
        directory(&self.pin_root).expect("a data path").map(name)
    }

    /// Packets counted under an event.
    pub fn event(&self, event: Event) -> u64 {
        self.count(Counter::Event(event))
    }

    /// Packets counted under a reason.
    pub fn reason(&self, reason: Reason) -> u64 {
        self.count(Counter::Reason(reason))
    }

    fn count(&self, counter: Counter) -> u64 {
        let counters = self.map(names::COUNTERS).expect("COUNTERS is pinned");
        let values: Option<Vec<Tally>> = counters
            .lookup_per_cpu(&counter.index())
            .expect("COUNTERS can be read");
        values
            .unwrap_or_default()
            .iter()
            .map(|tally| tally.packets)
            .sum()
    }

    /// Every counter that is not zero, for the reader of a failed test.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        let all = Counter::all().map(|counter| (counter.name(), self.count(counter)));
        all.filter(|(_, packets)| *packets > 0).collect()
    }

    /// The agent's lock.
    pub fn lock_file(&self) -> PathBuf {
        self.files.path().join("agent.lock")
    }

    /// The command line of `lbctl` for this node's pins, without a task.
    pub fn lbctl_command(&self) -> std::process::Command {
        let mut command = self.lb.command(binary("lbctl"));
        command.arg("--pin-root").arg(&self.pin_root);
        command
    }

    /// Runs `lbctl` on this node's pins.
    pub fn try_lbctl<const N: usize>(&self, arguments: [&str; N]) -> Output {
        let mut command = self.lbctl_command();
        command
            .args(arguments)
            .output()
            .unwrap_or_else(|e| panic!("{command:?}: {e}"))
    }

    /// Runs `lbctl`, which must succeed; what it printed.
    pub fn lbctl<const N: usize>(&self, arguments: [&str; N]) -> String {
        let output = self.try_lbctl(arguments);
        let (out, errors) = (text(&output.stdout), text(&output.stderr));
        assert!(
            output.status.success(),
            "lbctl {arguments:?}: {}\n{out}{errors}",
            output.status
        );
        out
    }

    /// The same as JSON.
    pub fn lbctl_json<const N: usize>(&self, arguments: [&str; N]) -> serde_json::Value {
        let out = self.lbctl(arguments);
        serde_json::from_str(&out).unwrap_or_else(|e| panic!("lbctl {arguments:?}: {e}\n{out}"))
    }
}

/// Whether the log tells of an interface's receiving programs. `lb_egress` comes before them, with the
/// tables, and alone serves nobody.
fn taken(log: &str, name: &str) -> bool {
    let mut lines = log.lines().filter(|line| line.contains(name));
    lines.any(|line| !line.contains(": TCX egress"))
}

fn directory(root: &Path) -> Option<PinDirectory> {
    PinDirectory::find(root).ok()?.into_iter().next()
}

impl Drop for Node<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() && self.map(names::COUNTERS).is_some() {
            eprintln!("--- counters: {:?}", self.counters());
        }
        self.process = None;
        // Unlinking the pinned links detaches the programs.
        if self.pin_root.exists()
            && let Err(error) = std::fs::remove_dir_all(&self.pin_root)
        {
            eprintln!("{}: {error}", self.pin_root.display());
        }
    }
}
