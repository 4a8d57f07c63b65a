//! Named cases: packets in, and for each the verdict, the packet out, and every counter.
//!
//! A case runs once by `lb_xdp` (what it passes goes on to `lb_ingress`, as on a device) and once by
//! `lb_ingress` alone. Both must come to the same packets.

use std::collections::BTreeMap;

use lb_common::{
    config::Config,
    reason::{Counter, Event, Reason},
    traffic::{Tally, Traffic},
};

use crate::{
    network::{PODS, Port, in_network},
    packet::{Packet, describe},
    pcap,
    run::{CONFIG, Counts, Hook, Lab, Outcome, Verdict, with_lab},
    tables::Tables,
};

/// A case under construction.
#[must_use]
pub struct Case {
    name: String,
    tables: Tables,
    config: Config,
    hooks: Vec<Hook>,
    steps: Vec<Doing>,
}

enum Doing {
    Packet(Box<Step>),
    Other(Box<dyn Fn(&mut Lab) + Send + Sync>),
}

impl std::fmt::Debug for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Case")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// Starts a case.
pub fn case(name: impl Into<String>, tables: Tables) -> Case {
    Case {
        name: name.into(),
        tables,
        config: CONFIG,
        hooks: vec![Hook::Xdp, Hook::Tcx],
        steps: Vec::new(),
    }
}

impl Case {
    /// Changes the configuration.
    pub fn config(mut self, change: impl FnOnce(&mut Config)) -> Self {
        change(&mut self.config);
        self
    }

    /// Only by one program.
    pub fn only(mut self, hook: Hook) -> Self {
        self.hooks = vec![hook];
        self
    }

    /// A packet and what must come of it.
    pub fn step(mut self, step: Step) -> Self {
        self.steps.push(Doing::Packet(Box::new(step)));
        self
    }

    /// Several.
    pub fn steps(mut self, steps: impl IntoIterator<Item = Step>) -> Self {
        self.steps
            .extend(steps.into_iter().map(|step| Doing::Packet(Box::new(step))));
        self
    }

    /// Anything else: other tables, a look at the flows.
    pub fn then(mut self, act: impl Fn(&mut Lab) + Send + Sync + 'static) -> Self {
        self.steps.push(Doing::Other(Box::new(act)));
        self
    }

    /// New tables.
    pub fn tables(self, tables: Tables, epoch: u32) -> Self {
        self.then(move |lab| lab.apply(&tables.build(epoch)))
    }

    /// Entries that must be in the established and in the embryonic tables.
    pub fn flows(self, established: usize, embryonic: usize) -> Self {
        self.then(move |lab| {
            let found = lab.flow_entries();
            assert_eq!(
                found,
                (established, embryonic),
                "entries (established, embryonic)\n{}",
                lab.describe_flows()
            );
        })
    }

    fn run(&self, lab: &mut Lab, hook: Hook) -> Result<(), String> {
        lab.apply(&self.tables.build(1));
        let mut number = 0;
        for doing in &self.steps {
            match doing {
                Doing::Packet(step) => {
                    number += 1;
                    step.run(lab).map_err(|error| {
                        let name = format!("{} {hook:?} step {number}", self.name);
                        let frames = step.frames();
                        let file = pcap::write(&name, &frames).map_or_else(
                            |e| format!("no pcap: {e}"),
                            |path| path.display().to_string(),
                        );
                        let flows = lab.describe_flows();
                        format!("step {number}: {error}\n  flows:\n{flows}  frames: {file}")
                    })?;
                }
                Doing::Other(act) => act(lab),
            }
        }
        Ok(())
    }
}

