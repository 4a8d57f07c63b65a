//! The job that takes the data path off the edge node, as `deploy/detach.yaml` describes it.

use std::{fs, time::Duration};

use super::{
    agent::NAMESPACE,
    cluster::{Cluster, deploy},
};
use crate::netns::{poll_until, text};

const JOB: &str = "job/sluice-detach";
/// Longer than UDP flows stay that nobody uses.
const PATIENCE: Duration = Duration::from_mins(2);

/// A job under way, deleted on drop.
#[derive(Debug)]
pub struct Detach<'c> {
    cluster: &'c Cluster,
}

impl<'c> Detach<'c> {
    /// Starts it. The agent must be gone.
    pub fn start(cluster: &'c Cluster) -> Self {
        let file = deploy().join("detach.yaml");
        let job = fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        // UDP flows that nobody uses need not rest as long as they would beside an agent.
        let job = job.replace("[lbctl, detach]", "[lbctl, detach, --udp-idle, '5']");
        cluster.apply(&job);
        Self { cluster }
    }

    /// True once it has removed everything.
    pub fn is_done(&self) -> bool {
        self.get(&["get", JOB, "-o", "jsonpath={.status.succeeded}"]) == "1"
    }

    /// Waits until it has removed everything.
    pub fn wait_done(&self) {
        poll_until("the data path to be removed", PATIENCE, || {
            if self.is_done() {
                return Some(());
            }
            std::thread::sleep(Duration::from_millis(200));
            None
        });
    }

    /// What it printed.
    pub fn log(&self) -> String {
        self.get(&["logs", JOB])
    }

    fn get(&self, words: &[&str]) -> String {
        let words = [&["-n", NAMESPACE][..], words].concat();
        text(&self.cluster.kubectl_words(&words).stdout)
    }
}

impl Drop for Detach<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- lbctl detach printed:\n{}", self.log());
        }
        self.cluster.try_kubectl(["-n", NAMESPACE, "delete", JOB]);
    }
}
