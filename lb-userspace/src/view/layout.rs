//! Which of the pinned layouts a command means, and what to say if there is none.

use std::path::{Path, PathBuf};

use crate::pins::{PinDirectory, PinError, require_bpffs};

/// Why no layout was found.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// There is no pin.
    #[error("no data path under {0}: is the agent running on this node?")]
    Absent(PathBuf),
    /// The pin root is not on a BPF file system.
    #[error(
        "no data path under {0}: no BPF file system is mounted there \
         (`ip netns exec` hides it; `nsenter --net=…` does not)"
    )]
    NoBpfFs(PathBuf),
    /// No layout begins with the wanted digits, or several do.
    #[error("--layout {wanted}: {found} layouts begin so; there are {}", .all.join(", "))]
    Choice {
        /// The argument.
        wanted: String,
        /// How many match.
        found: usize,
        /// Every layout.
        all: Vec<String>,
    },
    /// Another failure.
    #[error(transparent)]
    Pins(#[from] PinError),
}

/// Every layout under `root`, the one in use first. Never empty.
///
/// # Errors
///
/// If there is none, with the likeliest cause.
pub fn layouts(root: &Path) -> Result<Vec<PinDirectory>, LayoutError> {
    PinDirectory::find(root).map_err(|error| match error {
        PinError::Absent { .. } if require_bpffs(root).is_ok() => LayoutError::Absent(root.into()),
        PinError::Absent { .. } => LayoutError::NoBpfFs(root.into()),
        error => error.into(),
    })
}

/// The position of the layout whose hash begins with `wanted`; without a wish the first.
///
/// # Errors
///
/// If `wanted` fits none or several.
pub fn choose(hashes: &[&str], wanted: Option<&str>) -> Result<usize, LayoutError> {
    let Some(wanted) = wanted else { return Ok(0) };
    let fits = |(_, hash): &(usize, &&str)| hash.starts_with(wanted);
    let fitting: Vec<_> = hashes.iter().enumerate().filter(fits).collect();
    match fitting[..] {
        [(index, _)] => Ok(index),
        _ => Err(LayoutError::Choice {
            wanted: wanted.into(),
            found: fitting.len(),
            all: hashes.iter().map(|&hash| hash.into()).collect(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_data_path_is_said_with_its_cause() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        for name in ["", "missing"] {
            let error = layouts(&directory.path().join(name))
                .expect_err(name)
                .to_string();
            assert!(error.starts_with("no data path under"), "{name}: {error}");
            assert!(error.contains("no BPF file system"), "{name}: {error}");
        }
    }

    #[test]
    fn a_layout_is_chosen_by_its_first_digits() {
        let all = ["ab12", "ab34", "cd56"];
        let cases = [
            ("the one in use", None, Ok(0)),
            ("prefix", Some("c"), Ok(2)),
            ("ambiguous", Some("ab"), Err(2)),
            ("none", Some("e"), Err(0)),
        ];
        for (name, wanted, expected) in cases {
            let chosen = choose(&all, wanted).map_err(|error| match error {
                LayoutError::Choice { found, .. } => found,
                error => panic!("{name}: {error}"),
            });
            assert_eq!(chosen, expected, "{name}");
        }
    }
}
