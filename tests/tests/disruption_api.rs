//! The API server of the gate itself: it goes and comes whatever else the test does.

use std::sync::atomic::{AtomicBool, Ordering};

use lb_tests::{
    disruption::api::{Api, Outage},
    netns::{Namespace, serial, succeed},
    require,
};

/// Outages; every other one takes the port and wants it again at once.
const OUTAGES: usize = 100;

/// Its listener is closed, but each program that another thread starts holds what is open until it runs.
#[test]
fn it_comes_back_while_programs_are_started() {
    if !require::kernel_tests() {
        return;
    }
    let _one = serial();
    let namespace = Namespace::new("api");
    let mut api = Api::start(&namespace);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    succeed(&mut std::process::Command::new("true"));
                }
            });
        }
        let outages = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for outage in [Outage::Gone, Outage::Failing]
                .into_iter()
                .cycle()
                .take(OUTAGES)
            {
                api.fail(outage);
                api.recover(false);
            }
        }));
        stop.store(true, Ordering::Relaxed);
        outages.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}
