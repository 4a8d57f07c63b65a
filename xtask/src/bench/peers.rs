//! The load balancer side by side with others, in one run.

use anyhow::Result;
use clap::Args;

use super::{Output, Profile, alone::alone};
use crate::{cluster, command, compile, ebpf, setup};

/// What `--quick` stands for.
const QUICK: [&str; 8] = [
    "--services",
    "1,100",
    "--rounds",
    "3",
    "--changes",
    "3",
    "--additions",
    "1",
];

/// What is asked of the program `bench-peers`.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Numbers of Services [default: 1,100,1000]
    #[arg(long, value_delimiter = ',')]
    services: Vec<u32>,
    /// Interleaved rounds of connections and of forwarding [default: 7]
    #[arg(long)]
    rounds: Option<u32>,
    /// Few rounds with 1 and 100 Services: whether it works, not how fast it is
    #[arg(long, conflicts_with_all = ["services", "rounds"])]
    quick: bool,
    #[command(flatten)]
    output: Output,
}

/// Measures the ordinary programs; the generator comes from the object with the feature `bench`.
///
/// # Errors
/// A package is missing and cannot be installed, or a compilation or the program fails.
pub(super) fn run(arguments: &Arguments) -> Result<()> {
    setup::peers()?;
    let components = cluster::components()?;
    let programs = compile::build(true)?;
    let object = ebpf::build(&["bench".to_owned()])?;
    // The client and the backends are in it: what they take must not hide the balancers.
    let mut alone = alone("bench-peers", Profile::Release, "")?;
    alone
        .arg("--object")
        .arg(object)
        .arg("--components")
        .arg(components)
        .arg("--agent")
        .arg(programs.agent);
    if arguments.quick {
        alone.args(QUICK);
    }
    if !arguments.services.is_empty() {
        let services: Vec<_> = arguments.services.iter().map(u32::to_string).collect();
        alone.arg("--services").arg(services.join(","));
    }
    if let Some(rounds) = arguments.rounds {
        alone.arg("--rounds").arg(rounds.to_string());
    }
    arguments.output.tell(&mut alone)?;
    command::run(&mut alone)
}
