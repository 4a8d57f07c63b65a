//! What a test needs from the machine. Under `CI=true` a missing need fails the test; elsewhere the
//! test is skipped with a message.

use std::path::{Path, PathBuf};

/// Where cargo puts what it builds: a test runs from `target/debug/deps/`, a program of this package
/// from `target/debug/`.
pub fn target_directory() -> PathBuf {
    let program = std::env::current_exe().expect("a running program has a path");
    let mut profile = program.parent().expect("a program is in a directory");
    if profile.ends_with("deps") {
        profile = profile.parent().expect("target/debug/deps");
    }
    profile.parent().expect("target/debug").to_owned()
}

/// The compiled data path.
pub fn object_path() -> PathBuf {
    target_directory().join("bpfel-unknown-none/release/lb-ebpf")
}

/// Where agent and data path of the second layout are.
pub fn second_layout() -> PathBuf {
    target_directory().join("second-layout")
}

/// The data path compiled with the feature `bench`: with the programs that measure and flood.
pub fn bench_object_path() -> PathBuf {
    target_directory().join("bpf/lb-ebpf-bench")
}

/// True if `met`; otherwise fails under CI and says why the test is skipped elsewhere.
fn need(met: bool, what: &str) -> bool {
    if !met {
        let ci = std::env::var_os("CI").is_some_and(|value| value == "true");
        assert!(!ci, "this test needs {what}");
        eprintln!("skipped: this test needs {what}");
    }
    met
}

/// Root.
#[must_use]
pub fn root() -> bool {
    need(nix::unistd::geteuid().is_root(), "root")
}

/// A kernel not older than `major.minor`.
#[must_use]
pub fn kernel(major: u32, minor: u32, why: &str) -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release
        .split(['.', '-'])
        .map_while(|part| part.trim().parse::<u32>().ok());
    let running = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    need(
        running >= (major, minor),
        &format!("Linux {major}.{minor} ({why})"),
    )
}

/// A program in `PATH`.
#[must_use]
pub fn program(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|directory| directory.join(name).exists());
    need(found, &format!("the program {name}"))
}

/// A file that a task builds.
#[must_use]
pub fn file(path: &Path) -> bool {
    let what = format!("{}: run the tests by `cargo xtask test`", path.display());
    need(path.exists(), &what)
}

/// What every kernel test needs: root, TCX, a BPF file system, and the compiled data path.
#[must_use]
pub fn kernel_tests() -> bool {
    root()
        && kernel(6, 6, "TCX")
        && program("ip")
        && need(
            Path::new("/sys/fs/bpf").exists(),
            "a BPF file system at /sys/fs/bpf",
        )
        && need(
            object_path().exists(),
            "the data path: run `cargo xtask build-ebpf` first",
        )
}
