//! What happens to the agent itself while flows are watched.

use std::time::Duration;

use super::{counts::Kind, disturb::Stage};
use crate::netns::{agent::Node, now, poll_until};

/// Kills in one turn, and how soon one follows the other.
const KILLS: (u32, Duration) = (5, Duration::from_secs(2));

/// How long a change of the layout may take.
const PATIENCE: Duration = Duration::from_secs(30);

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
    for (second, kind) in [(true, Kind::LayoutUp), (false, Kind::LayoutDown)] {
        change_layout(node, stage, second);
        stage.counts.add(kind);
        stage.change_macs();
    }
}

/// Starts an agent whose tables have another layout; flows and links must be its own by then.
fn change_layout(node: &mut Node<'_>, stage: &Stage<'_>, second: bool) {
    let before = stage.tables.layouts();
    node.stop();
    node.use_second_layout(second);
    node.spawn();
    node.wait_attached();
    let mut after = Vec::new();
    poll_until("the former layout to be gone", PATIENCE, || {
        after = stage.tables.layouts();
        (after.len() == 1).then_some(())
    });
    assert_ne!(before, after, "the layout is the same");
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
