//! The rows that are not ours, each with its reason. Nothing else may excuse a row.

/// Traffic of the node's own processes: it never crosses a hook of ours, kube-proxy serves it.
const HOST: &str =
    "starts in a process of the node and is served by kube-proxy: no hook of ours sees it";
/// What only kube-proxy's own flags or files bring about.
const FLAG: &str = "is about a flag of kube-proxy itself";

/// Row and reason.
pub const NOT_OURS: &[(&str, &str)] = &[
    ("S35", HOST),
    ("C04", HOST),
    ("D05", HOST),
    ("D06", HOST),
    ("D07", HOST),
    ("E10", HOST),
    ("E11", HOST),
    ("H26", HOST),
    ("H27", HOST),
    ("H51", HOST),
    ("H52", HOST),
    ("H53", HOST),
    ("H60", HOST),
    ("H61", HOST),
    ("H62", HOST),
    ("H69", HOST),
    ("H70", HOST),
    ("H71", HOST),
    ("H75", FLAG),
    ("H76", FLAG),
    ("H77", FLAG),
    ("I01", FLAG),
];

/// Why a row is not ours.
pub fn reason(id: &str) -> Option<&'static str> {
    let found = NOT_OURS.iter().find(|(row, _)| *row == id);
    found.map(|(_, reason)| *reason)
}

#[cfg(test)]
mod tests {
    use super::{super::rows, NOT_OURS};

    #[test]
    fn only_rows_in_scope_are_excused_and_once() {
        let mut seen = std::collections::BTreeSet::new();
        for (id, _) in NOT_OURS {
            let row = rows::find(id).unwrap_or_else(|| panic!("there is no row {id}"));
            assert_ne!(row.mark, rows::Mark::N, "{id} is out of scope anyway");
            assert!(seen.insert(id), "{id} twice");
        }
    }
}
