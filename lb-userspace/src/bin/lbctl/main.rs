//! `lbctl`: what the data path of this node does, read from its pinned maps.
//!
//! It asks no agent, so it answers when the agent is dead. It changes nothing, but for `detach`.

use std::{
    io::{self, BufWriter, Write},
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use clap::{Args, CommandFactory as _, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use lb_userspace::{
    pins::{self, PinDirectory},
    view::{
        backends::{self, BackendLine},
        catalog::{self, View},
        counters::{self, Count},
        drain, dump,
        flows::{self, Endpoint, Filter, FlowLine},
        layout,
        read::{self, Reader},
        render::{self, Output, Sheet},
        services::{self, ServiceLine},
        status::{self, Agent, Status},
        usage,
    },
};

use detach::{Detach, Patience};

mod detach;

/// Shows and removes the load balancer's data path on this node.
#[derive(Debug, Parser)]
#[command(name = "lbctl", version)]
struct Cli {
    /// Directory on bpffs below which the agent pins everything
    #[arg(long, global = true, value_name = "DIR", default_value = pins::DEFAULT_ROOT)]
    pin_root: PathBuf,
    /// First digits of the layout's hash, if several are pinned [default: the one in use]
    #[arg(long, global = true, value_name = "HASH")]
    layout: Option<String>,
    /// Form of the answer
    #[arg(short, long, global = true, value_enum, default_value_t = Form::Table)]
    output: Form,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Decode a map, or list the maps
    MapDump {
        /// A name of the list, or of a map (`flows`, `FLOWS_V6`) [default: list the maps]
        map: Option<String>,
    },
    /// Service ports: frontends, policy, backends, traffic
    Services,
    /// Backends: whose they are, their share, traffic
    Backends,
    /// Flows: client, frontend, SNAT, backend, state
    Flows(FlowArgs),
    /// Counters by event and reason
    Stats {
        /// Repeat every SECONDS, with rates
        #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "1")]
        watch: Option<f64>,
        /// Show counters at zero too
        #[arg(long)]
        all: bool,
    },
    /// What is attached, how full the maps are, whether the agent runs
    Status {
        #[command(flatten)]
        lock: LockArgs,
    },
    /// Remove the data path: new flows go to the node's stack, the links when the last flow ended
    Detach {
        /// Remove it at once, and break what is established
        #[arg(long)]
        force: bool,
        /// Give up after SECONDS; new flows stay with the stack
        #[arg(long, value_name = "SECONDS")]
        timeout: Option<u64>,
        /// A UDP flow without a packet for SECONDS has ended: what comes then goes to the stack
        #[arg(long, value_name = "SECONDS", default_value_t = 180)]
        udp_idle: u64,
        #[command(flatten)]
        lock: LockArgs,
    },
    /// Print a completion script
    Completions {
        /// The shell
        shell: Shell,
    },
}

#[derive(Debug, Args)]
struct FlowArgs {
    /// Only service ports whose name contains NAME
    #[arg(long, value_name = "NAME")]
    service: Option<String>,
    /// Only flows to this backend (address or address:port)
    #[arg(long, value_name = "ADDR")]
    backend: Option<Endpoint>,
    /// Only flows of this client (address or address:port)
    #[arg(long, value_name = "ADDR")]
    client: Option<Endpoint>,
    /// Only flows whose backend takes no new ones: it is terminating, not ready or gone
    #[arg(long)]
    draining: bool,
    /// At most N flows; 0 for all
    #[arg(long, value_name = "N", default_value_t = 0)]
    limit: usize,
}

#[derive(Debug, Args)]
struct LockArgs {
    /// The agent's lock file
    #[arg(long, value_name = "FILE", default_value = "/run/sluice/agent.lock")]
    lock_file: PathBuf,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Form {
    /// Columns
    Table,
    /// JSON
    Json,
}

impl From<Form> for Output {
    fn from(form: Form) -> Self {
        match form {
            Form::Table => Self::Table,
            Form::Json => Self::Json,
        }
    }
}

fn main() -> ExitCode {
    let mut writer = BufWriter::new(io::stdout().lock());
    let result = run(Cli::parse(), &mut writer).and_then(|()| Ok(writer.flush()?));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // The reader of the pipe has seen enough.
        Err(error) if is_caused_by(&error, io::ErrorKind::BrokenPipe) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lbctl: {error:#}");
            if is_caused_by(&error, io::ErrorKind::PermissionDenied) {
                eprintln!("lbctl reads BPF maps: run it as root");
            }
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli, writer: &mut dyn Write) -> anyhow::Result<()> {
    if let Command::Completions { shell } = cli.command {
        clap_complete::generate(shell, &mut Cli::command(), "lbctl", &mut &mut *writer);
        return Ok(());
    }
    let output = Output::from(cli.output);
    let layouts = layout::layouts(&cli.pin_root)?;
    let hashes: Vec<_> = layouts.iter().map(PinDirectory::hash).collect();
    let chosen = layout::choose(&hashes, cli.layout.as_deref())?;
    let pins = layouts
        .get(chosen)
        .context("the chosen layout is one of them")?;
    let reader = Reader::new(pins.clone());
    match cli.command {
        Command::MapDump { map: None } => {
            let contents = reader.contents(View::ALL)?;
            show(&usage::usage(&contents, &reader.infos()?), output, writer)
        }
        Command::MapDump { map: Some(name) } => {
            let choice = catalog::find(&name).with_context(|| unknown_map(&name))?;
            let contents = reader.contents(&[choice.view])?;
            show(&*dump::dump(&contents, choice), output, writer)
        }
        Command::Services => {
            let contents = reader.contents(&[View::ServiceTraffic, View::Flows])?;
            let services = services::services(&contents);
            show_lines::<_, ServiceLine<'_>>(&services, output, writer)
        }
        Command::Backends => {
            let contents = reader.contents(&[View::BackendTraffic, View::Flows])?;
            let backends = backends::backends(&contents);
            show_lines::<_, BackendLine>(&backends, output, writer)
        }
        Command::Flows(args) => {
            // Embryonic before established: a flow promoted between the two readings is in the latter.
            let contents = reader.contents(&[View::Embryonic, View::Flows, View::Drains])?;
            let filter = Filter {
                service: args.service,
                backend: args.backend,
                client: args.client,
                draining: args.draining,
            };
            let mut flows = flows::flows(&contents, &filter);
            if args.limit != 0 {
                flows.truncate(args.limit);
            }
            show_lines::<_, FlowLine<'_>>(&flows, output, writer)
        }
        Command::Stats { watch: None, all } => {
            let mut counts = counters::counters(&reader.counters()?);
            counts.retain(|count| all || count.packets != 0 || output == Output::Json);
            show(&counts, output, writer)
        }
        Command::Stats {
            watch: Some(seconds),
            all,
        } => watch(&reader, seconds, all, output, writer),
        Command::Status { lock } => {
            let others = hashes.iter().filter(|hash| **hash != pins.hash());
            let others = others.map(|&hash| hash.to_owned()).collect();
            Ok(status::write(
                &status(&reader, pins, others, lock)?,
                output,
                writer,
            )?)
        }
        Command::Detach {
            force,
            timeout,
            udp_idle,
            lock,
        } => {
            let detach = Detach {
                reader: &reader,
                pins,
                lock_file: &lock.lock_file,
                patience: (!force).then_some(Patience {
                    timeout: timeout.map(Duration::from_secs),
                    udp_idle: Duration::from_secs(udp_idle),
                }),
            };
            detach.run(writer)
        }
        Command::Completions { .. } => Ok(()),
    }
}

/// Writes rows; says on standard error if there is none, so that a pipe gets nothing but rows.
fn show(sheet: &dyn Sheet, output: Output, writer: &mut dyn Write) -> anyhow::Result<()> {
    if sheet.is_empty() && output == Output::Table {
        eprintln!("no entries");
    }
    Ok(sheet.write(output, writer)?)
}

/// Writes rows in full as JSON, or as the lines of a table.
fn show_lines<'a, Row, Line>(
    rows: &'a [Row],
    output: Output,
    writer: &mut dyn Write,
) -> anyhow::Result<()>
where
    Row: serde::Serialize,
    Line: serde::Serialize + From<&'a Row>,
{
    match output {
        Output::Json => Ok(render::json(rows, writer)?),
        Output::Table => show(
            &rows.iter().map(Line::from).collect::<Vec<_>>(),
            output,
            writer,
        ),
    }
}

/// Shows the counters and their rates until interrupted. JSON comes as one line a reading.
fn watch(
    reader: &Reader,
    seconds: f64,
    all: bool,
    output: Output,
    writer: &mut dyn Write,
) -> anyhow::Result<()> {
    let interval = Duration::try_from_secs_f64(seconds)
        .ok()
        .filter(|interval| *interval >= Duration::from_millis(10))
        .with_context(|| format!("--watch {seconds}: not an interval of 0.01 s or more"))?;
    let read = || anyhow::Ok((now(), counters::counters(&reader.counters()?)));
    let (mut then, mut earlier): (Instant, Vec<Count>) = read()?;
    loop {
        std::thread::sleep(interval);
        let (time, later) = read()?;
        let mut rates = counters::rates(&earlier, &later, time.duration_since(then));
        rates.retain(|rate| all || rate.count.packets != 0 || output == Output::Json);
        match output {
            Output::Json => {
                serde_json::to_writer(&mut *writer, &rates).map_err(io::Error::from)?;
            }
            Output::Table => render::table(&rates, writer)?,
        }
        writeln!(writer)?;
        writer.flush()?;
        (then, earlier) = (time, later);
    }
}

fn status(
    reader: &Reader,
    pins: &PinDirectory,
    other_layouts: Vec<String>,
    lock: LockArgs,
) -> anyhow::Result<Status> {
    let contents = reader.contents(View::ALL)?;
    Ok(Status {
        directory: pins.path().into(),
        layout: pins.hash().into(),
        other_layouts,
        agent: Agent {
            running: read::is_locked(&lock.lock_file).ok(),
            lock_file: lock.lock_file,
        },
        tick: contents.clock.map(|clock| clock.now),
        programs: reader.programs(),
        attachments: reader.attachments(),
        established_flows: drain::remaining(&contents.halves),
        maps: usage::usage(&contents, &reader.infos()?),
    })
}

fn unknown_map(name: &str) -> String {
    let names: Vec<_> = View::ALL.iter().map(|view| view.name()).collect();
    format!("no map is named `{name}`; there are {}", names.join(", "))
}

#[expect(
    clippy::disallowed_methods,
    reason = "rates and time limits of this process alone"
)]
fn now() -> Instant {
    Instant::now()
}

fn is_caused_by(error: &anyhow::Error, kind: io::ErrorKind) -> bool {
    let same = |error: &io::Error| error.kind() == kind;
    error
        .chain()
        .any(|cause| cause.downcast_ref::<io::Error>().is_some_and(same))
}