/// Runs every case by every program it is meant for, then reports all failures.
///
/// `SLUICE_CASE=words` runs only the cases whose name contains the words, `SLUICE_HOOK=xdp` only
/// those of one program.
pub fn run(cases: Vec<Case>) {
    let wanted = std::env::var("SLUICE_CASE").unwrap_or_default();
    let hooks = std::env::var("SLUICE_HOOK").unwrap_or_default();
    in_network(move || {
        let (mut failures, mut total) = (Vec::new(), 0);
        for case in cases.iter().filter(|case| case.name.contains(&wanted)) {
            for &hook in &case.hooks {
                if !hooks.is_empty() && !format!("{hook:?}").eq_ignore_ascii_case(&hooks) {
                    continue;
                }
                total += 1;
                let mut result = Ok(());
                let run = std::panic::AssertUnwindSafe(|| {
                    with_lab(&case.config, hook, |lab| result = case.run(lab, hook));
                    result
                });
                let outcome = std::panic::catch_unwind(run).unwrap_or_else(|panic| {
                    let text = panic.downcast_ref::<String>().cloned();
                    let text =
                        text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
                    Err(text.unwrap_or_else(|| "panicked".into()))
                });
                if let Err(error) = outcome {
                    failures.push(format!("FAILED {} [{hook:?}]\n  {error}", case.name));
                }
            }
        }
        assert!(
            failures.is_empty(),
            "{} of {total} cases failed\n\n{}",
            failures.len(),
            failures.join("\n\n")
        );
    });
}

/// A packet and what must come of it.
#[derive(Clone, Debug)]
#[must_use]
pub struct Step {
    port: Port,
    input: Packet,
    expect: Expect,
    counts: Vec<(Counter, u64)>,
    traffic: Traffic,
    handed: Handed,
}

/// Who deals with a packet where both programs are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Handed {
    /// XDP.
    No,
    /// XDP knows it is ours, but leaves it to TCX.
    Counted,
    /// XDP does not look so far.
    Silently,
}

#[derive(Clone, Debug)]
enum Expect {
    Pass,
    Drop,
    /// Sent to another host: the packet as it leaves.
    Forward(Packet),
    /// An ICMP error sent to another host.
    Translate(Packet),
    /// Sent back where it came from.
    Answer(Packet),
    /// Changed and given to the stack.
    Deliver(Packet),
    /// A change of tables only is looked at.
    Anything,
}

/// A packet that comes in by `port`.
pub fn from(port: Port, packet: &Packet) -> Step {
    Step {
        port,
        input: packet.clone(),
        expect: Expect::Anything,
        counts: Vec::new(),
        traffic: Traffic::default(),
        handed: Handed::No,
    }
}

impl Step {
    fn expect(mut self, expect: Expect) -> Self {
        self.expect = expect;
        self
    }

    fn tally(&self) -> Tally {
        Tally {
            packets: 1,
            bytes: self.input.ip_length(),
        }
    }

    /// Goes to a backend.
    pub fn forwards(mut self, out: &Packet) -> Self {
        self.traffic.forward = self.tally();
        self.expect(Expect::Forward(out.clone()))
    }

    /// Goes to the client.
    pub fn replies(mut self, out: &Packet) -> Self {
        self.traffic.reply = self.tally();
        self.expect(Expect::Forward(out.clone()))
    }

    /// An ICMP error that goes on, translated.
    pub fn translates(self, out: &Packet) -> Self {
        self.event(Event::IcmpTranslated)
            .by_tcx()
            .expect(Expect::Translate(out.clone()))
    }

    /// Goes to the node's own stack, rewritten.
    pub fn delivers(mut self, out: &Packet) -> Self {
        self.traffic.forward = self.tally();
        self.event(Event::Delivered)
            .by_tcx()
            .expect(Expect::Deliver(out.clone()))
    }

    /// We answer it ourselves.
    pub fn answers(self, out: &Packet, event: Event) -> Self {
        self.event(event)
            .by_tcx()
            .expect(Expect::Answer(out.clone()))
    }

    /// Goes on unchanged, for a reason (none if nothing is counted).
    pub fn passes(self, reason: Option<Reason>) -> Self {
        match reason {
            Some(reason) => self.reason(reason).expect(Expect::Pass),
            None => self.expect(Expect::Pass),
        }
    }

    /// Ends here, for a reason.
    pub fn drops(self, reason: Reason) -> Self {
        self.reason(reason).expect(Expect::Drop)
    }

    /// Makes a flow.
    pub fn creates(mut self) -> Self {
        self.traffic.new_flows = 1;
        self.event(Event::FlowCreated)
    }

    /// Proves the client.
    pub fn promotes(mut self) -> Self {
        self.traffic.established = 1;
        self.event(Event::FlowPromoted)
    }

    /// Something else happens on the side.
    pub fn event(mut self, event: Event) -> Self {
        self.counts.push((Counter::Event(event), 1));
        self
    }

