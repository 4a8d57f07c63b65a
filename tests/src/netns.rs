//! Network namespaces with unique names, the programs that run in them, and polling with deadlines.
//! Everything goes when its owner is dropped, also when a test panics.

use std::{
    ffi::OsStr,
    fs::File,
    io::Write as _,
    net::{IpAddr, SocketAddr},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use nix::sched::{CloneFlags, setns};

pub mod agent;
pub mod limits;
pub mod manifest;
pub mod postgres;
pub mod server;
pub mod strangers;
pub mod world;

/// Keeps other namespace tests of this program out while it lives: they would take each other's
/// CPU, and some of them measure time.
pub fn serial() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    // A failed test must not fail the others.
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The time. The one place where the fixtures read a clock.
#[expect(clippy::disallowed_methods, reason = "deadlines of tests")]
pub fn now() -> Instant {
    Instant::now()
}

/// An address to bind to that talks to `server`.
pub fn any(server: IpAddr) -> SocketAddr {
    let any = if server.is_ipv4() {
        "0.0.0.0:0"
    } else {
        "[::]:0"
    };
    any.parse().expect("an address")
}

/// Asks until the answer is `Some`, at most for `limit`.
pub fn poll<T>(limit: Duration, mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = now() + limit;
    loop {
        let answer = ask();
        if answer.is_some() || now() > deadline {
            return answer;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// As [`poll`], and fails in the end: `what` completes the sentence "timed out waiting for ...".
pub fn poll_until<T>(what: &str, limit: Duration, ask: impl FnMut() -> Option<T>) -> T {
    poll(limit, ask).unwrap_or_else(|| panic!("timed out after {limit:?} waiting for {what}"))
}

/// A network namespace.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes one whose name ends in `role`; loopback is up, IPv6 addresses are usable at once.
    pub fn new(role: &str) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("sluice-{}-{number}-{role}", std::process::id());
        succeed(Command::new("ip").args(["netns", "add", &name]));
        let this = Self { name };
        this.ip("link set lo up");
        for family in ["default", "all"] {
            this.sysctl(&format!("net/ipv6/conf/{family}/accept_dad"), "0");
            this.sysctl(&format!("net/ipv6/conf/{family}/accept_ra"), "0");
        }
        this
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs lines of `ip` commands inside.
    pub fn ip(&self, script: &str) {
        let mut child = Command::new("ip")
            .args(["-n", &self.name, "-batch", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("ip of iproute2");
        let mut input = child.stdin.take().expect("a pipe");
        input.write_all(script.as_bytes()).expect("ip reads");
        input.write_all(b"\n").expect("ip reads");
        drop(input);
        let output = child.wait_with_output().expect("ip ends");
        assert!(
            output.status.success(),
            "{}: {script}: {}",
            self.name,
            text(&output.stderr)
        );
    }

    /// Sets a sysctl inside, named as below `/proc/sys`.
    pub fn sysctl(&self, key: &str, value: &str) {
        let path = format!("/proc/sys/{key}");
        // /proc/sys/net shows the namespace of the thread that opens it.
        let result = self.inside(|| std::fs::write(&path, value));
        result.unwrap_or_else(|e| panic!("{}: {path} = {value}: {e}", self.name));
    }

    /// Forwards packets of both families.
    pub fn forward(&self) {
        self.sysctl("net/ipv4/ip_forward", "1");
        self.sysctl("net/ipv6/conf/all/forwarding", "1");
    }

    /// A command to be run inside. It dies with the thread that starts it. The file systems stay
    /// those of the caller: `ip netns exec` would hide the BPF file system.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/run/netns/{}", self.name))
            .args(["setpriv", "--pdeathsig", "KILL", "--"])
            .arg(program)
            .stdin(Stdio::null());
        command
    }

    /// Runs a program inside to its end; it must succeed. Returns its standard output.
    pub fn run<const N: usize>(&self, program: &str, arguments: [&str; N]) -> String {
        let output = succeed(self.command(program).args(arguments));
        text(&output.stdout)
    }

    /// Runs a program inside to its end. Returns its output, whatever its exit status.
    pub fn try_run<const N: usize>(&self, program: &str, arguments: [&str; N]) -> Output {
        self.command(program)
            .args(arguments)
            .output()
            .unwrap_or_else(|e| panic!("{program}: {e}"))
    }

    /// Runs `act` on a thread inside the namespace.
    pub fn inside<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        let outcome = std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    self.enter();
                    act()
                })
                .join()
        });
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Moves the calling thread into the namespace, for good.
    fn enter(&self) {
        enter(&self.name);
    }

    /// Offloads of a device, as `ethtool -K` takes them.
    pub fn ethtool(&self, device: &str, settings: &[&str]) {
        succeed(self.command("ethtool").args(["-K", device]).args(settings));
    }
}

pub(crate) fn enter(name: &str) {
    let path = format!("/run/netns/{name}");
    let file = File::open(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    setns(file, CloneFlags::CLONE_NEWNET).unwrap_or_else(|e| panic!("enter {path}: {e}"));
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let status = Command::new("ip")
            .args(["netns", "del", &self.name])
            .status();
        if !status.is_ok_and(|status| status.success()) {
            eprintln!("namespace {} could not be removed", self.name);
        }
    }
}

/// A running program, killed on drop. What it prints goes to files, so that it never blocks.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
    output: tempfile::NamedTempFile,
}

impl Process {
    /// Starts a command.
    pub fn spawn(command: &mut Command) -> Self {
        let output = tempfile::NamedTempFile::new().expect("a temporary file");
        let handle = |file: &tempfile::NamedTempFile| {
            Stdio::from(file.reopen().expect("a second descriptor"))
        };
        let name = format!("{command:?}");
        let child = command
            .stdout(appending(&output).unwrap_or_else(|| handle(&output)))
            .stderr(appending(&output).unwrap_or_else(|| handle(&output)))
            .spawn()
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        Self {
            child,
            name,
            output,
        }
    }

    /// Everything it printed so far.
    pub fn output(&self) -> String {
        std::fs::read_to_string(self.output.path()).unwrap_or_default()
    }

    /// Its standard input, if the command was given a pipe.
    pub fn input(&mut self) -> std::process::ChildStdin {
        self.child.stdin.take().expect("a pipe, taken once")
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        let id = i32::try_from(self.child.id()).expect("a process id");
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(id), signal)
            .unwrap_or_else(|e| panic!("{signal} to {}: {e}", self.name));
    }

    /// Its exit status, if it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child can be waited for")
    }

    /// Waits until it ends.
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let name = self.name.clone();
        poll_until(&format!("the end of {name}"), limit, || self.ended())
    }

    /// Ends it without a chance to clean up.
    pub fn kill(&mut self) {
        // Ending twice is no error.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn appending(file: &tempfile::NamedTempFile) -> Option<Stdio> {
    File::options()
        .append(true)
        .open(file.path())
        .ok()
        .map(Stdio::from)
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("--- {} printed:\n{}", self.name, self.output());
        }
    }
}

/// Runs a command to its end; it must succeed.
pub fn succeed(command: &mut Command) -> Output {
    let output = command
        .output()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    );
    output
}

/// Output as text.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
