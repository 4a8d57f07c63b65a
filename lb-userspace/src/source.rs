//! Where Services come from: what every source delivers, and several sources as one.
//!
//! ```text
//! manifests ──────┐
//!                 ├─ merge ─▶ SourceState ─▶ agent
//! Kubernetes API ─┘
//! ```

use std::sync::Arc;

use futures::future::select_all;
use tokio::sync::watch;

use crate::snapshot::{NodeObject, Rejection, Snapshot};

/// What a source knows at one moment.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct SourceState {
    /// The objects.
    pub snapshot: Snapshot,
    /// This node's own Node object, if the source has it.
    pub node: Option<NodeObject>,
    /// What was left out of the snapshot, or kept at an older version.
    pub rejections: Vec<Rejection>,
    /// Something is there that cannot be read: objects may be missing that should not.
    pub unread: bool,
    /// False until the first complete list: nothing may be changed before.
    pub complete: bool,
}

/// What of a cluster's objects is ours.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Scope {
    /// Name of this node.
    pub node_name: String,
    /// The proxy Services must name by label; without, those are ours which name none.
    pub service_proxy_name: Option<String>,
}

/// A source under the name people know it by.
#[derive(Clone, Debug)]
pub struct Named {
    /// Such as `the Kubernetes API`.
    pub name: &'static str,
    /// What it delivers.
    pub state: watch::Receiver<Arc<SourceState>>,
}

/// Follows several sources as if they were one: complete when each of them is. Of an object that
/// two define the first one's is used and the other reported.
///
/// The result ends when one of the sources does. To be called inside a runtime.
pub fn merge(mut sources: Vec<Named>) -> watch::Receiver<Arc<SourceState>> {
    if let [only] = sources.as_slice() {
        return only.state.clone();
    }
    let (sender, receiver) = watch::channel(Arc::new(join(&current(&mut sources))));
    tokio::spawn(async move {
        loop {
            let changes = sources.iter_mut().map(|s| Box::pin(s.state.changed()));
            if changes.len() == 0 {
                return;
            }
            tokio::select! {
                (result, ..) = select_all(changes) => {
                    if result.is_err() {
                        return;
                    }
                }
                () = sender.closed() => return,
            }
            sender.send_replace(Arc::new(join(&current(&mut sources))));
        }
    });
    receiver
}