    /// A reason is counted.
    pub fn reason(mut self, reason: Reason) -> Self {
        self.counts.push((Counter::Reason(reason), 1));
        self
    }

    /// XDP leaves it to TCX.
    pub fn by_tcx(mut self) -> Self {
        self.handed = Handed::Counted;
        self
    }

    /// XDP does not see that it is ours; TCX does.
    pub fn unseen_by_xdp(mut self) -> Self {
        self.handed = Handed::Silently;
        self
    }

    fn frames(&self) -> Vec<Vec<u8>> {
        let mut frames = vec![self.input.bytes()];
        match &self.expect {
            Expect::Forward(out)
            | Expect::Translate(out)
            | Expect::Answer(out)
            | Expect::Deliver(out) => {
                frames.push(out.bytes());
            }
            Expect::Pass | Expect::Drop | Expect::Anything => {}
        }
        frames
    }

    fn run(&self, lab: &Lab) -> Result<(), String> {
        let input = self.input.bytes();
        let before = lab.counts();
        let (outcome, handed) = match lab.hook() {
            Hook::Tcx => (lab.ingress(&input, self.port), false),
            // Pods' devices have no XDP program.
            Hook::Xdp if self.port == PODS => (lab.ingress(&input, self.port), true),
            Hook::Egress => (lab.egress(&input, self.port), false),
            Hook::Xdp => self.run_xdp(lab, &input)?,
        };
        self.compare(&outcome, handed || lab.hook() != Hook::Xdp)?;
        let after = lab.counts();
        let hook = if self.port == PODS && lab.hook() == Hook::Xdp {
            Hook::Tcx
        } else {
            lab.hook()
        };
        self.compare_counts(hook, &difference(&before, &after))
    }

    fn run_xdp(&self, lab: &Lab, input: &[u8]) -> Result<(Outcome, bool), String> {
        let outcome = lab.xdp(input, self.port);
        if outcome.verdict != Verdict::Pass {
            if self.handed != Handed::No {
                return Err(format!(
                    "XDP must leave it to TCX, but: {:?}",
                    outcome.verdict
                ));
            }
            return Ok((outcome, false));
        }
        if outcome.frame != input {
            return Err(format!(
                "XDP passed a changed packet\n  in  {}\n  out {}",
                describe(input),
                describe(&outcome.frame)
            ));
        }
        if self.handed == Handed::No && !matches!(self.expect, Expect::Pass) {
            return Err("XDP must deal with it, but passed".into());
        }
        Ok((lab.ingress(input, self.port), true))
    }

    fn compare(&self, outcome: &Outcome, complete: bool) -> Result<(), String> {
        let (verdict, expected) = match &self.expect {
            Expect::Anything => return Ok(()),
            Expect::Pass => (Verdict::Pass, Some(&self.input)),
            Expect::Drop => (Verdict::Drop, None),
            Expect::Forward(out) | Expect::Translate(out) | Expect::Answer(out) => {
                (Verdict::Send, Some(out))
            }
            Expect::Deliver(out) => (Verdict::Pass, Some(out)),
        };
        if outcome.verdict != verdict {
            return Err(format!(
                "verdict {:?} instead of {verdict:?}\n  in  {}\n  out {}",
                outcome.verdict,
                describe(&self.input.bytes()),
                describe(&outcome.frame)
            ));
        }
        let Some(expected) = expected else {
            return Ok(());
        };
        let expected = expected.bytes();
        // The neighbour table writes the addresses after TCX, out of a test run's sight.
        let skip = match self.expect {
            Expect::Forward(_) | Expect::Translate(_) if complete => 12,
            _ => 0,
        };
        if outcome.frame.get(skip..) == expected.get(skip..) {
            return Ok(());
        }
        let differing = outcome.frame.iter().zip(&expected).enumerate();
        let places: Vec<usize> = differing
            .filter(|(at, (a, b))| *at >= skip && a != b)
            .map(|(at, _)| at)
            .collect();
        Err(format!(
            "another packet (bytes {places:?})\n  in       {}\n  out      {}\n  expected {}",
            describe(&self.input.bytes()),
            describe(&outcome.frame),
            describe(&expected)
        ))
    }

    fn compare_counts(&self, hook: Hook, found: &Counts) -> Result<(), String> {
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
}

impl Step {
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

fn difference(before: &Counts, after: &Counts) -> Counts {
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
