//! The programs for devices, from the moment they are handed to the verifier.

use std::path::{Path, PathBuf};

use tokio::task::{JoinHandle, spawn_blocking};

use super::{AgentError, interfaces::Interfaces};
use crate::{
    attach::Attacher,
    pins::{Loaded, PinError, Prepared},
};

/// The programs for devices.
#[derive(Debug)]
pub(super) enum Programs {
    /// The kernel looks at them; links of other layouts are below this root.
    Verifying(JoinHandle<Result<Loaded, PinError>>, PathBuf),
    /// They can be attached.
    Verified(Box<Interfaces>),
}

impl Programs {
    /// Begins to verify. To be called within a runtime.
    pub(super) fn verify(prepared: Prepared, root: &Path) -> Self {
        Self::Verifying(spawn_blocking(|| prepared.verify()), root.to_owned())
    }

    pub(super) const fn are_being_verified(&self) -> bool {
        matches!(self, Self::Verifying(..))
    }

    /// Waits until they can be attached. May be given up and called again.
    pub(super) async fn verified(&mut self) -> Result<&mut Interfaces, AgentError> {
        loop {
            match self {
                Self::Verified(interfaces) => return Ok(interfaces),
                Self::Verifying(task, root) => {
                    let attacher = Attacher::new(task.await??, std::mem::take(root));
                    *self = Self::Verified(Box::new(Interfaces::new(attacher)));
                }
            }
        }
    }

    /// As [`Self::verified`].
    pub(super) async fn finish(&mut self) -> Result<(), AgentError> {
        self.verified().await.map(drop)
    }

    /// Takes off again what was attached beside a layout that serves.
    pub(super) fn abandon(&mut self) {
        if let Self::Verified(interfaces) = self {
            interfaces.abandon();
        }
    }
}
