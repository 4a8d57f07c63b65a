//! Flows whose backend takes no new ones, and how long they may stay there.

use jiff::Timestamp;
use lb_common::{
    conntrack::flag,
    service::{MemberKey, member_flag},
};
use serde::Serialize;

use super::Half;
use crate::view::contents::Contents;

/// A backend that takes no new flows of a service port.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Draining {
    /// When its flows are ended, as RFC 3339 has it; none if they may stay until they end.
    pub deadline: Option<String>,
    /// Seconds until then, 0 if it is over.
    pub seconds_left: Option<u64>,
}

impl Draining {
    /// What the tables say of a flow's backend; none while it takes new flows.
    pub(super) fn of(contents: &Contents, half: &Half) -> Option<Self> {
        let members = &contents.tables.members;
        let flags = members.get(&(half.service, half.backend)).copied();
        let takes_new = flags.unwrap_or_default() & member_flag::SELECTED != 0;
        if half.flags & flag::PASS != 0 || takes_new {
            return None;
        }
        let key = MemberKey {
            service: half.service,
            backend: half.backend,
        };
        let deadline = contents.drains.get(&key).copied();
        Some(Self {
            deadline: deadline.map(date),
            seconds_left: deadline.map(|at| at.saturating_sub(contents.unix_seconds)),
        })
    }

    /// One word for a table: the time left, `over`, or `yes` without a deadline.
    pub(super) fn word(&self) -> String {
        match self.seconds_left {
            None => "yes".into(),
            Some(0) => "over".into(),
            Some(seconds) => left(seconds),
        }
    }
}

/// A time as RFC 3339 has it; the bare number if it is beyond all calendars.
fn date(unix_seconds: u64) -> String {
    let seconds = i64::try_from(unix_seconds).ok();
    seconds
        .and_then(|seconds| Timestamp::from_second(seconds).ok())
        .map_or_else(|| unix_seconds.to_string(), |time| time.to_string())
}

/// Such as `1h30m0s`, in the form the annotation has.
fn left(seconds: u64) -> String {
    let (hours, minutes, rest) = (seconds / 3_600, seconds / 60 % 60, seconds % 60);
    match (hours, minutes) {
        (0, 0) => format!("{rest}s"),
        (0, _) => format!("{minutes}m{rest}s"),
        _ => format!("{hours}h{minutes}m{rest}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::{
        fixture,
        flows::{Filter, FlowLine, flows},
        render::{Output, text_of},
    };

    const NOW: u64 = 1_700_000_000;
    const BACKEND: MemberKey = MemberKey {
        service: 1,
        backend: 1,
    };

    /// The node; its backend has these flags, and a deadline so many seconds ahead.
    fn contents(flags: Option<u32>, ahead: Option<i64>) -> Contents {
        let mut contents = fixture::contents();
        contents.unix_seconds = NOW;
        let members = &mut contents.tables.members;
        match flags {
            Some(flags) => members.insert((1, 1), flags),
            None => members.remove(&(1, 1)),
        };
        let at = ahead.map(|ahead| NOW.saturating_add_signed(ahead));
        contents.drains = at.map(|at| (BACKEND, at)).into_iter().collect();
        contents
    }

    #[test]
    fn a_backend_that_takes_no_new_flows_drains() {
        const SERVING: u32 = member_flag::SERVING;
        for (name, flags, ahead, expected) in [
            ("in a set", Some(SERVING | member_flag::LOCAL), None, None),
            // The agent has not looked again yet.
            ("back", Some(SERVING | member_flag::CLUSTER), Some(9), None),
            ("serves on", Some(SERVING), None, Some("yes")),
            ("gone", None, None, Some("yes")),
            ("seconds", None, Some(59), Some("59s")),
            ("minutes", None, Some(1_798), Some("29m58s")),
            ("hours", None, Some(5_400), Some("1h30m0s")),
            ("now", None, Some(0), Some("over")),
            ("past", Some(SERVING), Some(-9), Some("over")),
        ] {
            let contents = contents(flags, ahead);
            let half = contents.halves.first().expect("a flow");
            let word = Draining::of(&contents, half).map(|draining| draining.word());
            assert_eq!(word.as_deref(), expected, "{name}");
        }
    }

    #[test]
    fn what_hangs_on_it_is_filtered_and_shown() {
        let filter = Filter {
            draining: true,
            ..Filter::default()
        };
        assert!(flows(&fixture::contents(), &filter).is_empty());
        let flows = flows(&contents(None, Some(1_798)), &filter);
        let lines: Vec<_> = flows.iter().map(FlowLine::from).collect();
        insta::assert_snapshot!(text_of(&lines, Output::Table), @r#"
        PROTOCOL  CLIENT              FRONTEND      SNAT             BACKEND        STATE        IDLE  DRAINING  MODE      NEXT HOP               IDENTITY  SERVICE
        TCP       198.51.100.7:40000  192.0.2.1:80  10.0.0.100:1024  10.0.0.1:8080  established  5s    29m58s    full-nat  10.0.0.254@eth1 / tcx  1234abcd  default/web:http/TCP/IPv4
        TCP       198.51.100.8:40000  192.0.2.1:80  -                10.0.0.1:8080  closed       5s    29m58s    dnat      10.0.0.254@eth1 / tcx  00000042  default/web:http/TCP/IPv4
        "#);
        let first = flows.first().and_then(|flow| flow.draining.as_ref());
        assert_eq!(
            serde_json::to_string(&first).expect("JSON"),
            r#"{"deadline":"2023-11-14T22:43:18Z","secondsLeft":1798}"#
        );
    }
}
