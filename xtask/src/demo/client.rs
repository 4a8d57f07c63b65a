//! The clients: curl for HTTP, a small one of our own for datagrams, and long downloads.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Args;

use super::manifests::{Service, vips};
use super::network::Network;
use crate::command;

const BATCH: u16 = 100;
/// Leaves processor time to the downloads on a small machine.
const PAUSE: Duration = Duration::from_millis(100);
const TIMEOUT: Duration = Duration::from_secs(3);

/// Command line of the client for datagrams.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Whom to ask
    server: SocketAddr,
    /// The port to ask from, and then the ones after it: a port that was used before would belong
    /// to a flow, which stays with its backend
    first_port: u16,
    /// How often
    count: u16,
}

/// Asks a server over UDP and prints a line for each request, in the form that [`Load`] reads.
///
/// # Errors
/// No socket can be opened.
#[expect(clippy::print_stdout, reason = "its output is its result")]
pub(crate) fn ask(arguments: &Arguments) -> Result<()> {
    let mut buffer = [0; 1500];
    for port in (arguments.first_port..).take(arguments.count.into()) {
        let socket = match arguments.server {
            SocketAddr::V4(_) => UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)),
            SocketAddr::V6(_) => UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)),
        }?;
        socket.set_read_timeout(Some(TIMEOUT))?;
        let answer = socket
            .connect(arguments.server)
            .and_then(|()| socket.send(b"who are you?"))
            .and_then(|_| socket.recv(&mut buffer));
        match answer {
            Ok(length) => {
                let name = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default());
                println!("200 {name}");
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => println!("000 no answer"),
            Err(error) => println!("000 {error}"),
        }
    }
    Ok(())
}

/// Requests that were answered, by phase of the demonstration and backend; and those that failed.
#[derive(Debug, Default)]
pub(super) struct Answers {
    /// (phase, backend) → requests.
    pub(super) by_backend: BTreeMap<(usize, String), u64>,
    /// What went wrong, a line each.
    pub(super) failed: Vec<String>,
}

impl Answers {
    /// Requests made, answered or not.
    pub(super) fn requests(&self) -> u64 {
        self.by_backend.values().sum::<u64>() + self.failed.len() as u64
    }

    /// Requests a backend answered in a phase.
    pub(super) fn of(&self, phase: usize, backend: &str) -> u64 {
        let key = (phase, backend.to_owned());
        self.by_backend.get(&key).copied().unwrap_or_default()
    }

    /// Adds the lines of a batch: `200 b1` for an answer, anything else is a failure.
    fn add(&mut self, phase: usize, what: &str, printed: &str) {
        for line in printed.lines() {
            match line.split_once(' ') {
                Some(("200", backend)) if !backend.is_empty() => {
                    let key = (phase, backend.to_owned());
                    *self.by_backend.entry(key).or_default() += 1;
                }
                _ => self.failed.push(format!("{what}: {line}")),
            }
        }
    }
}

/// Requests that go on until they are told to stop.
#[derive(Default)]
pub(super) struct Load {
    answers: Mutex<Answers>,
    phase: AtomicUsize,
    stop: AtomicBool,
}

impl Load {
    /// Sends requests to both addresses of each service until [`Load::stop`], at least
    /// `least` hundred to each.
    ///
    /// # Errors
    /// A client cannot be started.
    pub(super) fn run(&self, network: &Network, services: &[Service], least: u16) -> Result<()> {
        thread::scope(|scope| {
            let clients: Vec<_> = services
                .iter()
                .flat_map(|service| vips(service).map(|vip| (service, vip)))
                .map(|(service, vip)| {
                    scope.spawn(move || self.client(network, service, &vip, least))
                })
                .collect();
            for client in clients {
                match client.join() {
                    Ok(result) => result?,
                    Err(_) => bail!("a client panicked"),
                }
            }
            Ok(())
        })
    }

    /// Later batches count for this phase.
    pub(super) fn enter(&self, phase: usize) {
        self.phase.store(phase, Ordering::Relaxed);
    }

