//! The layout: what every map is, condensed into the name of its directory.

use std::collections::BTreeMap;

use lb_common::names::MAPS;

use super::PinError;
use crate::kernel::MapInfo;

/// What a map must be for the programs to use it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct MapDefinition {
    /// `enum bpf_map_type`.
    pub kind: u32,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value.
    pub value_size: u32,
    /// Capacity.
    pub max_entries: u32,
    /// `BPF_F_*`.
    pub flags: u32,
}

impl MapDefinition {
    /// What differs in a live map, in words. Empty if it fits.
    pub fn differences(&self, live: &MapInfo) -> Vec<String> {
        let fields = [
            ("type", self.kind, live.kind),
            ("key size", self.key_size, live.key_size),
            ("value size", self.value_size, live.value_size),
            ("max_entries", self.max_entries, live.max_entries),
            ("flags", self.flags, live.flags),
        ];
        let differing = fields.iter().filter(|(_, ours, theirs)| ours != theirs);
        differing
            .map(|(field, ours, theirs)| format!("{field} {theirs}, not {ours}"))
            .collect()
    }
}

/// Every map of the data path, and the hash over all of it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Layout {
    maps: BTreeMap<&'static str, MapDefinition>,
}

impl Layout {
    /// The layout an object file asks for, with the operator's sizes in place of the defaults.
    ///
    /// # Errors
    ///
    /// If the file is no BPF object or lacks a map, or a size names a map that does not exist.
    pub fn of(object: &[u8], entries: &BTreeMap<&str, u32>) -> Result<Self, PinError> {
        let object =
            aya_obj::Object::parse(object).map_err(|error| PinError::Object(error.to_string()))?;
        if let Some(name) = entries
            .keys()
            .find(|name| MAPS.iter().all(|(map, _)| map != *name))
        {
            return Err(PinError::Object(format!("entries: no map is named {name}")));
        }
        let mut maps = BTreeMap::new();
        for &(name, _) in MAPS {
            let map = object
                .maps
                .get(name)
                .ok_or_else(|| PinError::Object(format!("map {name} is missing")))?;
            let definition = MapDefinition {
                kind: map.map_type(),
                key_size: map.key_size(),
                value_size: map.value_size(),
                max_entries: entries
                    .get(name)
                    .copied()
                    .unwrap_or_else(|| map.max_entries()),
                flags: map.map_flags(),
            };
            maps.insert(name, definition);
        }
        Ok(Self { maps })
    }

    /// Every map by name.
    pub const fn maps(&self) -> &BTreeMap<&'static str, MapDefinition> {
        &self.maps
    }

    /// Sixteen hex digits over `ABI_VERSION` and every map's definition.
    pub fn hash(&self) -> String {
        let mut hash = Fnv::new();
        hash.write(&lb_common::ABI_VERSION.to_le_bytes());
        for (name, map) in &self.maps {
            hash.write(name.as_bytes());
            for field in [
                map.kind,
                map.key_size,
                map.value_size,
                map.max_entries,
                map.flags,
            ] {
                hash.write(&field.to_le_bytes());
            }
        }
        format!("{:016x}", hash.0)
    }
}

/// Whether a directory's name is that of a layout.
pub(super) fn is_hash(name: &str) -> bool {
    name.len() == 16 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// FNV-1a: the standard library's hash may change between releases, this one may not.
struct Fnv(u64);

impl Fnv {
    const fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAP: MapDefinition = MapDefinition {
        kind: 1,
        key_size: 16,
        value_size: 48,
        max_entries: 1024,
        flags: 0,
    };

    fn layout(map: MapDefinition) -> Layout {
        Layout {
            maps: BTreeMap::from([("FLOWS_V4", map)]),
        }
    }

    #[test]
    fn every_field_is_part_of_the_hash() {
        let changed = [
            MapDefinition { kind: 9, ..MAP },
            MapDefinition {
                key_size: 12,
                ..MAP
            },
            MapDefinition {
                value_size: 64,
                ..MAP
            },
            MapDefinition {
                max_entries: 1025,
                ..MAP
            },
            MapDefinition { flags: 1, ..MAP },
        ];
        let original = layout(MAP).hash();
        assert!(is_hash(&original));
        assert_eq!(layout(MAP).hash(), original);
        for map in changed {
            assert_ne!(layout(map).hash(), original, "{map:?}");
        }
    }

    #[test]
    fn every_difference_of_a_live_map_is_named() {
        let live = MapInfo {
            kind: 1,
            id: 7,
            key_size: 16,
            value_size: 64,
            max_entries: 64,
            flags: 0,
        };
        assert_eq!(
            MAP.differences(&live),
            ["value size 64, not 48", "max_entries 64, not 1024"]
        );
    }
}
