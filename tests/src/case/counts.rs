//! What a packet must be counted under, held against what was counted.

use std::collections::BTreeMap;

use lb_common::{
    reason::{Event, Reason},
    traffic::{Tally, Traffic},
};

use super::step::{Expect, Handed, Step};
use crate::run::{Counts, Hook};

impl Step {
    /// Compares everything counted with what the step expects.
    pub(super) fn compare_counts(&self, hook: Hook, found: &Counts) -> Result<(), String> {
        let mut expected: BTreeMap<&'static str, u64> = BTreeMap::new();
        for (counter, number) in &self.counts {
            *expected.entry(counter.name()).or_default() += number;
        }
        if hook == Hook::Xdp && self.handed == Handed::Counted {
            *expected.entry(Event::HandedToTcx.name()).or_default() += 1;
        }
        if matches!(self.expect, Expect::Forward(_)) {
            let event = match hook {
                Hook::Xdp if self.handed != Handed::No => Event::TcxForwarded,
                Hook::Xdp => Event::XdpForwarded,
                Hook::Tcx => Event::TcxForwarded,
                Hook::Egress => Event::EgressForwarded,
            };
            *expected.entry(event.name()).or_default() += 1;
        }
        let packets: BTreeMap<_, _> = found
            .counters
            .iter()
            .map(|(name, tally)| (*name, tally.packets))
            .collect();
        if packets != expected {
            return Err(format!("counted {packets:?} instead of {expected:?}"));
        }
        self.compare_bytes(found)?;
        for (what, found) in [("services", &found.services), ("backends", &found.backends)] {
            let total = found.values().fold(Traffic::default(), |a, b| add(a, *b));
            if total != self.traffic {
                return Err(format!("{what}: {found:?} instead of {:?}", self.traffic));
            }
        }
        Ok(())
    }

    /// Counters count IP bytes: of the packet that came, or of the answer we made.
    fn compare_bytes(&self, found: &Counts) -> Result<(), String> {
        // Another flow's end, which is not this packet's doing, and frames that are no IP.
        let others = [
            Event::FlowRetired.name(),
            Event::SnatTakenOver.name(),
            Reason::NotIp.name(),
        ];
        let answers = [
            Event::ResetSent.name(),
            Event::UnreachableSent.name(),
            Event::TooBigSent.name(),
            Event::TimeExceededSent.name(),
        ];
        for (name, tally) in found
            .counters
            .iter()
            .filter(|(name, _)| !others.contains(name))
        {
            let length = match &self.expect {
                Expect::Answer(out) if answers.contains(name) => out.ip_length(),
                _ => self.input.ip_length(),
            };
            let wanted = tally.packets * length;
            if tally.bytes != wanted {
                return Err(format!(
                    "{name} counted {} bytes instead of {wanted}",
                    tally.bytes
                ));
            }
        }
        Ok(())
    }
}

fn add(a: Traffic, b: Traffic) -> Traffic {
    let sum = |a: Tally, b: Tally| Tally {
        packets: a.packets + b.packets,
        bytes: a.bytes + b.bytes,
    };
    Traffic {
        forward: sum(a.forward, b.forward),
        reply: sum(a.reply, b.reply),
        new_flows: a.new_flows + b.new_flows,
        established: a.established + b.established,
    }
}

/// What was counted between two readings.
pub(super) fn difference(before: &Counts, after: &Counts) -> Counts {
    let less = |a: Tally, b: Tally| Tally {
        packets: a.packets - b.packets,
        bytes: a.bytes - b.bytes,
    };
    let traffic = |before: &BTreeMap<u32, Traffic>, after: &BTreeMap<u32, Traffic>| {
        let mut out = BTreeMap::new();
        for (&id, &now) in after {
            let then = before.get(&id).copied().unwrap_or_default();
            let change = Traffic {
                forward: less(now.forward, then.forward),
                reply: less(now.reply, then.reply),
                new_flows: now.new_flows - then.new_flows,
                established: now.established - then.established,
            };
            if change != Traffic::default() {
                out.insert(id, change);
            }
        }
        out
    };
    let mut counters = BTreeMap::new();
    for (&name, &now) in &after.counters {
        let then = before.counters.get(name).copied().unwrap_or_default();
        let change = less(now, then);
        if change.packets != 0 {
            counters.insert(name, change);
        }
    }
    Counts {
        counters,
        services: traffic(&before.services, &after.services),
        backends: traffic(&before.backends, &after.backends),
    }
}
