//! Sluice in the cluster: its DaemonSet, its pods, their processes.

use std::{fs, net::SocketAddr, process::Command, time::Duration};

use nix::{sys::signal::Signal, unistd::Pid};
use serde_json::Value;

use super::{
    cluster::{Cluster, PATIENCE},
    say,
    space::CONTROLLERS,
};
use crate::netns::{poll_until, succeed, text};

/// The namespace of everything that is Sluice's.
pub const NAMESPACE: &str = "sluice-system";
/// The DaemonSet.
pub const DAEMON_SET: &str = "daemonset/sluice-agent";
/// Most memory an agent may take, in MiB.
pub const MOST_MEMORY: u64 = 300;

/// Sluice in a cluster.
#[derive(Debug)]
pub struct Agent<'c> {
    cluster: &'c Cluster,
}

impl<'c> Agent<'c> {
    pub(super) fn new(cluster: &'c Cluster) -> Self {
        Self { cluster }
    }

    /// Runs kubectl in its namespace, with words separated by blanks; it must succeed.
    pub fn kubectl(&self, words: &str) -> String {
        let words: Vec<_> = words.split(' ').collect();
        let output = self
            .cluster
            .kubectl_words(&[&["-n", NAMESPACE][..], &words].concat());
        assert!(
            output.status.success(),
            "kubectl {}: {}",
            words.join(" "),
            text(&output.stderr)
        );
        text(&output.stdout)
    }

    /// Waits until every edge node has a ready agent of the newest kind.
    pub fn wait_rolled_out(&self) {
        let patience = CONTROLLERS.as_secs();
        let words = format!("rollout status {DAEMON_SET} --timeout={patience}s");
        let words: Vec<_> = words.split(' ').collect();
        let output = self
            .cluster
            .kubectl_words(&[&["-n", NAMESPACE][..], &words].concat());
        assert!(
            output.status.success(),
            "{}\n{}\n{}",
            text(&output.stderr),
            self.kubectl("get pods -o wide"),
            self.log()
        );
    }

    /// The pod on a node that is not being deleted.
    pub fn pod(&self, node: &str) -> String {
        let selector = format!("--field-selector=spec.nodeName={node}");
        poll_until("the agent's pod", PATIENCE, || {
            let pods = self.cluster.pods(NAMESPACE, &selector);
            pods.into_iter().next()
        })
    }

    /// What the newest containers of its pods logged; empty if the API server cannot tell.
    pub fn log(&self) -> String {
        let output = self.cluster.try_kubectl([
            "-n",
            NAMESPACE,
            "logs",
            "--selector=app.kubernetes.io/name=sluice",
            "--tail=-1",
            "--request-timeout=5s",
        ]);
        text(&output.stdout)
    }

    /// Waits until its log has these words.
    pub fn wait_log(&self, words: &str) -> String {
        poll_until(&format!("{words:?} in the agent's log"), PATIENCE, || {
            let log = self.log();
            let line = log.lines().find(|line| line.contains(words));
            line.map(str::to_owned)
        })
    }

    /// Its process on a node.
    pub fn process(&self, node: &str) -> Option<Pid> {
        let namespace = self.cluster.namespace(node);
        let output = succeed(Command::new("ip").args(["netns", "pids", &namespace]));
        let numbers = text(&output.stdout);
        let mut numbers = numbers.split_whitespace().filter(|number| {
            let name = fs::read_to_string(format!("/proc/{number}/comm"));
            name.is_ok_and(|name| name.trim() == "lb-agent")
        });
        let number = numbers.next()?;
        Some(Pid::from_raw(number.parse().ok()?))
    }

    /// Sends its process on a node a signal.
    pub fn signal(&self, node: &str, signal: Signal) {
        let process = self.process(node).expect("a running agent");
        nix::sys::signal::kill(process, signal).expect("a signal to the agent");
    }

    /// Waits until its process on a node is another one than `before`.
    pub fn wait_replaced(&self, node: &str, before: Pid) {
        poll_until("another agent", PATIENCE, || {
            self.process(node).filter(|now| *now != before)
        });
    }

    /// Deletes the DaemonSet and waits until the agent of every edge node is gone. The data path stays.
    pub fn remove(&self) {
        self.kubectl(&format!("delete {DAEMON_SET}"));
        for number in 1..=self.cluster.options().edges {
            self.wait_gone(&format!("edge{number}"));
        }
    }

    /// Waits until its process on a node is gone.
    pub fn wait_gone(&self, node: &str) {
        poll_until("the agent's end", PATIENCE, || {
            self.process(node).is_none().then_some(())
        });
    }

    /// Memory its process on a node has, and the most it ever had, in KiB.
    pub fn memory(&self, node: &str) -> (u64, u64) {
        let process = self.process(node).expect("a running agent");
        let file = format!("/proc/{process}/status");
        let status = fs::read_to_string(&file).unwrap_or_else(|e| panic!("{file}: {e}"));
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let number = line.and_then(|line| line.trim().strip_suffix(" kB"));
            number.and_then(|it| it.trim().parse().ok()).expect(name)
        };
        (field("VmRSS:"), field("VmHWM:"))
    }

    /// Prints the memory of every agent after something, which must be within bounds.
    pub fn check_memory(&self, after: &str) {
        for number in 1..=self.cluster.options().edges {
            let node = format!("edge{number}");
            let (now, most) = self.memory(&node);
            say(&format!(
                "RSS of the agent on {node} after {after}: {} MiB, at most {} MiB",
                now >> 10,
                most >> 10
            ));
            assert!(most >> 10 < MOST_MEMORY, "{most} KiB after {after}");
        }
    }

    /// Runs lbctl in its pod on a node.
    pub fn lbctl(&self, node: &str, words: &str) -> String {
        let pod = self.pod(node);
        self.kubectl(&format!("exec {pod} -- lbctl {words}"))
    }

    /// The rows that lbctl prints as JSON, unless the API server cannot tell just now.
    pub fn rows(&self, node: &str, view: &str) -> Option<Vec<Value>> {
        let pod = self.pod(node);
        let words = [
            "-n", NAMESPACE, "exec", &pod, "--", "lbctl", "--output", "json", view,
        ];
        let output = self.cluster.kubectl_words(&words);
        if !output.status.success() {
            return None;
        }
        let told: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        told.as_array().cloned()
    }

    /// Its metrics on a node, as text.
    pub fn metrics(&self, node: &str) -> String {
        let server = SocketAddr::from(([127, 0, 0, 1], 10350));
        let place = self.cluster.place(node);
        poll_until("the metrics", Duration::from_secs(20), || {
            let (status, body) = place.http("GET", server, "/metrics").ok()?;
            (status == 200).then_some(body)
        })
    }
}
