//! Connections of the node's stack, which a frontend that goes live leaves to it.

use tracing::{info, warn};

use super::Worker;
use crate::stack_flows::{Frontends, Respected, StackFlows};

impl Worker {
    /// From now on, what the stack serves stays with it.
    pub(in super::super) fn respect(&mut self, stack: StackFlows) {
        self.stack = Some(stack);
    }

    /// Lets the stack keep its connections to every frontend: as soon as the programs are attached, for
    /// what began since the tables were filled.
    pub(in super::super) fn respect_all(&mut self) {
        if self.stack.is_some() {
            let all = Frontends::all(&self.actual);
            self.respect_at(&all);
        }
    }

    /// Lets the stack keep its connections to these frontends. A failure costs connections their backend,
    /// no more: the others must not wait for it.
    pub(super) fn respect_at(&mut self, frontends: &Frontends) {
        let Some(stack) = &mut self.stack else {
            return;
        };
        match stack.respect(frontends) {
            Ok(Respected {
                added: 0,
                refused: 0,
            }) => {}
            Ok(Respected { added, refused: 0 }) => {
                info!(
                    connections = added,
                    "UDP that the node's stack serves stays there"
                );
            }
            Ok(Respected { added, refused }) => warn!(
                connections = added,
                refused,
                "UDP that the node's stack serves stays there, as far as the flow tables have room for UDP; \
                 the refused get a backend of ours"
            ),
            Err(error) => warn!(
                %error,
                "conntrack cannot be read: UDP that the node's stack serves may change its backend"
            ),
        }
    }
}
