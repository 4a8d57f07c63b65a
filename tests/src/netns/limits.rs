//! Surroundings in which an agent cannot do what it must.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::succeed;

/// A BPF file system of its own.
#[derive(Debug)]
pub struct Mount {
    directory: tempfile::TempDir,
}

impl Mount {
    /// Mounts one, empty.
    #[expect(clippy::new_without_default, reason = "it has an effect")]
    pub fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut mount = Command::new("mount");
        succeed(mount.args(["-t", "bpf", "none"]).arg(directory.path()));
        Self { directory }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Changes its options: `ro`, `rw`.
    pub fn remount(&self, options: &str) {
        let options = format!("remount,{options}");
        let mut mount = Command::new("mount");
        succeed(mount.args(["-o", &options]).arg(self.directory.path()));
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let status = Command::new("umount").arg(self.directory.path()).status();
        if !status.is_ok_and(|status| status.success()) {
            eprintln!("{} could not be unmounted", self.directory.path().display());
        }
    }
}

/// A control group with little memory, maps in the kernel included.
#[derive(Debug)]
pub struct LittleMemory {
    group: PathBuf,
}

impl LittleMemory {
    /// Makes one; `None` where the machine has no memory controller to be used.
    pub fn new(bytes: u64) -> Option<Self> {
        let name = format!("sluice-{}", std::process::id());
        let (root, limit) = [
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
            ("/sys/fs/cgroup", "memory.max"),
        ]
        .into_iter()
        .find(|(root, limit)| {
            let first = Path::new(root).join("memory.limit_in_bytes").exists();
            let controllers = fs::read_to_string(Path::new(root).join("cgroup.subtree_control"));
            first || (*limit == "memory.max" && controllers.is_ok_and(|c| c.contains("memory")))
        })?;
        let group = Path::new(root).join(name);
        fs::create_dir(&group).ok()?;
        let this = Self { group };
        fs::write(this.group.join(limit), bytes.to_string()).ok()?;
        Some(this)
    }

    /// The command, run inside.
    pub fn run(&self, command: &Command) -> Command {
        let mut inside = Command::new("sh");
        let join = format!(
            "echo $$ > {}/cgroup.procs && exec \"$@\"",
            self.group.display()
        );
        inside.args(["-c", &join, "sh"]).arg(command.get_program());
        inside.args(command.get_args()).env("NO_COLOR", "1");
        inside
    }
}

impl Drop for LittleMemory {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.group) {
            eprintln!("{}: {error}", self.group.display());
        }
    }
}
