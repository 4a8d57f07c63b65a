//! Looking at the flows now and then: idle ones and those whose drain deadline passed go, and what no
//! flow names is free again.

use std::{collections::BTreeSet, io, net::IpAddr, time::Instant};

use tokio::task::JoinHandle;
use tracing::{error, info, warn};

use super::{Agent, worker::clock};
use crate::expire::{Expiry, Pass};

/// What a look at the flows gives back: who looked, since when, and what was found.
pub(super) type Gone = (Expiry, Instant, io::Result<Pass>);

impl Agent {
    /// Starts to look at the flows, unless somebody does.
    pub(super) fn expire(&mut self) -> Option<JoinHandle<Gone>> {
        let mut expiry = self.expiry.take()?;
        // What came back since the last look keeps its flows.
        self.drain();
        let overdue = self.drains.overdue();
        Some(tokio::task::spawn_blocking(move || {
            let began = clock();
            let result = expiry.pass(&overdue);
            (expiry, began, result)
        }))
    }

    /// Takes over what a look at the flows found.
    pub(super) fn expired(&mut self, done: Option<Gone>) {
        let Some((expiry, began, result)) = done else {
            error!("the task that expires flows is gone");
            return;
        };
        self.expiry = Some(expiry);
        match result {
            Ok(pass) => {
                self.observer.expired(&pass, began);
                if pass.condemned + pass.deleted > 0 {
                    let Pass {
                        halves,
                        condemned,
                        deleted,
                        ..
                    } = pass;
                    info!(halves, condemned, deleted, "idle flows");
                }
                if pass.ended > 0 {
                    info!(halves = pass.ended, "ended: their drain deadline passed");
                }
                self.drains.seen(&pass.in_use.hanging);
                self.drain();
                self.observer.metrics.draining(self.drains.flows());
                let own = self.own_addresses();
                if let Some(worker) = &mut self.worker {
                    worker.release(&pass.in_use, began);
                    worker.sweep_filter(&pass.in_use, &own, began);
                }
            }
            Err(error) => warn!(%error, "look at the flows"),
        }
    }

    /// Begins and drops drain deadlines, once it is known what there is.
    pub(super) fn drain(&mut self) {
        if let Some(worker) = self.worker.as_ref().filter(|_| self.served.complete) {
            self.drains.follow(worker.tables(), &self.served.snapshot);
        }
    }

    /// Addresses that may serve for SNAT: errors about our packets come to them from anywhere.
    fn own_addresses(&self) -> BTreeSet<IpAddr> {
        let view = self.monitor.view.borrow();
        let network = &view.network;
        let primary = network.links().keys().flat_map(|index| {
            let (v4, v6) = network.primary(*index);
            v4.into_iter().chain(v6)
        });
        let told = view.snat.iter().flat_map(|policy| &policy.addresses);
        primary
            .chain(told.copied())
            .chain(self.config.snat_addresses.iter().copied())
            .collect()
    }
}
