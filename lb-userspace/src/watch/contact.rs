//! Whether the API server is reached, for those who ask now and then.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use tokio::time::Instant;

/// What is known of the way to the API server. Copies share it.
#[derive(Clone, Debug, Default)]
pub struct Contact(Arc<Mutex<State>>);

/// The contact at a time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Contacted {
    /// For how long something could not be followed; zero if everything can.
    pub outage: Duration,
    /// When the server last told of an object, in seconds since 1970; 0 for never.
    pub last_event: f64,
}

#[derive(Debug, Default)]
struct State {
    lost: Option<Instant>,
    last_event: Option<Timestamp>,
}

impl Contact {
    /// The contact now.
    pub fn now(&self) -> Contacted {
        self.with(|state| Contacted {
            outage: state.lost.map(|since| since.elapsed()).unwrap_or_default(),
            last_event: state
                .last_event
                .map_or(0.0, |at| at.as_duration().as_secs_f64()),
        })
    }

    /// The server told of an object.
    pub(super) fn heard(&self) {
        self.with(|state| state.last_event = Some(Timestamp::now()));
    }

    /// Something cannot be followed.
    pub(super) fn lost(&self) {
        self.with(|state| {
            state.lost.get_or_insert_with(Instant::now);
        });
    }

    /// Everything is followed again.
    pub(super) fn found(&self) {
        self.with(|state| state.lost = None);
    }

    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_lasts_from_the_first_failure_until_everything_is_found() {
        let contact = Contact::default();
        let other = contact.clone();
        assert_eq!(contact.now().outage, Duration::ZERO);
        assert!(contact.now().last_event.abs() < f64::EPSILON);
        other.lost();
        let first = contact.now().outage;
        other.lost();
        assert!(contact.now().outage >= first, "the first failure counts");
        other.heard();
        assert!(contact.now().last_event > 0.0);
        other.found();
        assert_eq!(contact.now().outage, Duration::ZERO);
    }
}
