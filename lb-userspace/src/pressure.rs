//! Says of a table that it fills before it is full, and when that is over. Pure.
//!
//! ```text
//!            80 %                 100 %
//!   calm ───────────▶ filling ───────────▶ full      each arrow tells once
//!   calm ◀─────────── filling ◀─────────── full
//!            70 %                  90 %
//! ```
//! The way down begins lower than the way up ended, so that a table that hovers at a mark is not told of
//! again and again.

use std::{collections::BTreeMap, fmt, net::IpAddr};

use tracing::{info, warn};

use crate::tables::Family;

/// Marks in percent of the limit: up to filling and full, down to calm and filling.
const FILLING_FROM: u64 = 80;
const FULL_FROM: u64 = 100;
const CALM_BELOW: u64 = 70;
const FILLING_BELOW: u64 = 90;

/// Something that has a limit which clients can reach.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Table {
    /// All established entries of a family.
    Flows(Family),
    /// Those of UDP.
    UdpFlows(Family),
    /// Ports of an SNAT address, for the backend with most flows.
    Snat(IpAddr),
}

impl Table {
    /// A word for it: a metric's label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Flows(Family::V4) => "flows_v4",
            Self::Flows(Family::V6) => "flows_v6",
            Self::UdpFlows(Family::V4) => "udp_flows_v4",
            Self::UdpFlows(Family::V6) => "udp_flows_v6",
            Self::Snat(_) => "snat",
        }
    }

    /// What happens when it is full.
    const fn consequence(self) -> &'static str {
        match self {
            Self::Flows(_) => "new TCP flows are refused (tables.flowsV4, tables.flowsV6)",
            Self::UdpFlows(_) => "new UDP flows may be forgotten in a flood",
            Self::Snat(_) => "new flows to that backend are refused (snat.addresses)",
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flows(family) => write!(f, "{family} flow table"),
            Self::UdpFlows(family) => write!(f, "{family} flow table, share of UDP"),
            Self::Snat(address) => write!(f, "ports of SNAT address {address}"),
        }
    }
}

/// How much of a table is in use.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Room {
    /// Which.
    pub table: Table,
    /// Entries or ports in use.
    pub used: u64,
    /// Where it is full; 0 for what nobody can use.
    pub limit: u64,
}

/// How near a table is to its limit.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub enum Level {
    /// Far.
    #[default]
    Calm,
    /// Near.
    Filling,
    /// At it.
    Full,
}

impl Level {
    /// The level after a look, from the one before.
    fn after(self, room: &Room) -> Self {
        if room.limit == 0 {
            return Self::Calm;
        }
        let percent = room.used.saturating_mul(100) / room.limit;
        let up = if percent >= FULL_FROM {
            Self::Full
        } else if percent >= FILLING_FROM {
            Self::Filling
        } else {
            Self::Calm
        };
        let stays = match self {
            _ if percent < CALM_BELOW => Self::Calm,
            Self::Full if percent < FILLING_BELOW => Self::Filling,
            level => level,
        };
        up.max(stays)
    }
}

/// What was told of each table.
#[derive(Debug, Default)]
pub struct Pressure {
    levels: BTreeMap<Table, Level>,
}

impl Pressure {
    /// What is new: tables whose level is another than at the last look.
    pub fn look(&mut self, rooms: &[Room]) -> Vec<(Room, Level)> {
        let mut news = Vec::new();
        for room in rooms {
            let level = self.levels.entry(room.table).or_default();
            let after = level.after(room);
            if after != *level {
                *level = after;
                news.push((*room, after));
            }
        }
        // An SNAT address that is gone is told of anew if it comes back.
        self.levels
            .retain(|table, _| rooms.iter().any(|room| room.table == *table));
        news
    }
}

/// Logs what is new.
pub fn log(news: &[(Room, Level)]) {
    for (Room { table, used, limit }, level) in news {
        let consequence = table.consequence();
        match level {
            Level::Calm => info!(%table, used, limit, "the table has room again"),
            Level::Filling => warn!(
                %table,
                used,
                limit,
                when_full = consequence,
                "the table fills"
            ),
            Level::Full => warn!(%table, used, limit, consequence, "the table is full"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room(used: u64, limit: u64) -> Room {
        Room {
            table: Table::Flows(Family::V4),
            used,
            limit,
        }
    }

    #[test]
    fn each_mark_is_told_once_and_the_way_down_is_longer() {
        let mut pressure = Pressure::default();
        for (used, told) in [
            (0, None),
            (799, None),
            (800, Some(Level::Filling)),
            (800, None),
            (790, None),
            (805, None),
            (1_000, Some(Level::Full)),
            (1_200, None),
            (990, None),
            (1_000, None),
            (899, Some(Level::Filling)),
            (950, None),
            (700, None),
            (699, Some(Level::Calm)),
            (799, None),
            (1_001, Some(Level::Full)),
            (10, Some(Level::Calm)),
        ] {
            let news = pressure.look(&[room(used, 1_000)]);
            let level = news.first().map(|(_, level)| *level);
            assert_eq!(level, told, "{used}");
        }
    }

    #[test]
    fn tables_are_told_of_apart_and_those_without_a_limit_never() {
        let snat = |last: u8, used| Room {
            table: Table::Snat([192, 0, 2, last].into()),
            used,
            limit: 100,
        };
        let mut pressure = Pressure::default();
        let news = pressure.look(&[snat(1, 85), snat(2, 10), room(5, 0)]);
        assert_eq!(news, [(snat(1, 85), Level::Filling)]);
        let news = pressure.look(&[snat(1, 85), snat(2, 100)]);
        assert_eq!(news, [(snat(2, 100), Level::Full)]);
        // Gone and back.
        assert_eq!(pressure.look(&[snat(2, 100)]), []);
        let news = pressure.look(&[snat(1, 85), snat(2, 100)]);
        assert_eq!(news, [(snat(1, 85), Level::Filling)]);
    }
}
