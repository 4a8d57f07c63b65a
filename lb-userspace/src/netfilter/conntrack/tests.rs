use super::*;

/// Attributes of one kind after the other, nests marked as such.
fn nest(kind: u16, parts: &[(u16, Vec<u8>)]) -> (u16, Vec<u8>) {
    let mut value = Vec::new();
    for (kind, part) in parts {
        put_attribute(&mut value, *kind, part);
    }
    (kind | NESTED, value)
}

fn tuple(kind: u16, source: &str, destination: &str, number: u8) -> (u16, Vec<u8>) {
    let end = |text: &str| -> SocketAddr { text.parse().expect("an end") };
    let (source, destination) = (end(source), end(destination));
    let bytes = |address: IpAddr| match address {
        IpAddr::V4(address) => (0, address.octets().to_vec()),
        IpAddr::V6(address) => (2, address.octets().to_vec()),
    };
    let (family, from) = bytes(source.ip());
    let (_, to) = bytes(destination.ip());
    let port = |end: SocketAddr| end.port().to_be_bytes().to_vec();
    nest(
        kind,
        &[
            nest(1, &[(family + 1, from), (family + 2, to)]),
            nest(
                2,
                &[(1, vec![number]), (2, port(source)), (3, port(destination))],
            ),
        ],
    )
}

fn message(parts: &[(u16, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = vec![2, 0, 0, 0];
    for (kind, value) in parts {
        put_attribute(&mut bytes, *kind, value);
    }
    bytes
}

fn bits(bits: u32) -> (u16, Vec<u8>) {
    (3, bits.to_be_bytes().to_vec())
}

const CLIENT: &str = "198.51.100.7:40000";
const VIP: &str = "192.0.2.1:53";
const POD: &str = "10.0.0.11:5353";
const NODE: &str = "10.0.0.1:61000";

fn ordinary(number: u8) -> [(u16, Vec<u8>); 2] {
    [tuple(1, CLIENT, VIP, number), tuple(2, POD, NODE, number)]
}

fn tracked(ends: [&str; 4], replied: bool) -> Tracked {
    let [a, b, c, d] = ends.map(|end| end.parse().expect("an end"));
    Tracked {
        original: Ends {
            source: a,
            destination: b,
        },
        reply: Ends {
            source: c,
            destination: d,
        },
        replied,
    }
}

#[test]
fn only_translated_udp_is_taken() {
    const SEEN: u32 = status::SEEN_REPLY;
    const DNAT: u32 = status::DESTINATION_NAT;
    let [original, reply] = ordinary(17);
    let v4 = tracked([CLIENT, VIP, POD, NODE], true);
    let six = [
        "[2001:db8::7]:9",
        "[2001:db8::1]:53",
        "[2001:db8::b]:1",
        "[2001:db8::e]:9",
    ];
    let both = |bit| message(&[original.clone(), reply.clone(), bits(bit)]);
    let [tcp, tcp_reply] = ordinary(6);
    for (name, message, expected) in [
        ("masqueraded", both(SEEN | DNAT | 0x18), Some(v4)),
        (
            "no answer yet",
            both(DNAT),
            Some(Tracked {
                replied: false,
                ..v4
            }),
        ),
        ("not translated", both(SEEN), None),
        ("dying", both(SEEN | DNAT | status::DYING), None),
        (
            "IPv6",
            message(&[
                tuple(1, six[0], six[1], 17),
                tuple(2, six[2], six[3], 17),
                bits(SEEN | DNAT),
            ]),
            Some(tracked(six, true)),
        ),
        ("TCP", message(&[tcp, tcp_reply, bits(SEEN | DNAT)]), None),
        (
            "another zone",
            message(&[
                original.clone(),
                reply.clone(),
                bits(DNAT),
                (18, vec![0, 7]),
            ]),
            None,
        ),
        (
            "the zone of everybody, and what we do not know",
            message(&[
                (18, vec![0, 0]),
                original.clone(),
                (99, vec![1; 40]),
                reply.clone(),
                bits(SEEN | DNAT),
            ]),
            Some(v4),
        ),
        (
            "no reply tuple",
            message(&[original.clone(), bits(DNAT)]),
            None,
        ),
        (
            "no status",
            message(&[original.clone(), reply.clone()]),
            None,
        ),
        (
            "a status too short",
            message(&[original.clone(), reply.clone(), (3, vec![0xff; 2])]),
            None,
        ),
        (
            "a port too long",
            message(&[
                original.clone(),
                nest(2, &[nest(2, &[(1, vec![17]), (2, vec![0; 4])])]),
                bits(DNAT),
            ]),
            None,
        ),
        ("nothing", Vec::new(), None),
    ] {
        assert_eq!(parse(&message), expected, "{name}");
    }
}

#[test]
fn a_message_cut_short_is_no_other_connection() {
    let [original, reply] = ordinary(17);
    let whole = message(&[bits(status::DESTINATION_NAT), original, reply]);
    let expected = parse(&whole);
    assert!(expected.is_some());
    for length in 0..whole.len() {
        let cut = whole.get(..length).expect("a part");
        // The last port's attribute is padded: the message is whole without the padding.
        assert!([None, expected].contains(&parse(cut)), "{length}");
    }
}

#[test]
fn the_request_asks_the_kernel_to_filter() {
    #[rustfmt::skip]
    let expected = [
        10, 0, 0, 0,
        16, 0, 1, 0x80,
            12, 0, 2, 0x80, 5, 0, 1, 0, 17, 0, 0, 0,
        12, 0, 25, 0x80, 8, 0, 1, 0, 8, 0, 0, 0,
    ];
    assert_eq!(request(10), expected);
}
