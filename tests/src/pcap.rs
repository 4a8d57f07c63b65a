//! Failed packets as pcap files, for tcpdump and Wireshark.

use std::{fs, io, path::PathBuf};

use crate::require;

/// Writes frames to `target/packets/NAME.pcap` and returns where.
///
/// # Errors
///
/// If the file cannot be written.
pub fn write(name: &str, frames: &[Vec<u8>]) -> io::Result<PathBuf> {
    let directory = require::target_directory().join("packets");
    fs::create_dir_all(&directory)?;
    let safe: String = name
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .collect();
    let path = directory.join(format!("{safe}.pcap"));
    fs::write(&path, encode(frames))?;
    Ok(path)
}

/// The file format of libpcap, little endian, link type 1 (Ethernet), all at time zero.
fn encode(frames: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(0xa1b2_c3d4_u32.to_le_bytes());
    bytes.extend([2_u16, 4].into_iter().flat_map(u16::to_le_bytes));
    bytes.extend([0_u32, 0, 65_535, 1].into_iter().flat_map(u32::to_le_bytes));
    for frame in frames {
        let length = u32::try_from(frame.len()).expect("a short frame");
        bytes.extend(
            [0, 0, length, length]
                .into_iter()
                .flat_map(u32::to_le_bytes),
        );
        bytes.extend(frame);
    }
    bytes
}
