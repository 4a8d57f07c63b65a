//! One packet of a case: what it is, what must come of it, and the comparison of the frames.

use lb_common::{
    reason::{Counter, Event, Reason},
    traffic::{Tally, Traffic},
};

use super::counts::difference;
use crate::{
    network::{PODS, Port},
    packet::{Packet, describe},
    run::{Hook, Lab, Outcome, Verdict},
};

/// A packet and what must come of it.
#[derive(Clone, Debug)]
#[must_use]
pub struct Step {
    pub(super) port: Port,
    pub(super) input: Packet,
    pub(super) expect: Expect,
    pub(super) counts: Vec<(Counter, u64)>,
    pub(super) traffic: Traffic,
    pub(super) handed: Handed,
}

/// Who deals with a packet where both programs are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Handed {
    /// XDP.
    No,
    /// XDP knows it is ours, but leaves it to TCX.
    Counted,
    /// XDP does not look so far.
    Silently,
}

#[derive(Clone, Debug)]
pub(super) enum Expect {
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

/// A packet that comes in by `port`, addressed to it.
pub fn from(port: Port, packet: &Packet) -> Step {
    let mut input = packet.clone();
    input.destination_mac = port.mac;
    Step {
        port,
        input,
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

    /// The frames a failure is written with.
    pub(super) fn frames(&self) -> Vec<Vec<u8>> {
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

    /// Runs the packet and compares everything.
    pub(super) fn run(&self, lab: &Lab) -> Result<(), String> {
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
}
