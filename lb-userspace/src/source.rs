//! Where Services come from: what every source delivers, and several sources as one.

use crate::snapshot::{NodeObject, Rejection, Snapshot};

/// What a source knows at one moment.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct SourceState {
    /// The objects.
    pub snapshot: Snapshot,
    /// This node's own Node object, if the source has it.
    pub node: Option<NodeObject>,
    /// What was left out of the snapshot, or kept at an older version.
    pub rejections: Vec<Rejection>,
    /// Something is there that cannot be read: objects may be missing that should not.
    pub unread: bool,
    /// False until the first complete list: nothing may be changed before.
    pub complete: bool,
}
