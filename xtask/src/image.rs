//! The image of the load balancer: two programs and the libraries they need, nothing else.

pub(crate) mod archive;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use self::archive::Image;
use crate::compile::{self, Programs};
use crate::{command, root};

/// The name of the image if none is given.
pub(crate) const NAME: &str = concat!("localhost/sluice:", env!("CARGO_PKG_VERSION"));
/// The name of the image with the second layout.
const SECOND_LAYOUT: &str = "localhost/sluice:second-layout";

/// Compiles lb-agent and lbctl, or takes those in `programs`, and writes `target/image/sluice.tar`.
///
/// # Errors
/// A program is missing or does not compile, or a library it needs is not on this machine.
pub(crate) fn image(name: &str, programs: Option<&Path>) -> Result<()> {
    let programs = match programs {
        Some(directory) => Programs::within(directory),
        None => compile::build(true)?,
    };
    write(name, &programs, &root().join("target/image"))
}

/// Compiles an agent whose tables have another layout, and writes `target/image/second-layout/sluice.tar`
/// with it, for tests.
///
/// # Errors
/// As [`image`].
pub(crate) fn second_layout() -> Result<()> {
    let programs = Programs {
        agent: compile::second_layout()?,
        lbctl: compile::build(true)?.lbctl,
    };
    let directory = root().join("target/image/second-layout");
    write(SECOND_LAYOUT, &programs, &directory)
}

/// Writes `sluice.tar`, and beside it the programs in it.
fn write(name: &str, programs: &Programs, directory: &Path) -> Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
    let mut files = Vec::new();
    let mut libraries = BTreeSet::new();
    for program in [&programs.agent, &programs.lbctl] {
        libraries.extend(needed(program)?);
        let file = program.file_name().context("a program without a name")?;
        let stripped = directory.join(file);
        strip(program, &stripped)?;
        files.push((stripped, Path::new("/usr/bin").join(file)));
    }
    // The loader looks for them where this machine has them.
    files.extend(libraries.into_iter().map(|file| (file.clone(), file)));

    let archive = directory.join("sluice.tar");
    let image = Image {
        name,
        files: &files,
        entrypoint: "/usr/bin/lb-agent",
        environment: &["PATH=/usr/bin"],
    };
    archive::write(&image, &archive)?;
    for (file, place) in &files {
        println!("{} {}", size(file)?, place.display());
    }
    println!("{} {} as {name}", size(&archive)?, archive.display());
    Ok(())
}

/// Shared libraries a program loads, and their loader.
fn needed(program: &Path) -> Result<Vec<PathBuf>> {
    let told = command::output(Command::new("ldd").arg(program))?;
    libraries(&told).with_context(|| format!("libraries of {}", program.display()))
}

/// Reads what ldd prints: `NAME => FILE (ADDRESS)`, or `FILE (ADDRESS)` for the loader.
fn libraries(told: &str) -> Result<Vec<PathBuf>> {
    ensure!(!told.contains("not found"), "{}", told.trim());
    Ok(told
        .lines()
        .filter_map(|line| line.rsplit_once(" (").map(|(name, _)| name.trim()))
        .map(|name| name.split_once(" => ").map_or(name, |(_, file)| file))
        .filter(|file| file.starts_with('/'))
        .map(PathBuf::from)
        .collect())
}

/// Copies a program without its debugging sections; the names of functions stay for backtraces.
fn strip(program: &Path, to: &Path) -> Result<()> {
    let mut strip = Command::new("strip");
    strip.args(["--strip-debug", "-o"]).arg(to).arg(program);
    command::output(&mut strip)?;
    Ok(())
}

/// A file's size for people to read.
fn size(file: &Path) -> Result<String> {
    let meta = fs::metadata(file).with_context(|| format!("read {}", file.display()))?;
    let tenths = meta.len() * 10 / (1 << 20);
    Ok(format!("{:>4}.{} MiB", tenths / 10, tenths % 10))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::libraries;

    #[test]
    fn ldd_is_understood() {
        let told = "\tlinux-vdso.so.1 (0x00007ffe)\n\
            \tlibgcc_s.so.1 => /lib/x86_64-linux-gnu/libgcc_s.so.1 (0x00007f0)\n\
            \t/lib64/ld-linux-x86-64.so.2 (0x00007f1)\n";
        assert_eq!(
            libraries(told).expect("libraries"),
            [
                "/lib/x86_64-linux-gnu/libgcc_s.so.1",
                "/lib64/ld-linux-x86-64.so.2"
            ]
            .map(Path::new)
        );
        assert!(
            libraries("\tstatically linked\n")
                .expect("static")
                .is_empty()
        );
        assert!(libraries("\tlibx.so => not found\n").is_err());
    }
}
