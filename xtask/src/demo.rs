//! The demonstration: real programs, real packets, and changes under running connections.
//!
//! Everything happens in namespaces of its own and is gone afterwards, see [`network`].

pub(crate) mod client;
mod cluster;
mod manifests;
mod network;
pub(crate) mod server;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use self::client::{Answers, Download, Load};
use self::manifests::{Service, vips};
use self::network::{BACKENDS, INTERFACE, Network, SNAT};
use crate::compile::{self, Programs};
use crate::{command, setup};

/// Requests to each address of a service, in hundreds; there are four such addresses.
const REQUESTS: u16 = 26;
const PHASES: [&str; 3] = ["b1 and b2", "b3 added", "b1 draining"];
const PATIENCE: Duration = Duration::from_secs(10);

/// Runs the demonstration with freshly compiled programs, or with those in `programs`; with
/// `in_cluster` the one in a Kubernetes cluster.
///
/// # Errors
/// A request or a long-lived connection failed, or a change did not show.
pub(crate) fn demo(programs: Option<&Path>, in_cluster: bool) -> Result<()> {
    ensure!(
        command::is_root(),
        "the demonstration makes network namespaces and loads BPF programs: run it as root"
    );
    ensure!(
        command::has_bpffs(),
        "no BPF file system is at /sys/fs/bpf, and it cannot be mounted there"
    );
    if in_cluster {
        return cluster::demo(programs);
    }
    setup::network()?;
    let programs = match programs {
        Some(directory) => Programs::within(&directory.canonicalize()?),
        None => compile::build(false)?,
    };
    let demo = Demo::start(programs)?;
    demo.play().inspect_err(|_| demo.show_log())
}

struct Demo {
    start: Instant,
    programs: Programs,
    config: PathBuf,
    network: Network,
}

