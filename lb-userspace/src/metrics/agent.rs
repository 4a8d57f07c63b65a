//! What the agent itself does, counted as it happens.

use std::time::Duration;

use prometheus_client::{
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
        info::Info,
    },
    registry::{Registry, Unit},
};

use crate::dataplane::TableOp;

/// One label: name and value.
type Label = [(&'static str, &'static str); 1];

/// The agent's own metrics.
#[derive(Debug)]
pub(super) struct Agent {
    pub(super) plans: Histogram,
    pub(super) applies: Histogram,
    pub(super) apply_failures: Counter,
    operations: Family<Label, Counter>,
    programming: Histogram,
    pub(super) resyncs: Counter,
    pub(super) drifts: Counter,
    pub(super) expiry_passes: Histogram,
    pub(super) expired: Counter,
    pub(super) draining: Gauge,
    rejected: Family<Label, Gauge>,
    without_local: Family<Label, Gauge>,
    pressure: Family<Label, Counter>,
    pub(super) source_complete: Gauge,
}

impl Agent {
    /// Makes them known to a registry.
    pub(super) fn new(registry: &mut Registry) -> Self {
        // 100 µs to 6.5 s.
        let durations = || Histogram::new(exponential_buckets(0.0001, 2.0, 17));
        let agent = Self {
            plans: durations(),
            applies: durations(),
            apply_failures: Counter::default(),
            operations: Family::default(),
            programming: Histogram::new([
                0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0,
                120.0, 300.0,
            ]),
            resyncs: Counter::default(),
            drifts: Counter::default(),
            expiry_passes: durations(),
            expired: Counter::default(),
            draining: Gauge::default(),
            rejected: Family::default(),
            without_local: Family::default(),
            pressure: Family::default(),
            source_complete: Gauge::default(),
        };
        agent.register(registry);
        agent
    }

    fn register(&self, registry: &mut Registry) {
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        registry.register("build", "What the agent was built from", Info::new(version));
        let mut timed = |name: &str, help: &str, histogram: &Histogram| {
            registry.register_with_unit(name, help, Unit::Seconds, histogram.clone());
        };
        timed("plan_duration", "Time to decide the tables", &self.plans);
        timed("apply_duration", "Time to write the tables", &self.applies);
        timed(
            "network_programming_duration",
            "Time from the cause of a change of endpoints to the tables, by the annotation endpoints.kubernetes.io/last-change-trigger-time",
            &self.programming,
        );
        timed(
            "expiry_pass_duration",
            "Time to go over the flow tables once",
            &self.expiry_passes,
        );
        let mut counted = |name: &str, unit: &str, help: &str, counter: &Counter| {
            registry.register_with_unit(name, help, Unit::Other(unit.into()), counter.clone());
        };
        counted(
            "apply",
            "failures",
            "Times the tables could not be written",
            &self.apply_failures,
        );
        counted(
            "resync",
            "passes",
            "Times the tables were read back",
            &self.resyncs,
        );
        counted(
            "resync",
            "drifts",
            "Times the tables were not as the agent had left them",
            &self.drifts,
        );
        counted(
            "expired",
            "entries",
            "Entries of the flow tables deleted because they were idle; a flow has two",
            &self.expired,
        );
        registry.register_with_unit(
            "draining",
            "Flows of backends that are terminating or gone, which their drain deadline ends",
            Unit::Other("flows".into()),
            self.draining.clone(),
        );
        registry.register_with_unit(
            "table",
            "Operations on the tables",
            Unit::Other("operations".into()),
            self.operations.clone(),
        );
        registry.register_with_unit(
            "rejected",
            "Objects that are not served, or only in part",
            Unit::Other("objects".into()),
            self.rejected.clone(),
        );
        registry.register_with_unit(
            "without_local_endpoint",
            "Service ports whose policy is Local for this traffic, with endpoints but none on this node",
            Unit::Other("service_ports".into()),
            self.without_local.clone(),
        );
        registry.register_with_unit(
            "table_pressure",
            "Times a table was found to fill or to be full; SNAT ports are the table snat",
            Unit::Other("warnings".into()),
            self.pressure.clone(),
        );
        registry.register(
            "source_complete",
            "1 if every source of objects has delivered a complete list, else 0",
            self.source_complete.clone(),
        );
    }

    /// Operations were carried out.
    pub(super) fn operations(&self, ops: &[TableOp]) {
        for run in ops.chunk_by(|a, b| operation(a) == operation(b)) {
            if let Some(first) = run.first() {
                let label = [("operation", operation(first))];
                let counter = self.operations.get_or_create(&label);
                counter.inc_by(run.len() as u64);
            }
        }
    }

    /// A table was told of.
    pub(super) fn pressed(&self, table: &'static str) {
        self.pressure.get_or_create(&[("table", table)]).inc();
    }

    /// Changes of endpoints reached the tables.
    pub(super) fn programmed(&self, delays: &[Duration]) {
        for delay in delays {
            self.programming.observe(delay.as_secs_f64());
        }
    }

    /// Rejected objects of a kind.
    pub(super) fn rejected(&self, kind: &'static str, objects: usize) {
        set(&self.rejected, [("kind", kind)], objects);
    }

    /// Service ports without a local endpoint.
    pub(super) fn without_local(&self, traffic: &'static str, ports: usize) {
        set(&self.without_local, [("traffic", traffic)], ports);
    }
}

fn set(family: &Family<Label, Gauge>, label: Label, value: usize) {
    let value = i64::try_from(value).unwrap_or(i64::MAX);
    family.get_or_create(&label).set(value);
}

/// The metric label of an operation.
const fn operation(op: &TableOp) -> &'static str {
    match op {
        TableOp::SetBackend(..) => "set_backend",
        TableOp::RemoveBackend(_) => "remove_backend",
        TableOp::SetMember(..) => "set_member",
        TableOp::RemoveMember(_) => "remove_member",
        TableOp::WriteExtent(..) => "write_extent",
        TableOp::FreeExtent(_) => "free_extent",
        TableOp::SetService(..) => "set_service",
        TableOp::RemoveService(_) => "remove_service",
        TableOp::SetAddress(..) => "set_address",
        TableOp::RemoveAddress(_) => "remove_address",
        TableOp::SetFrontend(..) => "set_frontend",
        TableOp::RemoveFrontend(_) => "remove_frontend",
        TableOp::SetGatewayEndpoint(_) => "set_gateway_endpoint",
        TableOp::RemoveGatewayEndpoint(_) => "remove_gateway_endpoint",
        TableOp::SetSourceRange(..) => "set_source_range",
        TableOp::RemoveSourceRange(..) => "remove_source_range",
        TableOp::SetSourceClass(..) => "set_source_class",
        TableOp::RemoveSourceClass(_) => "remove_source_class",
    }
}
