//! What `lbctl detach` does before it removes the links: no new flow, and the old ones end.

use lb_common::service::address_role;

use crate::{
    dataplane::TableOp,
    tables::TableSet,
    view::flows::{Half, is_active},
};

/// The operations after which new flows go to the node's stack and known flows go on as before.
///
/// Addresses lose their roles first: as long as a VIP is ours, a packet without a frontend is
/// answered by us. SNAT addresses keep theirs, since replies still arrive there.
pub fn drain(tables: &TableSet) -> Vec<TableOp> {
    let addresses = tables.addresses.iter().filter_map(|(&address, &role)| {
        let kept = role & address_role::SNAT;
        match kept {
            _ if kept == role => None,
            0 => Some(TableOp::RemoveAddress(address)),
            _ => Some(TableOp::SetAddress(address, kept)),
        }
    });
    let frontends = tables
        .frontends
        .keys()
        .map(|&id| TableOp::RemoveFrontend(id));
    addresses.chain(frontends).collect()
}

/// Flows which removing the data path now would break.
pub fn remaining(halves: &[Half]) -> usize {
    halves.iter().filter(|half| is_active(half)).count()
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::view::fixture;

    #[test]
    fn draining_leaves_snat_addresses_and_no_frontend() {
        let address = |n| IpAddr::from([192, 0, 2, n]);
        let mut tables = fixture::contents().tables;
        tables.addresses = [
            (address(1), address_role::VIP),
            (address(2), address_role::NODE_PORT | address_role::SNAT),
            (address(3), address_role::SNAT),
        ]
        .into();
        let ops = drain(&tables);
        let frontends = ops
            .iter()
            .filter(|op| matches!(op, TableOp::RemoveFrontend(_)))
            .count();
        assert_eq!(frontends, tables.frontends.len());
        assert_eq!(
            ops.get(..ops.len() - frontends),
            Some(
                &[
                    TableOp::RemoveAddress(address(1)),
                    TableOp::SetAddress(address(2), address_role::SNAT),
                ][..]
            )
        );
    }

    #[test]
    fn only_open_flows_remain() {
        assert_eq!(remaining(&fixture::contents().halves), 1);
    }
}
