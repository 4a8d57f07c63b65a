//! Why the API cannot be followed, in plain words, and how often that is said.

use std::{collections::BTreeSet, error::Error, io};

use kube::{core::Status, runtime::watcher};

use super::What;

/// Why a stream of events broke off.
#[derive(Debug)]
pub(super) enum Failure {
    /// kube says so.
    Watcher(watcher::Error),
    /// The server did not go on with a list.
    Slow,
}

impl Failure {
    /// The server refuses to list or watch: it does not know the kind, or we are not allowed to.
    pub(super) fn is_refusal(&self) -> bool {
        self.status()
            .is_some_and(|status| matches!(status.code, 403 | 404))
    }

    /// A watch that went well broke off, or what the server remembers does not reach back to its
    /// beginning. If the next attempt succeeds, that is no outage.
    pub(super) fn is_interruption(&self) -> bool {
        match self.status() {
            Some(status) => status.code == 410,
            None => matches!(self, Self::Watcher(watcher::Error::WatchFailed(_))),
        }
    }

    fn status(&self) -> Option<&Status> {
        match self {
            Self::Watcher(watcher::Error::WatchError(status)) => Some(status),
            Self::Watcher(
                watcher::Error::InitialListFailed(error)
                | watcher::Error::WatchStartFailed(error)
                | watcher::Error::WatchFailed(error),
            ) => match error {
                kube::Error::Api(status) => Some(status),
                _ => None,
            },
            Self::Watcher(watcher::Error::NoResourceVersion) | Self::Slow => None,
        }
    }

    /// The cause, for whoever is to put it right.
    pub(super) fn explain(&self, what: What) -> String {
        if let Some(status) = self.status() {
            return refusal(status, what);
        }
        match self {
            Self::Slow => "the API server does not go on with a list it began".to_owned(),
            Self::Watcher(error) => transport(error),
        }
    }
}

fn refusal(status: &Status, what: What) -> String {
    let message = status.message.trim();
    match status.code {
        401 => "the API server does not know who we are (401 Unauthorized): the token of the \
                ServiceAccount, or the credentials of the kubeconfig, are wrong or expired"
            .to_owned(),
        403 => {
            let user = message
                .split_once("User \"")
                .and_then(|(_, rest)| rest.split_once('"'))
                .map_or("the agent's user", |(user, _)| user);
            let user = match user.strip_prefix("system:serviceaccount:") {
                Some(account) => format!("ServiceAccount {}", account.replacen(':', "/", 1)),
                None => user.to_owned(),
            };
            format!(
                "{user} is not allowed to (403 Forbidden): a ClusterRole must let it list and \
                 watch {} ({message})",
                what.resource()
            )
        }
        404 => format!(
            "the API server does not serve {} (404 Not Found)",
            what.resource()
        ),
        code => format!("the API server answers {code}: {message}"),
    }
}

/// The innermost cause that says something.
fn transport(error: &watcher::Error) -> String {
    let mut texts: Vec<String> = Vec::new();
    let mut cause: Option<&dyn Error> = Some(error);
    while let Some(error) = cause {
        match error.downcast_ref::<io::Error>().map(io::Error::kind) {
            Some(io::ErrorKind::ConnectionRefused) => {
                return "connection refused: no API server listens there".to_owned();
            }
            Some(io::ErrorKind::TimedOut) => {
                return "the API server does not answer".to_owned();
            }
            Some(io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof) => {
                return "the API server closed the connection".to_owned();
            }
            _ => {}
        }
        texts.push(error.to_string());
        cause = error.source();
    }
    // Every cause repeats those below it: the last one is the shortest.
    texts.pop().unwrap_or_default()
}

/// Most causes that are told of one outage.
const CAUSES: usize = 64;

/// What fails at the moment, and what was said about it.
#[derive(Debug, Default)]
pub(super) struct Outages {
    open: BTreeSet<What>,
    said: BTreeSet<String>,
}

