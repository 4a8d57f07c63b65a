//! Traffic counted by id, when an id is used again.

use lb_tests::{
    book::TCP_BOOKS,
    case::{case, run},
    flows::{Conversation, Mode},
};
use lb_userspace::tables::TableSet;

#[test]
fn an_id_given_to_another_service_and_backend_begins_at_zero() {
    let cases = TCP_BOOKS.map(|book| {
        let talk = Conversation::new(book, Mode::FullNat);
        let tables = talk.tables().build(1);
        case(format!("{}: one after another", book.name()), talk.tables())
            .steps(talk.handshake())
            .then(move |lab| {
                let counted = lab.counts();
                let (service, backend) = (counted.services.get(&1), counted.backends.get(&1));
                assert!(service.is_some_and(|traffic| traffic.new_flows > 0));
                assert!(backend.is_some_and(|traffic| traffic.new_flows > 0));

                // What lives on keeps what it counted.
                let mut changed = tables.clone();
                for service in changed.services.values_mut() {
                    service.epoch += 1;
                }
                lab.apply(&changed);
                assert_eq!(lab.counts().services.get(&1), service);
                assert_eq!(lab.counts().backends.get(&1), backend);

                // A backend of another incarnation does not, and its service port does.
                for backend in changed.backends.values_mut() {
                    backend.incarnation += 1;
                }
                lab.apply(&changed);
                assert_eq!(lab.counts().services.get(&1), service);
                assert_eq!(lab.counts().backends.get(&1), None);

                // Removed, so that flows may still count; and given away.
                lab.apply(&TableSet::default());
                assert_eq!(lab.counts().services.get(&1), service);
                lab.apply(&tables);
                assert_eq!(lab.counts().services.get(&1), None);
                assert_eq!(lab.counts().backends.get(&1), None);
            })
    });
    run(cases.into());
}
