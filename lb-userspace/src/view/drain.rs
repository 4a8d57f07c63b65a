//! What `lbctl detach` does before it removes the links: no new flow, and the old ones end.

use std::collections::BTreeSet;

use lb_common::{
    conntrack::{flag, state},
    flow::protocol,
    service::address_role,
};

use crate::{
    dataplane::TableOp,
    tables::TableSet,
    view::{
        contents::Clock,
        flows::{Half, Table, is_active},
    },
};

/// Seconds after which the answer to a flow that has not proved itself is no longer on its way.
const ANSWERED: u64 = 5;

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

/// Flows `lbctl detach` waits for. `halves` are those of both tables.
///
/// UDP has no end: a flow without a packet for `udp_idle` seconds is over, since no agent expires it.
/// Flows that have not proved themselves count while their backend answers them, which may be all they
/// ever do. What passes to the node's stack goes on without us.
pub fn holding(halves: &[Half], clock: Option<Clock>, udp_idle: u64) -> usize {
    let holds = |half: &&Half| {
        // Without a clock nothing is too old.
        let idle = clock.map_or(0, |clock| clock.seconds_since(half.head.stamp()));
        let udp = half.seen.protocol == u32::from(protocol::UDP);
        match half.table {
            _ if half.flags & flag::PASS != 0 => false,
            Table::Established if udp => idle <= udp_idle,
            Table::Established => is_active(half),
            Table::Embryonic => {
                state::base(half.head.state()) == state::REPLIED && idle <= ANSWERED
            }
        }
    };
    let flows = halves.iter().filter(holds);
    let flows: BTreeSet<_> = flows.map(|half| half.head.identity()).collect();
    flows.len()
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use lb_common::conntrack::Head;

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
    #[test]
    fn detach_waits_for_what_would_break() {
        const NOW: u32 = 10_000;
        let clock = Some(Clock {
            now: NOW,
            tick_ms: 1000,
        });
        let contents = fixture::contents();
        let of = |protocol: u8| {
            let mut halves = contents.halves.iter();
            *halves
                .find(|half| half.seen.protocol == u32::from(protocol))
                .expect("a half")
        };
        let half = |table, protocol, own_state, idle, flags| Half {
            table,
            head: Head::new(7, own_state, NOW - idle),
            flags,
            ..of(protocol)
        };
        let (tcp, udp) = (protocol::TCP, protocol::UDP);
        let (flows, embryonic) = (Table::Established, Table::Embryonic);
        let established = state::ESTABLISHED;
        for (name, halves, expected) in [
            (
                "TCP, idle for long",
                vec![half(flows, tcp, established, 9_000, 0)],
                1,
            ),
            (
                "TCP, half closed",
                vec![half(flows, tcp, state::FIN, 9, 0)],
                1,
            ),
            (
                "TCP, closed",
                vec![half(flows, tcp, state::CLOSED, 0, 0)],
                0,
            ),
            ("UDP", vec![half(flows, udp, established, 30, 0)], 1),
            ("UDP, over", vec![half(flows, udp, established, 31, 0)], 0),
            (
                "UDP, only answers",
                vec![
                    half(flows, udp, established, 99, 0),
                    half(flows, udp, established, 1, flag::REVERSE),
                ],
                1,
            ),
            (
                "UDP, both ways",
                vec![
                    half(flows, udp, established, 1, 0),
                    half(flows, udp, established, 1, flag::REVERSE),
                ],
                1,
            ),
            (
                "the stack's",
                vec![half(flows, udp, established, 0, flag::PASS)],
                0,
            ),
            (
                "never answered",
                vec![half(embryonic, udp, state::EMBRYONIC, 0, 0)],
                0,
            ),
            (
                "being answered",
                vec![half(embryonic, udp, state::REPLIED, 5, flag::REVERSE)],
                1,
            ),
            (
                "was answered",
                vec![half(embryonic, udp, state::REPLIED, 6, flag::REVERSE)],
                0,
            ),
            (
                "promoted meanwhile",
                vec![
                    half(embryonic, tcp, state::REPLIED, 0, flag::REVERSE),
                    half(flows, tcp, established, 0, 0),
                ],
                1,
            ),
        ] {
            assert_eq!(holding(&halves, clock, 30), expected, "{name}");
        }
        let old = [half(flows, udp, established, 9_000, 0)];
        assert_eq!(holding(&old, None, 30), 1, "without a clock");
    }
}
