//! Where the fields of a pinned map's keys and values lie, read from the map itself, and how elements of
//! one layout become those of another. Pure.
//!
//! Fields are known by name: a version that gives a field another meaning gives it another name. What
//! both sides have is carried over, what only one side has is left out or zero.

use std::{collections::BTreeMap, ops::Range};

mod btf;

use btf::Types;

/// Why elements cannot be carried from one layout to another.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum FormatError {
    /// The type information is not as the kernel's documentation of BTF says.
    #[error("type information: {0}")]
    Malformed(&'static str),
    /// A field without which an element means nothing is not there.
    #[error("field {field} is missing")]
    Missing {
        /// Its name, with those of the structures it is in.
        field: String,
    },
    /// A field has another size than ours.
    #[error("field {field} has {theirs} bytes, not {ours}")]
    Size {
        /// Its name; empty for an element that is no structure.
        field: String,
        /// Bytes there.
        theirs: usize,
        /// Bytes here.
        ours: usize,
    },
}

/// The size of a type and the places of its fields. Those of structures inside are named
/// `outer.inner`; what is no structure is one field without a name.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Shape {
    size: usize,
    fields: BTreeMap<String, Range<usize>>,
}

impl Shape {
    /// Reads a type of the type information (BTF, little-endian as all of ours).
    ///
    /// # Errors
    ///
    /// If the information is malformed, or the type is none that stands in a map.
    pub fn read(btf: &[u8], id: u32) -> Result<Self, FormatError> {
        let types = Types::parse(btf)?;
        let mut shape = Self {
            size: types.size(id, 0)?,
            fields: BTreeMap::new(),
        };
        types.fields(id, &mut String::new(), 0, 0, &mut shape.fields)?;
        Ok(shape)
    }

    /// Where a field lies.
    ///
    /// # Errors
    ///
    /// If there is none of this name.
    pub fn field(&self, name: &str) -> Result<Range<usize>, FormatError> {
        let missing = || FormatError::Missing {
            field: name.to_owned(),
        };
        self.fields.get(name).cloned().ok_or_else(missing)
    }

    /// Whether a field of this name, or fields of a structure of this name, are there.
    fn has(&self, name: &str) -> bool {
        let inside = |field: &String| {
            let rest = field.strip_prefix(name);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        self.fields.keys().any(inside)
    }
}

/// What to copy from an element of one layout to an element of another.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Conversion {
    from_size: usize,
    to_size: usize,
    copies: Vec<(Range<usize>, Range<usize>)>,
}

impl Conversion {
    /// Between two shapes by the names of their fields.
    ///
    /// # Errors
    ///
    /// If a field has another size there than here.
    pub fn between(theirs: &Shape, ours: &Shape) -> Result<Self, FormatError> {
        let mut copies = Vec::new();
        for (name, to) in &ours.fields {
            let Some(from) = theirs.fields.get(name) else {
                continue;
            };
            if from.len() != to.len() {
                return Err(FormatError::Size {
                    field: name.clone(),
                    theirs: from.len(),
                    ours: to.len(),
                });
            }
            copies.push((from.clone(), to.clone()));
        }
        Ok(Self {
            from_size: theirs.size,
            to_size: ours.size,
            copies,
        })
    }

    /// As [`Self::between`], for keys: without one of its fields a key is another's.
    ///
    /// # Errors
    ///
    /// If a field of one side is missing on the other or has another size.
    pub fn of_keys(theirs: &Shape, ours: &Shape) -> Result<Self, FormatError> {
        let names = || ours.fields.keys().chain(theirs.fields.keys());
        let both =
            |name: &&String| theirs.fields.contains_key(*name) && ours.fields.contains_key(*name);
        if let Some(field) = names().find(|name| !both(name)) {
            return Err(FormatError::Missing {
                field: field.clone(),
            });
        }
        Self::between(theirs, ours)
    }

