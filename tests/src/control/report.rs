//! The tables for people.

use std::path::PathBuf;

use super::{Changes, Outcome, Whole};

/// Prints what was measured with one number of Services.
#[expect(clippy::print_stdout, reason = "the result of the program")]
pub(super) fn print(outcome: &Outcome) {
    let Outcome {
        services,
        endpoints,
        memory: [before, after],
        whole,
        changes,
        read_back: [read, compared],
        kernel,
    } = outcome;
    println!("{services} Services of {endpoints} endpoints");
    println!(
        "  everything, ms{:>24}{:>10}{:>10}{:>12}",
        "plan", "apply", "both", "operations"
    );
    for Whole {
        what,
        plan,
        apply,
        operations,
    } in whole
    {
        let both = plan + apply;
        println!("    {what:<24}{plan:>10.1}{apply:>10.1}{both:>10.1}{operations:>12}");
    }
    println!(
        "  one change, ms{:>24}{:>16}{:>10}{:>10}{:>10}{:>8}{:>8}",
        "plan p50", "apply p50", "p50", "p99", "p99.9", "max", "whole"
    );
    for Changes {
        what,
        whole,
        plan,
        apply,
        total,
    } in changes
    {
        println!(
            "    {what:<26}{:>9.3}{:>16.3}{:>10.3}{:>10.3}{:>10.3}{:>8.2}{whole:>8}",
            plan.p50, apply.p50, total.p50, total.p99, total.p999, total.max
        );
    }
    println!("  all tables read back in {read:.1} ms, compared in {compared:.1} ms");
    println!(
        "  resident memory at most {:.0} MiB, before the first plan {:.0} MiB",
        mebibytes(*after),
        mebibytes(*before)
    );
    println!(
        "  kernel memory of a service port {:.0} B (Maglev tables {:.0} B), of a backend {:.0} B; \
         all maps {:.0} MiB\n",
        kernel.service,
        kernel.slots,
        kernel.backend,
        mebibytes(kernel.all)
    );
}

/// Says where the pictures are.
#[expect(clippy::print_stdout, reason = "the result of the program")]
pub(super) fn drawn(plots: &[PathBuf]) {
    for plot in plots {
        println!("drawn: {}", plot.display());
    }
}

#[expect(clippy::cast_precision_loss, reason = "for people to read")]
pub(super) fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
