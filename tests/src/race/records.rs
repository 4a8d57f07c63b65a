//! Input of `lb_expire`, made of what the established tables hold.

use std::collections::BTreeMap;

use lb_common::{
    conntrack::{Entry, Head, flag},
    flow::{Flow as _, Flow4, Flow6},
    names,
};

use super::Act;
use crate::run::Lab;

/// Marks idle halves.
pub const CONDEMN: u8 = 1;
/// Removes what is marked.
pub const DELETE: u8 = 2;
/// Counts what is pending.
pub const COUNT: u8 = 4;

/// A half in the bytes of a record, but for its head.
struct Half {
    v6: bool,
    key: Vec<u8>,
    head: Head,
}

/// For every established flow an act that does `operation` to both its halves, if their heads are as
/// `expected` makes of what they are now. By the client's port.
pub fn expiry(lab: &Lab, operation: u8, expected: impl Fn(Head) -> Head) -> BTreeMap<u16, Act> {
    // Of flows that live at once two may have one identity: it is 32 random bits.
    let mut flows: BTreeMap<(u16, u32), Vec<Half>> = BTreeMap::new();
    let mut note = |v6, key, head: Head, client: u16| {
        let halves = flows.entry((client, head.identity())).or_default();
        halves.push(Half {
            v6,
            key,
            head: expected(head),
        });
    };
    for (flow, entry) in lab.flows4(names::FLOWS_V4) {
        note(false, key4(&flow), entry.head(), client_port(&flow, &entry));
    }
    for (flow, entry) in lab.flows6(names::FLOWS_V6) {
        note(true, key6(&flow), entry.head(), client_port(&flow, &entry));
    }
    let act = |((port, _), halves): ((u16, u32), Vec<Half>)| (port, input(operation, &halves));
    flows.into_iter().map(act).collect()
}

fn client_port<E: Entry>(flow: &E::Flow, entry: &E) -> u16 {
    let port = if entry.flags() & flag::REVERSE == 0 {
        flow.source_port()
    } else {
        entry.written(flow.protocol()).destination_port()
    };
    port.get()
}

/// Header of 14 bytes, then the records.
fn input(operation: u8, halves: &[Half]) -> Act {
    let v6 = halves.iter().any(|half| half.v6);
    let count = u8::try_from(halves.len()).expect("few halves");
    let mut data = vec![operation, if v6 { 6 } else { 4 }, count];
    data.resize(14, 0);
    for half in halves {
        data.extend(&half.key);
        data.extend(half.head.0.to_ne_bytes());
    }
    Act::Expire(data)
}

fn key4(flow: &Flow4) -> Vec<u8> {
    let addresses = [flow.source.0, flow.destination.0].map(u32::to_ne_bytes);
    let ports = [flow.source_port.0, flow.destination_port.0].map(u16::to_ne_bytes);
    let protocol = flow.protocol.to_ne_bytes();
    [addresses.concat(), ports.concat(), protocol.to_vec()].concat()
}

fn key6(flow: &Flow6) -> Vec<u8> {
    let addresses = flow.source.0.into_iter().chain(flow.destination.0);
    let ports = [flow.source_port.0, flow.destination_port.0].map(u16::to_ne_bytes);
    let protocol = flow.protocol.to_ne_bytes();
    let addresses: Vec<u8> = addresses.flat_map(u32::to_ne_bytes).collect();
    [addresses, ports.concat(), protocol.to_vec()].concat()
}
