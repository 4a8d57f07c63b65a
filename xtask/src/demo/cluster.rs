//! The demonstration in a real Kubernetes cluster: Sluice as its own DaemonSet.

use std::fs::File;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use crate::cluster::{self, Cluster, ProxyMode};
use crate::{command, image, root};

const VIP: [&str; 2] = ["192.0.2.80", "2001:db8:f::80"];
const STREAMS: [&str; 2] = ["192.0.2.81", "2001:db8:f::81"];
const BATCH: u32 = 50;
const PATIENCE: Duration = Duration::from_mins(1);
/// The same image under another name, as a newer one would have.
const NEXT: &str = "localhost/sluice:next";
const MANIFEST: &str = include_str!("cluster.yaml");

/// Shows Sluice in a cluster of its own, which is gone afterwards.
///
/// # Errors
/// A request failed, a stream broke, or a command of the story did.
pub(crate) fn demo(programs: Option<&Path>) -> Result<()> {
    cluster::prepare()?;
    image::image(image::NAME, programs)?;
    let janitor = Janitor::start()?;
    let result = Demo::start().and_then(|demo| demo.play());
    janitor.finish()?;
    result
}

/// Removes the cluster when this process is gone, for whatever reason.
struct Janitor(Child);

impl Janitor {
    fn start() -> Result<Self> {
        let own = std::env::current_exe().context("find this program")?;
        let child = Command::new("sh")
            .args(["-c", "cat > /dev/null; exec \"$0\" cluster down"])
            .arg(own)
            .stdin(Stdio::piped())
            // Ctrl-C is for us.
            .process_group(0)
            .spawn()
            .context("start the process that cleans up")?;
        Ok(Self(child))
    }

    fn finish(mut self) -> Result<()> {
        drop(self.0.stdin.take());
        let status = self.0.wait().context("wait for the cluster's end")?;
        ensure!(status.success(), "removing the cluster ended with {status}");
        Ok(())
    }
}

struct Demo {
    cluster: Cluster,
    start: Instant,
    directory: PathBuf,
    requests: Mutex<Requests>,
    stop: AtomicBool,
}

#[derive(Default)]
struct Requests {
    answered: u64,
    failed: Vec<String>,
}

