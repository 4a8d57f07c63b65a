//! Compiling `lb-ebpf`, and checking what came out.
//!
//! `core` must be built from source for the BPF target, which a stable toolchain of rustup does
//! not allow. Two things do: a nightly of rustup with the component `rust-src`, or Debian's
//! compiler with its sources, which obeys `RUSTC_BOOTSTRAP`. Either must have the LLVM that
//! bpf-linker was built with, or an older one: the linker reads the compiler's bitcode.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use crate::{command, object, root, setup};

/// The LLVM release which [`setup`] builds bpf-linker with.
const LLVM: u32 = 22;
const TARGET: &str = "bpfel-unknown-none";
/// Features whose object is another: where it is compiled, and where it goes, below `target`.
const SPECIAL: [(&str, &str, &str); 2] = [
    ("bench", "bpf-bench", "bpf/lb-ebpf-bench"),
    (
        "second-layout",
        "bpf-second-layout",
        "second-layout/lb-ebpf",
    ),
];
const FIX: &str = "either `rustup toolchain install nightly --component rust-src`, \
     or on Debian `apt-get install rustc-web rust-web-src`; \
     `cargo xtask setup` does the latter";

/// A compiler that can build `core` for BPF.
enum Compiler {
    /// A nightly of rustup, by name.
    Rustup(String),
    /// Debian's compiler, by path.
    Debian(PathBuf),
}

/// Compiles the data path and returns where the object is.
///
/// With the feature `bench` or `second-layout` it goes to a file of its own, so that the object which
/// lb-userspace embeds stays as it is.
///
/// # Errors
/// No compiler fits, the compilation fails, or the object cannot be loaded or described.
pub(crate) fn build(features: &[String]) -> Result<PathBuf> {
    setup::compiler()?;
    let compiler = compiler()?;
    let linker = command::find("bpf-linker").context("bpf-linker is missing after setup")?;
    let target = root().join("target");
    let special = SPECIAL
        .iter()
        .find(|(feature, ..)| features.iter().any(|f| f == feature));
    let directory = special.map_or_else(|| target.clone(), |(_, built, _)| target.join(built));

    let mut cargo = compiler.cargo("build");
    cargo
        .env("CARGO_ENCODED_RUSTFLAGS", flags(&linker))
        .args(["--release", "--package", "lb-ebpf", "--target", TARGET])
        .args(["-Z", "build-std=core", "--target-dir"])
        .arg(&directory);
    if !features.is_empty() {
        cargo.args(["--features", &features.join(",")]);
    }
    command::run(&mut cargo)?;

    let object = directory.join(TARGET).join("release/lb-ebpf");
    verify(&object)?;
    let Some((_, _, copy)) = special else {
        return Ok(object);
    };
    let copy = target.join(copy);
    command::replace(&object, &copy)?;
    Ok(copy)
}

impl Compiler {
    fn has_clippy(&self) -> bool {
        // Debian's package has none, and the stable clippy cannot read what its compiler wrote.
        matches!(self, Self::Rustup(_))
            && command::output(self.cargo("clippy").arg("--version")).is_ok()
    }

    fn rustc(&self) -> Command {
        let mut rustc = match self {
            Self::Rustup(name) => {
                let mut rustup = Command::new("rustup");
                rustup.args(["run", name.as_str(), "rustc"]);
                rustup
            }
            Self::Debian(path) => Command::new(path),
        };
        rustc.env_remove("LD_LIBRARY_PATH").env_remove("RUSTC");
        rustc
    }

    /// A cargo call that uses this compiler, and no other call does.
    fn cargo(&self, subcommand: &str) -> Command {
        let mut cargo = match self {
            Self::Rustup(name) => {
                let mut rustup = Command::new("rustup");
                rustup.args(["run", name.as_str(), "cargo"]);
                rustup.env_remove("RUSTC");
                rustup
            }
            Self::Debian(rustc) => {
                let mut cargo = command::cargo();
                cargo.env("RUSTC", rustc).env("RUSTC_BOOTSTRAP", "1");
                cargo
            }
        };
        cargo
            .current_dir(root())
            .env("CARGO_RESOLVER_INCOMPATIBLE_RUST_VERSIONS", "fallback")
            // `cargo run` points it at the libraries of the toolchain that runs this task.
            .env_remove("LD_LIBRARY_PATH")
            .env_remove("RUSTFLAGS")
            .arg(subcommand);
        cargo
    }
}

/// Lints the data path: with clippy where the compiler has it, else by the compiler's warnings.
///
/// # Errors
/// A lint fires, or no compiler fits.
pub(crate) fn lint() -> Result<()> {
    let compiler = compiler()?;
    let linker = command::find("bpf-linker").context("bpf-linker is missing after setup")?;
    let subcommand = if compiler.has_clippy() {
        "clippy"
    } else {
        eprintln!("lint: no clippy for the compiler of lb-ebpf, its warnings alone are checked");
        "check"
    };
    let mut cargo = compiler.cargo(subcommand);
    cargo
        .env("CARGO_ENCODED_RUSTFLAGS", flags(&linker))
        .env("CARGO_BUILD_WARNINGS", "deny")
        .args(["--release", "--package", "lb-ebpf", "--target", TARGET])
        .args(["--all-features", "-Z", "build-std=core", "-Z", "warnings"]);
    command::run(&mut cargo)
}

