//! Long sessions of real programs through the load balancer: `psql` inside a transaction, and a WebSocket that
//! `websocketd` fills and `curl` reads. Both are watched message by message.

use std::{
    io::{BufRead as _, BufReader, Read, Write as _},
    net::{IpAddr, SocketAddr},
    process::{Child, ChildStdout, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use nix::sys::signal::{Signal, kill};

use super::{
    preferred,
    stall::{self, Interval, LIMIT},
};
use crate::netns::{
    Namespace, Process,
    manifest::{ServiceManifest, service},
    poll_until,
};

/// Where `PostgreSQL` listens, and `websocketd`.
pub const PORTS: [u16; 2] = [5_432, 9_000];

/// Frontends of all Services here.
pub const FRONTENDS: usize = 8;

/// VIPs of the two Services and how they are forwarded.
const SERVICES: [(&str, [&str; 2], &str); 2] = [
    (
        "sessions-cluster",
        ["192.0.2.3", "2001:db8::3"],
        "externalTrafficPolicy: Cluster",
    ),
    (
        "sessions-gateway",
        ["192.0.2.4", "2001:db8::4"],
        "externalTrafficPolicy: Local",
    ),
];

/// Between two statements.
const PAUSE: Duration = Duration::from_millis(100);
/// Longest wait for a session that should end.
const PATIENCE: Duration = Duration::from_secs(10);

/// Counts up, twenty times a second.
const COUNTER: &str = "i=0; while :; do echo $i; i=$((i+1)); read -t 0.05; done";

/// A request to begin a WebSocket, RFC 6455 section 4.1.
const UPGRADE: [&str; 4] = [
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: c2x1aWNlIGdhdGUgdGVzdA==",
];

/// Name and manifest of each Service, whose only backend has these addresses.
pub fn services(backend: [IpAddr; 2]) -> Vec<(&'static str, ServiceManifest)> {
    let build = |(name, [v4, v6], spec): (_, [&str; 2], _)| {
        let [database, stream] = PORTS;
        let both = service(name).tcp(database, database).tcp(stream, stream);
        let both = both.vip(v4).vip(v6).spec(spec);
        let both = backend
            .map(|it| it.to_string())
            .iter()
            .fold(both, |both, backend| both.endpoint(backend));
        (name, both)
    };
    SERVICES.into_iter().map(build).collect()
}

/// Starts the WebSocket server.
pub fn websocket_server(namespace: &Namespace) -> Process {
    let [_, port] = PORTS;
    let mut command = namespace.command("websocketd");
    command.arg(format!("--port={port}"));
    let server = Process::spawn(command.args(["bash", "-c", COUNTER]));
    poll_until("the WebSocket server", PATIENCE, || {
        server.output().contains("Starting").then_some(())
    });
    server
}

/// Which program a session is of.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Program {
    Psql,
    WebSocket,
}

const PROGRAMS: [Program; 2] = [Program::Psql, Program::WebSocket];

/// Running sessions.
#[derive(Debug)]
pub struct Sessions {
    sessions: Vec<Session>,
}

#[derive(Debug)]
struct Session {
    program: Program,
    server: IpAddr,
    /// It does not meet the load balancer.
    control: bool,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    /// To end it from outside.
    process: Mutex<Option<u32>>,
    seen: Mutex<Seen>,
}

#[derive(Clone, Debug, Default)]
struct Seen {
    messages: u64,
    silences: Vec<Interval>,
    last: Duration,
    broken: Option<String>,
}

impl Sessions {
    /// Begins one of each program on every VIP, and to each of `controls`, the backend itself. Times are counted
    /// from `start`.
    pub fn start(client: &Namespace, controls: &[IpAddr], start: Instant) -> Self {
        let vips = SERVICES.into_iter().flat_map(|(_, vips, _)| vips);
        let vips = vips.map(|vip| (vip.parse().expect("an address"), false));
        let servers: Vec<(IpAddr, bool)> = vips
            .chain(controls.iter().map(|server| (*server, true)))
            .collect();
        let begin = |program| {
            let begin = move |&server| Session::start(client, program, server, start);
            servers.iter().map(begin)
        };
        let all: Vec<_> = PROGRAMS.into_iter().flat_map(begin).collect();
        for session in &all {
            poll_until("a session to begin", PATIENCE, || {
                let seen = session.shared.seen();
                assert_eq!(
                    seen.broken, None,
                    "{:?} {}",
                    session.program, session.server
                );
                (seen.messages > 3).then_some(())
            });
        }
        Self { sessions: all }
    }

    /// How many of each program there are.
    pub fn count(&self) -> [usize; 2] {
        PROGRAMS.map(|program| {
            let watched = self.sessions.iter().filter(|it| !it.control);
            watched.filter(|it| it.program == program).count()
        })
    }

    /// Ends all, and says what broke or stalled, and the longest stall. What the controls of a program all
    /// miss is the program's own slowness, as [`stall`] has it.
    pub fn finish(mut self) -> (Vec<String>, Duration) {
        let mut lost = Vec::new();
        let mut longest = Duration::ZERO;
        self.sessions.iter_mut().for_each(Session::end);
        for session in self.sessions.iter().filter(|it| !it.control) {
            let controls = self.sessions.iter().filter(|it| it.control);
            let controls = controls.filter(|it| it.program == session.program);
            let late = controls.map(|it| stall::beyond(&it.shared.seen().silences, PAUSE));
            let machine = stall::of_machine(&late.collect::<Vec<_>>());
            let seen = session.shared.seen();
            let own = seen.silences.iter().map(|it| stall::own(*it, &machine));
            let own = own.max().unwrap_or_default();
            longest = longest.max(own);
            let stalled = || format!("silent for {} ms", own.as_millis());
            if let Some(why) = seen.broken.or_else(|| (own > LIMIT).then(stalled)) {
                lost.push(format!(
                    "{:?} to {}: {why}",
                    session.program, session.server
                ));
            }
        }
        (lost, longest)
    }
}

impl Session {
    fn start(
        client: &Namespace,
        program: Program,
        (server, control): (IpAddr, bool),
        start: Instant,
    ) -> Self {
        let shared = Arc::new(Shared::default());
        let mine = Arc::clone(&shared);
        let mut command = match program {
            Program::Psql => {
                let mut psql = client.command("psql");
                psql.args(["-X", "-h", &server.to_string(), "-U", "postgres", "-At"]);
                psql.args(["-v", "ON_ERROR_STOP=1"]);
                psql.stdin(Stdio::piped());
                psql
            }
            Program::WebSocket => {
                let [_, port] = PORTS;
                let host = SocketAddr::new(server, port);
                let mut curl = client.command("curl");
                curl.args(["-sSN", "--http1.1"]);
                curl.args(UPGRADE.iter().flat_map(|header| ["-H", header]));
                curl.arg(format!("http://{host}/"));
                curl
            }
        };
        // It dies with the thread that starts it.
        let watch = move || {
            let mut child = command
                .stdout(Stdio::piped())
                .spawn()
                .unwrap_or_else(|e| panic!("{command:?}: {e}"));
            *mine.process() = Some(child.id());
            mine.heard(start.elapsed(), 0);
            let outcome = match program {
                Program::Psql => transact(&mut child, &mine, start),
                Program::WebSocket => stream(&mut child, &mine, start),
            };
            if let Err(why) = outcome {
                mine.seen
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .broken = Some(why);
            }
            *mine.process() = None;
            // It may have ended by itself.
            drop(child.kill());
            drop(child.wait());
        };
        let thread = preferred(|| std::thread::spawn(watch));
        Self {
            program,
            server,
            control,
            shared,
            thread: Some(thread),
        }
    }

    /// Asks it to end; who does not answer any more is ended.
    fn end(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        let Some(thread) = self.thread.take() else {
            return;
        };
        let begin = crate::netns::now();
        while !thread.is_finished() && begin.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(5));
        }
        if let Some(process) = *self.shared.process() {
            let process = nix::unistd::Pid::from_raw(i32::try_from(process).expect("an id"));
            if let Err(error) = kill(process, Signal::SIGKILL) {
                eprintln!("{:?} to {}: {error}", self.program, self.server);
            }
        }
        assert!(
            thread.join().is_ok() || std::thread::panicking(),
            "a session panicked"
        );
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.end();
    }
}

