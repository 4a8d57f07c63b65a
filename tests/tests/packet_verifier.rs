//! How much of the kernel's patience the programs take.

use lb_tests::{bench::verifier, require};

#[test]
fn every_program_keeps_to_the_budget_of_the_verifier() {
    if !require::kernel_tests() {
        return;
    }
    let counts = verifier::count(&require::object_path()).expect("every program loads");
    println!("instructions verified: {counts:?}");
    let budget = verifier::budget().expect("the budget is committed");
    if let Err(error) = verifier::check(&counts, &budget) {
        panic!("{error:#}");
    }
}
