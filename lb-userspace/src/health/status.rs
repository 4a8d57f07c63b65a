//! Live, eligible, ready: from what happened and the time. Pure.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::Serialize;

/// What is known of the agent's health.
///
/// It is healthy at its start and whenever nothing is pending, however long ago that was: a quiet
/// cluster changes nothing for hours. One plan carries a change of either family, so one mark stands
/// for both.
#[derive(Clone, Debug)]
pub struct Status {
    timeout: Duration,
    pending_since: Option<Instant>,
    updated: Timestamp,
    eligible: bool,
    applied: bool,
    attached: bool,
}

impl Status {
    /// Live and eligible, not ready. A change may be pending for `timeout`.
    pub const fn new(timeout: Duration, started: Timestamp) -> Self {
        Self {
            timeout,
            pending_since: None,
            updated: started,
            eligible: true,
            applied: false,
            attached: false,
        }
    }

    /// A change is to be carried out. The oldest one counts.
    pub fn changed(&mut self, now: Instant) {
        self.pending_since.get_or_insert(now);
    }

    /// Every change is carried out.
    pub const fn applied(&mut self, at: Timestamp) {
        self.pending_since = None;
        self.updated = at;
        self.applied = true;
    }

    /// Nothing is to be carried out, and nothing was.
    pub const fn settled(&mut self) {
        self.pending_since = None;
    }

    /// The programs are attached.
    pub const fn attached(&mut self) {
        self.attached = true;
    }

    /// Whether the node may be sent traffic; `None`, nobody knows, keeps the last answer.
    pub const fn node(&mut self, eligible: Option<bool>) {
        if let Some(eligible) = eligible {
            self.eligible = eligible;
        }
    }

    /// Whether no change is pending for longer than the timeout.
    pub fn is_live(&self, now: Instant) -> bool {
        self.pending_since
            .is_none_or(|since| now.saturating_duration_since(since) <= self.timeout)
    }

    /// What is to be told at a time, by both clocks.
    pub fn report(&self, now: Instant, wall: Timestamp) -> Report {
        let live = self.is_live(now);
        Report {
            live,
            eligible: self.eligible,
            applied: self.applied,
            attached: self.attached,
            updated: if live { wall } else { self.updated },
            wall,
        }
    }
}

/// The agent's health at a time.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent answers to different questions"
)]
pub struct Report {
    /// No change is pending for too long.
    pub live: bool,
    /// The node is neither being deleted nor marked for it.
    pub eligible: bool,
    /// The first complete list is in the tables.
    pub applied: bool,
    /// The programs are attached.
    pub attached: bool,
    /// When the tables were last known to be what they should be.
    pub updated: Timestamp,
    /// The time of the answer.
    pub wall: Timestamp,
}

impl Report {
    /// Whether the node serves what it shall serve.
    pub const fn is_ready(&self) -> bool {
        self.applied && self.attached
    }

    /// Body of `/livez`.
    pub fn livez(&self) -> Body {
        Body::new(self)
    }

    /// Body of `/healthz`.
    pub fn healthz(&self) -> Body {
        Body {
            node_eligible: Some(self.eligible),
            ..Body::new(self)
        }
    }

    /// Body of `/readyz`.
    pub fn readyz(&self) -> Body {
        Body {
            tables_filled: Some(self.applied),
            programs_attached: Some(self.attached),
            ..Body::new(self)
        }
    }
}

/// A JSON body. Times are RFC 3339, in UTC.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Body {
    /// When the tables were last known to be right: now, while the agent is live.
    pub last_updated: String,
    /// Now.
    pub current_time: String,
    /// Whether the node may be sent traffic.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_eligible: Option<bool>,
    /// Whether the first complete list is in the tables.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tables_filled: Option<bool>,
    /// Whether the programs are attached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub programs_attached: Option<bool>,
}

impl Body {
    fn new(report: &Report) -> Self {
        Self {
            last_updated: report.updated.to_string(),
            current_time: report.wall.to_string(),
            node_eligible: None,
            tables_filled: None,
            programs_attached: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Changed,
        Applied,
        Settled,
        Attached,
        Node(Option<bool>),
        /// Seconds pass.
        Wait(u64),
    }
    use Step::{Applied, Attached, Changed, Node, Settled, Wait};

    #[test]
    #[expect(clippy::disallowed_methods, reason = "any instant will do")]
    fn steps_lead_to_answers() {
        // (name, steps, live, eligible, ready)
        let cases: &[(&str, &[Step], bool, bool, bool)] = &[
            ("start", &[], true, true, false),
            ("quiet for a day", &[Wait(86_400)], true, true, false),
            ("pending", &[Changed, Wait(120)], true, true, false),
            (
                "pending too long",
                &[Changed, Wait(121)],
                false,
                true,
                false,
            ),
            (
                "the oldest change counts",
                &[Changed, Wait(100), Changed, Wait(21)],
                false,
                true,
                false,
            ),
            ("applied", &[Changed, Wait(121), Applied], true, true, false),
            (
                "a new change starts anew",
                &[Changed, Wait(121), Applied, Changed, Wait(120)],
                true,
                true,
                false,
            ),
            (
                "sources not complete",
                &[Changed, Settled, Wait(1_000)],
                true,
                true,
                false,
            ),
            ("attached, not applied", &[Attached], true, true, false),
            ("ready", &[Changed, Applied, Attached], true, true, true),
            (
                "ready stays",
                &[Applied, Attached, Changed, Wait(1_000)],
                false,
                true,
                true,
            ),
            ("not eligible", &[Node(Some(false))], true, false, false),
            (
                "unknown node keeps the answer",
                &[Node(Some(false)), Node(None)],
                true,
                false,
                false,
            ),
            (
                "eligible again",
                &[Node(Some(false)), Node(Some(true))],
                true,
                true,
                false,
            ),
        ];
        for (name, steps, live, eligible, ready) in cases {
            let mut now = Instant::now();
            let mut status = Status::new(Duration::from_mins(2), Timestamp::UNIX_EPOCH);
            for step in *steps {
                match step {
                    Changed => status.changed(now),
                    Applied => status.applied(Timestamp::UNIX_EPOCH),
                    Settled => status.settled(),
                    Attached => status.attached(),
                    Node(eligible) => status.node(*eligible),
                    Wait(seconds) => now += Duration::from_secs(*seconds),
                }
            }
            let report = status.report(now, Timestamp::UNIX_EPOCH);
            assert_eq!(
                (report.live, report.eligible, report.is_ready()),
                (*live, *eligible, *ready),
                "{name}"
            );
        }
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "any instant will do")]
    fn bodies() {
        let now = Instant::now();
        let at = |second| Timestamp::from_second(second).expect("a time");
        let mut status = Status::new(Duration::from_mins(2), at(0));
        let text = |body: &Body| serde_json::to_string(body).expect("JSON");
        let report = status.report(now, at(10));
        insta::assert_snapshot!(text(&report.healthz()), @r#"{"lastUpdated":"1970-01-01T00:00:10Z","currentTime":"1970-01-01T00:00:10Z","nodeEligible":true}"#);
        insta::assert_snapshot!(text(&report.readyz()), @r#"{"lastUpdated":"1970-01-01T00:00:10Z","currentTime":"1970-01-01T00:00:10Z","tablesFilled":false,"programsAttached":false}"#);
        status.changed(now);
        let report = status.report(now + Duration::from_mins(3), at(190));
        insta::assert_snapshot!(text(&report.livez()), @r#"{"lastUpdated":"1970-01-01T00:00:00Z","currentTime":"1970-01-01T00:03:10Z"}"#);
    }
}