impl Shared {
    fn process(&self) -> std::sync::MutexGuard<'_, Option<u32>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn seen(&self) -> Seen {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.clone()
    }

    /// So many messages came; the silence before them is noted.
    fn heard(&self, now: Duration, messages: u64) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.messages > 0 {
            let silence = Interval {
                from: seen.last,
                to: now,
            };
            // Only what may matter is kept.
            if silence.length() > LIMIT / 4 {
                seen.silences.push(silence);
            }
        }
        seen.messages += messages;
        seen.last = now;
    }
}

/// One transaction with a statement every [`PAUSE`], committed when told to stop; every row must be there.
fn transact(child: &mut Child, shared: &Shared, start: Instant) -> Result<(), String> {
    let mut input = child.stdin.take().ok_or("no input")?;
    let mut output = BufReader::new(child.stdout.take().ok_or("no output")?);
    let mut rows = 0;
    let mut say = |statement: &str, mark: &str| {
        writeln!(input, "{statement}\nselect '{mark}';").map_err(|e| e.to_string())?;
        expect_line(&mut output, mark)?;
        shared.heard(start.elapsed(), 1);
        Ok::<(), String>(())
    };
    say(
        "begin; create temp table t (n int) on commit preserve rows;",
        "begun",
    )?;
    while !shared.stop.load(Ordering::Relaxed) {
        rows += 1;
        say(
            &format!("insert into t values ({rows});"),
            &rows.to_string(),
        )?;
        std::thread::sleep(PAUSE);
    }
    writeln!(input, "commit; select count(*) || ' rows' from t;").map_err(|e| e.to_string())?;
    expect_line(&mut output, &format!("{rows} rows"))
}