/// Whether some compiler on this machine can build the data path.
pub(crate) fn has_compiler() -> bool {
    compiler().is_ok()
}

/// The first compiler that can build the data path.
///
/// # Errors
/// None can; the error says for each why not, and what to install.
fn compiler() -> Result<Compiler> {
    let mut refused = Vec::new();
    for compiler in candidates() {
        match refusal(&compiler) {
            None => return Ok(compiler),
            Some(reason) => refused.push(reason),
        }
    }
    if refused.is_empty() {
        refused.push("neither a nightly of rustup nor /usr/bin/rustc is there".to_owned());
    }
    bail!(
        "no compiler can build core for {TARGET}: {}. To fix: {FIX}",
        refused.join("; ")
    )
}

fn candidates() -> Vec<Compiler> {
    let list = command::output(Command::new("rustup").args(["toolchain", "list", "--quiet"]));
    list.unwrap_or_default()
        .lines()
        .filter(|name| name.starts_with("nightly"))
        .map(|name| Compiler::Rustup(name.trim().to_owned()))
        .chain(
            Path::new("/usr/bin/rustc")
                .exists()
                .then(|| Compiler::Debian("/usr/bin/rustc".into())),
        )
        .collect()
}

/// Why a compiler cannot build the data path, if it cannot.
fn refusal(compiler: &Compiler) -> Option<String> {
    let (name, source) = match compiler {
        Compiler::Rustup(name) => (name.clone(), "rust-src"),
        Compiler::Debian(path) => (path.display().to_string(), "rust-web-src"),
    };
    let ask = |question: [&str; 2]| command::output(compiler.rustc().args(question));
    let (sysroot, told) = match (ask(["--print", "sysroot"]), ask(["--version", "--verbose"])) {
        (Ok(sysroot), Ok(told)) => (sysroot, told),
        (Err(error), _) | (_, Err(error)) => return Some(format!("{name}: {error:#}")),
    };
    let library = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library");
    if !library.join("core").exists() {
        return Some(format!("{name} has no {source}"));
    }
    match llvm(&told) {
        Some(version) if version <= LLVM => None,
        Some(version) => Some(format!(
            "{name} has LLVM {version}, bpf-linker understands bitcode up to {LLVM}"
        )),
        None => Some(format!("{name} does not tell its LLVM version")),
    }
}

/// The LLVM release in the output of `rustc --version --verbose`.
fn llvm(told: &str) -> Option<u32> {
    let version = told
        .lines()
        .find_map(|l| l.strip_prefix("LLVM version: "))?;
    version.split('.').next()?.trim().parse().ok()
}

/// Compiler flags, separated as `CARGO_ENCODED_RUSTFLAGS` wants them.
fn flags(linker: &Path) -> String {
    [
        format!("-Clinker={}", linker.display()),
        "-Clink-arg=--btf".to_owned(),
        "-Cdebuginfo=2".to_owned(),
    ]
    .join("\u{1f}")
}

/// Checks that the kernel can describe the object's maps, and that no panic is reachable in it.
fn verify(path: &Path) -> Result<()> {
    let file = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    let names = object::names(&file).with_context(|| path.display().to_string())?;
    for section in [".BTF", ".BTF.ext"] {
        ensure!(
            names.sections.contains(section),
            "{} has no section {section}: debug information did not reach bpf-linker",
            path.display()
        );
    }
    let panics: Vec<_> = names
        .symbols
        .iter()
        .filter(|symbol| is_panic(symbol))
        .map(String::as_str)
        .collect();
    ensure!(
        panics.is_empty(),
        "{} has a reachable panic, the kernel would refuse it: {}",
        path.display(),
        panics.join(", ")
    );
    Ok(())
}

fn is_panic(symbol: &str) -> bool {
    symbol.contains("core9panicking")
        || symbol.contains("rust_begin_unwind")
        || symbol.contains("slice_index_fail")
}

#[cfg(test)]
mod tests {
    use super::{is_panic, llvm};

    #[test]
    fn llvm_release_of_verbose_version() {
        let told = "rustc 1.96.0\nrelease: 1.96.0\nLLVM version: 22.1.8\n";
        assert_eq!(llvm(told), Some(22));
        assert_eq!(llvm("rustc 1.96.0"), None);
    }

    #[test]
    fn panic_symbols_in_both_manglings() {
        for (symbol, expected) in [
            ("_ZN4core9panicking5panic17h0123456789abcdefE", true),
            ("_RNvNtCs1_4core9panicking18panic_bounds_check", true),
            ("lb_xdp", false),
            ("memcpy", false),
        ] {
            assert_eq!(is_panic(symbol), expected, "{symbol}");
        }
    }
}
