//! Build, test and demonstration tasks: `cargo xtask TASK`.
//!
//! Uses none of the other crates, so that it builds before them. A task that finds something
//! missing runs [`setup`] for it first.
#![forbid(unsafe_code)]
#![expect(
    clippy::print_stdout,
    reason = "a task runner's results are its standard output"
)]

mod bench;
mod cluster;
mod command;
mod compile;
mod demo;
mod ebpf;
mod image;
mod lint;
mod object;
mod setup;
mod test;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Build, test and demonstration tasks of Sluice.
#[derive(Parser)]
#[command(bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what the other tasks need; does nothing for what is already there
    Setup,
    /// Compile the data path to BPF byte code
    BuildEbpf {
        /// Cargo features of lb-ebpf; `bench` is written to a file of its own
        #[arg(long)]
        features: Vec<String>,
    },
    /// Compile the data path, lb-agent and lbctl
    Build {
        /// With optimisation
        #[arg(long)]
        release: bool,
        /// The agent and the data path of another layout too, for tests of a change between the two
        #[arg(long)]
        second_layout: bool,
    },
    /// Check format, lints and licences
    Lint,
    /// Run the tests
    Test {
        /// Only this tier
        #[arg(long, value_enum)]
        only: Option<test::Tier>,
        /// How long the disruption tier disturbs [default: 60]
        #[arg(long)]
        seconds: Option<u64>,
        /// Passed to the test programs: a part of test names, or their options
        #[arg(last = true)]
        filter: Vec<String>,
    },
    /// Show the load balancer at work, in network namespaces of its own
    Demo {
        /// Take lb-agent and lbctl from this directory instead of compiling them
        #[arg(long)]
        programs: Option<PathBuf>,
        /// In a real Kubernetes cluster on this machine
        #[arg(long)]
        cluster: bool,
    },
    #[command(hide = true)]
    DemoServer(demo::server::Arguments),
    #[command(hide = true)]
    DemoClient(demo::client::Arguments),
    /// A real Kubernetes cluster in namespaces of this machine
    Cluster {
        #[command(subcommand)]
        task: cluster::Task,
    },
    /// Write the image of the load balancer, an archive for `cluster load` and other tools
    Image {
        /// Its name and tag
        #[arg(long, default_value = image::NAME)]
        name: String,
        /// Take lb-agent and lbctl from this directory instead of compiling them
        #[arg(long)]
        programs: Option<PathBuf>,
    },
    /// Measure the data path, and the way to its tables
    Bench {
        #[command(subcommand)]
        part: bench::Part,
    },
}

fn main() -> ExitCode {
    let result = match Arguments::parse().task {
        Task::Setup => setup::everything(),
        Task::BuildEbpf { features } => ebpf::build(&features).map(|object| {
            println!("{}", object.display());
        }),
        Task::Build {
            release,
            second_layout,
        } => compile::build(release).and_then(|programs| {
            println!("{}", programs.agent.display());
            println!("{}", programs.lbctl.display());
            if second_layout {
                println!("{}", compile::second_layout()?.display());
            }
            Ok(())
        }),
        Task::Lint => lint::lint(),
        Task::Test {
            only,
            seconds,
            filter,
        } => test::test(only, &test::Options { seconds, filter }),
        Task::Demo { programs, cluster } => demo::demo(programs.as_deref(), cluster),
        Task::DemoServer(arguments) => demo::server::serve(&arguments),
        Task::DemoClient(arguments) => demo::client::ask(&arguments),
        Task::Cluster { task } => cluster::cluster(task),
        Task::Image { name, programs } => image::image(&name, programs.as_deref()),
        Task::Bench { part } => bench::bench(&part),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The directory of the workspace.
fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_owned()
}
