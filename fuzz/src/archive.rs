//! Tar archives.

/// Bytes of a header, and of what contents are padded to.
pub const BLOCK: usize = 512;

/// Writes the checksum (bytes 148 to 156) of a header.
pub fn seal(header: &mut [u8]) {
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}
