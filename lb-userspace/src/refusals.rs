//! Refused packets the data path tells of by its ring buffer `EVENTS`: read once in a while, gathered
//! by what was refused, and logged.

use std::{collections::BTreeMap, io, net::IpAddr, path::Path};

use aya::maps::{Map, MapData, RingBuf};
use lb_common::{
    addr::{Addr6, Be16},
    reason::Reason,
    refusal::Refusal,
};
use tracing::warn;

/// Lines logged at one reading; the counters have the rest.
const LINES: usize = 8;

/// The reading end of `EVENTS`. There is one at a time: what it reads is gone.
#[expect(
    missing_debug_implementations,
    reason = "aya's ring buffer has none to show"
)]
pub struct Refusals {
    ring: RingBuf<MapData>,
}

/// Packets refused for one reason, to one destination.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Refused {
    /// Number of the [`Reason`].
    pub reason: u32,
    /// Where the packets went.
    pub destination: IpAddr,
    /// Destination port.
    pub port: u16,
    /// IP protocol number.
    pub protocol: u32,
}

impl Refusals {
    /// Opens the buffer pinned at `path`.
    ///
    /// # Errors
    ///
    /// If it is not there or cannot be mapped.
    pub fn open(path: &Path) -> io::Result<Self> {
        let data = MapData::from_pin(path).map_err(io::Error::other)?;
        let map = Map::from_map_data(data).map_err(io::Error::other)?;
        let ring = RingBuf::try_from(map).map_err(io::Error::other)?;
        Ok(Self { ring })
    }

    /// Takes what was told since the last reading, counted by what was refused.
    pub fn read(&mut self) -> BTreeMap<Refused, u64> {
        let mut found = BTreeMap::new();
        while let Some(item) = self.ring.next() {
            if let Some(refused) = parse(&item) {
                *found.entry(refused).or_default() += 1;
            }
        }
        found
    }

    /// Reads, and logs a line for each thing refused.
    pub fn log(&mut self) {
        let found = self.read();
        for (refused, packets) in found.iter().take(LINES) {
            let reason = Reason::ALL.iter().find(|r| **r as u32 == refused.reason);
            warn!(
                reason = reason.map_or("unknown", |reason| reason.name()),
                destination = %refused.destination,
                port = refused.port,
                protocol = refused.protocol,
                packets,
                "the data path refuses packets"
            );
        }
        if let Some(more) = found.len().checked_sub(LINES).filter(|more| *more > 0) {
            warn!(
                more,
                "the data path refuses packets to other destinations too"
            );
        }
    }
}

/// Reads a record by the layout of [`Refusal`]: two addresses, two ports, three words.
fn parse(bytes: &[u8]) -> Option<Refused> {
    let word = |at: usize| {
        let four = bytes.get(at..at + 4)?;
        four.try_into().ok().map(u32::from_ne_bytes)
    };
    if bytes.len() != size_of::<Refusal>() {
        return None;
    }
    let address = Addr6([word(16)?, word(20)?, word(24)?, word(28)?]);
    let port = bytes.get(34..36)?.try_into().ok().map(u16::from_ne_bytes)?;
    Some(Refused {
        reason: word(40)?,
        destination: std::net::Ipv6Addr::from(address).to_canonical(),
        port: Be16(port).get(),
        protocol: word(36)?,
    })
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use lb_common::addr::Addr4;

    use super::*;

    #[test]
    fn records_are_read_by_their_layout() {
        let destination = Addr4::from(Ipv4Addr::new(192, 0, 2, 1)).mapped();
        let record = Refusal {
            destination,
            source_port: Be16::new(40_000),
            destination_port: Be16::new(443),
            protocol: 6,
            reason: Reason::SnatExhausted as u32,
            tick: 7,
            ..Refusal::default()
        };
        let mut bytes = vec![0; 16];
        bytes.extend(
            record
                .destination
                .0
                .iter()
                .flat_map(|word| word.to_ne_bytes()),
        );
        bytes.extend(record.source_port.0.to_ne_bytes());
        bytes.extend(record.destination_port.0.to_ne_bytes());
        for word in [record.protocol, record.reason, record.tick] {
            bytes.extend(word.to_ne_bytes());
        }
        assert_eq!(
            parse(&bytes),
            Some(Refused {
                reason: Reason::SnatExhausted as u32,
                destination: IpAddr::from([192, 0, 2, 1]),
                port: 443,
                protocol: 6,
            })
        );
        bytes.pop();
        assert_eq!(parse(&bytes), None);
    }
}
