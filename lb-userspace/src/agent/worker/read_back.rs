//! Comparing memory with the kernel, which is the truth.

use super::{Nearby, Worker, clock};
use crate::{
    dataplane::{Dataplane as _, DataplaneError, bpf::Reader, model::write},
    tables::TableSet,
};

impl Worker {
    /// Reads the tables back: the kernel is the truth. True if they were not as we thought.
    pub(in super::super) fn resync(&mut self) -> Result<bool, DataplaneError> {
        let found = self.dataplane.dump()?;
        self.unknown = false;
        self.since = None;
        if found == self.actual {
            return Ok(false);
        }
        self.remember_gone(&found, clock());
        self.actual = found;
        self.nearby = Nearby::of(&self.actual);
        self.metrics.found(&self.actual);
        // Whoever changed them may have stopped between members and the epoch.
        self.planner.raise_epochs();
        Ok(true)
    }

    /// Reads the tables back if what they hold is not known: nothing can be planned from a guess.
    pub(in super::super) fn reread(&mut self) -> Result<(), DataplaneError> {
        if self.unknown {
            self.resync()?;
        }
        Ok(())
    }

    /// Begins to read the tables aside: with fifty thousand Services it takes half a second, and changes
    /// do not wait for it.
    pub(in super::super) fn begin_reading(&mut self) -> Reader {
        self.since = Some(Vec::new());
        self.dataplane.reader()
    }

    /// Ends it: true if the tables are not as we thought.
    ///
    /// Every operation says all of the row it touches. So what was written meanwhile and is written
    /// over what was found gives the rows as they are now, whether the reading came before or after. If
    /// they are not those of memory, they are read once more while nothing is written.
    pub(in super::super) fn compare(
        &mut self,
        found: &mut TableSet,
    ) -> Result<bool, DataplaneError> {
        // Whoever failed in between has read everything back since.
        let Some(since) = self.since.take() else {
            return Ok(false);
        };
        for op in &since {
            write(found, op);
        }
        if *found == self.actual {
            return Ok(false);
        }
        self.resync()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::{prelude::*, sample::Index};

    use crate::{
        dataplane::{TableOp, model::write},
        diff::{
            diff,
            tests::{any_node, any_snapshot},
        },
        plan::{Quarantine, plan},
        tables::TableSet,
    };

    /// Tables in the middle of a change.
    fn at(moment: Index, before: &TableSet, ops: &[TableOp]) -> TableSet {
        let mut tables = before.clone();
        for op in ops.iter().take(moment.index(ops.len() + 1)) {
            write(&mut tables, op);
        }
        tables
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        /// The law [`super::Worker::compare`] rests on.
        #[test]
        fn what_was_written_makes_up_for_when_a_table_was_read(
            (a, b) in (any_snapshot(), any_snapshot()),
            node in any_node(),
            moments in proptest::array::uniform9(any::<Index>()),
        ) {
            let quarantine = Quarantine::default();
            let before = plan(&TableSet::default(), &a, &node, &quarantine).tables;
            let after = plan(&before, &b, &node, &quarantine).tables;
            let ops = diff(&before, &after);
            let mut read = moments.into_iter().map(|moment| at(moment, &before, &ops));
            let mut next = || read.next().expect("a moment for each table");
            let mut found = TableSet {
                frontends: next().frontends,
                services: next().services,
                backends: next().backends,
                members: next().members,
                addresses: next().addresses,
                gateway_endpoints: next().gateway_endpoints,
                source_ranges: next().source_ranges,
                source_classes: next().source_classes,
                ..TableSet::default()
            };
            // A Maglev table is found by who names it. What was freed lies there until it is written over.
            let slots = next().extents;
            for record in found.services.values() {
                for selection in [record.cluster, record.local] {
                    let element = selection.element;
                    let table = slots.get(&element).or_else(|| before.extents.get(&element));
                    if let Some(table) = table.filter(|_| selection.length > 0) {
                        found.extents.insert(element, Arc::clone(table));
                    }
                }
            }
            for op in &ops {
                write(&mut found, op);
            }
            prop_assert_eq!(found, after);
        }
    }
}