type State = (&'static str, Arc<SourceState>);

fn current(sources: &mut [Named]) -> Vec<State> {
    let read = |source: &mut Named| (source.name, Arc::clone(&source.state.borrow_and_update()));
    sources.iter_mut().map(read).collect()
}

/// The first source's objects, and of the others what it does not have.
fn join(states: &[State]) -> SourceState {
    let Some(((first, state), others)) = states.split_first() else {
        return SourceState::default();
    };
    let mut joined = SourceState::clone(state);
    let mut owners: Vec<(&str, &Snapshot)> = vec![(first, &state.snapshot)];
    for (name, state) in others {
        let SourceState {
            snapshot,
            node,
            rejections,
            unread,
            complete,
        } = state.as_ref();
        let into = &mut joined.snapshot;
        for (key, object) in &snapshot.services {
            let owner = owners.iter().find(|(_, s)| s.services.contains_key(key));
            match owner {
                Some((owner, _)) => joined.rejections.push(Rejection {
                    object: format!("Service {key} of {name}"),
                    ..Rejection::service(key, "metadata.name", duplicate(owner))
                }),
                None => drop(into.services.insert(key.clone(), Arc::clone(object))),
            }
        }
        for (key, object) in &snapshot.slices {
            let owner = owners.iter().find(|(_, s)| s.slices.contains_key(key));
            match owner {
                Some((owner, _)) => joined.rejections.push(Rejection {
                    object: format!("EndpointSlice {key} of {name}"),
                    ..Rejection::slice(key, "metadata.name", duplicate(owner))
                }),
                None => drop(into.slices.insert(key.clone(), Arc::clone(object))),
            }
        }
        into.service_networks.extend(&snapshot.service_networks);
        joined.node = joined.node.or_else(|| node.clone());
        joined.rejections.extend_from_slice(rejections);
        joined.unread |= unread;
        joined.complete &= complete;
        owners.push((name, snapshot));
    }
    joined
}

fn duplicate(owner: &str) -> String {
    format!("is also defined in {owner}, which is used")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        plan::fixture::{service, slice},
        snapshot::ObjectName,
    };

    fn state(services: &[(&str, &str)], slices: &[&str]) -> SourceState {
        let mut state = SourceState {
            complete: true,
            ..SourceState::default()
        };
        for (name, address) in services {
            let object = service(name, &[address], &["80"]);
            let name = object.name.clone();
            state.snapshot.services.insert(name, Arc::new(object));
        }
        for name in slices {
            let object = slice(name, &["8080"], &["10.1.0.1"]);
            let name = object.name.clone();
            state.snapshot.slices.insert(name, Arc::new(object));
        }
        state
    }

    /// Services with their addresses, slices, rejections.
    fn text(state: &SourceState) -> Vec<String> {
        let services = state.snapshot.services.values();
        let services = services.map(|s| format!("{} {}", s.name, s.ingress_ips[0].address));
        let slices = state.snapshot.slices.keys().map(ObjectName::to_string);
        let rejections = state.rejections.iter().map(Rejection::to_string);
        services.chain(slices).chain(rejections).collect()
    }

    fn joined(states: [SourceState; 2]) -> SourceState {
        let [api, manifests] = states.map(Arc::new);
        join(&[("the Kubernetes API", api), ("the manifests", manifests)])
    }

    #[test]
    fn several_sources_are_one() {
        let node = |name: &str| {
            Some(NodeObject {
                name: name.to_owned(),
                ..NodeObject::default()
            })
        };
        for (name, api, manifests, expected) in [
            (
                "objects of both are there",
                state(&[("a", "192.0.2.1")], &["a_1"]),
                state(&[("b", "192.0.2.2")], &["b_1"]),
                vec![
                    "default/a 192.0.2.1",
                    "default/b 192.0.2.2",
                    "default/a_1",
                    "default/b_1",
                ],
            ),
            (
                "of a duplicate the first one's is used, the other reported",
                state(&[("a", "192.0.2.1")], &["a_1"]),
                state(&[("a", "192.0.2.2")], &["a_1"]),
                vec![
                    "default/a 192.0.2.1",
                    "default/a_1",
                    "Service default/a of the manifests: metadata.name: is also defined in the Kubernetes API, which is used",
                    "EndpointSlice default/a_1 of the manifests: metadata.name: is also defined in the Kubernetes API, which is used",
                ],
            ),
            ("nothing at all", state(&[], &[]), state(&[], &[]), vec![]),
        ] {
            assert_eq!(text(&joined([api, manifests])), expected, "{name}");
        }
        for (name, api, manifests, expected) in [
            ("both complete", (true, false), (true, false), (true, false)),
            (
                "one incomplete",
                (false, false),
                (true, false),
                (false, false),
            ),
            (
                "the other incomplete",
                (true, false),
                (false, false),
                (false, false),
            ),
            ("one unread", (true, false), (true, true), (true, true)),
        ] {
            let with = |(complete, unread)| SourceState {
                unread,
                complete,
                ..SourceState::default()
            };
            let state = joined([with(api), with(manifests)]);
            assert_eq!((state.complete, state.unread), expected, "{name}");
        }
        let with = |node| SourceState {
            node,
            ..state(&[], &[])
        };
        let state = joined([with(None), with(node("edge-1"))]);
        assert_eq!(
            state.node.map(|n| n.name).as_deref(),
            Some("edge-1"),
            "the only Node"
        );
        let state = joined([with(node("edge-1")), with(node("edge-2"))]);
        assert_eq!(
            state.node.map(|n| n.name).as_deref(),
            Some("edge-1"),
            "the first Node"
        );
    }

    #[tokio::test]
    async fn changes_of_any_source_are_told_until_one_ends() {
        let (api, api_state) = watch::channel(Arc::default());
        let (manifests, manifests_state) =
            watch::channel(Arc::new(state(&[("b", "192.0.2.2")], &[])));
        let mut merged = merge(vec![
            Named {
                name: "the Kubernetes API",
                state: api_state,
            },
            Named {
                name: "the manifests",
                state: manifests_state,
            },
        ]);
        assert!(!merged.borrow_and_update().complete);
        api.send_replace(Arc::new(state(&[("a", "192.0.2.1")], &[])));
        let changed = tokio::time::timeout(Duration::from_secs(10), merged.changed());
        changed
            .await
            .expect("a change in time")
            .expect("a merge that runs");
        let now = Arc::clone(&merged.borrow_and_update());
        assert!(now.complete);
        assert_eq!(text(&now), ["default/a 192.0.2.1", "default/b 192.0.2.2"]);
        drop(manifests);
        let ended = tokio::time::timeout(Duration::from_secs(10), merged.changed());
        ended.await.expect("an end in time").expect_err("the end");
    }
}
