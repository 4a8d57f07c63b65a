//! `lb-agent` whose tables have another layout, for tests of a change between the two.

use std::process::ExitCode;

#[path = "lb-agent.rs"]
mod agent;

fn main() -> ExitCode {
    agent::main()
}
