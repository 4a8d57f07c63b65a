//! Interim.
use lb_userspace::{dataplane::TableOp, tables::TableSet};
/// Interim.
pub(crate) fn diff(a: &TableSet, b: &TableSet) -> Vec<TableOp> {
    let mut ops = Vec::new();
    for (k, v) in &b.backends {
        ops.push(TableOp::SetBackend(*k, v.clone()));
    }
    for (k, v) in &b.members {
        ops.push(TableOp::SetMember(*k, *v));
    }
    for (k, v) in &b.extents {
        ops.push(TableOp::WriteExtent(*k, v.clone()));
    }
    for (k, v) in &b.services {
        ops.push(TableOp::SetService(*k, v.clone()));
    }
    for (k, v) in &b.addresses {
        ops.push(TableOp::SetAddress(*k, *v));
    }
    for k in &b.gateway_endpoints {
        ops.push(TableOp::SetGatewayEndpoint(*k));
    }
    for (k, v) in &b.frontends {
        ops.push(TableOp::SetFrontend(*k, v.clone()));
    }
    for k in a.frontends.keys() {
        if !b.frontends.contains_key(k) {
            ops.push(TableOp::RemoveFrontend(*k));
        }
    }
    for k in a.services.keys() {
        if !b.services.contains_key(k) {
            ops.push(TableOp::RemoveService(*k));
        }
    }
    for k in a.members.keys() {
        if !b.members.contains_key(k) {
            ops.push(TableOp::RemoveMember(*k));
        }
    }
    ops
}