/// Reads lines until one is the expected; others are tags such as `INSERT 0 1`.
fn expect_line(output: &mut BufReader<ChildStdout>, expected: &str) -> Result<(), String> {
    loop {
        let mut line = String::new();
        let length = output.read_line(&mut line).map_err(|e| e.to_string())?;
        match line.trim_end() {
            _ if length == 0 => return Err(format!("the session ended before {expected:?}")),
            line if line == expected => return Ok(()),
            "BEGIN" | "CREATE TABLE" | "INSERT 0 1" | "COMMIT" => {}
            line => return Err(format!("{line:?} instead of {expected:?}")),
        }
    }
}

/// Reads text frames that count up.
fn stream(child: &mut Child, shared: &Shared, start: Instant) -> Result<(), String> {
    let mut output = child.stdout.take().ok_or("no output")?;
    let mut number = 0_u64;
    while !shared.stop.load(Ordering::Relaxed) {
        // A final text frame of less than 126 bytes, not masked: RFC 6455 section 5.2.
        let [kind, length] = read(&mut output)?;
        if kind != 0x81 || length > 125 {
            return Err(format!("frame {number} begins with {kind:#x} {length:#x}"));
        }
        let mut text = vec![0; usize::from(length)];
        output.read_exact(&mut text).map_err(|e| e.to_string())?;
        if text != number.to_string().as_bytes() {
            return Err(format!("frame {number} is {text:?}"));
        }
        number += 1;
        shared.heard(start.elapsed(), 1);
    }
    Ok(())
}

fn read<const N: usize>(input: &mut impl Read) -> Result<[u8; N], String> {
    let mut bytes = [0; N];
    let result = input.read_exact(&mut bytes);
    result.map_err(|e| format!("the stream ended: {e}"))?;
    Ok(bytes)
}
