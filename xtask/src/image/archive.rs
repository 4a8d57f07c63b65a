//! Images written by ourselves: one layer, nothing below it.
//!
//! The archive is an OCI image layout and a docker-archive at once, so containerd, podman, skopeo
//! and docker all read it. Equal files give an equal archive.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::command;

/// What an image holds and starts.
pub(crate) struct Image<'a> {
    /// Its name with a registry and a tag.
    pub(crate) name: &'a str,
    /// Files of this machine, and where each is in the image.
    pub(crate) files: &'a [(PathBuf, PathBuf)],
    /// The program that is started.
    pub(crate) entrypoint: &'a str,
    /// Variables, each as `NAME=VALUE`.
    pub(crate) environment: &'a [&'a str],
}

/// Writes an image's archive.
///
/// # Errors
/// A file cannot be read or written.
pub(crate) fn write(image: &Image<'_>, archive: &Path) -> Result<()> {
    let stage = archive.with_extension("stage");
    remove(&stage)?;
    let tree = stage.join("tree");
    let layout = stage.join("layout");
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).with_context(|| format!("make {}", blobs.display()))?;
    for (file, place) in image.files {
        let place = tree.join(place.strip_prefix("/").unwrap_or(place));
        if let Some(parent) = place.parent() {
            fs::create_dir_all(parent).with_context(|| format!("make {}", parent.display()))?;
        }
        fs::copy(file, &place).with_context(|| format!("copy {}", file.display()))?;
    }
    let layer = stage.join("layer.tar");
    tar(&tree, &layer)?;
    let layer = store(&layer, &blobs)?;

    let config = config(image, &layer.digest);
    let config = store_text(&config, &stage, &blobs)?;
    let manifest = store_text(&manifest(&config, &layer), &stage, &blobs)?;
    let text = |name: &str, content: &str| {
        let file = layout.join(name);
        fs::write(&file, content).with_context(|| format!("write {}", file.display()))
    };
    text("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    text("index.json", &index(image.name, &manifest))?;
    text("manifest.json", &docker(image.name, &config, &layer))?;
    tar(&layout, archive)?;
    remove(&stage)
}

/// A blob of the layout: its content's digest and size.
struct Blob {
    digest: String,
    size: u64,
}

impl Blob {
    fn descriptor(&self, media_type: &str) -> String {
        format!(
            r#"{{"mediaType":"{media_type}","digest":"sha256:{}","size":{}}}"#,
            self.digest, self.size
        )
    }
}

fn config(image: &Image<'_>, layer: &str) -> String {
    let environment: Vec<_> = image.environment.iter().map(|it| quoted(it)).collect();
    format!(
        r#"{{"architecture":"{}","os":"linux","config":{{"Entrypoint":[{}],"Env":[{}],"WorkingDir":"/"}},"rootfs":{{"type":"layers","diff_ids":["sha256:{layer}"]}}}}"#,
        architecture(),
        quoted(image.entrypoint),
        environment.join(",")
    )
}

fn manifest(config: &Blob, layer: &Blob) -> String {
    format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{},"layers":[{}]}}"#,
        config.descriptor("application/vnd.oci.image.config.v1+json"),
        layer.descriptor("application/vnd.oci.image.layer.v1.tar"),
    )
}

fn index(name: &str, manifest: &Blob) -> String {
    let tag = name.rsplit_once(':').map_or("latest", |(_, tag)| tag);
    let descriptor = manifest.descriptor("application/vnd.oci.image.manifest.v1+json");
    let descriptor = descriptor.trim_end_matches('}');
    format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{descriptor},"platform":{{"architecture":"{}","os":"linux"}},"annotations":{{"io.containerd.image.name":{},"org.opencontainers.image.ref.name":{}}}}}]}}"#,
        architecture(),
        quoted(name),
        quoted(tag)
    )
}

fn docker(name: &str, config: &Blob, layer: &Blob) -> String {
    format!(
        r#"[{{"Config":"blobs/sha256/{}","RepoTags":[{}],"Layers":["blobs/sha256/{}"]}}]"#,
        config.digest,
        quoted(name),
        layer.digest
    )
}

/// A JSON string.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', r"\\").replace('"', "\\\""))
}

/// This machine's architecture as images call it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Packs a directory so that equal contents give equal bytes.
fn tar(directory: &Path, archive: &Path) -> Result<()> {
    let mut tar = Command::new("tar");
    tar.args(["--create", "--format=ustar", "--sort=name", "--mtime=@0"])
        .args(["--owner=0", "--group=0", "--numeric-owner"])
        .args(["--mode=u+rwX,go+rX,go-w", "--file"])
        .arg(archive)
        .arg("--directory")
        .arg(directory);
    for entry in sorted(directory)? {
        tar.arg(entry);
    }
    command::output(&mut tar)?;
    Ok(())
}

/// The names in a directory: `.` itself must not be in an image's layer or layout.
fn sorted(directory: &Path) -> Result<Vec<std::ffi::OsString>> {
    let mut names = fs::read_dir(directory)
        .with_context(|| format!("read {}", directory.display()))?
        .map(|entry| Ok(entry?.file_name()))
        .collect::<Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}

fn store_text(text: &str, stage: &Path, blobs: &Path) -> Result<Blob> {
    let file = stage.join("text");
    fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
    store(&file, blobs)
}

/// Moves a file among the blobs, under its digest.
fn store(file: &Path, blobs: &Path) -> Result<Blob> {
    let told = command::output(Command::new("sha256sum").arg("--binary").arg(file))?;
    let digest = told
        .split_whitespace()
        .next()
        .context("sha256sum printed nothing")?
        .trim_start_matches('\\')
        .to_owned();
    let size = fs::metadata(file)?.len();
    fs::rename(file, blobs.join(&digest)).with_context(|| format!("move {}", file.display()))?;
    Ok(Blob { digest, size })
}

fn remove(directory: &Path) -> Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", directory.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::Command;

    use super::{Image, quoted, write};
    use crate::command;

    #[test]
    fn an_archive_holds_what_it_names_and_is_the_same_twice() {
        let directory = std::env::temp_dir().join(format!("sluice-image-{}", std::process::id()));
        fs::create_dir_all(&directory).expect("a directory");
        let file = directory.join("program");
        fs::write(&file, "content").expect("a file");
        let image = Image {
            name: "localhost/test:1",
            files: &[(file, "/usr/bin/program".into())],
            entrypoint: "/usr/bin/program",
            environment: &["PATH=/usr/bin"],
        };
        let archives = ["one.tar", "two.tar"].map(|name| directory.join(name));
        for archive in &archives {
            write(&image, archive).expect("an archive");
        }
        let [one, two] = archives.each_ref().map(|it| fs::read(it).expect("bytes"));
        assert!(one == two, "equal images, different archives");
        let [archive, _] = &archives;
        let list = command::output(Command::new("tar").arg("-tf").arg(archive)).expect("a list");
        for name in ["index.json", "manifest.json", "oci-layout"] {
            assert!(list.lines().any(|line| line == name), "{name} in {list}");
        }
        assert_eq!(list.matches("blobs/sha256/").count(), 4, "{list}");
        fs::remove_dir_all(&directory).expect("removed");
    }

    #[test]
    fn strings_are_json() {
        assert_eq!(quoted(r#"a"b\c"#), r#""a\"b\\c""#);
    }
}