    /// Lets each client finish its share and end.
    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// What came back.
    pub(super) fn answers(self) -> Answers {
        self.answers
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn client(&self, network: &Network, service: &Service, vip: &str, least: u16) -> Result<()> {
        let mut batches = 0;
        while batches < least || !self.stop.load(Ordering::Relaxed) {
            let phase = self.phase.load(Ordering::Relaxed);
            let mut batch = match service.protocol {
                "TCP" => curl(network, &url(vip, service.port, &format!("?[1-{BATCH}]"))),
                _ => datagrams(network, vip, service.port, ports(vip, batches))?,
            };
            // Curl's exit status tells of the last request only; the lines tell of each.
            let output = batch
                .output()
                .with_context(|| format!("start `{}`", command::line(&batch)))?;
            let printed = String::from_utf8_lossy(&output.stdout);
            let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
            answers.add(phase, &format!("{} {vip}", service.name), &printed);
            for _ in printed.lines().count()..BATCH.into() {
                answers.failed.push(format!(
                    "{} {vip}: no result: {}",
                    service.name,
                    String::from_utf8_lossy(&output.stderr).trim()
                ));
            }
            drop(answers);
            batches += 1;
            thread::sleep(PAUSE);
        }
        Ok(())
    }
}

/// Makes one request.
///
/// # Errors
/// It is not answered.
pub(super) fn request(network: &Network, service: &Service, vip: &str) -> Result<String> {
    let mut curl = curl(network, &url(vip, service.port, ""));
    let printed = command::output(&mut curl)?;
    match printed.trim().split_once(' ') {
        Some(("200", backend)) => Ok(backend.to_owned()),
        _ => bail!("{} at {vip} answered {printed}", service.name),
    }
}

/// Whether something listens at an address, seen from a namespace.
pub(super) fn reach(network: &Network, from: &str, address: &str, port: u16) -> bool {
    let mut curl = network.within(from, Path::new("curl"));
    curl.args(["--silent", "--output", "/dev/null", "--max-time", "1"])
        .arg(url(address, port, ""));
    command::output(&mut curl).is_ok()
}

/// A download that goes on until all are told to end.
pub(super) struct Download {
    /// What it was fetched from.
    pub(super) what: String,
    /// The backend that serves it.
    pub(super) backend: String,
    curl: Child,
}

impl Download {
    /// Starts a download, and waits until it is under way.
    ///
    /// # Errors
    /// The server does not answer.
    pub(super) fn start(network: &Network, service: &Service, vip: &str) -> Result<Self> {
        let heads: PathBuf = network.directory().join("head");
        // The server's answer may come late, but an old one must not be taken for it.
        if heads.exists() {
            fs::remove_file(&heads)?;
        }
        let url = url(vip, service.port, "download");
        let mut command = network.within("client", Path::new("curl"));
        command
            .args(["--silent", "--show-error", "--output", "/dev/null"])
            .arg("--dump-header")
            .arg(&heads)
            .arg(&url)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let curl = command
            .spawn()
            .with_context(|| format!("start `{}`", command::line(&command)))?;
        let mut download = Self {
            what: url,
            backend: String::new(),
            curl,
        };
        for _ in 0..100 {
            thread::sleep(Duration::from_millis(20));
            let head = fs::read_to_string(&heads).unwrap_or_default();
            let name = head
                .lines()
                .find_map(|line| line.strip_prefix("X-Backend: "));
            if let Some(name) = name
                && head.ends_with("\r\n\r\n")
            {
                name.trim().clone_into(&mut download.backend);
                return Ok(download);
            }
        }
        bail!("the download of {} does not start", download.what)
    }

    /// Whether it still goes on.
    pub(super) fn is_running(&mut self) -> bool {
        matches!(self.curl.try_wait(), Ok(None))
    }

    /// Waits for its end, and tells whether it was complete.
    pub(super) fn finish(mut self) -> bool {
        self.curl.wait().is_ok_and(|status| status.success())
    }
}

fn curl(network: &Network, url: &str) -> Command {
    let mut curl = network.within("client", Path::new("curl"));
    curl.args(["--silent", "--show-error", "--output", "/dev/null"])
        .args(["--max-time", &TIMEOUT.as_secs().to_string()])
        .args(["--write-out", "%{http_code} %header{x-backend}\\n", url]);
    curl
}

fn datagrams(network: &Network, vip: &str, port: u16, first: u16) -> Result<Command> {
    let own = std::env::current_exe().context("find this program")?;
    let mut client = network.within("client", &own);
    client
        .arg("demo-client")
        .arg(SocketAddr::new(vip.parse()?, port).to_string())
        .arg(first.to_string())
        .arg(BATCH.to_string());
    Ok(client)
}

/// The first of a batch's own ports, in a range for each family.
fn ports(vip: &str, batch: u16) -> u16 {
    let first = if vip.contains(':') { 35_000 } else { 10_000 };
    first + batch % 250 * BATCH
}

fn url(vip: &str, port: u16, path: &str) -> String {
    if vip.contains(':') {
        format!("http://[{vip}]:{port}/{path}")
    } else {
        format!("http://{vip}:{port}/{path}")
    }
}

#[cfg(test)]
mod tests {
    use super::{Answers, url};

    #[test]
    fn answers_are_counted_by_phase_and_backend() {
        let mut answers = Answers::default();
        answers.add(0, "web", "200 b1\n200 b2\n200 b1\n");
        answers.add(1, "web", "200 b1\n000 \n503 \n200 \n");
        assert_eq!(answers.of(0, "b1"), 2);
        assert_eq!(answers.of(1, "b1"), 1);
        assert_eq!(answers.of(1, "b2"), 0);
        assert_eq!(answers.failed.len(), 3);
        assert_eq!(answers.requests(), 7);
    }

    #[test]
    fn urls_of_both_families() {
        assert_eq!(url("192.0.2.1", 80, ""), "http://192.0.2.1:80/");
        assert_eq!(url("2001:db8::1", 80, "x"), "http://[2001:db8::1]:80/x");
    }
}
