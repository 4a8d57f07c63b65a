//! What one client sees of its flow, judged byte by byte. Time is an argument.

use std::{fmt, time::Duration};

use super::{
    message::{Direction, LENGTH, NOBODY, Name, address, message, sender},
    stall::Interval,
};

/// Silences from this length on are noted: well above the pause between two messages.
const NOTED: Duration = Duration::from_millis(150);

/// Why a flow is lost.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Loss {
    /// The connection was reset, or ended.
    Broken(String),
    /// A message is not what the server sends.
    Wrong {
        /// The number of the message.
        number: u64,
        /// The first byte that differs.
        offset: usize,
    },
    /// Another backend answered.
    Moved {
        /// Who answered first.
        from: Name,
        /// And who answers now.
        to: Name,
    },
    /// Nothing came for too long.
    Stalled(Duration),
}

/// One flow, as its client sees it.
#[derive(Clone, Debug)]
pub struct Observed {
    flow: u32,
    /// Messages received whole and right.
    pub answers: u64,
    /// Who answered first.
    pub server: Option<Name>,
    /// When the last message came, or the flow began.
    pub last: Duration,
    /// Silences worth a note, in order.
    pub silences: Vec<Interval>,
    /// The longest silence.
    pub longest: Duration,
    partial: Vec<u8>,
}

impl Observed {
    /// A flow that begins.
    pub fn new(flow: u32, now: Duration) -> Self {
        Self {
            flow,
            answers: 0,
            server: None,
            last: now,
            silences: Vec::new(),
            longest: Duration::ZERO,
            partial: Vec::new(),
        }
    }

    /// Bytes came.
    ///
    /// # Errors
    ///
    /// A byte is not the expected one.
    pub fn receive(&mut self, bytes: &[u8], now: Duration) -> Result<(), Loss> {
        self.partial.extend_from_slice(bytes);
        let buffer = std::mem::take(&mut self.partial);
        let (whole, rest) = buffer.as_chunks::<LENGTH>();
        for message in whole {
            self.judge(message)?;
        }
        if !whole.is_empty() {
            self.silent_until(now);
            self.last = now;
        }
        self.partial = rest.to_vec();
        Ok(())
    }

    fn judge(&mut self, got: &[u8; LENGTH]) -> Result<(), Loss> {
        let sender = sender(got);
        let server = *self.server.get_or_insert(sender);
        let expected = message(Direction::Down, self.flow, self.answers, sender);
        if let Some(offset) = got.iter().zip(&expected).position(|(got, it)| got != it) {
            return Err(Loss::Wrong {
                number: self.answers,
                offset,
            });
        }
        if sender != server || sender == NOBODY {
            return Err(Loss::Moved {
                from: server,
                to: sender,
            });
        }
        self.answers += 1;
        Ok(())
    }

    /// Notes the silence that lasts, or lasted, until now.
    pub fn silent_until(&mut self, now: Duration) {
        let silence = Interval {
            from: self.last,
            to: now,
        };
        self.longest = self.longest.max(silence.length());
        if silence.length() >= NOTED {
            self.silences.push(silence);
        }
    }
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Broken(why) => f.write_str(why),
            Self::Wrong { number, offset } => {
                write!(f, "byte {offset} of message {number} is wrong")
            }
            Self::Moved { from, to } => {
                write!(f, "answered by {}, not {}", address(*to), address(*from))
            }
            Self::Stalled(silence) => write!(f, "silent for {} ms", silence.as_millis()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::{super::message::name, *};

    fn backend(last: u8) -> Name {
        name(IpAddr::V4(Ipv4Addr::new(10, 9, 0, last)))
    }

    fn from(server: Name, number: u64) -> [u8; LENGTH] {
        message(Direction::Down, 3, number, server)
    }

    #[test]
    fn losses_are_told_apart() {
        let mut broken = from(backend(1), 1);
        broken[40] ^= 1;
        for (name, second, expected) in [
            ("the next message", from(backend(1), 1), Ok(())),
            (
                "a bit is wrong",
                broken,
                Err(Loss::Wrong {
                    number: 1,
                    offset: 40,
                }),
            ),
            (
                "one is missing",
                from(backend(1), 2),
                Err(Loss::Wrong {
                    number: 1,
                    offset: 11,
                }),
            ),
            (
                "another backend",
                from(backend(2), 1),
                Err(Loss::Moved {
                    from: backend(1),
                    to: backend(2),
                }),
            ),
            (
                "another flow's",
                message(Direction::Down, 4, 1, backend(1)),
                Err(Loss::Wrong {
                    number: 1,
                    offset: 3,
                }),
            ),
        ] {
            let mut flow = Observed::new(3, Duration::ZERO);
            let first = flow.receive(&from(backend(1), 0), Duration::ZERO);
            assert_eq!(first, Ok(()), "{name}");
            assert_eq!(flow.receive(&second, Duration::ZERO), expected, "{name}");
        }
    }

    #[test]
    fn silences_end_with_a_whole_message() {
        let at = Duration::from_millis;
        let mut flow = Observed::new(3, at(0));
        let bytes = from(backend(1), 0);
        let (head, tail) = bytes.split_at(10);
        assert_eq!(flow.receive(head, at(90)), Ok(()));
        assert_eq!((flow.answers, flow.last), (0, at(0)));
        assert_eq!(flow.receive(tail, at(400)), Ok(()));
        assert_eq!((flow.answers, flow.last), (1, at(400)));
        flow.silent_until(at(450));
        let noted = [Interval {
            from: at(0),
            to: at(400),
        }];
        assert_eq!(flow.silences, noted);
        assert_eq!(flow.longest, at(400));
    }
}
