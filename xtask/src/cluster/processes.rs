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

use anyhow::{Context as _, Result, bail};

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
}

impl Processes {
    /// For the cluster whose control groups are called `group` and whose logs are in `logs`.
    pub(super) fn new(group: &str, logs: &Path) -> Self {
        Self {
            group: group.to_owned(),
            logs: logs.to_owned(),
        }
    }

    /// The control group for the pods of a node, as the kubelet is told.
    pub(super) fn pods(&self, node: &str) -> String {
        format!("/{}/{node}", self.group)
    }

    /// The file a program's output goes to.
    pub(super) fn log(&self, name: &str) -> PathBuf {
        self.logs.join(format!("{name}.log"))
    }

    /// Makes the control groups.
    ///
    /// # Errors
    /// They cannot be made.
    pub(super) fn prepare(&self) -> Result<()> {
        let group = self.base().join(OWN);
        fs::create_dir_all(&group).with_context(|| format!("make {}", group.display()))?;
        fs::create_dir_all(&self.logs).with_context(|| format!("make {}", self.logs.display()))
    }

    /// Starts a program that goes on when this task ends, and returns its process id.
    ///
    /// # Errors
    /// It does not start.
    pub(super) fn start(&self, name: &str, program: &Command) -> Result<u32> {
        let log = self.log(name);
        let out = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("write {}", log.display()))?;
        let mut shell = Command::new("sh");
        shell
            .args(["-c", "echo $$ > \"$0\" && exec \"$@\""])
            .arg(self.base().join(OWN).join("cgroup.procs"))
            .arg(program.get_program())
            .args(program.get_args())
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(out.try_clone().context("a second handle of a log")?)
            .stderr(out);
        if let Some(directory) = program.get_current_dir() {
            shell.current_dir(directory);
        }
        let child = shell.spawn().with_context(|| format!("start {name}"))?;
        Ok(child.id())
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
        for hierarchy in self.hierarchies() {
            remove(&hierarchy)?;
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

    /// The group in every hierarchy: container run times make it in each.
    fn hierarchies(&self) -> Vec<PathBuf> {
        let controllers = fs::read_dir(CGROUPS).into_iter().flatten().flatten();
        controllers
            .map(|entry| entry.path().join(&self.group))
            .chain([Path::new(CGROUPS).join(&self.group)])
            .filter(|group| group.is_dir())
            .collect()
    }
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
