//! The API server of the gate itself: it goes and comes whatever else the test does.

use std::process::Command;

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
    std::thread::scope(|scope| {
        let outages = scope.spawn(move || {
            let ways = [Outage::Gone, Outage::Failing].into_iter().cycle();
            for way in ways.take(OUTAGES) {
                api.fail(way);
                api.recover(false);
            }
        });
        std::thread::scope(|programs| {
            for _ in 0..4 {
                programs.spawn(|| {
                    while !outages.is_finished() {
                        succeed(&mut Command::new("true"));
                    }
                });
            }
        });
    });
}
