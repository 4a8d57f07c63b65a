//! Reading type information (BTF) as the kernel gives it of a map.

use std::{collections::BTreeMap, ops::Range};

use super::FormatError;

/// `BTF_KIND_*`, as far as maps of ours can have them.
pub(super) mod kind {
    pub(in super::super) const INT: u32 = 1;
    pub(in super::super) const ARRAY: u32 = 3;
    pub(in super::super) const STRUCT: u32 = 4;
}

/// How deep types may lie in one another.
const DEPTH: u32 = 8;

/// One type of the type information.
#[derive(Clone, Copy, Debug)]
struct Type<'a> {
    kind: u32,
    /// Bytes of a number or structure.
    size: usize,
    /// The words that follow.
    more: &'a [u8],
}

/// The types and their names.
#[derive(Debug)]
pub(super) struct Types<'a> {
    types: Vec<Type<'a>>,
    strings: &'a [u8],
}

impl<'a> Types<'a> {
    /// <https://docs.kernel.org/bpf/btf.html>, sections 2 and 3.
    pub(super) fn parse(btf: &'a [u8]) -> Result<Self, FormatError> {
        const MAGIC: u32 = 0xeb9f;
        let malformed = FormatError::Malformed;
        let word = |at: usize| word(btf, at).ok_or(malformed("the header ends early"));
        if word(0)? & 0xffff != MAGIC {
            return Err(malformed("not BTF of this byte order"));
        }
        let header = word(4)?;
        let section = |offset: u32, length: u32| {
            let start = header as usize + offset as usize;
            btf.get(start..start + length as usize)
                .ok_or(malformed("a section lies outside"))
        };
        let mut rest = section(word(8)?, word(12)?)?;
        let strings = section(word(16)?, word(20)?)?;
        // Type 0 is `void`.
        let mut types = vec![Type {
            kind: 0,
            size: 0,
            more: &[],
        }];
        while !rest.is_empty() {
            let (one, after) = one_type(rest).ok_or(malformed("a type ends early"))?;
            types.push(one);
            rest = after;
        }
        Ok(Self { types, strings })
    }

    fn get(&self, id: u32) -> Result<Type<'a>, FormatError> {
        let found = self.types.get(id as usize).copied();
        found.ok_or(FormatError::Malformed("no type has this id"))
    }

    /// Bytes of a type that lies in `depth` others.
    pub(super) fn size(&self, id: u32, depth: u32) -> Result<usize, FormatError> {
        let found = self.get(id)?;
        match found.kind {
            kind::INT | kind::STRUCT => Ok(found.size),
            kind::ARRAY if depth < DEPTH => {
                let ends = FormatError::Malformed("an array ends early");
                let (Some(element), Some(count)) = (word(found.more, 0), word(found.more, 8))
                else {
                    return Err(ends);
                };
                let size = self.size(element, depth + 1)?.checked_mul(count as usize);
                size.ok_or(FormatError::Malformed("an array is too large"))
            }
            _ => Err(FormatError::Malformed("a type that no map of ours has")),
        }
    }

    /// Adds the fields of a type that lies at `offset`, in structures named `path`.
    pub(super) fn fields(
        &self,
        id: u32,
        path: &mut String,
        offset: usize,
        depth: u32,
        fields: &mut BTreeMap<String, Range<usize>>,
    ) -> Result<(), FormatError> {
        let found = self.get(id)?;
        if found.kind != kind::STRUCT {
            let size = self.size(id, depth)?;
            fields.insert(path.clone(), offset..offset + size);
            return Ok(());
        }
        if depth == DEPTH {
            return Err(FormatError::Malformed("structures lie too deep"));
        }
        for member in found.more.chunks_exact(12) {
            let ends = FormatError::Malformed("a member ends early");
            let (Some(name), Some(id), Some(bits)) =
                (word(member, 0), word(member, 4), word(member, 8))
            else {
                return Err(ends);
            };
            let name = self.string(name)?;
            let length = path.len();
            if !path.is_empty() {
                path.push('.');
            }
            path.push_str(&name);
            let place = offset + bits as usize / 8;
            self.fields(id, path, place, depth + 1, fields)?;
            path.truncate(length);
        }
        Ok(())
    }

    fn string(&self, offset: u32) -> Result<String, FormatError> {
        let bytes = self.strings.get(offset as usize..);
        let bytes = bytes.and_then(|bytes| bytes.split(|byte| *byte == 0).next());
        let bytes = bytes.ok_or(FormatError::Malformed("a name lies outside"))?;
        Ok(String::from_utf8_lossy(bytes).into_owned())
    }
}

/// The first type, and what follows it.
fn one_type(bytes: &[u8]) -> Option<(Type<'_>, &[u8])> {
    let info = word(bytes, 4)?;
    let size = word(bytes, 8)? as usize;
    let kind = info >> 24 & 0x1f;
    let members = (info & 0xffff) as usize;
    // Bytes after the common part: INT, ARRAY, then by the number of members.
    let more = match kind {
        1 | 14 | 17 => 4,
        3 => 12,
        4 | 5 | 15 | 19 => 12 * members,
        6 | 13 => 8 * members,
        _ => 0,
    };
    let rest = bytes.get(12..)?;
    let found = Type {
        kind,
        size,
        more: rest.get(..more)?,
    };
    Some((found, rest.get(more..)?))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at + 4)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}