    /// As [`Self::between`], where some fields must be there.
    ///
    /// # Errors
    ///
    /// If one of `required` is missing there, or a field has another size.
    pub fn with(theirs: &Shape, ours: &Shape, required: &[&str]) -> Result<Self, FormatError> {
        if let Some(field) = required.iter().find(|name| !theirs.has(name)) {
            return Err(FormatError::Missing {
                field: (*field).to_owned(),
            });
        }
        Self::between(theirs, ours)
    }

    /// Bytes of an element there.
    pub const fn from_size(&self) -> usize {
        self.from_size
    }

    /// Bytes of an element here.
    pub const fn to_size(&self) -> usize {
        self.to_size
    }

    /// Appends our form of one of their elements. What they do not have is zero.
    pub fn append(&self, theirs: &[u8], ours: &mut Vec<u8>) {
        let start = ours.len();
        ours.resize(start + self.to_size, 0);
        for (from, to) in &self.copies {
            let to = start + to.start..start + to.end;
            if let (Some(from), Some(to)) = (theirs.get(from.clone()), ours.get_mut(to)) {
                to.copy_from_slice(from);
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::{btf::kind, *};

    /// Type information made by hand, type by type.
    #[derive(Default)]
    pub(crate) struct Btf {
        types: Vec<u32>,
        strings: Vec<u8>,
        count: u32,
    }

    impl Btf {
        pub(crate) fn new() -> Self {
            Self {
                strings: vec![0],
                ..Self::default()
            }
        }

        fn name(&mut self, name: &str) -> u32 {
            let at = u32::try_from(self.strings.len()).expect("few names");
            self.strings.extend(name.bytes().chain([0]));
            at
        }

        fn add(&mut self, words: &[u32]) -> u32 {
            self.types.extend(words);
            self.count += 1;
            self.count
        }

        pub(crate) fn int(&mut self, bytes: u32) -> u32 {
            let name = self.name("number");
            self.add(&[name, kind::INT << 24, bytes, bytes * 8])
        }

        pub(crate) fn array(&mut self, element: u32, count: u32) -> u32 {
            self.add(&[0, kind::ARRAY << 24, 0, element, element, count])
        }

        /// Fields: name, type, offset in bytes.
        pub(crate) fn structure(&mut self, size: u32, fields: &[(&str, u32, u32)]) -> u32 {
            let count = u32::try_from(fields.len()).expect("few fields");
            let mut words = vec![self.name("Structure"), kind::STRUCT << 24 | count, size];
            for (name, id, offset) in fields {
                words.extend([self.name(name), *id, offset * 8]);
            }
            self.add(&words)
        }

        pub(crate) fn bytes(&self) -> Vec<u8> {
            let length = u32::try_from(self.types.len() * 4).expect("short");
            let strings = u32::try_from(self.strings.len()).expect("short");
            let header = [0x0001_eb9f, 24, 0, length, length, strings];
            let words = header.iter().chain(&self.types);
            let mut bytes: Vec<u8> = words.flat_map(|word| word.to_le_bytes()).collect();
            bytes.extend(&self.strings);
            bytes
        }
    }

    /// A structure of `fields` (name, bytes), one after the other.
    fn shape(fields: &[(&str, u32)]) -> Shape {
        let mut btf = Btf::new();
        let mut offset = 0;
        let mut placed = Vec::new();
        for (name, bytes) in fields {
            placed.push((*name, btf.int(*bytes), offset));
            offset += bytes;
        }
        let id = btf.structure(offset, &placed);
        Shape::read(&btf.bytes(), id).expect("a shape")
    }

    #[test]
    fn structures_are_taken_apart_and_arrays_are_not() {
        let mut btf = Btf::new();
        let word = btf.int(4);
        let port = btf.int(2);
        let words = btf.array(word, 4);
        let address = btf.structure(16, &[("__0", words, 0)]);
        let key = btf.structure(20, &[("address", address, 0), ("port", port, 16)]);
        // A number as value, and an enumeration in between, which no element has.
        btf.add(&[0, 6 << 24 | 1, 4, 0, 7]);
        let last = btf.int(8);
        let bytes = btf.bytes();
        let shape = Shape::read(&bytes, key).expect("a shape");
        assert_eq!(shape.size, 20);
        assert_eq!(shape.field("address.__0"), Ok(0..16));
        assert_eq!(shape.field("port"), Ok(16..18));
        assert!(shape.has("address") && !shape.has("addr"));
        let number = Shape::read(&bytes, last).expect("a shape");
        assert_eq!((number.size, number.field("")), (8, Ok(0..8)));
    }

    #[test]
    fn fields_are_carried_by_name() {
        let theirs = shape(&[("a", 2), ("gone", 2), ("b", 4)]);
        let element = [1, 2, 9, 9, 3, 4, 5, 6];
        for (name, ours, expected) in [
            (
                "the same",
                shape(&[("a", 2), ("gone", 2), ("b", 4)]),
                Ok(vec![1, 2, 9, 9, 3, 4, 5, 6]),
            ),
            (
                "another order",
                shape(&[("b", 4), ("a", 2)]),
                Ok(vec![3, 4, 5, 6, 1, 2]),
            ),
            (
                "a new field is zero",
                shape(&[("a", 2), ("new", 2), ("b", 4)]),
                Ok(vec![1, 2, 0, 0, 3, 4, 5, 6]),
            ),
            (
                "another size",
                shape(&[("a", 2), ("b", 8)]),
                Err(FormatError::Size {
                    field: "b".to_owned(),
                    theirs: 4,
                    ours: 8,
                }),
            ),
        ] {
            let found = Conversion::between(&theirs, &ours).map(|conversion| {
                let mut out = vec![7];
                conversion.append(&element, &mut out);
                assert_eq!(out.remove(0), 7, "{name}: what was there stays");
                assert_eq!(out.len(), conversion.to_size(), "{name}");
                out
            });
            assert_eq!(found, expected, "{name}");
        }
    }

    #[test]
    fn what_an_element_cannot_do_without_is_named() {
        let theirs = shape(&[("a", 2), ("b", 4)]);
        let ours = shape(&[("a", 2), ("c", 2)]);
        let missing = |field: &str| {
            Err(FormatError::Missing {
                field: field.to_owned(),
            })
        };
        assert_eq!(Conversion::of_keys(&theirs, &ours), missing("c"));
        assert_eq!(
            Conversion::of_keys(&theirs, &shape(&[("a", 2)])),
            missing("b")
        );
        assert!(Conversion::of_keys(&theirs, &shape(&[("b", 4), ("a", 2)])).is_ok());
        assert_eq!(Conversion::with(&theirs, &ours, &["a", "c"]), missing("c"));
        assert!(Conversion::with(&theirs, &ours, &["a"]).is_ok());
    }

    #[test]
    fn malformed_type_information_is_an_error() {
        let mut btf = Btf::new();
        let number = btf.int(4);
        let id = btf.structure(4, &[("a", number, 0)]);
        // A structure inside itself.
        let own = id + 1;
        btf.structure(4, &[("a", own, 0)]);
        let whole = btf.bytes();
        assert!(Shape::read(&whole, id).is_ok());
        assert!(Shape::read(&whole, own).is_err(), "inside itself");
        assert!(Shape::read(&whole, 99).is_err(), "no such type");
        assert!(Shape::read(&whole, 0).is_err(), "void");
        for length in 0..whole.len() {
            let part = whole.get(..length).expect("a part");
            assert!(Shape::read(part, id).is_err(), "{length} bytes");
        }
        let mut other = whole.clone();
        other.swap(0, 1);
        assert!(Shape::read(&other, id).is_err(), "another byte order");
    }
}
