//! Compiling the Go program that is every component, and the images the nodes start with.
//!
//! Takes minutes the first time; then only when a source or a dependency changed.

use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::golang;
use crate::image::archive::{self, Image};
use crate::setup::{self, Need};
use crate::{command, root};

const KUBERNETES: &str = "v1.36.3";

/// What the nodes run besides what we compile.
const NEEDS: &[Need] = &[
    setup::program("containerd", "containerd"),
    setup::program("crun", "crun"),
    setup::file("/usr/lib/cni/bridge", "containernetworking-plugins"),
    setup::program("openssl", "openssl"),
    setup::program("mount", "mount"),
    setup::program("hostname", "hostname"),
];

/// What compiling leaves behind.
pub(super) struct Artifacts {
    /// The program that becomes a component by its first argument.
    pub(super) components: PathBuf,
    /// Archives of the images every node has from the start.
    pub(super) images: Vec<PathBuf>,
}

/// The image that holds a pod's namespaces.
pub(super) const PAUSE_IMAGE: &str = "localhost/pause:1";
/// The image of the test server.
pub(super) const SERVER_IMAGE: &str = "localhost/pod-server:1";

/// Installs the container run time and the tools the cluster is made with.
///
/// # Errors
/// A package is missing and cannot be installed.
pub(crate) fn setup() -> Result<()> {
    setup::network()?;
    setup::install(NEEDS)
}

/// Where a finished build is, whether or not there is one.
pub(super) fn artifacts(directory: &Path) -> Artifacts {
    let bin = directory.join("bin");
    Artifacts {
        components: bin.join("components"),
        images: ["pause.tar", "pod-server.tar"]
            .map(|it| bin.join(it))
            .into(),
    }
}

/// Compiles what is not yet there, or not from these sources.
///
/// # Errors
/// There is no Go and none can be fetched, a module cannot be had, or the compilation fails.
pub(super) fn build(directory: &Path) -> Result<Artifacts> {
    let sources = root().join("tests/cluster");
    let artifacts = artifacts(directory);
    let bin = directory.join("bin");
    let key = format!("{:016x}\n", fingerprint(&sources)?);
    let key_file = bin.join("key");
    if fs::read_to_string(&key_file).is_ok_and(|built| built == key) {
        return Ok(artifacts);
    }
    fs::create_dir_all(&bin).with_context(|| format!("make {}", bin.display()))?;
    eprintln!("cluster: compiling Kubernetes {KUBERNETES}, 5 to 10 minutes the first time");
    let packages = ["components", "pause", "pod-server"];
    let compiler = golang::compiler()?;
    for package in packages {
        command::run(&mut go(&compiler, &sources, &bin, package))?;
    }
    archive::write(
        &Image {
            name: PAUSE_IMAGE,
            files: &[(bin.join("pause"), "/pause".into())],
            entrypoint: "/pause",
            environment: &[],
        },
        &bin.join("pause.tar"),
    )?;
    archive::write(
        &Image {
            name: SERVER_IMAGE,
            files: &[(bin.join("pod-server"), "/pod-server".into())],
            entrypoint: "/pod-server",
            environment: &["PATH=/"],
        },
        &bin.join("pod-server.tar"),
    )?;
    fs::write(&key_file, key).with_context(|| format!("write {}", key_file.display()))?;
    Ok(artifacts)
}

fn go(compiler: &Path, sources: &Path, bin: &Path, package: &str) -> Command {
    let mut version = KUBERNETES.trim_start_matches('v').split('.');
    let [major, minor] = [(); 2].map(|()| version.next().unwrap_or_default());
    let variable = "-X k8s.io/component-base/version.git";
    let mut go = Command::new("nice");
    go.arg(compiler)
        // Not the state of the working tree: equal sources give an equal program.
        .args(["build", "-trimpath", "-buildvcs=false", "-ldflags"])
        .arg(format!(
            "-s -w {variable}Version={KUBERNETES} {variable}Major={major} {variable}Minor={minor}"
        ))
        .arg("-o")
        .arg(bin.join(package))
        .arg(format!("./{package}"))
        .env("CGO_ENABLED", "0")
        .current_dir(sources);
    go
}

/// A number that changes with any Go source and any dependency.
fn fingerprint(sources: &Path) -> Result<u64> {
    let mut files = Vec::new();
    collect(sources, &mut files)?;
    files.sort();
    let mut hasher = DefaultHasher::new();
    KUBERNETES.hash(&mut hasher);
    for file in files {
        let text = fs::read(&file).with_context(|| format!("read {}", file.display()))?;
        file.strip_prefix(sources)
            .unwrap_or(&file)
            .hash(&mut hasher);
        text.hash(&mut hasher);
    }
    Ok(hasher.finish())
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let entries = fs::read_dir(directory).with_context(|| format!("{}", directory.display()))?;
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            collect(&entry.path(), files)?;
        } else if is_source(&entry.path()) {
            files.push(entry.path());
        }
    }
    Ok(())
}

fn is_source(file: &Path) -> bool {
    file.extension()
        .is_some_and(|extension| extension == "go" || extension == "mod" || extension == "sum")
}
