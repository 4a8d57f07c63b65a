//! Named cases: packets in, and for each the verdict, the packet out, and every counter.
//!
//! A case runs once by `lb_xdp` (what it passes goes on to `lb_ingress`, as on a device) and once by
//! `lb_ingress` alone. Both must come to the same packets.

use lb_common::config::Config;

pub use step::{Step, from};

use crate::{
    network::in_network,
    pcap,
    run::{CONFIG, Hook, Lab, with_lab},
    tables::Tables,
};

mod counts;
mod step;

/// A case under construction.
#[must_use]
pub struct Case {
    name: String,
    tables: Tables,
    config: Config,
    hooks: Vec<Hook>,
    steps: Vec<Doing>,
}

enum Doing {
    Packet(Box<Step>),
    Other(Box<dyn Fn(&mut Lab) + Send + Sync>),
}

impl std::fmt::Debug for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Case")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// Starts a case.
pub fn case(name: impl Into<String>, tables: Tables) -> Case {
    Case {
        name: name.into(),
        tables,
        config: CONFIG,
        hooks: vec![Hook::Xdp, Hook::Tcx],
        steps: Vec::new(),
    }
}

impl Case {
    /// Changes the configuration.
    pub fn config(mut self, change: impl FnOnce(&mut Config)) -> Self {
        change(&mut self.config);
        self
    }

    /// Only by one program.
    pub fn only(mut self, hook: Hook) -> Self {
        self.hooks = vec![hook];
        self
    }

    /// A packet and what must come of it.
    pub fn step(mut self, step: Step) -> Self {
        self.steps.push(Doing::Packet(Box::new(step)));
        self
    }

    /// Several.
    pub fn steps(mut self, steps: impl IntoIterator<Item = Step>) -> Self {
        self.steps
            .extend(steps.into_iter().map(|step| Doing::Packet(Box::new(step))));
        self
    }

    /// Anything else: other tables, a look at the flows.
    pub fn then(mut self, act: impl Fn(&mut Lab) + Send + Sync + 'static) -> Self {
        self.steps.push(Doing::Other(Box::new(act)));
        self
    }

    /// New tables.
    pub fn tables(self, tables: Tables, epoch: u32) -> Self {
        self.then(move |lab| lab.apply(&tables.build(epoch)))
    }

    /// Entries that must be in the established and in the embryonic tables.
    pub fn flows(self, established: usize, embryonic: usize) -> Self {
        self.then(move |lab| {
            let found = lab.flow_entries();
            assert_eq!(
                found,
                (established, embryonic),
                "entries (established, embryonic)\n{}",
                lab.describe_flows()
            );
        })
    }

    fn run(&self, lab: &mut Lab, hook: Hook) -> Result<(), String> {
        lab.apply(&self.tables.build(1));
        let mut number = 0;
        for doing in &self.steps {
            match doing {
                Doing::Packet(step) => {
                    number += 1;
                    step.run(lab).map_err(|error| {
                        let name = format!("{} {hook:?} step {number}", self.name);
                        let frames = step.frames();
                        let file = pcap::write(&name, &frames).map_or_else(
                            |e| format!("no pcap: {e}"),
                            |path| path.display().to_string(),
                        );
                        let flows = lab.describe_flows();
                        format!("step {number}: {error}\n  flows:\n{flows}  frames: {file}")
                    })?;
                }
                Doing::Other(act) => act(lab),
            }
        }
        Ok(())
    }
}

/// Runs every case by every program it is meant for, then reports all failures.
///
/// `SLUICE_CASE=words` runs only the cases whose name contains the words, `SLUICE_HOOK=xdp` only
/// those of one program.
pub fn run(cases: Vec<Case>) {
    let wanted = std::env::var("SLUICE_CASE").unwrap_or_default();
    let hooks = std::env::var("SLUICE_HOOK").unwrap_or_default();
    in_network(move || {
        let (mut failures, mut total) = (Vec::new(), 0);
        for case in cases.iter().filter(|case| case.name.contains(&wanted)) {
            for &hook in &case.hooks {
                if !hooks.is_empty() && !format!("{hook:?}").eq_ignore_ascii_case(&hooks) {
                    continue;
                }
                total += 1;
                let mut result = Ok(());
                let run = std::panic::AssertUnwindSafe(|| {
                    with_lab(&case.config, hook, |lab| result = case.run(lab, hook));
                    result
                });
                let outcome = std::panic::catch_unwind(run).unwrap_or_else(|panic| {
                    let text = panic.downcast_ref::<String>().cloned();
                    let text =
                        text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
                    Err(text.unwrap_or_else(|| "panicked".into()))
                });
                if let Err(error) = outcome {
                    failures.push(format!("FAILED {} [{hook:?}]\n  {error}", case.name));
                }
            }
        }
        assert!(
            failures.is_empty(),
            "{} of {total} cases failed\n\n{}",
            failures.len(),
            failures.join("\n\n")
        );
    });
}
