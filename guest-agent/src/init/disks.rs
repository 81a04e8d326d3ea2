//! The disks that the host gave the guest for msb's own use.

use std::fs;
use std::path::{Path, PathBuf};

/// Where the kernel lists its disks.
const BLOCKS: &str = "/sys/block";

/// The device whose serial number says what it is for.
pub(crate) fn find(serial: &str) -> Option<PathBuf> {
    find_in(Path::new(BLOCKS), serial)
}

fn find_in(blocks: &Path, serial: &str) -> Option<PathBuf> {
    fs::read_dir(blocks).ok()?.flatten().find_map(|block| {
        let found = fs::read(block.path().join("serial")).ok()?;
        (found.trim_ascii_end() == serial.as_bytes()).then(|| Path::new("/dev").join(block.file_name()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_found_by_its_serial_number_alone() {
        let blocks = tempfile::tempdir().unwrap();
        for (name, serial) in [
            ("vda", ""),
            ("vdb", "msb-tools-not"),
            ("vdc", "msb-tools\n"),
            ("loop0", "x"),
        ] {
            fs::create_dir(blocks.path().join(name)).unwrap();
            fs::write(blocks.path().join(name).join("serial"), serial).unwrap();
        }
        assert_eq!(find_in(blocks.path(), "msb-tools"), Some("/dev/vdc".into()));
        fs::remove_dir_all(blocks.path().join("vdc")).unwrap();
        assert_eq!(find_in(blocks.path(), "msb-tools"), None);
    }
}
