//! What the kernel's tables give back is what was written.

use lb_common::service::{service_flag, source_class};
use lb_tests::{
    book::{BOOKS, Book},
    network::in_network,
    run::{CONFIG, Hook, with_lab},
    tables::Tables,
};
use lb_userspace::tables::TableSet;

/// Something of every table; `variant` decides what changes between two of them.
fn tables(book: Book, variant: u32) -> Tables {
    let frontend = |number: u16| {
        book.frontend_at(&book.at(book.pick("192.0.2.50", "2001:db8:50::50"), number))
    };
    let any = book.frontend_at(&book.at(book.pick("0.0.0.0", "::"), 30_080));
    let (first, second, services) = match variant {
        0 => (
            book.pick("198.51.100.0/24", "2001:db8:100::/48"),
            book.pick("203.0.113.7/32", "2001:db8::1/128"),
            book.pick("10.96.0.0/16", "2001:db8:96::/112"),
        ),
        1 => (
            book.pick("198.51.100.0/24", "2001:db8:100::/48"),
            book.pick("0.0.0.0/0", "::/0"),
            book.pick("0.0.0.0/0", "::/0"),
        ),
        _ => (
            book.pick("10.0.0.0/9", "2001:db8:8000::/33"),
            book.pick("10.128.0.0/9", "::/96"),
            book.pick("10.96.1.0/24", "::/96"),
        ),
    };
    lb_tests::tables::tables()
        .frontend(&frontend(80))
        .backends([book.backend(7, 9_000).as_str()])
        .source_ranges(variant + 1, [first, second])
        .affinity(60 * variant)
        .frontend(&frontend(81))
        .backends([
            book.backend(7, 9_000).as_str(),
            book.backend(8, 9_001).as_str(),
        ])
        .flags(service_flag::EXTERNAL_LOCAL)
        .keep_source()
        .source_ranges(7, [])
        .frontend(&any)
        .backends([book.backend(8, 9_001).as_str()])
        .node_ports_on(book.node_address())
        .class(
            book.pick("10.2.0.0/16", "2001:db8:c::/64"),
            source_class::POD << (variant % 2),
        )
        .class(
            book.pick("10.2.7.0/24", "2001:db8:c::7/128"),
            source_class::POD | source_class::LOCAL_POD,
        )
        .class(services, source_class::SERVICE_NETWORK)
}

#[test]
fn every_table_is_read_back_as_written() {
    in_network(|| {
        with_lab(&CONFIG, Hook::Xdp, |lab| {
            for book in BOOKS {
                for variant in [0, 1, 2, 0] {
                    let wanted = tables(book, variant).build(variant + 1);
                    lab.apply(&wanted);
                    assert_eq!(lab.dump(), wanted, "{}: {variant}", book.name());
                }
                lab.apply(&TableSet::default());
                assert_eq!(lab.dump(), TableSet::default(), "{}", book.name());
            }
        });
    });
}