impl Demo {
    #[expect(
        clippy::disallowed_methods,
        reason = "the reader wants to see how long each step takes"
    )]
    fn start(programs: Programs) -> Result<Self> {
        let start = Instant::now();
        let network = Network::new()?;
        let config = network.directory().join("agent.yaml");
        let text = format!(
            "pinRoot: {}\nlockFile: {}\nsnat:\n  addresses: [\"{}\"]\n",
            network.pins().display(),
            network.directory().join("lock").display(),
            SNAT.join("\", \"")
        );
        fs::write(&config, text).with_context(|| format!("write {}", config.display()))?;
        Ok(Self {
            start,
            programs,
            config,
            network,
        })
    }

    fn play(&self) -> Result<()> {
        let services = manifests::services();
        for service in &services {
            service.write(&self.manifests())?;
        }
        self.start_backends()?;
        self.say("client, router, load balancer and 3 backends are up");

        let mut agent = self.start_agent()?;
        let [web, echo, legacy, admin] = services;
        for service in [&web, &legacy, &admin] {
            for vip in vips(service) {
                self.until(&mut agent, &format!("{} at {vip}", service.name), || {
                    client::request(&self.network, service, &vip).is_ok()
                })?;
            }
        }
        self.say("the agent has programmed 4 services from manifests, each on IPv4 and IPv6");

        let mut downloads = self.start_downloads(&web, &[&legacy, &admin])?;
        let load = Load::default();
        let lines = [web.clone(), echo.clone()];
        thread::scope(|scope| {
            let clients = scope.spawn(|| load.run(&self.network, &lines, REQUESTS));
            let changes = self.change(&load, &mut agent, [web, echo, legacy, admin]);
            let running = downloads
                .iter_mut()
                .map(|it| u32::from(it.is_running()))
                .sum::<u32>();
            load.stop();
            let Ok(clients) = clients.join() else {
                bail!("the clients panicked");
            };
            clients?;
            changes?;
            self.say(&format!(
                "{running} of {} downloads still run; now they may end",
                downloads.len()
            ));
            Ok(())
        })?;
        fs::write(self.finish(), "")?;
        let total = downloads.len();
        let broken: Vec<_> = downloads
            .into_iter()
            .filter_map(|it| {
                let what = format!("{} from {}", it.what, it.backend);
                (!it.finish()).then_some(what)
            })
            .collect();
        self.say(&format!(
            "{} of {total} downloads complete",
            total - broken.len()
        ));
        ensure!(
            agent.try_wait()?.is_none(),
            "the agent ended during the demonstration"
        );
        self.show(&["services"])?;
        self.show(&["stats"])?;
        conclude(&load.answers(), &broken)
    }

    /// The changes under load, each checked by its effect.
    fn change(&self, load: &Load, agent: &mut Child, services: [Service; 4]) -> Result<()> {
        let [mut web, mut echo, legacy, mut admin] = services;
        thread::sleep(Duration::from_secs(2));

        web.backends.push(3);
        echo.backends.push(3);
        self.write(&[&web, &echo])?;
        let took = self.until(agent, "an answer of b3", || self.answers(&web, "b3"))?;
        load.enter(1);
        self.say(&format!(
            "added b3 to web and echo; it answered after {took} ms"
        ));
        thread::sleep(Duration::from_secs(2));

        web.draining.push(1);
        echo.draining.push(1);
        self.write(&[&web, &echo])?;
        thread::sleep(Duration::from_secs(1));
        load.enter(2);
        self.say("b1 is draining: it keeps its downloads and gets nothing new");
        thread::sleep(Duration::from_secs(2));

        legacy.delete(&self.manifests())?;
        for vip in vips(&legacy) {
            self.until(agent, "the end of legacy", || {
                client::request(&self.network, &legacy, &vip).is_err()
            })?;
        }
        self.say("deleted the service legacy; new connections are refused");

        agent.kill().context("kill the agent")?;
        agent.wait()?;
        thread::sleep(Duration::from_secs(1));
        *agent = self.start_agent()?;
        self.say("killed the agent with SIGKILL, and started it again a second later");

        let before = admin.clone();
        admin.port = 8001;
        admin.write(&self.manifests())?;
        for vip in vips(&admin) {
            self.until(agent, "the new port of admin", || {
                client::request(&self.network, &admin, &vip).is_ok()
                    && client::request(&self.network, &before, &vip).is_err()
            })?;
        }
        self.say("moved the service admin from port 8000 to 8001");
        thread::sleep(Duration::from_secs(1));
        Ok(())
    }

    fn write(&self, services: &[&Service]) -> Result<()> {
        services
            .iter()
            .try_for_each(|service| service.write(&self.manifests()))
    }

    fn answers(&self, service: &Service, backend: &str) -> bool {
        vips(service).iter().all(|vip| {
            // Each request is from another port, so each is a new choice of a backend.
            (0..20).any(|_| {
                client::request(&self.network, service, vip).is_ok_and(|name| name == backend)
            })
        })
    }

    /// Starts downloads of every kind, until the backend that will be drained has some.
    fn start_downloads(&self, web: &Service, others: &[&Service]) -> Result<Vec<Download>> {
        let mut downloads = Vec::new();
        for service in others {
            for vip in vips(service) {
                downloads.push(Download::start(&self.network, service, &vip)?);
            }
        }
        while !downloads.iter().any(|it| it.backend == "b1") {
            ensure!(downloads.len() < 30, "web never selects b1");
            for vip in vips(web) {
                downloads.push(Download::start(&self.network, web, &vip)?);
            }
        }
        let on = |name: &str| downloads.iter().filter(|it| it.backend == name).count();
        self.say(&format!(
            "{} downloads run: {}",
            downloads.len(),
            BACKENDS
                .map(|name| format!("{} from {name}", on(name)))
                .join(", ")
        ));
        Ok(downloads)
    }

    fn start_backends(&self) -> Result<()> {
        let own = std::env::current_exe().context("find this program")?;
        for name in BACKENDS {
            let mut server = self.network.within(name, &own);
            server.args(["demo-server", "--name", name, "--until"]);
            server.arg(self.finish()).stdin(Stdio::null());
            // The process is ended with its namespace.
            drop(server.spawn().with_context(|| format!("start {name}"))?);
        }
        for (name, number) in BACKENDS.into_iter().zip(1..) {
            for address in network::backend(number) {
                let reached = || {
                    thread::sleep(Duration::from_millis(20));
                    client::reach(&self.network, "lb", &address, server::HTTP)
                };
                ensure!(
                    (0..100).any(|_| reached()),
                    "{name} does not answer at {address}"
                );
            }
        }
        Ok(())
    }

    fn start_agent(&self) -> Result<Child> {
        let log = self.log();
        let file = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("open {}", log.display()))?;
        let mut agent = self.network.within("lb", &self.programs.agent);
        agent
            .args(["run", "--node-name", "edge", "--interface", INTERFACE])
            .arg("--manifests")
            .arg(self.manifests())
            .arg("--config")
            .arg(&self.config)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file);
        agent.spawn().context("start the agent")
    }

    /// Waits until `happened`, for a few seconds, and tells how many milliseconds it took.
    fn until(&self, agent: &mut Child, what: &str, happened: impl Fn() -> bool) -> Result<u128> {
        let start = self.start.elapsed();
        loop {
            let happened = happened();
            let took = self.start.elapsed().saturating_sub(start);
            if happened {
                return Ok(took.as_millis());
            }
            if let Some(status) = agent.try_wait()? {
                bail!("waiting for {what}: the agent ended with {status}");
            }
            ensure!(
                took < PATIENCE,
                "waited {} s for {what}",
                PATIENCE.as_secs()
            );
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Shows what lbctl says.
    fn show(&self, arguments: &[&str]) -> Result<()> {
        let mut lbctl: Command = self.network.within("lb", &self.programs.lbctl);
        lbctl.arg("--pin-root").arg(self.network.pins());
        lbctl.args(arguments);
        println!("\n$ lbctl {}", arguments.join(" "));
        println!("{}", command::output(&mut lbctl)?.trim_end());
        Ok(())
    }

    fn show_log(&self) {
        let log = fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        eprintln!("the agent's last words:");
        for line in lines.iter().skip(lines.len().saturating_sub(40)) {
            eprintln!("  {line}");
        }
    }

    fn say(&self, what: &str) {
        println!("[{:5.1} s] {what}", self.start.elapsed().as_secs_f64());
    }

    fn manifests(&self) -> PathBuf {
        self.network.directory().join("manifests")
    }

    fn log(&self) -> PathBuf {
        self.network.directory().join("agent.log")
    }

    /// The file at whose sight the backends end their downloads.
    fn finish(&self) -> PathBuf {
        self.network.directory().join("finish")
    }
}

/// Prints the shares and the last line.
///
/// # Errors
/// Something failed, or a backend's share is not what the changes should have made it.
fn conclude(answers: &Answers, broken: &[String]) -> Result<()> {
    println!("\nrequests while   {:>8} {:>8} {:>8}", "b1", "b2", "b3");
    for (phase, name) in PHASES.iter().enumerate() {
        let [b1, b2, b3] = BACKENDS.map(|backend| answers.of(phase, backend));
        println!("{name:<16} {b1:>8} {b2:>8} {b3:>8}");
    }
    for line in answers.failed.iter().take(10) {
        eprintln!("failed: {line}");
    }
    for line in broken {
        eprintln!("broken: {line}");
    }
    println!(
        "\ndemo: {} requests, {} failed, long-lived connections broken: {}",
        answers.requests(),
        answers.failed.len(),
        broken.len()
    );
    ensure!(
        answers.failed.is_empty() && broken.is_empty(),
        "some requests or connections failed"
    );
    ensure!(
        BACKENDS.iter().all(|name| answers.of(1, name) > 0),
        "a backend got no request while there were three"
    );
    ensure!(
        answers.of(2, "b1") == 0,
        "the draining backend got {} new requests",
        answers.of(2, "b1")
    );
    Ok(())
}
