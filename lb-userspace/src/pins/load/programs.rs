//! Programs handed to the verifier.

use std::{
    collections::BTreeMap,
    fs, io,
    os::fd::{AsFd as _, OwnedFd},
    panic,
    path::Path,
    thread,
    time::Instant,
};

use aya::{
    Ebpf,
    programs::{Program, ProgramError, TracePoint, links::FdLink},
};
use lb_common::names::{LB_DEVMAP_XMIT, LB_REDIRECT_ERR};
use tracing::{debug, warn};

use crate::pins::{PinDirectory, PinError};

/// Programs that only count; (name, category, tracepoint).
const TRACEPOINTS: [(&str, &str, &str); 2] = [
    (LB_REDIRECT_ERR, "xdp", "xdp_redirect_err"),
    (LB_DEVMAP_XMIT, "xdp", "xdp_devmap_xmit"),
];

/// Loads programs, each by a thread of its own: the verifier takes one CPU for each.
pub(super) fn verify(
    ebpf: &mut Ebpf,
    names: &[&'static str],
) -> Result<BTreeMap<&'static str, OwnedFd>, PinError> {
    let mut programs = BTreeMap::new();
    for (found, program) in ebpf.programs_mut() {
        if let Some(name) = names.iter().find(|name| **name == found) {
            programs.insert(*name, program);
        }
    }
    if let Some(name) = names.iter().find(|name| !programs.contains_key(*name)) {
        return Err(PinError::Object(format!("program {name} is missing")));
    }
    thread::scope(|scope| {
        let start = |(name, program)| (name, scope.spawn(move || verify_one(name, program)));
        let threads: Vec<_> = programs.into_iter().map(start).collect();
        let ends = threads.into_iter().map(|(name, thread)| {
            let program = thread
                .join()
                .unwrap_or_else(|why| panic::resume_unwind(why));
            Ok((name, program?))
        });
        ends.collect()
    })
}

#[expect(clippy::disallowed_methods, reason = "a duration for the log")]
fn verify_one(name: &'static str, program: &mut Program) -> Result<OwnedFd, PinError> {
    let begun = Instant::now();
    let refused = |source: ProgramError| PinError::Program {
        name: name.to_owned(),
        source: Box::new(source),
    };
    match program {
        Program::Xdp(program) => program.load().map_err(refused)?,
        Program::SchedClassifier(program) => program.load().map_err(refused)?,
        _ => {
            return Err(PinError::Object(format!(
                "program {name} is of an unexpected type"
            )));
        }
    }
    debug!(name, took = ?begun.elapsed(), "program verified");
    let fd = program.fd().map_err(refused)?.as_fd();
    fd.try_clone_to_owned()
        .map_err(PinError::io(format!("duplicate the descriptor of {name}")))
}

/// Attaches the programs that count losses after the verdict. They are dispensable: without them
/// (no tracefs, say) packets are balanced all the same, and only these losses go uncounted.
pub(super) fn attach_tracepoints(ebpf: &mut Ebpf, directory: &PinDirectory) {
    for (name, category, tracepoint) in TRACEPOINTS {
        let Some(program) = ebpf.program_mut(name) else {
            continue;
        };
        if let Err(error) = attach_tracepoint(program, category, tracepoint, &directory.link(name))
        {
            let error = format!("{error:#}");
            warn!(name, error, "losses after the verdict are not counted");
        }
    }
}

fn attach_tracepoint(
    program: &mut Program,
    category: &str,
    tracepoint: &str,
    pin: &Path,
) -> anyhow::Result<()> {
    let program: &mut TracePoint = program.try_into()?;
    program.load()?;
    let id = program.attach(category, tracepoint)?;
    let link = FdLink::try_from(program.take_link(id)?)?;
    // A new link each time: the old program goes when its pin does, the new one counts already.
    match fs::remove_file(pin) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    link.pin(pin)?;
    Ok(())
}
