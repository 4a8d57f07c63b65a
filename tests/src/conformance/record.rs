//! What became of each row, and the count.

use std::{
    any::Any,
    collections::{BTreeMap, BTreeSet},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::{
    not_ours,
    rows::{self, Mark},
};
use crate::netns::now;

/// What the checks of one row showed.
#[derive(Clone, Debug, Default)]
struct Result {
    /// Checks that held.
    held: u32,
    /// What went wrong in the others.
    failures: Vec<String>,
    /// What was verified where that differs from the upstream case.
    notes: BTreeSet<String>,
}

/// Results by row, written by scenarios at the same time.
#[derive(Debug, Default)]
pub struct Record {
    results: Mutex<BTreeMap<String, Result>>,
    only: BTreeSet<String>,
}

impl Record {
    /// Takes checks of these rows only; of all rows if there is none.
    pub fn new(only: impl IntoIterator<Item = String>) -> Self {
        Self {
            results: Mutex::default(),
            only: only.into_iter().collect(),
        }
    }

    fn results(&self) -> MutexGuard<'_, BTreeMap<String, Result>> {
        // A check that panicked wrote nothing half.
        self.results.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a row is asked for.
    pub fn wants(&self, id: &str) -> bool {
        self.only.is_empty() || self.only.contains(id)
    }

    /// Whether any of these rows is asked for.
    pub fn wants_any(&self, ids: &[&str]) -> bool {
        ids.iter().any(|id| self.wants(id))
    }

    /// Checks one row. A panic of `check` fails the row, not the scenario.
    pub fn row(&self, id: &str, check: impl FnOnce()) {
        self.rows(&[id], check);
    }

    /// Checks rows that one step shows together.
    pub fn rows(&self, ids: &[&str], check: impl FnOnce()) {
        let wanted: Vec<_> = ids.iter().filter(|id| self.wants(id)).collect();
        if wanted.is_empty() {
            return;
        }
        let begun = now();
        let outcome = catch_unwind(AssertUnwindSafe(check));
        let took = begun.elapsed();
        let failure = outcome.err().map(|panic| message(panic.as_ref()));
        for id in wanted {
            self.note_result(id, failure.as_deref());
            let word = if failure.is_some() { "FAILED" } else { "ok" };
            eprintln!("conformance {id} ... {word} ({:.1} s)", took.as_secs_f64());
        }
    }

    /// Says of a row what was verified where that differs from the upstream case.
    pub fn remark(&self, ids: &[&str], text: &str) {
        let mut results = self.results();
        for id in ids.iter().filter(|id| self.wants(id)) {
            let result = results.entry((*id).to_owned()).or_default();
            result.notes.insert(text.to_owned());
        }
    }

    /// Takes in a result found elsewhere; `failure` says what went wrong.
    pub fn note_result(&self, id: &str, failure: Option<&str>) {
        let mut results = self.results();
        let result = results.entry(id.to_owned()).or_default();
        match failure {
            Some(failure) => result.failures.push(failure.to_owned()),
            None => result.held += 1,
        }
    }

    /// Fails the rows of a scenario that ended before their checks ran.
    pub fn close(&self, ids: &[&str], end: std::result::Result<(), &(dyn Any + Send)>) {
        let why = end.err().map(message);
        for id in ids.iter().filter(|id| self.wants(id)) {
            let ran = self
                .results()
                .get(*id)
                .is_some_and(|result| result.held > 0 || !result.failures.is_empty());
            if !ran {
                let why = match &why {
                    Some(why) => format!("its scenario ended early: {why}"),
                    None => "its scenario never checks it".to_owned(),
                };
                self.note_result(id, Some(&why));
            }
        }
    }

    /// Counts, prints what needs to be said, and tells whether every row asked for is in order.
    ///
    /// # Errors
    ///
    /// If it cannot be written.
    pub fn conclude(&self, out: &mut impl std::io::Write) -> std::io::Result<bool> {
        let results = self.results();
        let (mut passed, mut excused, mut missing, mut failed) = (0, 0, Vec::new(), Vec::new());
        for row in rows::all().filter(|row| row.mark != Mark::N && self.wants(row.id)) {
            let result = results.get(row.id).cloned().unwrap_or_default();
            let excuse = not_ours::reason(row.id);
            let word = if !result.failures.is_empty() {
                failed.push(row.id);
                "failed"
            } else if let Some(reason) = excuse {
                // A row that is checked needs no excuse.
                assert_eq!(result.held, 0, "{} is checked and also not ours", row.id);
                excused += 1;
                writeln!(out, "{:5} not ours  {}: {reason}", row.id, row.title)?;
                continue;
            } else if result.held > 0 {
                passed += 1;
                "passed"
            } else {
                missing.push(row.id);
                "missing"
            };
            writeln!(out, "{:5} {word:8}  {}", row.id, row.title)?;
            for note in &result.notes {
                writeln!(out, "{:16}{note}", "")?;
            }
            for failure in &result.failures {
                writeln!(out, "{:16}{failure}", "")?;
            }
        }
        let out_of_scope = rows::all().filter(|row| row.mark == Mark::N).count();
        writeln!(
            out,
            "\n{out_of_scope} rows are not a proxy's and out of scope."
        )?;
        if !missing.is_empty() {
            writeln!(out, "missing: {}", missing.join(" "))?;
        }
        if !failed.is_empty() {
            writeln!(out, "failed: {}", failed.join(" "))?;
        }
        writeln!(
            out,
            "conformance: {passed} passed, {excused} not ours, {} missing, {} failed",
            missing.len(),
            failed.len()
        )?;
        Ok(failed.is_empty() && missing.is_empty())
    }
}

/// What a panic said.
fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("a panic without a message").to_owned()
}

#[cfg(test)]
mod tests {
    use super::Record;

    #[test]
    fn the_count_tells_passed_failed_and_missing_apart() {
        let record = Record::new(["S02", "S03", "S04", "S35"].map(str::to_owned));
        record.row("S02", || {});
        record.row("S03", || panic!("no answer"));
        record.row("S05", || panic!("nobody asked"));
        record.close(&["S02", "S03"], Ok(()));
        let mut out = Vec::new();
        assert!(!record.conclude(&mut out).expect("memory"));
        let text = String::from_utf8(out).expect("text");
        assert!(
            text.ends_with("conformance: 1 passed, 1 not ours, 1 missing, 1 failed\n"),
            "{text}"
        );
        assert!(text.contains("failed: S03\n"), "{text}");
        assert!(text.contains("missing: S04\n"), "{text}");
    }
}
