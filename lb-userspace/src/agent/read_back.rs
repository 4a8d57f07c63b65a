//! Looking now and then whether the tables are still as we left them.

use tokio::task::{JoinHandle, spawn_blocking};
use tracing::{error, warn};

use super::{Agent, AgentError, interfaces::chain};
use crate::{dataplane::DataplaneError, tables::TableSet};

/// What reading the tables aside gave.
pub(super) type Found = Result<TableSet, DataplaneError>;

impl Agent {
    /// Begins to read the tables aside, unless a thread has them.
    pub(super) fn read_back(&mut self) -> Option<JoinHandle<Found>> {
        let reader = self.worker.as_mut()?.begin_reading();
        Some(spawn_blocking(move || reader.dump()))
    }

    /// Compares memory with what was found. True if they must be planned anew.
    pub(super) async fn compare(&mut self, done: Option<Found>) -> Result<bool, AgentError> {
        let Some(found) = done else {
            error!("the task that reads the tables back is gone");
            return Ok(false);
        };
        let mut found = match found {
            Ok(found) => found,
            Err(error) => {
                error!("read the tables back: {}", chain(&error));
                return Ok(false);
            }
        };
        let compared = self.blocking(move |worker| {
            let drifted = worker.compare(&mut found);
            (drifted, found)
        });
        let (drifted, found) = compared.await?;
        // Forgetting takes as long as comparing: nobody waits for it.
        spawn_blocking(move || drop(found));
        match drifted {
            Ok(drifted) => {
                self.observer.resynced(drifted);
                if drifted {
                    warn!("the tables were not as the agent left them");
                }
                Ok(drifted)
            }
            Err(error) => {
                error!("read the tables back: {}", chain(&error));
                Ok(false)
            }
        }
    }
}
