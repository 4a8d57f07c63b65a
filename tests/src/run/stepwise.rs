//! Changes of the tables while packets come: after each single map write, or at the same time.

use std::sync::mpsc::channel;

use lb_userspace::{dataplane::TableOp, kernel::look_after_each_write};

use super::Lab;

impl Lab {
    /// Performs the operations as the agent does, and lets `look` see the data path after each map
    /// write: its number, from 1, and the map's name.
    pub fn apply_stepwise(&self, ops: &[TableOp], mut look: impl FnMut(&Self, usize, &str)) {
        let mut dataplane = self.dataplane.borrow_mut();
        let dataplane = &mut *dataplane;
        std::thread::scope(|scope| {
            let (stopped, stops) = channel();
            let (go, goes) = channel();
            // Not this thread: who looks writes maps, too.
            let writer = scope.spawn(move || {
                let stop = move |map| {
                    // A look that failed ends both channels: the rest is written without a stop.
                    let _gone = stopped.send(map).is_err() || goes.recv().is_err();
                };
                look_after_each_write(stop, || dataplane.apply_all(ops))
            });
            for (number, map) in (1..).zip(&stops) {
                look(self, number, self.name_of(map));
                go.send(()).expect("the writer waits");
            }
            let result = writer.join().expect("the writer ends");
            result.unwrap_or_else(|(done, e)| panic!("after {done} operations: {e}"));
        });
    }

    /// Performs the operations as the agent does; `meanwhile` runs again and again until they are done.
    pub fn apply_meanwhile(&self, ops: &[TableOp], mut meanwhile: impl FnMut(&Self)) {
        let mut dataplane = self.dataplane.borrow_mut();
        let dataplane = &mut *dataplane;
        std::thread::scope(|scope| {
            let writer = scope.spawn(move || dataplane.apply_all(ops));
            while !writer.is_finished() {
                meanwhile(self);
            }
            let result = writer.join().expect("the writer ends");
            result.unwrap_or_else(|(done, e)| panic!("after {done} operations: {e}"));
        });
    }

    fn name_of(&self, id: u32) -> &'static str {
        let mut maps = self.maps.iter();
        let found = maps.find(|(_, map)| map.info().id == id);
        found.map_or("?", |(name, _)| *name)
    }
}