impl Demo {
    #[expect(
        clippy::disallowed_methods,
        reason = "the reader wants to see how long each step takes"
    )]
    fn start() -> Result<Self> {
        let start = Instant::now();
        let cluster = Cluster::new();
        cluster.up_with(2, 1, ProxyMode::Iptables)?;
        let demo = Self {
            directory: root().join("target/cluster/run"),
            cluster,
            start,
            requests: Mutex::default(),
            stop: AtomicBool::new(false),
        };
        demo.say("a cluster: control plane, an edge node, two workers, a router, a client outside");
        Ok(demo)
    }

    fn play(&self) -> Result<()> {
        self.cluster.load(&root().join("target/image/sluice.tar"))?;
        let overlay = root().join("deploy/overlays/test");
        self.kubectl("apply -k", &[&overlay.display().to_string()])?;
        self.kubectl(
            "-n sluice-system rollout status daemonset/sluice-agent --timeout=90s",
            &[],
        )?;
        self.say("Sluice runs on the edge node, from its own image");

        self.apply()?;
        for name in ["web", "streams"] {
            self.kubectl(
                &format!("rollout status deployment/{name} --timeout=90s"),
                &[],
            )?;
            self.kubectl(&format!("expose deployment {name} --type=LoadBalancer --port=80 --target-port=8080 --overrides"), &[r#"{"spec":{"ipFamilyPolicy":"RequireDualStack"}}"#])?;
        }
        for (name, [v4, v6]) in [("web", VIP), ("streams", STREAMS)] {
            let status = format!(
                r#"{{"status":{{"loadBalancer":{{"ingress":[{{"ip":"{v4}"}},{{"ip":"{v6}"}}]}}}}}}"#
            );
            self.kubectl(
                &format!("patch service {name} --subresource=status --type=merge -p"),
                &[&status],
            )?;
            for vip in [v4, v6] {
                self.wait(&format!("{name} at {vip}"), || self.answer(vip).is_some())?;
            }
        }
        let answer = self.answer(VIP[0]).context("web does not answer")?;
        self.say(&format!("the client outside gets: {}", answer.trim()));
        let mut streams = self.start_streams()?;
        thread::scope(|scope| {
            let clients = VIP.map(|vip| scope.spawn(move || self.client(vip)));
            let changes = self.change();
            self.stop.store(true, Ordering::Relaxed);
            for client in clients {
                match client.join() {
                    Ok(result) => result?,
                    Err(_) => bail!("a client panicked"),
                }
            }
            changes
        })?;
        let mut broken = 0;
        for stream in &mut streams {
            if stream.try_wait()?.is_some() {
                broken += 1;
            }
            // Ended by itself or by us, it is gone.
            drop(stream.kill());
            stream.wait()?;
        }
        self.kubectl(
            "-n sluice-system exec daemonset/sluice-agent -- lbctl services",
            &[],
        )?;
        self.conclude(streams.len(), broken)
    }

    /// What happens under the clients and the streams.
    fn change(&self) -> Result<()> {
        let status = "-n sluice-system rollout status daemonset/sluice-agent --timeout=90s";
        self.kubectl("rollout restart deployment/web", &[])?;
        self.kubectl("rollout status deployment/web --timeout=90s", &[])?;
        self.say("every pod of web was replaced");
        self.kubectl("scale deployment/web --replicas=5", &[])?;
        self.kubectl("rollout status deployment/web --timeout=90s", &[])?;
        self.kubectl(
            "-n sluice-system rollout restart daemonset/sluice-agent",
            &[],
        )?;
        self.kubectl(status, &[])?;
        self.say("the DaemonSet was restarted");
        let tag = [
            "ctr",
            "--address",
            "/run/containerd/containerd.sock",
            "-n",
            "k8s.io",
        ];
        let tag = tag.into_iter().chain(["images", "tag", image::NAME, NEXT]);
        let tag: Vec<_> = tag.map(str::to_owned).collect();
        command::output(&mut self.cluster.exec("edge1", &tag)?)?;
        self.kubectl(
            &format!("-n sluice-system set image daemonset/sluice-agent agent={NEXT}"),
            &[],
        )?;
        self.kubectl(status, &[])?;
        self.say("the DaemonSet's image was updated");
        self.kubectl("scale deployment/web --replicas=2", &[])?;
        self.kubectl("rollout status deployment/web --timeout=90s", &[])?;
        thread::sleep(Duration::from_secs(2));
        Ok(())
    }

    fn apply(&self) -> Result<()> {
        let file = self.directory.join("demo.yaml");
        std::fs::write(&file, MANIFEST).with_context(|| format!("write {}", file.display()))?;
        self.kubectl("apply -f", &[&file.display().to_string()])
    }

    /// Echoes a kubectl and runs it, with words separated by blanks and then `more`.
    fn kubectl(&self, words: &str, more: &[&str]) -> Result<()> {
        println!("$ kubectl {words} {}", more.join(" "));
        let mut kubectl = self.cluster.kubectl();
        kubectl.args(words.split(' ')).args(more);
        for line in command::output(&mut kubectl)?.lines() {
            // Waiting is told line by line; only the end is of interest.
            if !line.starts_with("Waiting for") {
                println!("  {line}");
            }
        }
        Ok(())
    }

    fn answer(&self, vip: &str) -> Option<String> {
        let url = url(vip, "");
        let words = ["curl", "--silent", "--fail", "--max-time", "3", &url].map(str::to_owned);
        let mut curl = self.cluster.exec("client", &words).ok()?;
        command::output(&mut curl).ok()
    }

    fn client(&self, vip: &str) -> Result<()> {
        let url = url(vip, &format!("?[1-{BATCH}]"));
        let words = [
            "curl",
            "--silent",
            "--show-error",
            "--output",
            "/dev/null",
            "--max-time",
            "3",
            // A connection for each request.
            "--header",
            "Connection: close",
        ];
        let words = words
            .into_iter()
            .chain(["--write-out", "%{http_code}\\n", &url]);
        let words: Vec<_> = words.map(str::to_owned).collect();
        while !self.stop.load(Ordering::Relaxed) {
            let output = self.cluster.exec("client", &words)?.output()?;
            let printed = String::from_utf8_lossy(&output.stdout);
            let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
            for line in printed.lines() {
                if line == "200" {
                    requests.answered += 1;
                } else {
                    let at = self.start.elapsed().as_secs_f64();
                    let said = String::from_utf8_lossy(&output.stderr);
                    let line = format!("{at:.1} s: {vip}: {line} {}", said.trim());
                    requests.failed.push(line);
                }
            }
            drop(requests);
            thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Streams that would never end by themselves.
    fn start_streams(&self) -> Result<Vec<Child>> {
        let mut streams = Vec::new();
        for (number, vip) in STREAMS.iter().cycle().take(8).enumerate() {
            let log = self.directory.join(format!("stream-{number}"));
            let out = File::create(&log).with_context(|| format!("write {}", log.display()))?;
            let url = url(vip, "stream?every=100ms");
            let words = ["curl", "--silent", "--no-buffer", &url].map(str::to_owned);
            let mut curl = self.cluster.exec("client", &words)?;
            let curl = curl.stdin(Stdio::null()).stdout(out).stderr(Stdio::null());
            streams.push(curl.spawn().context("start a stream")?);
            self.wait("the first line of a stream", || {
                std::fs::read_to_string(&log).is_ok_and(|text| text.contains('\n'))
            })?;
        }
        self.say(&format!("{} long-lived streams run", streams.len()));
        Ok(streams)
    }

    fn conclude(&self, streams: usize, broken: u32) -> Result<()> {
        let requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        for line in requests.failed.iter().take(10) {
            eprintln!("failed: {line}");
        }
        let failed = requests.failed.len();
        println!(
            "\ndemo: {} requests, {failed} failed; {streams} streams, {broken} broken",
            requests.answered + failed as u64
        );
        ensure!(
            failed == 0 && broken == 0 && requests.answered > 0,
            "some requests or streams failed"
        );
        Ok(())
    }

    fn wait(&self, what: &str, happened: impl Fn() -> bool) -> Result<()> {
        let start = self.start.elapsed();
        while !happened() {
            let took = self.start.elapsed().saturating_sub(start);
            ensure!(
                took < PATIENCE,
                "waited {} s for {what}",
                PATIENCE.as_secs()
            );
            thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    fn say(&self, what: &str) {
        println!("[{:5.1} s] {what}", self.start.elapsed().as_secs_f64());
    }
}

fn url(vip: &str, path: &str) -> String {
    if vip.contains(':') {
        format!("http://[{vip}]/{path}")
    } else {
        format!("http://{vip}/{path}")
    }
}
