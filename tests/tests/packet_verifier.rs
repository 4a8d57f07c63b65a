//! How much of the kernel's patience the programs take.

use std::collections::BTreeMap;

use aya::{EbpfLoader, programs::Program};
use lb_common::names;
use lb_tests::require;

/// Half of the instructions the verifier follows before it gives up (`BPF_COMPLEXITY_LIMIT_INSNS`). Another
/// kernel, or another compiler, comes to another number for the same program.
const MOST: u32 = 500_000;

/// Sizes that load in no time.
const SMALL: u32 = 1_024;

#[test]
fn the_verifier_is_never_near_its_limit() {
    if !require::kernel_tests() {
        return;
    }
    let mut loader = EbpfLoader::new();
    loader.btf(None);
    for (name, _) in names::MAPS
        .iter()
        .filter(|(name, _)| *name != names::EVENTS)
    {
        loader.map_max_entries(name, SMALL);
    }
    let mut object = loader
        .load_file(require::object_path())
        .expect("the data path");
    let mut verified = BTreeMap::new();
    for (name, program) in object.programs_mut() {
        let outcome = match program {
            Program::Xdp(program) => program.load().and_then(|()| program.info()),
            Program::SchedClassifier(program) => program.load().and_then(|()| program.info()),
            // Tracepoints of a few instructions.
            _ => continue,
        };
        let info = outcome.unwrap_or_else(|e| panic!("{name}: {e}"));
        let count = info.verified_instruction_count();
        verified.insert(name.to_owned(), count);
    }
    println!("instructions verified: {verified:?}");
    let heavy = verified
        .iter()
        .filter(|(_, count)| count.is_none_or(|n| n > MOST));
    assert_eq!(heavy.collect::<Vec<_>>(), [], "more than {MOST}");
    assert!(verified.contains_key(names::LB_INGRESS), "{verified:?}");
}