impl Outages {
    /// Notes a failure. Returns whether its cause is news.
    pub(super) fn failed(&mut self, what: What, cause: &str) -> bool {
        self.open.insert(what);
        // Numbers apart: some causes tell the time, or a version.
        let kind = cause.replace(|c: char| c.is_ascii_digit(), "#");
        self.said.len() < CAUSES && self.said.insert(kind)
    }

    /// Notes an answer. Returns whether it ends the outage.
    pub(super) fn answered(&mut self, what: What) -> bool {
        let over = self.open.remove(&what) && self.open.is_empty();
        if over {
            self.said.clear();
        }
        over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn api(code: u16, message: &str) -> Failure {
        let status = Status {
            code,
            message: message.to_owned(),
            ..Status::default()
        };
        let error = kube::Error::Api(Box::new(status));
        Failure::Watcher(watcher::Error::InitialListFailed(error))
    }

    fn connection(kind: io::ErrorKind) -> Failure {
        let error = kube::Error::Service(Box::new(io::Error::from(kind)));
        Failure::Watcher(watcher::Error::WatchStartFailed(error))
    }

    #[test]
    fn causes_are_plain() {
        let forbidden = "services is forbidden: User \"system:serviceaccount:sluice:agent\" cannot \
                         list resource \"services\" in API group \"\" at the cluster scope";
        for (name, failure, expected) in [
            (
                "RBAC",
                api(403, forbidden),
                "ServiceAccount sluice/agent is not allowed to (403 Forbidden): a ClusterRole must \
                 let it list and watch services",
            ),
            (
                "another user",
                api(403, "nodes is forbidden: User \"jane\" cannot"),
                "jane is not allowed to",
            ),
            (
                "credentials",
                api(401, "Unauthorized"),
                "the API server does not know who we are",
            ),
            (
                "an old server",
                api(404, "the server could not find the requested resource"),
                "the API server does not serve services (404 Not Found)",
            ),
            (
                "an overloaded server",
                api(429, "too many requests"),
                "the API server answers 429: too many requests",
            ),
            (
                "no server",
                connection(io::ErrorKind::ConnectionRefused),
                "connection refused",
            ),
            (
                "silence",
                connection(io::ErrorKind::TimedOut),
                "the API server does not answer",
            ),
            (
                "half a list",
                Failure::Slow,
                "the API server does not go on",
            ),
        ] {
            let cause = failure.explain(What::Services);
            assert!(cause.starts_with(expected), "{name}: {cause}");
        }
    }

    #[test]
    fn a_watch_that_breaks_off_is_no_outage_yet() {
        let broken = || kube::Error::ReadEvents(io::ErrorKind::ConnectionReset.into());
        for (name, failure, expected) in [
            ("410 Gone", api(410, "too old resource version"), true),
            (
                "a connection cut",
                Failure::Watcher(watcher::Error::WatchFailed(broken())),
                true,
            ),
            (
                "at its start",
                Failure::Watcher(watcher::Error::WatchStartFailed(broken())),
                false,
            ),
            ("RBAC", api(403, "no"), false),
        ] {
            assert_eq!(failure.is_interruption(), expected, "{name}");
        }
    }

    #[test]
    fn an_outage_is_told_once_and_so_is_its_end() {
        let mut outages = Outages::default();
        assert!(outages.failed(What::Services, "refused"), "news");
        assert!(!outages.failed(What::Slices, "refused"), "the same cause");
        assert!(!outages.failed(What::Services, "refused"), "again");
        assert!(outages.failed(What::Services, "401"), "another cause");
        assert!(outages.failed(What::Services, "expired at 17"), "a third");
        assert!(
            !outages.failed(What::Services, "expired at 18"),
            "the same but for a number"
        );
        assert!(!outages.failed(What::Services, "refused"), "to and fro");
        assert!(!outages.answered(What::Node), "was never out");
        assert!(!outages.answered(What::Services), "not all");
        assert!(outages.answered(What::Slices), "the end");
        assert!(!outages.answered(What::Slices), "only once");
        assert!(outages.failed(What::Slices, "refused"), "a new outage");
    }
}
