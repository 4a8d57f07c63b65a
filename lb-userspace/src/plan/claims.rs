//! Settles who owns a frontend that several Services ask for.

use std::collections::{BTreeSet, HashMap};

use super::draft::{ServiceDraft, owner};
use crate::{
    snapshot::{ObjectName, Rejection},
    tables::{FrontendId, TableSet},
};

/// What decides: the older Service, else the one that holds the frontend already, else the name.
/// A Service without a creation time counts as younger than any with one.
type Precedence<'a> = (i64, bool, &'a ObjectName);

/// Leaves each frontend to one Service and takes it from the others, which are reported. Service
/// ports that lose their last frontend go. Returns what was taken from whom.
pub(super) fn resolve(
    drafts: &mut [ServiceDraft],
    previous: &TableSet,
    rejected: &mut Vec<Rejection>,
) -> BTreeSet<(ObjectName, FrontendId)> {
    let mut owners: HashMap<FrontendId, usize> = HashMap::new();
    let mut lost: BTreeSet<(usize, FrontendId)> = BTreeSet::new();
    for (index, draft) in drafts.iter().enumerate() {
        for claim in draft.ports.iter().flat_map(|port| &port.frontends) {
            let frontend = claim.frontend;
            let Some(&current) = owners.get(&frontend) else {
                owners.insert(frontend, index);
                continue;
            };
            let Some(rival) = drafts.get(current) else {
                continue;
            };
            let rank = |draft| precedence(draft, frontend, previous);
            let (winner, loser) = if rank(draft) < rank(rival) {
                (index, current)
            } else {
                (current, index)
            };
            owners.insert(frontend, winner);
            lost.insert((loser, frontend));
        }
    }
    if lost.is_empty() {
        return BTreeSet::new();
    }
    let names: Vec<_> = drafts
        .iter()
        .map(|draft| (draft.name.clone(), draft.created))
        .collect();
    for (index, draft) in drafts.iter_mut().enumerate() {
        for port in &mut draft.ports {
            port.frontends.retain(|claim| {
                if !lost.contains(&(index, claim.frontend)) {
                    return true;
                }
                let winner = owners
                    .get(&claim.frontend)
                    .and_then(|&winner| names.get(winner));
                if let Some((winner, created)) = winner {
                    let older = match (created, draft.created) {
                        (Some(winner), Some(loser)) if winner < &loser => ", which is older",
                        (Some(_), None) => ", which has a creation time",
                        _ => "",
                    };
                    rejected.push(Rejection::service(
                        &draft.name,
                        &*claim.field,
                        format!("{} belongs to Service {winner}{older}", claim.frontend),
                    ));
                }
                false
            });
        }
        draft.ports.retain(|port| !port.frontends.is_empty());
    }
    lost.into_iter()
        .filter_map(|(index, frontend)| Some((names.get(index)?.0.clone(), frontend)))
        .collect()
}

fn precedence<'a>(
    draft: &'a ServiceDraft,
    frontend: FrontendId,
    previous: &TableSet,
) -> Precedence<'a> {
    let holder = previous.frontends.get(&frontend);
    let holder = holder.and_then(|record| previous.services.get(&record.service));
    let holds = holder.is_some_and(|record| owner(&record.name) == draft.name.to_string());
    (draft.created.unwrap_or(i64::MAX), !holds, &draft.name)
}
