//! Starting programs that outlive this task, and ending every one of them.
//!
//! All processes of the cluster are in one control group, those of its pods in groups below it. So
//! nothing is lost from sight, however a run ended and whoever adopted its processes.

use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use super::topology::Node;
use crate::command;

const CGROUPS: &str = "/sys/fs/cgroup";
/// The one hierarchy that counts where each controller has its own.
const FREEZER: &str = "/sys/fs/cgroup/freezer";
/// Processes that are in no pod.
const OWN: &str = "components";
const PATIENCE: Duration = Duration::from_secs(20);

/// Starts and ends the processes of one cluster.
#[derive(Clone)]
pub(super) struct Processes {
    group: String,
    logs: PathBuf,
    records: PathBuf,
}

impl Processes {
    /// For the cluster whose control groups are called `group`, with output in `logs` and what was
    /// started written to `records`.
    pub(super) fn new(group: &str, logs: &Path, records: &Path) -> Self {
        Self {
            group: group.to_owned(),
            logs: logs.to_owned(),
            records: records.to_owned(),
        }
    }

    /// The control group for the pods of a node, as the kubelet is told.
    pub(super) fn pods(&self, node: &str) -> String {
        format!("/{}/{node}", self.group)
    }

    /// Makes the control groups, those for the pods of `nodes` in every hierarchy.
    ///
    /// # Errors
    /// They cannot be made.
    pub(super) fn prepare(&self, nodes: &[Node]) -> Result<()> {
        make(&self.base().join(OWN))?;
        let all = hierarchies();
        for node in nodes {
            for hierarchy in &all {
                // From the top: a group for CPU sets starts without any, and takes no process.
                let group = hierarchy.join(&self.group);
                for group in [&group, &group.join(&node.name)] {
                    make(group)?;
                    inherit(group)?;
                }
            }
        }
        for hierarchy in &all {
            favour(&hierarchy.join(&self.group))?;
        }
        make(&self.records)?;
        make(&self.logs)
    }

    /// Starts a program that goes on when this task ends, and returns its process id.
    ///
    /// # Errors
    /// It does not start.
    pub(super) fn start(&self, name: &str, program: &Command) -> Result<u32> {
        let words: Vec<_> = [program.get_program()]
            .into_iter()
            .chain(program.get_args())
            .map(|word| word.to_string_lossy().into_owned())
            .collect();
        self.record(name, &words.join("\0"))?;
        self.spawn(name, &words)
    }

    /// Starts a program again that [`stop`](Self::stop) ended, or that ended itself.
    ///
    /// # Errors
    /// It was never started, it runs, or it does not start.
    pub(super) fn resume(&self, name: &str) -> Result<()> {
        let words = self.recorded(name)?;
        ensure!(!self.is_running(self.id(name)?)?, "{name} runs");
        let words: Vec<_> = words.split('\0').map(str::to_owned).collect();
        self.spawn(name, &words)?;
        Ok(())
    }

    /// Kills a program; what it started goes on.
    ///
    /// # Errors
    /// It was never started, or does not end.
    pub(super) fn stop(&self, name: &str) -> Result<()> {
        let id = self.id(name)?;
        wait(&format!("{name} to end"), PATIENCE, || {
            if !self.is_running(id)? {
                return Ok(Some(()));
            }
            command::output(Command::new("kill").args(["-KILL", &id.to_string()]))?;
            Ok(None)
        })
    }

    /// The process id of a program that was started.
    ///
    /// # Errors
    /// None of that name was.
    pub(super) fn id(&self, name: &str) -> Result<u32> {
        let text = self.recorded(&format!("{name}.pid"))?;
        text.parse()
            .with_context(|| format!("the process id of {name}"))
    }

