use super::*;
use crate::{
    plan::fixture::{service, slice, snapshot},
    snapshot::ObjectName,
};

fn subject(kind: SubjectKind, name: &str) -> Subject {
    Subject {
        kind,
        name: ObjectName::new("default", name),
    }
}

#[test]
fn an_event_is_about_the_service() {
    let mut web = service("web", &["192.0.2.10"], &["80"]);
    web.uid = Some("u-1".to_owned());
    let snapshot = snapshot([web], [slice("web_1", &["80"], &["10.1.0.1"])]);
    for (name, subject, expected) in [
        (
            "a Service",
            subject(SubjectKind::Service, "web"),
            ("Service", "web", Some("u-1")),
        ),
        (
            "a Service of which nothing is kept",
            subject(SubjectKind::Service, "gone"),
            ("Service", "gone", None),
        ),
        (
            "a slice",
            subject(SubjectKind::EndpointSlice, "web_1"),
            ("Service", "web", Some("u-1")),
        ),
        (
            "a slice of nobody",
            subject(SubjectKind::EndpointSlice, "x"),
            ("EndpointSlice", "x", None),
        ),
    ] {
        let reference = regarding(&subject, &snapshot);
        let found = (
            reference.kind.as_deref().expect("a kind"),
            reference.name.as_deref().expect("a name"),
            reference.uid.as_deref(),
        );
        assert_eq!(found, expected, "{name}");
    }
}

#[test]
fn an_event_has_what_the_api_asks_for() {
    let note = |text: &str| Note {
        subject: subject(SubjectKind::Service, "web"),
        reason: "PartlyServed",
        text: text.to_owned(),
    };
    let regarding = regarding(&note("").subject, &Snapshot::default());
    let long = "ä".repeat(NOTE);
    let event = event(&note(&long), &regarding, "edge-1", 7, Timestamp::UNIX_EPOCH);
    assert_eq!(event.metadata.name.as_deref(), Some("web.0000000000000007"));
    assert_eq!(event.reporting_instance.as_deref(), Some("edge-1"));
    let text = event.note.expect("a note");
    assert!(text.len() <= NOTE && text.ends_with('…'), "{}", text.len());
    let of = |text: &str, node: &str| identity(&note(text), &regarding, node);
    assert_eq!(of("a", "edge-1"), of("a", "edge-1"));
    assert_ne!(of("a", "edge-1"), of("b", "edge-1"));
    assert_ne!(
        of("a", "edge-1"),
        of("a", "edge-2"),
        "every node tells for itself"
    );
}

#[test]
fn rejections_have_words() {
    let name = ObjectName::new("default", "web");
    for (field, message, expected) in [
        (
            "spec.ports[1].protocol",
            "SCTP is not balanced",
            "SctpNotBalanced",
        ),
        ("spec.ports[1]", "no", "PartlyServed"),
        ("", "no room", "NotServed"),
    ] {
        assert_eq!(
            reason(&Rejection::service(&name, field, message)),
            expected,
            "{message}"
        );
    }
}

#[test]
fn without_room_events_are_dropped_and_counted() {
    let (queue, mut notes) = mpsc::channel(1);
    let shared = Shared {
        queue,
        dropped: Arc::default(),
    };
    let sender = Sender(Some(Arc::new(shared)));
    let rejection = Rejection::service(&ObjectName::new("default", "web"), "", "no room");
    sender.reject(&rejection);
    sender.reject(&rejection);
    let manifest = Rejection {
        subject: None,
        ..rejection
    };
    sender.reject(&manifest);
    assert_eq!(sender.dropped(), 1);
    assert_eq!(notes.try_recv().expect("a note").text, "no room");
    Sender::default().reject(&manifest);
}

#[tokio::test(start_paused = true)]
async fn many_at_once_are_few_at_a_time() {
    let mut burst = Burst::default();
    let start = Instant::now();
    let free = (0..100).filter(|_| burst.spend(start)).count();
    assert_eq!(free, 25);
    assert!(!burst.spend(start + Duration::from_secs(1)), "still many");
    assert!(
        burst.spend(start + Duration::from_mins(1)),
        "quiet for a while"
    );
}
