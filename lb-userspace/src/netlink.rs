//! The two netlink families rtnetlink does not speak: generic netlink and nfnetlink, raw.
//!
//! Messages are built and taken apart as bytes in host order; nothing here knows their meaning.

use std::io;

use rtnetlink::sys::{Socket, SocketAddr};

const HEADER: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
/// The objects changed while they were listed.
const NLM_F_DUMP_INTR: u16 = 0x10;
/// Attempts at a list that changes while it is read.
const ATTEMPTS: usize = 5;
/// Ask for all objects of a kind.
pub(crate) const DUMP: u16 = 0x300;
/// The bits of an attribute's type that are flags.
const TYPE_MASK: u16 = 0x3fff;

/// One message: its type and what follows the netlink header.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Message {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) payload: Vec<u8>,
}

/// Sends one request and returns the answers.
///
/// # Errors
///
/// If the socket fails, the kernel answers with an error, or what was asked for changes all the time.
pub(crate) fn request(
    protocol: isize,
    kind: u16,
    flags: u16,
    payload: &[u8],
) -> io::Result<Vec<Message>> {
    for _ in 0..ATTEMPTS {
        if let Some(answers) = try_request(protocol, kind, flags, payload)? {
            return Ok(answers);
        }
    }
    Err(io::ErrorKind::Interrupted.into())
}

/// `None`: what was asked for changed while it was listed.
fn try_request(
    protocol: isize,
    kind: u16,
    flags: u16,
    payload: &[u8],
) -> io::Result<Option<Vec<Message>>> {
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let length = u32::try_from(HEADER + payload.len()).map_err(io::Error::other)?;
    // A dump ends with a DONE by itself; a single request is told to.
    let flags = flags | NLM_F_REQUEST | if flags & DUMP == 0 { NLM_F_ACK } else { 0 };
    let mut bytes = Vec::with_capacity(HEADER + payload.len());
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend(payload);
    socket.send(&bytes, 0)?;
    let mut answers = Vec::new();
    let mut interrupted = false;
    loop {
        let (received, _) = socket.recv_from_full()?;
        for message in messages(&received) {
            interrupted |= message.flags & NLM_F_DUMP_INTR != 0;
            match message.kind {
                NLMSG_DONE => return Ok((!interrupted).then_some(answers)),
                NLMSG_ERROR => {
                    let code = first_i32(&message.payload);
                    if code == 0 {
                        return Ok(Some(answers));
                    }
                    return Err(io::Error::from_raw_os_error(-code));
                }
                _ => answers.push(message),
            }
        }
    }
}

/// The messages of a received datagram. A broken length ends it.
pub(crate) fn messages(datagram: &[u8]) -> Vec<Message> {
    let mut rest = datagram;
    let mut found = Vec::new();
    while let Some((header, _)) = rest.split_at_checked(HEADER) {
        let length = u32_at(header, 0) as usize;
        let Some(payload) = rest.get(HEADER..length) else {
            break;
        };
        found.push(Message {
            kind: u16_at(header, 4),
            flags: u16_at(header, 6),
            payload: payload.to_vec(),
        });
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

/// The attributes of a message or of a nest: type and value. A broken length ends it.
pub(crate) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(rest.get(..4)?, 0));
        let kind = u16_at(rest.get(..4)?, 2) & TYPE_MASK;
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// Appends an attribute.
pub(crate) fn put_attribute(bytes: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// A number out of an attribute's value; 0 if the value is too short.
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes
        .get(at..at + 2)
        .and_then(|b| b.try_into().ok())
        .map_or(0, u16::from_ne_bytes)
}

/// A number out of an attribute's value; 0 if the value is too short.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes
        .get(at..at + 4)
        .and_then(|b| b.try_into().ok())
        .map_or(0, u32::from_ne_bytes)
}

/// A number out of an attribute's value; 0 if the value is too short.
pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes
        .get(at..at + 8)
        .and_then(|b| b.try_into().ok())
        .map_or(0, u64::from_ne_bytes)
}

fn first_i32(bytes: &[u8]) -> i32 {
    u32_at(bytes, 0).cast_signed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_back() {
        let mut bytes = Vec::new();
        put_attribute(&mut bytes, 1, b"netdev\0");
        put_attribute(&mut bytes, 3 | 0x8000, &7_u64.to_ne_bytes());
        put_attribute(&mut bytes, 9, &[]);
        let read: Vec<_> = attributes(&bytes).collect();
        assert_eq!(read.len(), 3);
        assert_eq!(read[0], (1, b"netdev\0".as_slice()));
        assert_eq!((read[1].0, u64_at(read[1].1, 0)), (3, 7));
        assert_eq!(read[2], (9, [].as_slice()));
    }

    #[test]
    fn broken_lengths_end_the_reading() {
        let mut whole = Vec::new();
        put_attribute(&mut whole, 1, &[1, 2, 3, 4]);
        for length in 0..whole.len() {
            assert_eq!(attributes(&whole[..length]).count(), 0, "{length}");
        }
        assert_eq!(attributes(&[0, 0, 1, 0]).count(), 0);
        assert!(messages(&[255; 40]).is_empty());
    }
}