    fn spawn(&self, name: &str, words: &[String]) -> Result<u32> {
        let log = self.logs.join(format!("{name}.log"));
        let out = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("write {}", log.display()))?;
        let mut shell = Command::new("sh");
        shell
            .args(["-c", "echo $$ > \"$0\" && exec \"$@\""])
            .arg(self.base().join(OWN).join("cgroup.procs"))
            .args(words)
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(out.try_clone().context("a second handle of a log")?)
            .stderr(out);
        let id = shell.spawn().with_context(|| format!("start {name}"))?.id();
        self.record(&format!("{name}.pid"), &id.to_string())?;
        Ok(id)
    }

    fn record(&self, name: &str, text: &str) -> Result<()> {
        let file = self.records.join(name);
        fs::write(&file, text).with_context(|| format!("write {}", file.display()))
    }

    fn recorded(&self, name: &str) -> Result<String> {
        let file = self.records.join(name);
        fs::read_to_string(&file).with_context(|| {
            let known = fs::read_dir(&self.records).into_iter().flatten().flatten();
            let mut known: Vec<_> = known
                .map(|entry| entry.file_name().to_string_lossy().into_owned())
                .filter(|name| name.strip_suffix(".pid").is_none())
                .collect();
            known.sort();
            let name = name.trim_end_matches(".pid");
            format!("{name} was not started; these were: {}", known.join(" "))
        })
    }

    /// Whether the process is still ours: numbers are used again.
    fn is_running(&self, id: u32) -> Result<bool> {
        Ok(members(&self.base())?.contains(&id.to_string()))
    }

    /// Ends every process of the cluster and removes its control groups.
    ///
    /// # Errors
    /// Processes are left after a while, or a group cannot be removed.
    pub(super) fn end(&self) -> Result<()> {
        wait("the processes of the cluster to end", PATIENCE, || {
            let left = members(&self.base())?;
            if left.is_empty() {
                return Ok(Some(()));
            }
            // A process that is gone by now makes kill complain, and is what we want.
            drop(command::output(
                Command::new("kill").arg("-KILL").args(&left),
            ));
            Ok(None)
        })?;
        for hierarchy in hierarchies() {
            remove(&hierarchy.join(&self.group))?;
        }
        Ok(())
    }

    /// Whether anything of the cluster runs.
    pub(super) fn are_running(&self) -> bool {
        members(&self.base()).is_ok_and(|members| !members.is_empty())
    }

    fn base(&self) -> PathBuf {
        let separate = Path::new(FREEZER).is_dir();
        Path::new(if separate { FREEZER } else { CGROUPS }).join(&self.group)
    }
}

/// The top of each hierarchy; only one where all controllers are in the same.
fn hierarchies() -> Vec<PathBuf> {
    if !Path::new(FREEZER).is_dir() {
        return vec![CGROUPS.into()];
    }
    let entries = fs::read_dir(CGROUPS).into_iter().flatten().flatten();
    entries
        // Some are there under a second name.
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

fn make(group: &Path) -> Result<()> {
    fs::create_dir_all(group).with_context(|| format!("make {}", group.display()))
}

/// Gives a group the CPUs and memory of the one above, where that does not go without saying.
fn inherit(group: &Path) -> Result<()> {
    for setting in ["cpuset.cpus", "cpuset.mems"] {
        let file = group.join(setting);
        let above = group.with_file_name(setting);
        let is_empty = fs::read_to_string(&file).is_ok_and(|text| text.trim().is_empty());
        if let (true, Ok(value)) = (is_empty, fs::read_to_string(above)) {
            fs::write(&file, value).with_context(|| format!("write {}", file.display()))?;
        }
    }
    Ok(())
}

/// Gives the pods of all nodes, which share a group, more of the processors than one process outside has: their
/// nodes would have processors of their own.
fn favour(group: &Path) -> Result<()> {
    // 16 times what a process has by default, in either version's unit.
    for (setting, weight) in [("cpu.shares", "16384"), ("cpu.weight", "1600")] {
        let file = group.join(setting);
        if file.exists() {
            fs::write(&file, weight).with_context(|| format!("write {}", file.display()))?;
        }
    }
    Ok(())
}

/// Asks again and again until there is an answer.
///
/// # Errors
/// The question fails, or there is none in time.
#[expect(
    clippy::disallowed_methods,
    reason = "waiting for other programs needs a clock"
)]
pub(super) fn wait<T>(
    what: &str,
    patience: Duration,
    mut question: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(answer) = question()? {
            return Ok(answer);
        }
        if start.elapsed() > patience {
            bail!("waited {} s in vain for {what}", patience.as_secs());
        }
        thread::sleep(Duration::from_millis(100));
    }
}

/// `ENODEV`: the group was removed after its file was opened.
const REMOVED: i32 = 19;

/// The processes in a group and the groups below it.
fn members(group: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for group in tree(group) {
        let file = group.join("cgroup.procs");
        match fs::read_to_string(&file) {
            Ok(text) => found.extend(text.lines().map(str::to_owned)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) if error.raw_os_error() == Some(REMOVED) => {}
            Err(error) => return Err(error).with_context(|| format!("read {}", file.display())),
        }
    }
    Ok(found)
}

/// A group and those below it, the deepest last.
fn tree(group: &Path) -> Vec<PathBuf> {
    if !group.is_dir() {
        return Vec::new();
    }
    let below = fs::read_dir(group).into_iter().flatten().flatten();
    let groups = below.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let mut all = vec![group.to_owned()];
    all.extend(groups.flat_map(|entry| tree(&entry.path())));
    all
}

fn remove(group: &Path) -> Result<()> {
    for group in tree(group).iter().rev() {
        // The kernel may take a moment to forget a process that ended.
        wait("a control group to become empty", PATIENCE, || {
            Ok((fs::remove_dir(group).is_ok() || !group.exists()).then_some(()))
        })
        .with_context(|| format!("remove {}", group.display()))?;
    }
    Ok(())
}
