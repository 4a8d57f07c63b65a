//! What happens to the agent itself while flows are watched.

use std::time::Duration;

use super::{counts::Kind, disturb::Stage};
use crate::netns::{agent::Node, now};

/// Kills in one turn, and how soon one follows the other.
const KILLS: (u32, Duration) = (5, Duration::from_secs(2));

/// One turn of everything that may happen to the agent, which runs before and after. The programs are
/// replaced each time one starts and has the time to.
pub fn turn(node: &mut Node<'_>, stage: &Stage<'_>) {
    for _ in 0..KILLS.0 {
        let next = now() + KILLS.1;
        node.kill();
        node.spawn();
        stage.counts.add(Kind::Kill);
        // Whatever it is at by then.
        std::thread::sleep(next.saturating_duration_since(now()));
    }
    node.wait_attached();
    stage.change_macs();
    for _ in 0..2 {
        node.stop();
        node.spawn();
        node.wait_attached();
        stage.counts.add(Kind::Restart);
    }
    upgrade(node, stage);
    stage.change_macs();
}

/// Replaces the programs behind every link, by an agent that takes over from another.
fn upgrade(node: &mut Node<'_>, stage: &Stage<'_>) {
    let before = stage.tables.programs();
    node.kill();
    node.spawn();
    node.wait_attached();
    let after = stage.tables.programs();
    assert!(!before.is_empty(), "no program is attached");
    for (old, new) in before.iter().zip(&after) {
        assert_eq!(old.0, new.0, "the links changed: {before:?}, {after:?}");
        assert_ne!(old.1, new.1, "{} still runs its old program", old.0);
    }
    stage.counts.add(Kind::Upgrade);
}
