//! Established flows under watch while everything changes around them.
//!
//! ```text
//! client thread ─ 1,000 flows ───▶ load balancer ─▶ server thread      watched, judged byte by byte
//!               ─ control flows ─▶ plain router ──▶ same thread        do not meet the load balancer
//! ```
//! A flow is **lost** when it is reset, when a byte is wrong, when another backend answers, or when nothing
//! comes for longer than [`stall::LIMIT`]. Time in which the whole machine stood still, as *all* control flows
//! tell, is not counted as a stall; one control flow that goes on suffices for the full rule.

use std::process::Command;

use crate::netns::succeed;

pub mod api;
pub mod counts;
pub mod disturb;
pub mod flows;
pub mod message;
pub mod newcomers;
pub mod observe;
pub mod others;
pub mod own;
pub mod scene;
pub mod server;
pub mod sessions;
pub mod stall;
pub mod tables;
pub mod upkeep;

/// How long everything is disturbed: `SLUICE_SECONDS`, else a minute.
pub fn seconds() -> u64 {
    let text = std::env::var("SLUICE_SECONDS").ok();
    text.map_or(60, |text| text.parse().expect("SLUICE_SECONDS is a number"))
}

/// Lets `act` start what watches, or is watched, with more of the processors than others get. It must not be
/// what is late; threads and programs started by it inherit this.
pub fn preferred<T>(act: impl FnOnce() -> T) -> T {
    prefer(-10);
    let done = act();
    prefer(0);
    done
}

/// Lets the calling thread go before all others: the instrument must not be what is late. It takes less than
/// half of a processor.
fn go_first() {
    let thread = nix::unistd::gettid().to_string();
    succeed(Command::new("chrt").args(["--fifo", "--pid", "1", &thread]));
}

fn prefer(nice: i8) {
    let thread = nix::unistd::gettid().to_string();
    succeed(Command::new("renice").args(["-n", &nice.to_string(), "-p", &thread]));
}
