//! What the task needs to know about an ELF object: its sections and symbols.
//!
//! Only 64-bit little-endian files, which `bpfel-unknown-none` always is.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};

/// Names found in an object file.
#[derive(Debug, Default, Eq, PartialEq)]
pub(crate) struct Names {
    /// Names of all sections.
    pub(crate) sections: BTreeSet<String>,
    /// Names of all symbols, mangled.
    pub(crate) symbols: BTreeSet<String>,
}

const SECTION_HEADER: usize = 64;
const SYMBOL: usize = 24;
const SHT_SYMTAB: u32 = 2;

struct Section {
    name: u32,
    kind: u32,
    offset: usize,
    size: usize,
    link: usize,
}

/// Reads the names in an ELF file.
///
/// # Errors
/// The bytes are not a 64-bit little-endian ELF file, or an offset in it leads outside.
pub(crate) fn names(file: &[u8]) -> Result<Names> {
    ensure!(
        file.starts_with(b"\x7fELF\x02\x01"),
        "not a 64-bit little-endian ELF file"
    );
    let table = number(file, 0x28, 8)?;
    let count = number(file, 0x3c, 2)?;
    let name_section = number(file, 0x3e, 2)?;
    let sections = (0..count)
        .map(|index| section(file, table + index * SECTION_HEADER))
        .collect::<Result<Vec<_>>>()?;
    let at = |index: usize| sections.get(index).context("a section index is too large");

    let mut names = Names::default();
    let section_names = at(name_section)?;
    for section in &sections {
        let name = string(file, section_names, section.name)?;
        names.sections.insert(name);
        if section.kind == SHT_SYMTAB {
            let strings = at(section.link)?;
            for symbol in 0..section.size / SYMBOL {
                let name = number(file, section.offset + symbol * SYMBOL, 4)?;
                names
                    .symbols
                    .insert(string(file, strings, u32::try_from(name)?)?);
            }
        }
    }
    Ok(names)
}

fn section(file: &[u8], at: usize) -> Result<Section> {
    Ok(Section {
        name: u32::try_from(number(file, at, 4)?)?,
        kind: u32::try_from(number(file, at + 4, 4)?)?,
        offset: number(file, at + 24, 8)?,
        size: number(file, at + 32, 8)?,
        link: number(file, at + 40, 4)?,
    })
}

/// The little-endian number in `width` bytes at `at`.
fn number(file: &[u8], at: usize, width: usize) -> Result<usize> {
    let bytes = at
        .checked_add(width)
        .and_then(|end| file.get(at..end))
        .with_context(|| format!("the file ends before offset {at}"))?;
    let value = bytes
        .iter()
        .rev()
        .fold(0_u64, |value, byte| value << 8 | u64::from(*byte));
    Ok(usize::try_from(value)?)
}

fn string(file: &[u8], table: &Section, offset: u32) -> Result<String> {
    let start = table.offset + usize::try_from(offset)?;
    let bytes = file.get(start..).context("a name lies outside the file")?;
    let name = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    Ok(String::from_utf8_lossy(name).into_owned())
}

#[cfg(test)]
mod tests {
    use super::names;

    #[test]
    fn own_binary_has_text_and_this_test() {
        let file = std::fs::read(std::env::current_exe().expect("own path")).expect("own file");
        let names = names(&file).expect("own names");
        assert!(names.sections.contains(".text"));
        assert!(names.symbols.iter().any(|name| name.contains("own_binary")));
    }

    #[test]
    fn broken_files_are_errors() {
        let file = std::fs::read(std::env::current_exe().expect("own path")).expect("own file");
        for length in [0, 4, 63, 64, 4096] {
            let part = file.get(..length).expect("a longer file");
            assert!(names(part).is_err(), "first {length} bytes");
        }
    }
}
