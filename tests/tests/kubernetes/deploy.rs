//! The manifests are what the API server takes.

use std::{collections::BTreeSet, fs};

use lb_tests::{
    kubernetes::cluster::{deploy, render},
    netns::text as text_of,
};

use crate::take;

#[test]
fn every_kustomization_renders_and_is_accepted() {
    let Some(cluster) = take() else { return };
    // Both components at once, beside the other files of the cluster: a kustomization must be in a
    // directory of its own, and name others by relative paths.
    let all = cluster.kubeconfig.with_file_name("kustomization");
    fs::create_dir_all(&all).expect("a directory");
    let text = "resources: [../../../../../deploy/base]
components:
- ../../../../../deploy/components/monitoring
- ../../../../../deploy/components/capabilities
";
    fs::write(all.join("kustomization.yaml"), text).expect("a file");
    let mut directories = vec![deploy().join("base"), all];
    let overlays = fs::read_dir(deploy().join("overlays")).expect("the overlays");
    directories.extend(overlays.map(|entry| entry.expect("an entry").path()));
    assert!(directories.len() >= 5, "{directories:?}");
    for directory in directories {
        let name = directory.display();
        let rendered = render(&directory);
        assert!(
            rendered.status.success(),
            "{name}: {}",
            text_of(&rendered.stderr)
        );
        let rendered = text_of(&rendered.stdout);
        // The monitoring component's kinds are not the API server's own.
        let ours: Vec<_> = rendered
            .split("\n---\n")
            .filter(|object| !object.contains("monitoring.coreos.com"))
            .collect();
        let arguments = [
            "apply",
            "--dry-run=server",
            "--warnings-as-errors",
            "-f",
            "-",
        ];
        let output = cluster.kubectl_with(arguments, &ours.join("\n---\n"));
        assert!(
            output.status.success(),
            "{name}: {}",
            text_of(&output.stderr)
        );
    }
}

#[test]
fn dashboard_and_alerts_ask_for_metrics_there_are() {
    let Some(cluster) = take() else { return };
    let metrics = cluster.agent().metrics("edge1");
    let directory = deploy().join("components/monitoring");
    let mut asked = BTreeSet::new();
    for file in ["sluice.json", "rules.yaml"] {
        let text = fs::read_to_string(directory.join(file)).expect("a file");
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        asked.extend(
            words
                .filter(|word| word.starts_with("sluice_"))
                .map(str::to_owned),
        );
    }
    assert!(asked.len() > 10, "{asked:?}");
    for name in asked {
        // A histogram's or counter's name has an ending there which its type line has not.
        let known = ["_bucket", "_total"]
            .iter()
            .fold(&*name, |name, end| name.strip_suffix(end).unwrap_or(name));
        assert!(
            metrics.contains(&format!("# TYPE {known} ")),
            "{name} in:\n{metrics}"
        );
    }
}
